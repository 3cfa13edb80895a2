"""Writes lyrics in a form: any author, line by line, with what is kept and what is told.

    written = write_lyrics("夏夜，海边", form, model=open_writer("auto"), seed=0)
    format_lyrics(written.lyrics)

Whoever writes, the result is held to the form again at the end: it parses, sections stand in order,
lines have their syllables, line ends their rhymes, no line outside a repeated chorus comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.author import Author, GrammarAuthor, ModelAuthor, Sampling
from mudit_engine.lyric_model.fill import Draft, LineRules, sections_of
from mudit_engine.lyric_model.form import Form
from mudit_engine.lyric_model.rhymes import HAN_NAMES, usual_classes
from mudit_engine.lyric_model.scoring import Score, score_lyrics
from mudit_engine.text.lyrics import LyricLine, Lyrics, Section, format_lyrics, parse_lyrics

GRAMMAR, SMALL, AUTO = "grammar", "small", "auto"
GRAMMAR_ROUNDS = 12
# section, line (from 0), words
OnLine = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Written:
    """One result: its words, who wrote them, its score against the form, and what to tell."""

    lyrics: Lyrics
    form: Form
    theme: str
    author: str
    seed: int
    score: Score
    log_probability: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def text(self) -> str:
        """The lyrics as a file holds them."""
        return format_lyrics(self.lyrics)


def open_writer(source: str = AUTO, *, base: str | None = None) -> Any:
    """The model that a name stands for: auto (the one that ships), small, grammar (None: no model),
    a folder of a model or adapter, an id of the hub. Raises ModelError or MissingError.
    """
    from mudit_engine.lyric_model.small import SHIPPED, CharacterModel

    if source == GRAMMAR:
        return None
    if source in (AUTO, SMALL):
        if source == AUTO and not (SHIPPED / "model.safetensors").is_file():
            return None
        return CharacterModel.load()
    if _is_small(Path(source)):
        return CharacterModel.load(Path(source))
    from mudit_engine.lyric_model.causal import TransformersModel

    return TransformersModel.load(source, base=base)


def _is_small(folder: Path) -> bool:
    import json

    file = folder / "tokenizer.json"
    if not file.is_file():
        return False
    document = json.loads(file.read_text(encoding="utf-8"))
    return bool(document.get("model", {}).get("type") == "WordLevel")


def check_class(rhyme_class: str | None, form: Form) -> str | None:
    """A rhyme class that a user named. Raises InputError for one that the language has not."""
    if rhyme_class is None:
        return None
    if form.rhyme == "free":
        raise InputError(
            "a rhyme class has no effect with --rhyme free: name a scheme or leave it out"
        )
    known = HAN_NAMES if form.language == "zh" else usual_classes("en")
    plain = rhyme_class.strip()
    plain = plain.lower().replace("ü", "v") if form.language == "zh" else plain.upper()
    if plain not in known:
        raise InputError(f"rhyme class {rhyme_class!r} is unknown: use one of {', '.join(known)}")
    return plain


def write_lyrics(
    theme: str,
    form: Form,
    *,
    model: Any = None,
    seed: int = 0,
    draft: Draft | None = None,
    rhyme_class: str | None = None,
    sampling: Sampling | None = None,
    on_line: OnLine | None = None,
) -> Written:
    """Lyrics about a theme, in a form that they cannot break.

    Args:
        theme: what they are about, in free words.
        form: sections, lines, syllables and rhymes (`parse_form`).
        model: who writes: an author of mudit_engine/lyric_model, or None for the grammar alone.
        seed: of the sampling.
        draft: lines that stay, None where one is to be written; copies follow what they copy.
        rhyme_class: of the lines of letter A, or of all with rhyme `one`; None lets the writing
            choose.
        sampling: how a model's lines are drawn.
        on_line: told of each line that stands.

    Returns:
        The lyrics, their score, and who wrote them.

    Raises:
        InputError: where kept lines break the form or no line can keep it.

    Examples:
        >>> from mudit_engine.lyric_model.form import parse_form
        >>> written = write_lyrics("夏夜", parse_form("verse:4x7", rhyme="AABA"), seed=1)
        >>> [len(line.text) for line in written.lyrics.sections[0].lines]
        [7, 7, 7, 7]
    """
    rules = LineRules(form)
    rhyme_class = check_class(rhyme_class, form)
    draft = rules.empty() if draft is None else draft
    _check(rules, draft)
    author: Any
    if model is None:
        author = GrammarAuthor(rules, seed=seed)
        draft = _by_grammar(rules, draft, author, rhyme_class)
    elif hasattr(model, "fill"):
        author = model.author(rules, theme, seed=seed)
        model.fill(author, draft, rhyme_class=rhyme_class)
    else:
        author = ModelAuthor(rules, theme, model, sampling or Sampling(), seed=seed)
    _fill(rules, draft, author, rhyme_class, on_line)
    lyrics = to_lyrics(form, draft)
    _check(rules, draft)
    again = parse_lyrics(format_lyrics(lyrics))
    assert again == lyrics, "written lyrics must parse to themselves"
    return Written(
        lyrics,
        form,
        theme,
        author.name,
        seed,
        score_lyrics(lyrics, form=form),
        author.log_probability,
        tuple(author.notes),
    )


def _by_grammar(
    rules: LineRules, draft: Draft, author: GrammarAuthor, rhyme_class: str | None
) -> Draft:
    """A draft filled by the grammar. A rhyme that runs out of lines is given up for another."""
    for left in reversed(range(GRAMMAR_ROUNDS)):
        filled = [list(lines) for lines in draft]
        try:
            _fill(rules, filled, author, rhyme_class, None)
        except InputError:
            if not left:
                raise
            continue
        return filled
    raise AssertionError


def write_candidates(
    theme: str, form: Form, *, count: int, seed: int = 0, **options: Any
) -> list[Written]:
    """Several results, the best first: by score, then by the model's probability."""
    found = [write_lyrics(theme, form, seed=seed + n, **options) for n in range(count)]
    return sorted(found, key=lambda w: (-w.score.total, -(w.log_probability or 0.0), w.seed))


