"""Token ids are stored in weights: they must never move, and every token the readers can make must
have one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.resources import files

import pytest

from mudit_engine.errors import InputError
from mudit_engine.text import english, mandarin, sections
from mudit_engine.text.vocabulary import FAMILIES, Vocabulary

ASSETS = files("mudit_engine") / "assets" / "vocabulary"


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("v1.tsv", "4855d20f7a1811a062836c813fd2901ca0945481be54e3cffa1dddd08098156e"),
        ("cmudict.txt", "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"),
    ],
)
def test_shipped_file_is_the_one_models_were_trained_with(name: str, sha256: str) -> None:
    assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == sha256


def test_every_producible_token_has_an_id() -> None:
    vocabulary = Vocabulary.load()
    tokens = {
        token
        for syllable in mandarin.syllables()
        for tone in mandarin.TONES
        for token in mandarin.split_syllable(syllable + tone)
    }
    tokens |= {f"en:{phone}" for phone in english.PHONES} | {f"<{kind}>" for kind in sections.KINDS}
    tokens |= {"<pad>", "<line>", "<space>", "<breath>", mandarin.ERHUA}
    assert tokens <= set(vocabulary.tokens())
    assert len({vocabulary.id(token) for token in tokens}) == len(tokens)


def test_ids_and_tokens_are_inverse_and_pad_is_zero() -> None:
    vocabulary = Vocabulary.load()
    assert vocabulary.token(0) == "<pad>"
    assert [vocabulary.id(vocabulary.token(number)) for number in range(len(vocabulary))] == list(
        range(len(vocabulary))
    )
    assert {vocabulary.family(number) for number in range(len(vocabulary))} == set(FAMILIES)


def test_families_cannot_collide_even_without_case() -> None:
    vocabulary = Vocabulary.load()
    folded = [{token.casefold() for token in vocabulary.tokens(family)} for family in FAMILIES]
    assert sum(map(len, folded)) == len(set().union(*folded)) == len(vocabulary)


def test_unknown_version_token_and_id_are_input_errors() -> None:
    with pytest.raises(InputError, match=r"'v99' does not exist.*v1"):
        Vocabulary.load("v99")
    with pytest.raises(InputError, match="'AH0' is not in vocabulary v1"):
        Vocabulary.load().id("AH0")
    for number in (-1, len(Vocabulary.load())):
        with pytest.raises(InputError, match="outside vocabulary"):
            Vocabulary.load().token(number)


def test_dictionary_licence_is_shipped() -> None:
    notice = (ASSETS / "NOTICE.md").read_text(encoding="utf-8")
    assert "Carnegie Mellon University" in notice
    assert "Redistributions in binary form must reproduce" in notice


def test_importing_text_loads_no_reader_package() -> None:
    modules = (
        "vocabulary",
        "sections",
        "lyrics",
        "mandarin",
        "english",
        "numbers",
        "phonemes",
        "descriptions",
        "homophones",
        "misspelt",
        "wishes",
    )
    code = (
        f"import {', '.join('mudit_engine.text.' + module for module in modules)}, sys; "
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"pypinyin", "cmudict", "cn2an", "num2words", "torch", "numpy"} & set(loaded)
