"""Lyrics by an OpenAI-compatible server: vLLM, SGLang, llama.cpp, or any other by URL.

The whole song is asked for in one request, with a grammar (GBNF) where the server takes one: vLLM
`structured_outputs.grammar`, SGLang `ebnf`, llama.cpp `grammar`. What comes back is held to the
form line by line in any case; lines that break it are asked for again, and the embedded grammar
writes what still breaks it, said clearly.

    model = Server("http://127.0.0.1:8000/v1")
    write_lyrics("夏夜", form, model=model)

A key is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from mudit_engine.errors import InputError, ModelError
from mudit_engine.lyric_model import embedded
from mudit_engine.lyric_model.constraint import endings, lexicon, reachable, theme_extra
from mudit_engine.lyric_model.fill import Draft, LineRules, grammar_line
from mudit_engine.lyric_model.form import Form
from mudit_engine.lyric_model.prompts import messages
from mudit_engine.lyric_model.rhymes import (
    characters_of_class,
    common_characters,
    rhyme_of,
    usual_classes,
)

SERVERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}  # owned_by -> kind
TIMEOUT_SECONDS = 300.0
LINE_ROUNDS = 3  # requests for a line that broke the form
_TOKENS_A_SYLLABLE = 4


class Server:
    """An OpenAI-compatible endpoint. `guided` is auto, vllm, sglang, llama.cpp or none."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        guided: str = "auto",
        temperature: float = 0.9,
        top_p: float = 0.95,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        plain = url.rstrip("/").removesuffix("/chat/completions")
        self.url = plain if re.search(r"/v\d+$", plain) else f"{plain}/v1"
        self.timeout, self.temperature, self.top_p = timeout, temperature, top_p
        listed = self._call("models").get("data") or []
        names = [str(entry.get("id")) for entry in listed]
        if model is None and len(names) != 1:
            raise InputError(
                f"'{self.url}' serves {', '.join(names) or 'no model'}: name one with "
                f"--served-model"
            )
        self.model = model or names[0]
        owner = next((e.get("owned_by") for e in listed if e.get("id") == self.model), None)
        self.guided = SERVERS.get(str(owner).lower(), "none") if guided == "auto" else guided
        self.name = f"{self.model} at {self.url}"

    def author(self, rules: LineRules, theme: str, *, seed: int) -> ServerAuthor:
        return ServerAuthor(self, rules, theme, seed=seed)

    def fill(self, author: ServerAuthor, draft: Draft, *, rhyme_class: str | None) -> None:
        """Asks for the whole song, and takes the lines that keep the form into the draft."""
        author.ask_song(draft, rhyme_class)

    def chat(
        self, turns: Sequence[dict[str, str]], *, grammar: str | None, tokens: int, seed: int
    ) -> str:
        """One answer. Raises ModelError."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(turns),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": tokens,
            "seed": seed,
        }
        if grammar is not None and self.guided == "vllm":
            body["structured_outputs"] = {"grammar": grammar}
        elif grammar is not None and self.guided == "sglang":
            body["ebnf"] = grammar
        elif grammar is not None and self.guided == "llama.cpp":
            body["grammar"] = grammar
        answer = self._call("chat/completions", body)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ModelError(f"'{self.url}' answered without a message: {answer!r:.200}") from None
        return re.sub(r"(?s)<think>.*?</think>", "", text or "").strip()

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/{path}",
            None if body is None else json.dumps(body).encode(),
            headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                document: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")[:300]
            raise ModelError(f"'{self.url}/{path}' answered {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ModelError(
                f"no OpenAI-compatible server answers at '{self.url}' ({reason}): start one, or "
                f"check the URL"
            ) from None
        return document


class ServerAuthor:
    """Lines of a server's answer, in the order of the song."""

    log_probability: float | None = None

    def __init__(self, server: Server, rules: LineRules, theme: str, *, seed: int) -> None:
        self.server, self.rules, self.theme, self.seed = server, rules, theme, seed
        self.name = server.name
        self.rng = np.random.default_rng(seed)
        self.notes: list[str] = []
        self.offered: list[list[str]] = []
        self._extra = theme_extra(theme, rules.form.language)

    def ask_song(self, draft: Draft, rhyme_class: str | None) -> None:
        """Requests a whole song; its lines are offered to the places they stand at."""
        form = self.rules.form
        if any(line is not None for lines in draft for line in lines):
            return  # single lines are asked for
        classes = self._classes(rhyme_class)
        grammar = song_grammar(form, classes, self._extra) if self.server.guided != "none" else None
        syllables = sum(high for section in form.sections for _, high in section.lines)
        text = self.server.chat(
            messages(self.theme, form),
            grammar=grammar,
            tokens=_TOKENS_A_SYLLABLE * syllables + 16 * len(form.sections) + 64,
            seed=self.seed,
        )
        self.offered = _sections(text)

    def _classes(self, rhyme_class: str | None) -> dict[str, str]:
        """A rhyme class for each group, drawn by the seed: a server's grammar cannot wait to see
        what the first line ends in.
        """
        language = self.rules.form.language
        # those that the embedded grammar can stand in for
        usual = [name for name in usual_classes(language) if name in embedded.rhymes(language)]
        names = dict.fromkeys(n for own in self.rules.groups for n in own if n is not None)
        found: dict[str, str] = {}
        for name in names:
            if rhyme_class is not None and (name == "one" or name.endswith("A")):
                found[name] = rhyme_class
                continue
            taken = {found[other] for other in found if other[:-1] == name[:-1]}
            left = [one for one in usual if one not in taken]
            found[name] = left[int(self.rng.integers(len(left)))]
        return found

    def begin(self, draft: Draft) -> None:
        pass

    def section(self, draft: Draft, section: int) -> None:
        pass

    def keep(self, text: str) -> None:
        pass

    def line(self, draft: Draft, section: int, line: int, *, rhyme: str | None) -> str:
        rules, form = self.rules, self.rules.form
        wanted, _ = rules.classes(draft, section, line)
        wanted = wanted or rhyme
        offered = self.offered[section] if section < len(self.offered) else []
        text = offered[line] if line < len(offered) else ""
        if text and rules.fault(draft, section, line, text, rhyme=wanted) is None:
            return text
        for number in range(LINE_ROUNDS):
            for text in self._ask_line(draft, section, line, wanted, number):
                if rules.fault(draft, section, line, text, rhyme=wanted) is None:
                    return text
        kind = form.sections[section].kind
        self.notes.append(
            f"[{kind}] line {line + 1} is the embedded grammar's: the server's lines broke the form"
        )
        return grammar_line(rules, draft, section, line, self.rng, rhyme=wanted)

    def _ask_line(
        self, draft: Draft, section: int, line: int, wanted: str | None, number: int
    ) -> list[str]:
        """Lines that a server offers for one place."""
        form = self.rules.form
        one = Form((form.sections[section],), "free", form.language)
        turns = messages(self.theme, one)
        shown = "\n".join(text or "____" for text in draft[section])
        low, high = form.sections[section].lines[line]
        length = str(low) if low == high else f"{low}-{high}"
        ask = (
            f"{shown}\n第 {line + 1} 行空着。只写这一行：{length} 个字"
            if form.language == "zh"
            else f"{shown}\nLine {line + 1} is missing. Write that line alone: {length} syllables"
        )
        if wanted is not None:
            examples = [text for text in draft[section] if text and rhyme_of(text) == wanted]
            ends = ", ".join(examples[:2]) or wanted
            ask += f"，和“{ends}”押韵。" if form.language == "zh" else f", rhyming with “{ends}”."
        turns[-1] = {"role": "user", "content": f"{turns[-1]['content']}\n\n{ask}"}
        grammar = None
        if self.server.guided != "none":
            part = Form(
                (type(form.sections[section])("verse", ((low, high),)),),
                "one" if wanted else "free",
                form.language,
            )
            rules = song_grammar(part, {"one": wanted} if wanted else {}, self._extra)
            grammar = rules.replace('root ::= "[verse]\\n" ', "root ::= ")
        text = self.server.chat(
            turns,
            grammar=grammar,
            tokens=_TOKENS_A_SYLLABLE * high + 32,
            seed=self.seed + 1000 * (section + 1) + 100 * line + number + 1,
        )
        return [plain for row in text.splitlines() if (plain := _plain(row))]


