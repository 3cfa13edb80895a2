// The questionnaire: one form of SURVEY (plan.js), its answers kept in this browser until saved.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const PAIRS = SURVEY.mode === "pairs";
  const LETTERS = ["A", "B"];
  let store = true, state, current = 0, timer = 0, shownAt = 0;

  const asked = new URLSearchParams(location.search).get("form");
  const key = () => `mudit-survey-${SURVEY.id}-${asked ?? "drawn"}`;
  const keep = () => { try { localStorage.setItem(key(), JSON.stringify(state)); } catch { store = false; } };
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");
  const form = () => SURVEY.forms[state.form];
  const word = (name, values = {}) => WORDS[state.language][name].replace(/\{(\w+)\}/g, (_, v) => values[v]);
  const fail = (name, values) => { $("error").textContent = word(name, values); $("error").hidden = false; };

  function begin() {
    let kept = null;
    try { kept = JSON.parse(localStorage.getItem(key())); } catch { store = false; }
    state = kept ?? {
      listener: random(), form: 0, language: navigator.language.startsWith("zh") ? "zh" : "en",
      background: {}, answers: {}, at: 0, started: null, ended: null, sent: false,
    };
    if (!kept) {
      const wanted = asked === null ? Math.floor(Math.random() * SURVEY.forms.length) : Number(asked) - 1;
      if (!(wanted in SURVEY.forms)) { $("title").textContent = word("title"); fail("noForm", { v: asked }); return; }
      state.form = wanted;
    }
    keep();
    if (!store) fail("noStore");
    draw();
  }

  function draw() {
    document.documentElement.lang = state.language;
    document.title = word("title");
    for (const [id, name] of [["title", "title"], ["language", "other"], ["privacy", "privacy"], ["asked", "asked"], ["lyrics-title", "lyrics"],
      ["comment-title", "comment"], ["back", "back"], ["thanks", "thanks"], ["save", "save"]]) $(id).textContent = word(name);
    $("keys").textContent = word(PAIRS ? "keysPairs" : "keys");
    $("progress").value = state.started ? Math.min(1, state.at / form().length) : 0;
    $("progress").setAttribute("aria-label", word("title"));
    $("welcome").hidden = Boolean(state.started);
    $("trial").hidden = !state.started || state.at >= form().length;
    $("end").hidden = !state.started || state.at < form().length;
    if (!$("welcome").hidden) welcome();
    if (!$("trial").hidden) trial();
    if (!$("end").hidden) end();
  }

  function welcome() {
    $("intro").textContent = word(PAIRS ? "introPairs" : "intro", { n: form().length });
    $("start").textContent = word("start");
    $("background").replaceChildren(...Object.entries(WORDS[state.language].fields).map(([name, [title, options]]) => {
      const label = document.createElement("label"), select = document.createElement("select");
      label.textContent = title;
      select.name = name;
      for (const [value, text] of [["", word("choose")], ...Object.entries(options)]) select.add(new Option(text, value));
      select.value = state.background[name] ?? "";
      select.onchange = () => { state.background[name] = select.value; keep(); ready(); };
      label.append(select);
      return label;
    }));
    ready();
  }
  const ready = () => { $("start").disabled = !Object.keys(WORDS.en.fields).every((name) => state.background[name]); };

  const answer = () => (state.answers[form()[state.at].id] ??= { scores: {}, played: form()[state.at].songs.map(() => 0), spent: 0, comment: "" });
  const players = () => [...document.querySelectorAll("audio")];
  const fieldsets = () => [...document.querySelectorAll("#questions fieldset")];

  function trial() {
    const it = form()[state.at], said = answer();
    clearInterval(timer);
    $("place").textContent = word("place", { at: state.at + 1, n: form().length });
    $("check").hidden = !it.check;
    if (it.check) $("check").textContent = PAIRS ? word("checkPair", { v: LETTERS[it.check - 1] }) : word("check", { v: it.check });
    $("description").textContent = it.description || "–";
    $("lyrics-box").hidden = !it.lyrics;
    $("lyrics").textContent = it.lyrics || "";
    const before = players().map((one) => one.getAttribute("src"));
    if (before.join() !== it.songs.join()) {
      $("players").replaceChildren(...it.songs.map((source, number) => {
        const box = document.createElement("div"), audio = document.createElement("audio");
        box.className = "player";
        if (PAIRS) { const name = document.createElement("b"); name.textContent = LETTERS[number]; box.append(name); }
        Object.assign(audio, { controls: true, preload: "auto" });
        audio.setAttribute("src", source);
        audio.setAttribute("aria-label", PAIRS ? LETTERS[number] : word("title"));
        audio.onplay = () => players().forEach((other) => { if (other !== audio) other.pause(); });
        audio.onerror = () => fail("broken");
        // time that was really played: a jump in the song is none
        let last = null;
        audio.ontimeupdate = () => {
          const now = audio.currentTime;
          if (last !== null && !audio.paused && now > last && now - last < 1.5) answer().played[number] += now - last;
          last = now;
          listened();
        };
        audio.onseeking = () => { last = null; };
        box.append(audio);
        return box;
      }));
    }
    const options = PAIRS ? [["1", "A"], ["2", word("even")], ["3", "B"]] : SURVEY.scale.map((v) => [String(v), String(v)]);
    $("questions").replaceChildren(...SURVEY.questions.map((question) => {
      const set = document.createElement("fieldset"), legend = document.createElement("legend"), row = document.createElement("div");
      legend.textContent = question[state.language];
      row.className = "choices";
      if (!PAIRS) row.append(note("low"));
      for (const [value, text] of options) {
        const label = document.createElement("label"), input = document.createElement("input");
        Object.assign(input, { type: "radio", name: question.id, value, checked: String(said.scores[question.id]) === value });
        input.onchange = () => { answer().scores[question.id] = Number(value); keep(); mark(); listened(); };
        label.append(input, text);
        row.append(label);
      }
      if (!PAIRS) row.append(note("high"));
      set.append(legend, row);
      return set;
    }));
    $("comment").value = said.comment;
    $("back").disabled = state.at === 0;
    $("next").textContent = word(state.at + 1 < form().length ? "next" : "finish");
    current = 0;
    shownAt = Date.now();
    mark();
    listened();
    timer = setInterval(keep, 2000);
  }
  function note(name) { const span = document.createElement("span"); span.textContent = word(name); return span; }

  // the question that a key answers: the first without an answer, or the one chosen by the arrows
  function mark(chosen = null) {
    const sets = fieldsets(), open = SURVEY.questions.findIndex((one) => !(one.id in answer().scores));
    current = chosen ?? (open < 0 ? sets.length : open);
    sets.forEach((set, number) => set.classList.toggle("now", number === current));
  }

  function listened() {
    const it = form()[state.at];
    const missing = players().reduce((sum, audio, number) => {
      const wanted = Math.min(SURVEY.listen_seconds, 0.9 * (audio.duration || SURVEY.listen_seconds));
      return sum + Math.max(0, wanted - answer().played[number]);
    }, 0);
    const left = it.check ? 0 : Math.ceil(missing - 0.05);
    $("heard").textContent = left > 0 ? word(PAIRS ? "listenPair" : "listen", { s: left }) : word("heardEnough");
    $("next").disabled = left > 0 || !SURVEY.questions.every((one) => one.id in answer().scores);
  }

  function go(step) {
    const said = answer();
    said.spent += (Date.now() - shownAt) / 1000;
    said.comment = $("comment").value;
    players().forEach((one) => one.pause());
    state.at += step;
    if (state.at >= form().length) { clearInterval(timer); state.ended ??= new Date().toISOString(); }
    keep();
    draw();
    scrollTo(0, 0);
  }

  const answers = () => ({
    schema_version: 1, survey: SURVEY.id, form: state.form, listener: state.listener, language: state.language,
    background: state.background, started: state.started, ended: state.ended,
    answers: form().filter((it) => state.answers[it.id]).map((it) => ({ trial: it.id, ...state.answers[it.id] })),
  });

  async function end() {
    $("what-now").textContent = word(SURVEY.submit ? "whatSent" : "whatNow");
    if (state.sent) $("sent").textContent = word("sent");
    if (!SURVEY.submit || state.sent) return;
    try {
      const reply = await fetch(SURVEY.submit, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(answers()) });
      if (!reply.ok) throw new Error(String(reply.status));
      state.sent = true;
      keep();
      $("sent").textContent = word("sent");
    } catch { $("sent").textContent = word("notSent"); }
  }

  $("language").onclick = () => { state.language = state.language === "en" ? "zh" : "en"; keep(); draw(); };
  $("start").onclick = () => { state.started = new Date().toISOString(); keep(); draw(); };
  $("next").onclick = () => go(1);
  $("back").onclick = () => go(-1);
  $("comment").onchange = () => { answer().comment = $("comment").value; keep(); };
  $("save").onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(answers(), null, 1)], { type: "application/json" }));
    link.download = `answers-${state.listener}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  $("questions").onsubmit = $("background").onsubmit = (event) => event.preventDefault();
  addEventListener("pagehide", keep);

  addEventListener("keydown", (event) => {
    if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.id === "comment") return;
    const toggle = (audio) => (audio.paused ? audio.play() : audio.pause());
    const most = PAIRS ? 3 : SURVEY.scale.length, letter = event.key.toUpperCase();
    if (event.key === " " && event.target.tagName !== "BUTTON" && event.target.tagName !== "SUMMARY") {
      toggle(players().find((one) => !one.paused) ?? players()[0]);
    } else if (PAIRS && LETTERS.includes(letter)) toggle(players()[LETTERS.indexOf(letter)]);
    else if (/^[1-9]$/.test(event.key) && Number(event.key) <= most && current < SURVEY.questions.length) {
      const input = fieldsets()[current].querySelectorAll("input")[Number(event.key) - 1];
      input.checked = true;
      input.onchange();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      mark(Math.max(0, Math.min(SURVEY.questions.length - 1, current + (event.key === "ArrowDown" ? 1 : -1))));
    } else if (event.key === "Enter" && event.target.tagName !== "BUTTON" && !$("next").disabled) go(1);
    else return;
    event.preventDefault();
  });

  begin();
})();
