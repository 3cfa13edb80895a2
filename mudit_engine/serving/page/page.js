// The page: asks what was understood while somebody types, hands the song in, follows it, plays it.
import { IDEAS, TAGS, say } from "/page/words.js";
import { drawSpectrum, drawWave } from "/page/sound.js";
import { repainting } from "/page/repaint.js";

const $ = (id) => document.getElementById(id);
const state = {
  language: localStorage.language || (navigator.language.startsWith("zh") ? "zh" : "en"),
  theme: localStorage.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"),
  chosen: {}, understood: null, job: null, playing: null, lines: [], edits: false, seed: draw(),
};
const t = (name, ...values) => say(state.language, name, ...values);

// What nobody named is drawn by the seed: the song that is made is the one that was understood.
function draw() { return Math.floor(Math.random() * 2 ** 31); }

// Words and colours

function speak() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  for (const one of document.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t);
  for (const one of document.querySelectorAll("[data-tt]")) { one.title = t(one.dataset.tt); one.setAttribute("aria-label", t(one.dataset.tt)); }
  $("language").textContent = t("lang");
  $("description").placeholder = t("description_example");
  $("lyrics").placeholder = t("lyrics_example");
  $("seconds").placeholder = t("seconds_auto");
  $("seed").placeholder = t("seed_auto");
  $("ideas").setAttribute("aria-label", t("ideas"));
  $("tags").setAttribute("aria-label", t("sections"));
  fill($("ideas"), IDEAS[state.language].map((text) => chip(text, () => add($("description"), text, state.language === "zh" ? "，" : ", "))));
  fill($("tags"), TAGS.map((tag) => chip(`[${tag}]`, () => insertTag(tag))));
  if (state.understood) showUnderstood(state.understood);
}

function paint() { document.documentElement.dataset.theme = state.theme; }

$("language").onclick = () => { state.language = localStorage.language = state.language === "zh" ? "en" : "zh"; speak(); history(); };
$("theme").onclick = () => { state.theme = localStorage.theme = state.theme === "dark" ? "light" : "dark"; paint(); if (state.playing) picture(); };

// Small pieces

function fill(parent, children) { parent.replaceChildren(...children); }
function make(name, options = {}, ...children) {
  const one = Object.assign(document.createElement(name), options);
  one.append(...children);
  return one;
}
function chip(text, work) { return make("button", { type: "button", className: "chip", textContent: text, onclick: work }); }
function add(field, text, between) {
  field.value = field.value.trim() ? `${field.value.trim()}${between}${text}` : text;
  field.focus();
  understandSoon();
}
function insertTag(tag) {
  const field = $("lyrics"), at = field.selectionStart;
  const before = field.value.slice(0, at), after = field.value.slice(field.selectionEnd);
  const text = `${before && !before.endsWith("\n") ? "\n" : ""}[${tag}]\n`;
  field.value = before + text + after;
  field.selectionStart = field.selectionEnd = at + text.length;
  field.focus();
  understandSoon();
}

// The service

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  const key = $("apikey").value || localStorage.apikey;
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try { answer = await fetch(path, { ...options, headers }); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(t("unreachable"));
  }
  if (answer.ok) { if ($("apikey").value) localStorage.apikey = $("apikey").value; return answer; }
  let told = `${answer.status}`;
  try { told = (await answer.json()).error.message; } catch { /* the status says it */ }
  if (answer.status === 401) {
    document.querySelector(".key").hidden = false;
    told = localStorage.apikey || $("apikey").value ? t("wrong_key") : t("wants_key");
    delete localStorage.apikey;
  }
  throw new Error(told);
}

function complain(message) { $("error").textContent = message; $("error").hidden = !message; }

function fields() {
  const found = { ...state.chosen };
  if ($("description").value.trim()) found.description = $("description").value.trim();
  if ($("lyrics").value.trim()) found.lyrics = $("lyrics").value;
  for (const name of ["seconds", "seed", "steps"]) if ($(name).value) found[name] = Number($(name).value);
  if ($("user_type").value !== "none") found.user_type = $("user_type").value;
  return found;
}

// What was understood

let waiting, understanding;
function understandSoon() { clearTimeout(waiting); waiting = setTimeout(understand, 250); }

async function understand() {
  const body = { seed: state.seed, ...fields() };
  understanding?.abort();
  if (!body.description && !body.lyrics) { showUnderstood(null); return; }
  understanding = new AbortController();
  try {
    const answer = await ask("/v1/understand", {
      ...json(body), signal: understanding.signal,
    });
    complain("");
    showUnderstood(await answer.json());
  } catch (error) { if (error.name !== "AbortError") complain(error.message); }
}

