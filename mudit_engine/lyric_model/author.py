"""Authors of lines: the embedded grammar, and a language model held to the form.

A model's line is the best of several: candidates are sampled together under the constraint
(lyric_model.constraint), those that break a rule which no grammar can hold (a line that is there
already, a polyphone that is read otherwise in its context, a loop) are dropped, and the rest ranked
by

    mean log-probability of its tokens under the free model
        + 0.4 where the end is a word, + 0.4 for a word of the theme that no line has yet
        - 1 where it ends like another line of its section, - 0.7 where it begins like one before

The free model's probability of ending there counts too, so a line that was cut ranks low.

    author = ModelAuthor(rules, "夏夜", model, Sampling(), seed=0)
    author.begin(draft); author.line(draft, 0, 0, rhyme=None)
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.lyric_model import embedded
from mudit_engine.lyric_model.constraint import Guide, LinePattern, theme_extra
from mudit_engine.lyric_model.fill import Draft, LineRules, grammar_line
from mudit_engine.lyric_model.form import Form
from mudit_engine.lyric_model.prompts import prompt
from mudit_engine.lyric_model.rhymes import ends_in_word, usual_classes

WORD_BONUS, THEME_BONUS, SAME_END_PENALTY, SAME_START_PENALTY = 0.4, 0.4, 1.0, 0.7
ROUNDS = 6  # of candidates, each warmer than the one before
MOST_TOKENS = 200  # of a line: the grammar ends it long before
_PROMPT_TOKENS = 160  # kept free in models with a short memory


@dataclass(frozen=True)
class Sampling:
    """How a model's lines are drawn. `candidates` are sampled for each line."""

    temperature: float = 0.9
    top_p: float = 0.95
    candidates: int = 4


class Author(Protocol):
    """Who writes lines, in the order of the song."""

    name: str
    notes: list[str]

    def begin(self, draft: Draft) -> None: ...

    def section(self, draft: Draft, section: int) -> None:
        """A section begins."""

    def keep(self, text: str) -> None:
        """A line stands already."""

    def line(self, draft: Draft, section: int, line: int, *, rhyme: str | None) -> str: ...


class GrammarAuthor:
    """The embedded grammar."""

    name = "grammar"

    def __init__(self, rules: LineRules, *, seed: int) -> None:
        self.rules, self.rng = rules, np.random.default_rng(seed)
        self.notes: list[str] = []
        self.log_probability: float | None = None

    def begin(self, draft: Draft) -> None:
        pass

    def section(self, draft: Draft, section: int) -> None:
        pass

    def keep(self, text: str) -> None:
        pass

    def line(self, draft: Draft, section: int, line: int, *, rhyme: str | None) -> str:
        return grammar_line(self.rules, draft, section, line, self.rng, rhyme=rhyme)