def _fill(
    rules: LineRules, draft: Draft, author: Author, rhyme_class: str | None, on_line: OnLine | None
) -> None:
    author.begin(draft)
    for section, copy in enumerate(rules.copies):
        author.section(draft, section)
        for line in range(len(draft[section])):
            text = draft[section][line] if copy is None else draft[copy][line]
            if text is None:
                group = rules.groups[section][line] or ""
                rhyme = rhyme_class if group == "one" or group.endswith("A") else None
                text = author.line(draft, section, line, rhyme=rhyme)
            else:
                author.keep(text)
            draft[section][line] = text
            if on_line is not None:
                on_line(section, line, text)


def to_lyrics(form: Form, draft: Draft) -> Lyrics:
    """A finished draft as lyrics."""
    return Lyrics(
        tuple(
            Section(kind, None, tuple(LyricLine(line) for line in lines))
            for kind, lines in sections_of(form, draft)
        )
    )


def _check(rules: LineRules, draft: Draft) -> None:
    """Raises InputError that names every line of a draft which breaks the form."""
    wrong = []
    for section, line, text in _lines(draft):
        if rules.copies[section] is None and (fault := rules.fault(draft, section, line, text)):
            kind = rules.form.sections[section].kind
            wrong.append(f"section {section + 1} [{kind}] line {line + 1} {text!r}: {fault}")
    if wrong:
        raise InputError("lines break the form: " + "; ".join(wrong))


def _lines(draft: Draft) -> Iterator[tuple[int, int, str]]:
    for section, lines in enumerate(draft):
        for line, text in enumerate(lines):
            if text is not None:
                yield section, line, text


def draft_of(lyrics: Lyrics, form: Form, again: Sequence[str]) -> Draft:
    """A draft of written lyrics with some places opened: `again` names sections by number or kind
    (`2`, `chorus`) and lines in them (`2.3`, `chorus.1`), counted from 1. Raises InputError.
    """
    rules = LineRules(form)
    draft: Draft = [[line.text for line in section.lines] for section in lyrics.sections]
    for place in again:
        name, _, row = place.partition(".")
        sections = [
            n
            for n, section in enumerate(form.sections)
            if (name.isdigit() and int(name) == n + 1) or section.kind == name
        ]
        if not sections:
            kinds = ", ".join(f"{n + 1} {s.kind}" for n, s in enumerate(form.sections))
            raise InputError(f"--again {place}: there is no such section; there are {kinds}")
        for section in {rules.copies[n] if rules.copies[n] is not None else n for n in sections}:
            assert section is not None
            lines = range(len(draft[section]))
            if row and (not row.isdigit() or int(row) - 1 not in lines):
                raise InputError(
                    f"--again {place}: section {section + 1} has {len(lines)} lines: name one of "
                    f"them as {name}.1"
                )
            for line in lines if not row else [int(row) - 1]:
                draft[section][line] = None
    return draft