function showUnderstood(found) {
  state.understood = found;
  $("understood").hidden = $("readings-box").hidden = $("budget").hidden = true;
  fill($("notes"), (found?.notes || []).map((text) => make("li", { textContent: text })));
  if (!found) return;
  const chips = [valueChip("length", `${found.seconds.toFixed(0)} s`, "seconds")];
  if (found.outline) {
    chips.push(valueChip("tempo", found.bpm === null ? "–" : `${found.bpm} BPM`, "bpm"), valueChip("key", found.key || "–", "key"));
    chips.push(valueChip("chords", found.chords || "–", "chords"));
  }
  chips.push(...found.tags.map((text) => make("span", { className: "chip" }, make("b", { textContent: t("tag") }), text)));
  fill($("chips"), chips);
  $("understood").hidden = false;
  if (found.budget && found.budget.syllables) {
    const share = Math.min(1, found.budget.suggested_seconds / found.seconds);
    const bar = document.querySelector(".bar");
    bar.classList.toggle("over", !found.budget.fits);
    bar.setAttribute("aria-valuenow", Math.round(100 * share));
    bar.firstElementChild.style.width = `${100 * share}%`;
    const name = found.budget.fits ? "budget" : "budget_over";
    $("budget-words").textContent = t(name, found.budget.syllables, found.budget.rate, found.budget.suggested_seconds);
    $("budget").hidden = false;
  }
  const lines = found.sections.flatMap((section) => [
    make("p", { className: "kind", textContent: `[${section.kind}]` }), ...section.lines.map(readingLine)]);
  fill($("readings"), lines);
  $("readings-box").hidden = !found.sections.some((section) => section.lines.some((line) => line.syllables.some((one) => one.reading)));
}

function valueChip(name, text, field) {
  const one = chip("", () => edit(one, name, field));
  one.append(make("b", { textContent: t(name) }), text);
  one.dataset.field = field;
  one.classList.toggle("set", field in state.chosen || (field === "seconds" && Boolean($("seconds").value)));
  return one;
}

function edit(one, name, field) {
  const now = field === "seconds" ? $("seconds").value : state.chosen[field] ?? "";
  const input = make("input", { value: now, ariaLabel: t("edit", t(name)), title: t("edit", t(name)) });
  if (field === "bpm" || field === "seconds") input.type = "number";
  const box = make("span", { className: "chip" }, make("b", { textContent: t(name) }), input);
  one.replaceWith(box);
  input.focus();
  let done = false;
  const finish = (keep) => {
    if (done) return;
    done = true;
    if (keep) {
      const value = input.value.trim();
      if (field === "seconds") $("seconds").value = value;
      else if (!value) delete state.chosen[field];
      else state.chosen[field] = field === "bpm" ? Number(value) : value;
      understand();
    } else showUnderstood(state.understood);
  };
  input.onkeydown = (event) => {
    if (event.key === "Enter") { event.preventDefault(); finish(true); }
    if (event.key === "Escape") finish(false);
  };
  input.onblur = () => finish(true);
}

function readingLine(line) {
  return make("p", {}, ...line.syllables.map((one) => {
    if (!one.reading) return document.createTextNode(one.text);
    const ruby = make("ruby", { className: `${one.others.length ? "many" : ""} ${one.corrected ? "fixed" : ""}` }, one.text, make("rt", { textContent: marked(one.reading) }));
    if (one.others.length) {
      ruby.tabIndex = 0;
      ruby.setAttribute("role", "button");
      ruby.setAttribute("aria-label", `${one.text} ${marked(one.reading)}`);
      const open = () => chooseReading(line, one);
      ruby.onclick = open;
      ruby.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } };
    }
    return ruby;
  }));
}

function chooseReading(line, one) {
  $("chooser-title").textContent = `${t("choose")} ${one.text}`;
  fill($("chooser-options"), [one.reading, ...one.others].map((reading) => {
    const option = chip(marked(reading), () => { $("chooser").close(); correct(line, one, reading); });
    option.classList.toggle("set", reading === one.reading);
    return option;
  }));
  $("chooser").showModal();
}

// A reading is written into the lyrics, in braces behind its character.
function correct(line, one, reading) {
  const rows = $("lyrics").value.split("\n"), row = rows[line.number - 1];
  const start = row.indexOf(sourceOf(line, row));
  const end = start + one.end, rest = row.slice(end);
  rows[line.number - 1] = `${row.slice(0, start + one.at + one.text.length)}{${reading}}${rest}`;
  $("lyrics").value = rows.join("\n");
  understand();
}

// Where a line of words begins in its row: behind tags and spaces.
function sourceOf(line, row) {
  const first = line.syllables[0]?.text ?? "";
  return row.slice(Math.max(0, row.indexOf(first)));
}

