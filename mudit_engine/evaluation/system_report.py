"""A comparison of systems as files: a table for a paper, for a spreadsheet, and a page to look at.

    write_csv(comparison, Path("songs.csv"))
    write_latex(comparison, Path("songs.tex"))
    write_page(comparison, systems, asked, Path("songs/"))      # songs/index.html and its pictures

The page holds no script and asks nothing of the network: tables, intervals drawn as plots, and for
the first songs their players and spectrograms. Audio is linked where it lies or copied beside it.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mudit_engine.audio import load_audio
from mudit_engine.evaluation.pictures import spectrogram_page
from mudit_engine.evaluation.systems import MEASURES, Asked, Comparison, Difference, System
from mudit_engine.files import atomic_path, write_text
from mudit_engine.metrics.figures import Figure

PAGE_SONGS = 6
PAGE_SECONDS = 30.0
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
small { color: #666 } img { max-width: 100% } audio { width: 100% }
.songs td { text-align: left; vertical-align: top; min-width: 14rem }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616 }
  th, td { border-color: #444 } small { color: #999 } img { filter: brightness(.9) } }
"""


def columns(comparison: Comparison) -> list[str]:
    """Names of the figures that any row has, distances first."""
    known = {name for row in comparison.rows for name, one in row.figures.items() if _has(one)}
    distances = [name for name in comparison.rows[0].figures if name not in MEASURES]
    return [name for name in (*distances, *MEASURES) if name in known]


def _has(figure: Figure) -> bool:
    return figure.value is not None


def text_of(figure: Figure) -> str:
    """A figure with its interval: "0.84 [0.71, 0.93]"."""
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3g}"
    return f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"


def write_csv(comparison: Comparison, path: Path) -> None:
    """One line a system, user and figure: value and interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["system", "user", "songs", "figure", "value", "low", "high"])
    for row in comparison.rows:
        for name in columns(comparison):
            one = row.figures.get(name)
            if one is not None and _has(one):
                writer.writerow(
                    [row.system, row.user, row.songs, name, one.value, one.low, one.high]
                )
    write_text(path, out.getvalue())


def write_latex(comparison: Comparison, path: Path) -> None:
    """The table of all users as a LaTeX tabular; it wants the package booktabs."""
    names = columns(comparison)
    lines = [
        f"\\begin{{tabular}}{{ll{'r' * len(names)}}}",
        "\\toprule",
        " & ".join(["System", "User", *map(latex, names)]) + " \\\\",
        "\\midrule",
    ]
    for row in comparison.rows:
        cells = [latex(row.system), latex(row.user)]
        for name in names:
            one = row.figures.get(name)
            cells.append("--" if one is None or one.value is None else f"{one.value:.3g}")
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    write_text(path, "\n".join(lines) + "\n")


def latex(text: str) -> str:
    """The text with LaTeX's special characters escaped."""
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {char: f"\\{char}" for char in "&%$#_{}"}
    return "".join(special.get(char, char) for char in text)