class ModelAuthor:
    """A language model under the constraint."""

    def __init__(
        self, rules: LineRules, theme: str, model: Any, sampling: Sampling, *, seed: int
    ) -> None:
        self.rules, self.theme, self.model, self.sampling = rules, theme, model, sampling
        self.name = model.name
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.notes: list[str] = []
        if not hasattr(model, "guide"):
            model.guide = Guide(model.tokenizer(), size=model.size)
        self.guide: Guide = model.guide
        self.extra = theme_extra(theme, rules.form.language)
        self.usual = usual_classes(rules.form.language)
        if model.borrows_ends:
            known = embedded.rhymes(rules.form.language)
            self.usual = tuple(name for name in self.usual if name in known)
        self.past: Any = None
        self._theme = theme_pieces(theme, rules.form.language)
        self._told: list[float] = []
        self._chapters = chapters(rules.form, model.max_tokens)

    @property
    def log_probability(self) -> float | None:
        """Mean over the lines of their tokens' mean log-probability."""
        return sum(self._told) / len(self._told) if self._told else None

    def begin(self, draft: Draft) -> None:
        self.past = None

    def section(self, draft: Draft, section: int) -> None:
        form = self.rules.form
        kind = form.sections[section].kind
        start, end = next(span for span in self._chapters if span[0] <= section < span[1])
        if section == start or self.past is None:
            part = Form(form.sections[start:end], form.rhyme, form.language)
            self.past = self.model.read(self.model.encode(prompt(self.theme, part)))
        self._read(f"[{kind}]\n")

    def keep(self, text: str) -> None:
        self._read(f"{text}\n")

    def _read(self, text: str) -> None:
        self.past = self.model.read(self.model.encode(text), self.past)

    def line(self, draft: Draft, section: int, line: int, *, rhyme: str | None) -> str:
        rules = self.rules
        language = rules.form.language
        low, high = rules.form.sections[section].lines[line]
        wanted, others = rules.classes(draft, section, line)
        wanted = wanted or rhyme
        classes: tuple[str, ...] | None = None
        model_ends = self.model.borrows_ends
        if rules.groups[section][line] is not None:
            left = tuple(name for name in self.usual if name not in others)
            classes = (wanted,) if wanted is not None else left
        pattern = LinePattern(language, low, high, classes, self.extra)
        # the rhyme word comes first where a model would only find a character or a word that rhymes
        borrowed = embedded.line_ends(language, classes) if model_ends and classes else ()
        led = replace(pattern, ends=borrowed) if borrowed else pattern
        if not led.possible():
            led = pattern
        taste = functools.partial(
            _taste,
            language=language,
            theme=self._theme,
            section=[text for text in draft[section] if text],
            before=[text for lines in draft for text in lines if text],
        )
        for number in range(ROUNDS):
            warm = 1 + 0.25 * number
            best: tuple[float, str, list[int], float] | None = None
            for tokens, told in self._candidates(led if number < ROUNDS // 2 else pattern, warm):
                text = self.model.decode(tokens).rstrip("\n")
                if rules.fault(draft, section, line, text, rhyme=wanted) is not None:
                    continue
                rank = told + taste(text)
                if best is None or rank > best[0]:
                    best = (rank, text, tokens, told)
            if best is not None:
                self.past = self.model.read(best[2], self.past)
                self._told.append(best[3])
                return best[1]
        try:
            text = grammar_line(rules, draft, section, line, self.rng, rhyme=wanted)
        except InputError as error:
            raise InputError(
                f"no line of {low} syllables came out for [{rules.form.sections[section].kind}] "
                f"line {line + 1} that keeps the form ({error}): loosen the rhyme or the lengths"
            ) from None
        self.notes.append(
            f"[{rules.form.sections[section].kind}] line {line + 1} is the embedded grammar's: the "
            f"model's lines broke the form"
        )
        self.keep(text)
        return text

    def _candidates(self, pattern: LinePattern, warm: float) -> list[tuple[list[int], float]]:
        """(tokens with the line break, mean log-probability under the free model) of each."""
        count = self.sampling.candidates
        matchers = self.guide.matchers(pattern, count=count)
        branches = self.model.branch(self.past, count)
        tokens: list[list[int]] = [[] for _ in range(count)]
        told = [0.0] * count
        alive = list(range(count))
        for _ in range(MOST_TOKENS):
            logits_KV = branches.logits_KV
            allowed = torch.from_numpy(self.guide.allowed([matchers[row] for row in alive]))
            free = torch.log_softmax(logits_KV[alive], -1)
            drawn = _draw(
                free.masked_fill(~allowed, -torch.inf), self.sampling, warm, self.generator
            )
            fed = [self.model.end] * count
            for row, token, likely in zip(
                list(alive),
                drawn.tolist(),
                free.gather(1, drawn[:, None])[:, 0].tolist(),
                strict=True,
            ):
                tokens[row].append(token)
                told[row] += likely
                fed[row] = token
                matchers[row].consume_token(token)
                if matchers[row].is_stopped():
                    alive.remove(row)
            if not alive:
                break
            branches = self.model.step(branches, fed)
        done = [row for row in range(count) if row not in alive]
        return [(tokens[row], told[row] / len(tokens[row])) for row in done]


def write_freely(
    model: Any,
    text: str,
    *,
    seed: int,
    sampling: Sampling | None = None,
    most_tokens: int = 1200,
) -> str:
    """What a model answers to a prompt without any constraint, to its end mark or `most_tokens`."""
    sampling = sampling or Sampling(temperature=0.7)
    generator = torch.Generator().manual_seed(seed)
    tokens = model.encode(text)
    past = model.read(tokens)
    if model.max_tokens is not None:
        most_tokens = min(most_tokens, model.max_tokens - len(tokens) - 1)
    answer: list[int] = []
    while len(answer) < most_tokens:
        [token] = _draw(past.logits_KV, sampling, 1.0, generator).tolist()
        if token == model.end:
            break
        answer.append(token)
        past = model.read([token], past)
    return str(model.decode(answer))


def _draw(scores_KV: Tensor, sampling: Sampling, warm: float, generator: torch.Generator) -> Tensor:
    """A token of each row, by temperature and nucleus."""
    chances = torch.softmax(scores_KV / (sampling.temperature * warm), -1)
    if sampling.top_p < 1:
        ordered, places = chances.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        chances = chances.scatter(-1, places, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


def theme_pieces(theme: str, language: str) -> tuple[str, ...]:
    """What a line can take up of a theme: pairs of its characters that are words, its longer
    English words.
    """
    if language == "zh":
        runs = re.findall(r"[\u4e00-\u9fff]{2,}", theme)
        pairs = [run[place : place + 2] for run in runs for place in range(len(run) - 1)]
        return tuple(dict.fromkeys(pair for pair in pairs if ends_in_word(pair)))
    return tuple(dict.fromkeys(re.findall(r"[a-z]{4,}", theme.lower())))


def _taste(
    text: str, *, language: str, theme: tuple[str, ...], section: list[str], before: list[str]
) -> float:
    """What speaks for a line besides its probability."""
    said = " ".join(before)
    rank = WORD_BONUS if language == "zh" and ends_in_word(text) else 0.0
    rank += THEME_BONUS if any(piece in text and piece not in said for piece in theme) else 0.0
    rank -= SAME_END_PENALTY if _end(text, language) in {_end(t, language) for t in section} else 0
    starts = {_start(line, language) for line in before}
    return rank - (SAME_START_PENALTY if _start(text, language) in starts else 0.0)


def _start(text: str, language: str) -> str:
    return text[:2] if language == "zh" else " ".join(text.split()[:2])


def _end(text: str, language: str) -> str:
    return text[-2:] if language == "zh" else text.rsplit(" ", 1)[-1]


def chapters(form: Form, max_tokens: int | None) -> list[tuple[int, int]]:
    """Runs of sections [start, end) that a model with a short memory writes one after the other."""
    if max_tokens is None:
        return [(0, len(form.sections))]
    a_syllable = 1.2 if form.language == "zh" else 5.5
    spans, start, used = [], 0, 0.0
    for place, section in enumerate(form.sections):
        cost = sum(high * a_syllable + 2 for _, high in section.lines) + 3
        if place > start and used + cost > max_tokens - _PROMPT_TOKENS:
            spans.append((start, place))
            start, used = place, 0.0
        used += cost
    return [*spans, (start, len(form.sections))]
