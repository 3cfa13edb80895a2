"""Lyrics as the lyric model trains on them: tokens of prompt and answer, with what a trainer asks
of a data set (splits, lengths, a digest).

    songs = LyricSet.of_recipe(recipe)            recipe.data.folder: a JSONL file, or builtin:N
    songs.numbers("train"), songs.lengths, songs.tokens[3], songs.answers[3]

The loss counts the tokens from `answers[n]` on: the answer and the mark that ends it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.base import check_tokenizer, find_base
from mudit_engine.lyric_model.prompts import END, START, fixed_texts
from mudit_engine.lyric_model.songs import BUILT_IN, LyricSong, built_in_songs, read_songs

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe

SCRATCH = "scratch"
UNKNOWN = "<|unknown|>"
BUILT_IN_COUNT = 4000


class LyricSet:
    """Tokenised songs. Raises InputError when a song is longer than a pack."""

    fields = ("tokens",)

    def __init__(
        self, songs: list[LyricSong], tokenizer: Any, *, source: str, longest: int
    ) -> None:
        self.folder, self.songs, self.tokenizer = Path(source), songs, tokenizer
        self.tokens: list[np.ndarray] = []
        self.answers: list[int] = []
        end = tokenizer.convert_tokens_to_ids(END)
        digest = hashlib.sha256()
        for song in songs:
            prompt = tokenizer(song.prompt(), add_special_tokens=False)["input_ids"]
            answer = tokenizer(song.answer(), add_special_tokens=False)["input_ids"]
            tokens = np.array([*prompt, *answer, end], np.int64)
            self.tokens.append(tokens)
            self.answers.append(len(prompt))
            digest.update(f"{song.split}\0".encode() + tokens.tobytes())
        self.lengths = np.array([len(tokens) for tokens in self.tokens])
        self.digest = digest.hexdigest()
        too_long = np.flatnonzero(self.lengths > longest)
        if len(too_long):
            first = too_long[0]
            raise InputError(
                f"{len(too_long)} of {len(songs)} songs are longer than a pack of {longest} "
                f"tokens, the first is '{songs[first].id}' with {self.lengths[first]}: leave them "
                f"out or raise --set data.pack_size={self.lengths.max()}"
            )

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> LyricSet:
        """The songs that a recipe names, in its base model's tokens."""
        songs = open_songs(recipe.data.folder)
        if recipe.lyrics.base == SCRATCH:
            tokenizer = character_tokenizer(songs)
        else:
            tokenizer = load_tokenizer(recipe.lyrics.base)
        return cls(songs, tokenizer, source=recipe.data.folder, longest=recipe.data.pack_size)

    def numbers(self, split: str) -> np.ndarray:
        """Songs of a split."""
        return np.array([n for n, song in enumerate(self.songs) if song.split == split], np.int64)


def open_songs(source: str) -> list[LyricSong]:
    """Songs of a JSONL file, or of the embedded grammar: builtin, builtin:2000, builtin:2000:7 (how
    many, seed).
    """
    name, *numbers = source.split(":")
    if name != BUILT_IN:
        return read_songs(source)
    if len(numbers) > 2 or not all(number.isdigit() for number in numbers):
        raise InputError(f"data {source!r}: write builtin, builtin:COUNT or builtin:COUNT:SEED")
    count = int(numbers[0]) if numbers else BUILT_IN_COUNT
    return built_in_songs(count, seed=int(numbers[1]) if len(numbers) > 1 else 0)


def load_tokenizer(base: str) -> Any:
    """The tokenizer of a base model. Raises ModelError for one that cannot be used."""
    from transformers import AutoTokenizer

    found = find_base(base)
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    check_tokenizer(tokenizer, base)
    return tokenizer


def character_tokenizer(songs: list[LyricSong]) -> Any:
    """A tokenizer of single characters (those of the songs and themes, and one token for any
    other). What every prompt has, and a whole line of a structure, is one token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = "".join(song.theme + song.rhyme + song.answer() for song in songs)
    marks = [START, END, UNKNOWN]
    vocabulary = {token: n for n, token in enumerate([*marks, *sorted({*text, "\n"})])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in [*marks, *fixed_texts()]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN
    )
