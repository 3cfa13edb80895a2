"""How often the ambiguous characters of lyrics are read right, by us and by others, and what our
confidence is worth.

    python -m mudit_engine.benchmarks.readings --out benchmarks/results/readings_zh.json

The development set is benchmarks/readings_zh.txt: lines and phrases with the reading of their
ambiguous characters, written down by hand from dictionaries. Its lists 2 to 6 were each read once
before a rule was changed for them; their first scores stand in the file. Others that are installed
are measured beside us: pypinyin alone, by the words of jieba or rjieba, with the large phrases of
pypinyin-dict, g2pM, and g2pW where its model is given. Exits with 4 below 97 %.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

MUST = 0.97
# (right, all) of our readings by source when lists 2 to 6 were read for the first time, one after
# the other, the rules mended in between
FIRST_READING = {"rule": (738, 770), "word": (364, 371), "usual": (249, 284)}
EDGES = (0.0, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 1.01)
Reader = Callable[[str], list[str]]


def lists() -> Iterator[tuple[str, str, dict[int, str]]]:
    """(name of the list, text, place -> answer) of every row."""
    name = "list 1"
    text = (files("mudit_engine") / "benchmarks" / "readings_zh.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("#"):
            name = line[2:8] if line.startswith("# list ") else name
            name = "traditional" if line.startswith("# 繁體") else name
            continue
        found, answers = "", {}
        for char, answer in re.findall(r"([^{}])(?:\{([^}]*)\})?", line):
            found += char
            if answer:
                answers[len(found) - 1] = answer
        if found:
            yield name, found, answers


def score(read: Reader) -> dict[str, Any]:
    """Right and all ambiguous characters, in total and by list."""
    right: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, text, answers in lists():
        said = read(text)
        for place, answer in answers.items():
            total[name] = total.get(name, 0) + 1
            right[name] = right.get(name, 0) + (len(said) > place and said[place] == answer)
    every, good = sum(total.values()), sum(right.values())
    by_list = {name: f"{right[name]}/{total[name]}" for name in total}
    return {"right": good, "characters": every, "share": round(good / every, 4), "lists": by_list}


def calibration() -> list[dict[str, Any]]:
    """How many of our readings are right, by the confidence that they come with."""
    from mudit_engine.text.mandarin import read_han

    seen: dict[int, list[bool]] = {}
    for _, text, answers in lists():
        readings = read_han(text)
        for place, answer in answers.items():
            one = readings[place]
            bin_ = max(n for n, edge in enumerate(EDGES[:-1]) if one.confidence >= edge)
            seen.setdefault(bin_, []).append(one.syllable == answer)
    return [
        {
            "confidence_from": EDGES[number],
            "to": min(EDGES[number + 1], 1.0),
            "characters": len(found),
            "right": sum(found),
            "share": round(sum(found) / len(found), 4),
        }
        for number, found in sorted(seen.items())
    ]


def readers(g2pw_model: Path | None) -> Iterator[tuple[str, Reader]]:
    """Ours and the others that are installed; the large phrases come last, since they stay."""
    from pypinyin import Style, lazy_pinyin

    from mudit_engine.availability import available
    from mudit_engine.text.mandarin import read_han

    def plain(text: str) -> list[str]:
        return lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True)

    def by_words(cut: Callable[[str], Any]) -> Reader:
        return lambda text: [said for word in cut(text) for said in plain(word)]

    yield "mudit-engine", lambda text: [str(one.syllable) for one in read_han(text)]
    yield "pypinyin", plain
    if available("jieba"):
        import jieba

        jieba.setLogLevel(60)
        yield "pypinyin, words of jieba", by_words(jieba.cut)
    if available("rjieba"):
        import rjieba

        yield "pypinyin, words of rjieba", by_words(rjieba.cut)
    if available("g2pM"):
        from g2pM import G2pM

        model = G2pM()
        yield (
            "g2pM",
            lambda text: [
                said.replace("u:", "v") for said in model(text, tone=True, char_split=True)
            ],
        )
    if g2pw_model is not None:
        from g2pw import G2PWConverter

        converter = G2PWConverter(model_dir=str(g2pw_model), style="pinyin")
        yield "g2pW", lambda text: [str(said) for said in converter(text)[0]]
    if available("pypinyin_dict"):
        from pypinyin_dict.phrase_pinyin_data import large_pinyin

        large_pinyin.load()
        yield "pypinyin, large phrases of pypinyin-dict", plain


@click.command(help=__doc__)
@click.option("--g2pw-model", type=click.Path(path_type=Path), help="Folder of g2pW's model.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document here too.")
def main(g2pw_model: Path | None, out: Path | None) -> None:
    from mudit_engine.files import write_json
    from mudit_engine.hardware import environment

    calibrated = calibration()  # before a method loads phrases that stay
    methods = {name: score(read) for name, read in readers(g2pw_model)}
    results = {
        "methods": methods,
        "calibration": calibrated,
        "first_reading": FIRST_READING,
        "gate": MUST,
    }
    document = {"schema_version": 1, "env": environment(), "results": results}
    if out is not None:
        write_json(out, document)
    click.echo(json.dumps(results, ensure_ascii=False, indent=2))
    raise SystemExit(0 if methods["mudit-engine"]["share"] >= MUST else 4)


if __name__ == "__main__":
    main()