def _plain(text: str) -> str:
    """A line without what chat models put around it."""
    text = re.sub(r"^\s*(?:[-*•]|\d+[.)、:：])\s*", "", text.strip()).strip("\"'“”*` ")
    return " ".join(text.rstrip("。，,.!！?？;；").split())


def _sections(text: str) -> list[list[str]]:
    """Lines of each section of an answer, by its tags."""
    found: list[list[str]] = []
    for row in text.splitlines():
        if re.fullmatch(r"\s*[\[(【*#]+[^\])】]*[\])】*:：]*\s*", row) and row.strip():
            found.append([])
        elif plain := _plain(row):
            if not found:
                found.append([])
            found[-1].append(plain)
    return found


def song_grammar(form: Form, classes: dict[str, str], extra: tuple[str, ...] = ()) -> str:
    """The form as GBNF: tags in order, lines of their syllables, ends of their classes."""
    parts, rules, ends = [], {}, set()
    for section, names in zip(form.sections, form.groups(), strict=True):
        parts.append(f'"[{section.kind}]\\n"')
        for (low, high), name in zip(section.lines, names, strict=True):
            wanted = None if name is None else classes.get(name)
            tail = "any" if wanted is None else "r" + re.sub(r"[^a-z0-9]", "", wanted.lower())
            ends.add((tail, wanted))
            for count in range(low, high + 1):
                rules[f"line-{count}-{tail}"] = (count, tail)
            either = " | ".join(f"line-{count}-{tail}" for count in range(low, high + 1))
            parts.append(either if low == high else f"({either})")
    lines = [f"root ::= {' '.join(parts)}"]
    build = _han_rules if form.language == "zh" else _english_rules
    return "\n".join([*lines, *build(rules, sorted(ends, key=str), extra)]) + "\n"