def write_page(
    comparison: Comparison,
    systems: Sequence[System],
    asked: Mapping[str, Asked] | None,
    folder: Path,
    *,
    copy_audio: bool = False,
) -> Path:
    """Writes folder/index.html with its pictures. Returns the page.

    With copy_audio the songs that are played lie beside it, so that the folder can be moved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = _common(systems)[:PAGE_SONGS]
    parts = [
        f"<h1>{len(systems)} systems against {_e(comparison.facts['reference'])}</h1>",
        f"<p>Features: {_e(', '.join(comparison.facts['features']))}. Intervals are 95 %, from a "
        "bootstrap over songs. FAD and KAD: lower is nearer to the reference.</p>",
        *(
            f"<p>{_e(judge)}: {_e(licence)}</p>"
            for judge, licence in comparison.facts.get("judges", {}).items()
        ),
        _table(comparison),
        _plots(comparison),
        _tests(comparison.differences),
        *(
            _song(one, systems, asked, folder, number=number, copy_audio=copy_audio)
            for number, one in enumerate(shown)
        ),
    ]
    page = folder / "index.html"
    write_text(
        page,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Systems compared</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n",
    )
    return page


def _common(systems: Sequence[System]) -> list[str]:
    return [one for one in systems[0].songs if all(one in other.songs for other in systems)]


def _table(comparison: Comparison) -> str:
    names = columns(comparison)
    head = "".join(f"<th>{_e(name)}</th>" for name in ("system", "user", "songs", *names))
    rows = []
    for row in comparison.rows:
        cells = [row.system, row.user, str(row.songs)]
        found = [text_of(row.figures.get(name, Figure(None))) for name in names]
        body = "".join(f"<td>{_e(cell)}</td>" for cell in cells)
        body += "".join(f"<td>{_with_interval(one)}</td>" for one in found)
        rows.append(f"<tr>{body}</tr>")
    units = "; ".join(f"{name}: {MEASURES[name][0]}" for name in names if name in MEASURES)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table><small>{_e(units)}</small>"


def _with_interval(text: str) -> str:
    value, _, interval = text.partition(" ")
    return f"{_e(value)}<br><small>{_e(interval)}</small>" if interval else _e(value)


def _plots(comparison: Comparison) -> str:
    """Every figure with an interval, one panel each, as one picture inside the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    rows = [row for row in comparison.rows if row.user == "all"]
    names = [
        name
        for name in columns(comparison)
        if any(row.figures.get(name, Figure(None)).low is not None for row in rows)
    ]
    if not names:
        return ""
    canvas = Canvas(figsize=(10, 1.1 + 0.42 * len(rows) * -(-len(names) // 3)), dpi=110)
    FigureCanvasAgg(canvas)
    canvas.set_layout_engine("constrained")
    grid = canvas.subplots(-(-len(names) // 3), min(3, len(names)), squeeze=False).flatten()
    for axis, name in zip(grid, names, strict=False):
        for place, row in enumerate(rows):
            one = row.figures.get(name, Figure(None))
            if one.value is not None and one.low is not None and one.high is not None:
                axis.plot([one.low, one.high], [place, place], color="#2f6db3", linewidth=2)
                axis.plot([one.value], [place], "o", color="#2f6db3", markersize=5)
        axis.set_yticks(range(len(rows)), [_ascii(row.system) for row in rows], fontsize=8)
        axis.set_title(name, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.invert_yaxis()
    for axis in grid[len(names) :]:
        axis.axis("off")
    out = io.BytesIO()
    canvas.savefig(out, format="png")
    data = base64.b64encode(out.getvalue()).decode()
    return (
        '<h2>Figures and their intervals</h2><img alt="figures with 95 % intervals" '
        f'src="data:image/png;base64,{data}">'
    )


def _tests(differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    head = "".join(
        f"<th>{name}</th>" for name in ("systems", "measure", "songs", "difference", "p", "Holm p")
    )
    rows = "".join(
        f"<tr><td>{_e(one.a)} - {_e(one.b)}</td><td>{_e(one.measure)}</td><td>{one.songs}</td>"
        f"<td>{one.difference:+.3g}</td><td>{one.p:.3g}</td><td>{one.adjusted_p:.3g}</td></tr>"
        for one in differences
    )
    return (
        "<h2>Differences</h2><p>Paired permutation tests over songs of the same id; the last "
        f"column is adjusted for all rows (Holm).</p><table><tr>{head}</tr>{rows}</table>"
    )


def _song(
    name: str,
    systems: Sequence[System],
    asked: Mapping[str, Asked] | None,
    folder: Path,
    *,
    number: int,
    copy_audio: bool,
) -> str:
    versions = {}
    players = []
    for place, system in enumerate(systems):
        path = system.songs[name]
        audio, rate = load_audio(path)
        versions[_ascii(system.name)] = (audio[:, : round(PAGE_SECONDS * rate)], rate)
        linked = Path(os.path.relpath(path.resolve(), folder.resolve()))
        if copy_audio:
            linked = Path(f"{place:02d}-{path.name}")
            with atomic_path(folder / linked) as aside:
                shutil.copyfile(path, aside)
        source = html.escape(linked.as_posix().replace("%", "%25").replace("#", "%23"))
        players.append(
            f'<td>{_e(system.name)}<br><audio controls preload="none" src="{source}"></audio></td>'
        )
    picture = f"song-{number:02d}.png"
    with torch.inference_mode():
        spectrogram_page(folder / picture, [(_ascii(name), versions)])
    wish = asked[name] if asked else None
    said = f"<p>{_e(wish.description)} <small>{_e(wish.user_type)}</small></p>" if wish else ""
    return (
        f"<h2>{_e(name)}</h2>{said}<table class='songs'><tr>{''.join(players)}</tr></table>"
        f'<img alt="spectrograms of {_e(name)}" src="{picture}">'
    )


def _e(text: object) -> str:
    return html.escape(str(text))


def _ascii(text: str) -> str:
    """The plots' font has no Han characters."""
    return text.encode("ascii", "replace").decode()