const MARKS = { a: "āáǎà", e: "ēéěè", i: "īíǐì", o: "ōóǒò", u: "ūúǔù", "ü": "ǖǘǚǜ" };
function marked(reading) {
  const match = /^([a-zü:]+?)([1-5])$/.exec(reading.replace("v", "ü"));
  if (!match || match[2] === "5") return match ? match[1] : reading;
  const [, letters, tone] = match;
  const at = letters.search(/[ae]/) >= 0 ? letters.search(/[ae]/) : letters.includes("ou") ? letters.indexOf("o") : Math.max(...[..."iouü"].map((v) => letters.lastIndexOf(v)));
  return at < 0 ? letters : letters.slice(0, at) + MARKS[letters[at]][tone - 1] + letters.slice(at + 1);
}

// Making a song

async function submit(event) {
  event?.preventDefault();
  const given = { seed: state.seed, ...fields() };
  const file = $("reference").files[0];
  let options;
  if (file) {
    const form = new FormData();
    for (const [name, value] of Object.entries({ ...given, reference_kind: $("reference_kind").value })) form.append(name, String(value));
    form.append("reference", file);
    options = { method: "POST", body: form };
  } else options = json(given);
  state.seed = draw();
  if (await hand(options)) understand();
}

function json(fields) { return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) }; }

// Hands a song in and follows it to its end; whether it was made.
async function hand(options) {
  complain("");
  busy(true);
  try { return await follow(await (await ask("/v1/songs", options)).json()); } catch (error) { complain(error.message); return false; } finally { busy(false); }
}

function busy(now) { $("make").disabled = $("repaint").disabled = now; }

async function follow(job) {
  state.job = job.id;
  $("progress").hidden = false;
  $("stop").hidden = false;
  history();
  show(job);
  try {
    const answer = await ask(`/v1/songs/${job.id}/events`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "", ended = null;
    while (!ended) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const name = /^event: (.*)$/m.exec(part)?.[1], data = /^data: (.*)$/m.exec(part)?.[1];
        if (!data) continue;
        const news = JSON.parse(data);
        if (name === "progress") show(news);
        if (name === "preview") $("state").textContent = t("decoding", news.seconds.toFixed(1));
        if (name === "end") ended = news;
      }
    }
    const last = ended ?? await (await ask(`/v1/songs/${job.id}`)).json();
    show(last);
    if (last.status === "completed") await play(last);
    else if (last.error) complain(last.error);
    return last.status === "completed";
  } finally {
    $("stop").hidden = true;
    $("progress").hidden = true;
    state.job = null;
    history();
  }
}

function show(job) {
  $("bar").value = job.progress;
  const left = Math.max(1, Math.round(job.estimated_seconds ?? 0));
  const stage = job.status === "queued" || job.status === "in_progress" ? job.stage ?? job.status : job.status;
  const words = { queued: () => t("queued", left), reading: () => t("reading"), waiting: () => (job.position ? t("position", job.position, left) : t("waiting")),
    denoising: () => t("denoising", job.step, job.steps, left), decoding: () => t("decoding", (job.preview_seconds ?? 0).toFixed(1)) };
  $("state").textContent = (words[stage] ?? (() => t(stage)))();
}

$("form").onsubmit = submit;
$("stop").onclick = () => state.job && ask(`/v1/songs/${state.job}`, { method: "DELETE" }).catch((error) => complain(error.message));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("make").disabled) submit();
});
for (const name of ["description", "lyrics", "seconds", "steps"]) $(name).addEventListener("input", understandSoon);

// Playing

async function play(job) {
  $("player").hidden = false;
  const address = `/v1/songs/${job.id}/content`;
  const data = await (await ask(`${address}?format=wav`)).arrayBuffer();
  if ($("audio").src.startsWith("blob:")) URL.revokeObjectURL($("audio").src);
  $("audio").src = URL.createObjectURL(new Blob([data], { type: "audio/wav" }));
  state.playing = { job, samples: wave(data), rate: new DataView(data).getUint32(24, true) };
  for (const [id, end] of [["download", "content?format=wav"], ["mp3", "content?format=mp3"], ["flac", "content?format=flac"], ["sidecar", "sidecar"]]) {
    const name = `${job.id}.${{ mp3: "mp3", flac: "flac", sidecar: "json" }[id] ?? "wav"}`;
    Object.assign($(id), { href: `/v1/songs/${job.id}/${end}`, download: name, onclick: (event) => save(event, $(id)) });
  }
  picture();
  repaint.show(job, state.edits);
  const shown = await lines(job);
  state.lines = [];
  fill($("sung"), (shown?.sections ?? []).flatMap((section) => [
    make("li", { className: "kind", textContent: `[${section.kind}]` }),
    ...section.lines.map((line) => {
      const row = make("li", {}, make("button", { type: "button", textContent: line.text, onclick: () => { if (line.start !== null) $("audio").currentTime = line.start; } }));
      state.lines.push({ row, start: line.start, end: line.end });
      return row;
    })]));
  $("audio").play().catch(() => { /* a browser may want a click first */ });
  $("player").scrollIntoView({ block: "nearest" });
}

