"""The constraint counts on the bytes of a vocabulary, exactly and fast enough."""

from __future__ import annotations

import random
import time

import llguidance
import numpy as np
import pytest

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.constraint import Guide, LinePattern, reachable
from mudit_engine.lyric_model.rhymes import common_characters, line_syllables, rhyme_of
from mudit_engine.text.english import dictionary

SIZE = 151_936  # of Qwen's vocabularies


def byte_level_tokens(size):
    """A vocabulary shaped like a byte-level BPE's: bytes, halves of characters, characters, runs
    that begin or end inside one, English pieces.
    """
    rng = random.Random(0)
    common = common_characters()
    tokens = dict.fromkeys(bytes([value]) for value in range(256))
    for char in common:
        tokens |= dict.fromkeys((char.encode()[:2], char.encode()))
    while len(tokens) < size // 4:
        pair = (rng.choice(common) + rng.choice(common)).encode()
        tokens |= dict.fromkeys((pair, pair[rng.choice((1, 2)) :], pair[: rng.choice((4, 5))]))
    for char in common[:300]:
        tokens |= dict.fromkeys(((char + "\n").encode(), ("，" + char).encode()))
    words = [word for word in dictionary() if word.isalpha()]
    rng.shuffle(words)
    for word in words:
        tokens |= dict.fromkeys(((" " + word).encode(), word[:3].encode()))
    while len(tokens) < size - 1:
        tokens[("".join(rng.choice("abcdefghij") for _ in range(9))).encode()] = None
    return [*list(tokens)[: size - 1], b"<|im_end|>"]


class Vocabulary:
    bos_token_id = None

    def __init__(self, tokens):
        self.tokens, self.eos_token_id = tokens, len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text):
        return list(text)


def guide_of(tokens):
    wrapper = llguidance.TokenizerWrapper(Vocabulary(tokens))
    tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=len(tokens), slices=[])
    return Guide(tokenizer, size=len(tokens))


def walk(guide, tokens, pattern, seed, spent=None):
    """A random line that the constraint lets through."""
    rng = random.Random(seed)
    start = time.process_time()
    [matcher] = guide.matchers(pattern, count=1)
    line, count = b"", 0
    cost = time.process_time() - start
    while not matcher.is_stopped():
        start = time.process_time()
        allowed = np.flatnonzero(guide.allowed([matcher])[0])
        cost += time.process_time() - start
        token = int(rng.choice(allowed))
        assert matcher.consume_token(token)
        line, count = line + tokens[token], count + 1
    if spent is not None:
        spent.append((cost, count))
    return line.decode()


@pytest.mark.parametrize(
    "pattern",
    [
        LinePattern("zh", 7, 7, ("ang",)),
        LinePattern("zh", 1, 1, ("ie", "ai")),
        LinePattern("zh", 5, 8, None),
        LinePattern("en", 8, 8, ("AY T",)),
        LinePattern("en", 4, 6, None),
        LinePattern("zh", 5, 6, ("ang",), ends=("月光", "在路上")),
        LinePattern("en", 6, 6, ("EY",), ends=("today", "way")),
    ],
    ids=str,
)
def test_every_line_that_passes_is_as_asked(pattern):
    tokens = byte_level_tokens(24_000)
    guide = guide_of(tokens)
    for seed in range(30):
        line = walk(guide, tokens, pattern, seed)
        assert line.endswith("\n") and line.count("\n") == 1
        assert pattern.low <= line_syllables(line.strip()) <= pattern.high
        if pattern.classes is not None:
            last = line.strip()[-1] if pattern.language == "zh" else line.strip()
            assert rhyme_of(last) in pattern.classes
        if pattern.ends:
            assert line.strip().endswith(pattern.ends)


def test_a_rhyme_with_words_of_two_syllables_only_has_no_dead_ends():
    ways = reachable(5, (1, 2), (2,))
    assert ways == {2: [], 3: [1], 4: [1, 2], 5: [1, 2]}
    assert not LinePattern("en", 1, 1, ("EY",), ends=("today",)).possible()
    assert LinePattern("en", 2, 2, ("EY",), ends=("today",)).possible()
    with pytest.raises(InputError, match="no English line of 1 syllables"):
        LinePattern("en", 1, 1, ("XX",)).lark()


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern", [LinePattern("zh", 7, 7, ("ang",)), LinePattern("en", 8, 8, ("AY T",))], ids=str
)
def test_a_token_costs_at_most_three_milliseconds(pattern):
    """The mean over six lines of a song, of which the first one compiles the grammar."""
    pattern.lark()  # the tables of characters and words are made once a process
    tokens = byte_level_tokens(SIZE)
    guide = guide_of(tokens)
    spent: list[tuple[float, int]] = []
    for seed in range(6):
        walk(guide, tokens, pattern, seed, spent)
    cost, count = (sum(column) for column in zip(*spent, strict=True))
    assert 1e3 * cost / count <= 3.0
