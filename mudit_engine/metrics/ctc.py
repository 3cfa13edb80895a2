"""A small phoneme recogniser for singing over a band, so that sung words can be counted: dilated
convolutions over log-mel, trained by CTC, embedded in the package.

    PER = edits between the phonemes asked and those recognised / phonemes asked
    edits: insertions, deletions and substitutions

    recogniser = Recogniser.load()
    mel_FM = log_mel(audio_cS, 22050)
    recogniser.read(mel_FM)                                       # ['l', 'iang', 'y', 've', ...]
    edit_distance(syllable_phonemes("yue4"), recogniser.read(mel_FM))
    recogniser.read_lines(mel_FM, line_windows([(4.0, 7.5), (8.0, 11.5)]))   # a list a line

Phonemes are the vocabulary's without tones and stress, which the melody overrides: initials,
finals, ARPAbet. `python -m mudit_engine.training.tiny.recogniser` trains it, see there. Source:
Graves et al. 2006 (CTC).

Shapes: N crops, F log-mel frames (43 a second), H = ceil(F / 2) half as many, M bands, D width,
V symbols (0 is CTC's blank), S samples, c channels.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mudit_engine.audio import resample
from mudit_engine.errors import ModelError
from mudit_engine.files import atomic_path
from mudit_engine.models.spectral import LogMel
from mudit_engine.text.mandarin import split_syllable
from mudit_engine.text.vocabulary import Vocabulary

WEIGHTS = Path(__file__).parent.parent / "assets" / "recogniser" / "phonemes.safetensors"
MEL_RATE, MEL_FFT, MEL_HOP, MELS = 22050, 1024, 512, 80  # of the log-mel it reads
FRAME_RATE = MEL_RATE / MEL_HOP
WIDTH, DILATIONS, TAPS = 176, (1, 2, 4, 8, 1, 2), 3
STEM_FRAMES = 6  # that one row of the network sees, two of them its own
LEAD = 0.15  # seconds by which a consonant may come before its vowel's beat


@functools.cache
def symbols() -> tuple[str, ...]:
    """Every phoneme the recogniser can say, without the blank."""
    vocabulary = Vocabulary.load()
    return tuple(
        sorted(
            {
                _plain(token)
                for family in ("initial", "final", "arpabet")
                for token in vocabulary.tokens(family)
            }
        )
    )


@functools.lru_cache(maxsize=4096)
def syllable_phonemes(written: str) -> tuple[str, ...]:
    """Phonemes of one syllable, given as pinyin ("yue4") or as ARPAbet in capitals ("M EH M"),
    without tones and stress.
    """
    if written[:1].isupper():
        return tuple(f"en:{_plain(phone)}" for phone in written.split())
    return tuple(_plain(token) for token in split_syllable(written))


def _plain(token: str) -> str:
    return token.rstrip("0123456789")


def edit_distance(asked: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one into the other (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, symbol in enumerate(asked, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
    return row[-1]


@dataclass(frozen=True)
class SungSyllable:
    """Phonemes of one syllable, without tones and stress; when its vowel sounds, in seconds; and
    the number of the lyric line that it belongs to, from 0.
    """

    phonemes: tuple[str, ...]
    start: float
    end: float
    line: int = 0


def lines_of(syllables: Sequence[SungSyllable]) -> list[list[SungSyllable]]:
    """The syllables of each line, in order.

    Examples:
        >>> a, b = SungSyllable(("l", "iang"), 0.0, 0.5), SungSyllable(("ve",), 1.0, 1.5, line=1)
        >>> [len(line) for line in lines_of([a, a, b])]
        [2, 1]
    """
    found: dict[int, list[SungSyllable]] = {}
    for syllable in syllables:
        found.setdefault(syllable.line, []).append(syllable)
    return list(found.values())


Window = tuple[float, float]


def line_windows(spans: Sequence[Window]) -> list[Window]:
    """Where each line is listened to, (start, end) in seconds: LEAD around it, but no farther than
    half-way to its neighbours, whose first consonant comes before their beat.

    Args:
        spans: start of the first vowel and end of the last one of each line, in order of time.

    Examples:
        >>> line_windows([(1.0, 3.0), (3.0, 5.0)])
        [(0.85, 2.925), (2.925, 5.15)]
    """
    cuts = [(end + start - LEAD) / 2 for (_, end), (start, _) in itertools.pairwise(spans)]
    return [
        (round(max(start - LEAD, before), 4), round(min(end + LEAD, after), 4))
        for (start, end), before, after in zip(
            spans, [0.0, *cuts], [*cuts, float("inf")], strict=False
        )
    ]


@functools.cache
def _mel() -> LogMel:
    return LogMel(MEL_RATE, MEL_FFT, MEL_HOP, MELS)


@torch.inference_mode()
def log_mel(audio_cS: Tensor, rate: int) -> Tensor:
    """What the recogniser reads: log-mel [F, MELS] in half precision of audio at `rate` samples a
    second, its channels averaged.

    Examples:
        >>> log_mel(torch.zeros(1, 44100), 44100).shape
        torch.Size([44, 80])
    """
    mono_1S = resample(audio_cS.mean(0, keepdim=True).float(), rate, MEL_RATE)
    return _mel()(F.pad(mono_1S, (0, -mono_1S.shape[1] % MEL_HOP)))[0].half()


def _beside(x_NHD: Tensor, taps: int, dilation: int) -> Tensor:
    """Rows with their neighbours side by side, [N, H, taps * D]: a convolution is then one product,
    which a CPU does twice as fast as its own convolution.
    """
    side = taps // 2 * dilation
    padded = F.pad(x_NHD, (0, 0, side, side))
    count = x_NHD.shape[1]
    return torch.cat(
        [padded[:, tap * dilation : tap * dilation + count] for tap in range(taps)], dim=-1
    )


class _Block(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(TAPS * WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_NHD: Tensor) -> Tensor:
        h_NHD = F.relu(self.mix(_beside(self.norm(x_NHD), TAPS, self.dilation)))
        return x_NHD + self.out(h_NHD)


class Recogniser(nn.Module):
    """log-mel -> log probabilities of symbols. It works on rows of two frames and says a symbol a
    frame. Its reach is 0.9 s to either side, so that it reads songs of any length as it reads
    lines.

    Args:
        known: every symbol it can say, without the blank.
        trained: how it was trained, as the file of its weights says.
    """

    def __init__(self, known: Sequence[str], trained: dict[str, str] | None = None) -> None:
        super().__init__()
        self.known, self.trained = tuple(known), dict(trained or {})
        self.stem = nn.Linear(STEM_FRAMES * MELS, WIDTH)
        self.blocks = nn.ModuleList(_Block(dilation) for dilation in DILATIONS)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 2 * (len(known) + 1))
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("scale", torch.ones(MELS))
        self.mean: Tensor
        self.scale: Tensor

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Recogniser:
        """The recogniser of a file that `save` wrote; without a path the embedded one. Raises
        ModelError for a file that is absent or is something else.
        """
        try:
            with safe_open(path, "pt") as file:
                trained = dict(file.metadata() or {})
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  it is no mapping
            net = cls(json.loads(trained.pop("symbols")), trained)
            net.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"'{path}' holds no phoneme recogniser of this version ({error}): train one by "
                "`python -m mudit_engine.training.tiny.recogniser`"
            ) from None
        return net.eval()

    def save(self, path: Path) -> None:
        """Writes weights in half precision, with the symbols and how they were learned."""
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as aside:
            save_file(weights, aside, {"symbols": json.dumps(self.known), **self.trained})

    def forward(self, mel_NFM: Tensor) -> Tensor:
        """Log probabilities [N, F, V] of log-mel [N, F, M]."""
        frames = mel_NFM.shape[1]
        x_NFM = F.pad((mel_NFM - self.mean) / self.scale, (0, 0, 2, 2 + frames % 2))
        x_NHD = self.stem(x_NFM.unfold(1, STEM_FRAMES, 2).flatten(2))
        for block in self.blocks:
            x_NHD = block(x_NHD)
        return (
            self.out(self.norm(x_NHD))
            .unflatten(2, (2, -1))
            .flatten(1, 2)[:, :frames]
            .log_softmax(-1)
        )

    def read(self, mel_FM: Tensor) -> list[str]:
        """Phonemes of a song by best path: the likeliest symbol of each frame, repeats and blanks
        dropped.
        """
        return self._said(self._best(mel_FM))

    def read_lines(self, mel_FM: Tensor, windows: Sequence[Window]) -> list[list[str]]:
        """Phonemes of each window (start, end in seconds) of a song, heard in its context; see
        `line_windows`.
        """
        best = self._best(mel_FM)
        return [
            self._said(best[max(0, round(start * FRAME_RATE)) : max(0, round(end * FRAME_RATE))])
            for start, end in windows
        ]

    @torch.inference_mode()
    def _best(self, mel_FM: Tensor) -> list[int]:
        best: list[int] = self(mel_FM.float()[None])[0].argmax(-1).tolist()
        return best

    def _said(self, best: Sequence[int]) -> list[str]:
        return [
            self.known[symbol - 1]
            for before, symbol in zip([0, *best], best, strict=False)
            if symbol and symbol != before
        ]