// A link alone would bring no key.
async function save(event, link) {
  if (link.href.startsWith("blob:")) return;
  event.preventDefault();
  try {
    const address = URL.createObjectURL(await (await ask(link.href)).blob());
    make("a", { href: address, download: link.download }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } catch (error) { complain(error.message); }
}

async function lines(job) {
  try { return await (await ask(`/v1/songs/${job.id}/understood`)).json(); } catch { return null; }
}

// The first channel of 16-bit PCM.
function wave(data) {
  const channels = new DataView(data).getUint16(22, true), all = new Int16Array(data, 44, (data.byteLength - 44) >> 1);
  return Float32Array.from({ length: Math.floor(all.length / channels) }, (_, i) => all[i * channels] / 32768);
}

function picture() {
  const { samples, rate } = state.playing;
  drawWave($("wave"), samples, getComputedStyle(document.documentElement).getPropertyValue("--main"));
  drawSpectrum($("spectrum"), samples, rate);
  $("wave").setAttribute("aria-valuemax", (samples.length / rate).toFixed(1));
}

function tick() {
  const audio = $("audio"), now = audio.currentTime;
  if (state.playing) {
    const length = state.playing.samples.length / state.playing.rate;
    $("head").style.left = `${100 * Math.min(1, now / length)}%`;
    $("wave").setAttribute("aria-valuenow", now.toFixed(1));
    for (const { row, start, end } of state.lines) row.classList.toggle("now", start !== null && now >= start && now < end && now > 0);
  }
  requestAnimationFrame(tick);
}

const repaint = repainting({
  length: () => (state.playing ? state.playing.samples.length / state.playing.rate : 0),
  seek: (seconds) => { $("audio").currentTime = seconds; },
});
$("repaint").onclick = async () => {
  const given = repaint.fields();
  if (given) await hand(json(given)); else complain(t("repaint_span"));
};
$("wave").onkeydown = (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 }[event.key];
  if (move) { event.preventDefault(); $("audio").currentTime += move; }
  if (event.key === " ") { event.preventDefault(); if ($("audio").paused) $("audio").play(); else $("audio").pause(); }
};
$("again").onclick = () => state.playing && reuse(state.playing.job);

function reuse(job) {
  const request = job.request;
  $("description").value = request.description ?? "";
  $("lyrics").value = request.lyrics ?? "";
  $("seconds").value = request.seconds ?? "";
  $("seed").value = request.seed ?? "";
  $("steps").value = request.sampler?.steps ?? "";
  $("user_type").value = request.user_type ?? "none";
  state.chosen = Object.fromEntries(["bpm", "key", "chords"].filter((name) => request[name]).map((name) => [name, request[name]]));
  understand();
  $("description").focus();
}

// Songs so far

async function history() {
  let songs;
  try { songs = (await (await ask("/v1/songs?limit=20")).json()).data; } catch (error) { complain(error.message); return; }
  $("no-history").hidden = songs.length > 0;
  fill($("history"), songs.map((job) => {
    const first = (job.request.lyrics ?? "").split("\n").find((line) => line.trim() && !line.startsWith("["));
    const what = make("span", { className: "what", textContent: job.request.description || first || job.id });
    const row = make("li", {}, what, make("span", { className: "state", textContent: job.result ? `${job.result.seconds.toFixed(0)} s` : t(job.status) }));
    if (job.status === "completed") row.append(make("button", { type: "button", textContent: t("play"), onclick: () => play(job).catch((error) => complain(error.message)) }));
    row.append(make("button", { type: "button", textContent: t("remove"), onclick: async () => {
      try { await ask(`/v1/songs/${job.id}`, { method: "DELETE" }); } catch (error) { complain(error.message); }
      history();
    } }));
    return row;
  }));
}

async function start() {
  paint();
  speak();
  try {
    const [model] = (await (await ask("/v1/models")).json()).data;
    $("model").textContent = `${model.id} · ${model.runtime}`;
    $("seconds").max = model.max_seconds;
    $("steps").placeholder = model.sampler.steps;
    state.edits = model.edits;
  } catch (error) { complain(error.message); }
  await history();
  tick();
}
start();