def _han_rules(
    rules: dict[str, tuple[int, str]], ends: list[tuple[str, str | None]], extra: tuple[str, ...]
) -> list[str]:
    body = "".join(dict.fromkeys((*common_characters(), *extra)))
    known = characters_of_class()
    found = [
        f'{name} ::= {f"han{{{count - 1}}} " if count > 1 else ""}{tail} "\\n"'
        for name, (count, tail) in rules.items()
    ]
    found.append(f"han ::= [{body}]")
    for tail, wanted in ends:
        found.append(f"{tail} ::= [{body if wanted is None else ''.join(known[wanted])}]")
    return found


def _english_rules(
    rules: dict[str, tuple[int, str]], ends: list[tuple[str, str | None]], extra: tuple[str, ...]
) -> list[str]:
    words, found = lexicon(extra), []
    for tail, wanted in ends:
        last = endings(None if wanted is None else (wanted,), extra)
        most = max(count for count, name in rules.values() if name == tail)
        ways = reachable(most, words, last)
        for left, counts in ways.items():
            either = [f'w{n} " " line-{left - n}-{tail}' for n in counts]
            either += [f'{tail}-{left} "\\n"'] if left in last else []
            found.append(f"line-{left}-{tail} ::= {' | '.join(either)}")
        found += [
            f"{tail}-{n} ::= {' | '.join(map(json.dumps, own))}"
            for n, own in last.items()
            if n in ways
        ]
    found += [f"w{n} ::= {' | '.join(map(json.dumps, own))}" for n, own in words.items()]
    return found
