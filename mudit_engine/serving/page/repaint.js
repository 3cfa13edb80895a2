// A part of the song that plays, made anew: its span is drawn over the picture of the sound or
// typed, and handed on with the words that change.
const $ = (id) => document.getElementById(id);
const PICTURES = ["wave", "spectrum"], NEAR = 4; // pixels that a click may move

// `length()`: seconds of the song that plays; `seek(seconds)`: where a click leads.
export function repainting({ length, seek }) {
  let job = null, from = null;

  function span() {
    const [start, end] = ["repaint-from", "repaint-to"].map((id) => parseFloat($(id).value));
    return start >= 0 && end > start && end <= length() + 0.05 ? [start, end] : null;
  }

  function draw() {
    const found = $("repaint-box").open && !$("repaint-box").hidden ? span() : null;
    $("span").hidden = !found;
    if (!found) return;
    $("span").style.left = `${100 * found[0] / length()}%`;
    $("span").style.width = `${100 * (found[1] - found[0]) / length()}%`;
  }

  for (const id of PICTURES) {
    const at = (event) => {
      const box = $(id).getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * length();
    };
    $(id).onpointerdown = (event) => {
      from = { x: event.clientX, second: at(event), moved: false };
      $(id).setPointerCapture(event.pointerId);
    };
    $(id).onpointermove = (event) => {
      if (!from || !$("repaint-box").open || $("repaint-box").hidden) return;
      from.moved ||= Math.abs(event.clientX - from.x) > NEAR;
      if (!from.moved) return;
      const ends = [from.second, at(event)].sort((a, b) => a - b);
      ["repaint-from", "repaint-to"].forEach((name, i) => { $(name).value = ends[i].toFixed(1); });
      draw();
    };
    $(id).onpointerup = (event) => {
      if (from && !from.moved && length()) seek(at(event));
      from = null;
    };
    $(id).onpointercancel = () => { from = null; };
  }
  for (const id of ["repaint-from", "repaint-to"]) $(id).oninput = draw;
  $("repaint-box").ontoggle = draw;

  return {
    // The song that plays now; `can`: whether the model changes songs.
    show(song, can) {
      job = song;
      $("repaint-box").hidden = !can;
      $("repaint-from").value = $("repaint-to").value = "";
      $("repaint-description").value = song.request.description ?? "";
      $("repaint-lyrics").value = song.request.lyrics ?? "";
      draw();
    },
    // The fields of the new song; null for a span that is none.
    fields() {
      const found = span();
      if (!found) return null;
      const given = { edit: job.id, repaint: found.join("-") };
      const description = $("repaint-description").value.trim(), lyrics = $("repaint-lyrics").value;
      if (description && description !== (job.request.description ?? "")) given.description = description;
      if (lyrics.trim() !== (job.request.lyrics ?? "").trim()) given.lyrics = lyrics;
      if (job.request.lora) given.lora = job.request.lora;
      if (job.request.sampler?.steps) given.steps = job.request.sampler.steps;
      return given;
    },
  };
}
