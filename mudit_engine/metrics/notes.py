"""Notes of audio, and how well two sets of notes agree: F1 over onsets and pitches.

    F1 = 2 TP / (notes of a + notes of b)

A pair counts when the MIDI pitches are equal and the onsets within 50 ms, each note in one pair.

Notes come from the basic-pitch network (88 semitones, 86 frames a second), of which only the ONNX
file is used: the package itself would import TensorFlow.

    listen = NoteListener.load()
    f1 = note_f1(listen(original, 22050), listen(decoded, 22050))

Sources: Bittner et al. 2022 (basic-pitch, Apache-2.0); Raffel et al. 2014, mir_eval.transcription
(onset-only F-measure; its 50 cents are equality on a semitone grid).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mudit_engine.audio import resample
from mudit_engine.availability import pip_install, require
from mudit_engine.errors import MissingError

RATE, FRAME_HOP, FRAMES, SAMPLES = 22050, 256, 172, 43844  # of one window of the network
EDGE = 15  # frames on each side of a window that see too little context
LOWEST_MIDI = 21
ONSET_THRESHOLD, NOTE_THRESHOLD = 0.5, 0.3
SHORTEST_FRAMES = 6  # 70 ms
GAP_FRAMES = 3  # a note goes on over shorter dips
ONSET_TOLERANCE = 0.05  # seconds
MODEL_FILE = Path("saved_models") / "icassp_2022" / "nmp.onnx"


class NoteListener:
    """The frozen transcriber."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.input = session.get_inputs()[0].name

    @classmethod
    def load(cls) -> NoteListener:
        """Raises MissingError with the command that installs what is not here."""
        require("onnxruntime", "transcribing notes")
        # find_spec does not run the package, which would look for TensorFlow
        spec = importlib.util.find_spec("basic_pitch")
        path = Path(spec.origin).parent / MODEL_FILE if spec is not None and spec.origin else None
        if path is None or not path.is_file():
            raise MissingError(
                f"transcribing notes needs the network of basic-pitch: "
                f"{pip_install('--no-deps', 'basic-pitch==0.4.0')}"
            )
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return cls(
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        )

    def posteriors(self, audio: Tensor, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """(note, onset) probabilities [frames, 88] of audio [channels, samples] or [samples]; frame
        f is at f FRAME_HOP / RATE seconds.
        """
        mono = audio.mean(0) if audio.dim() == 2 else audio
        samples = resample(mono[None].float(), sample_rate, RATE)[0].numpy()
        # windows advance by a whole number of frames, so that what is kept of them tiles time
        # without drift
        kept = FRAMES - 2 * EDGE
        windows = max(1, -(-len(samples) // (kept * FRAME_HOP)))
        padded = np.zeros(((windows - 1) * kept * FRAME_HOP + SAMPLES,), np.float32)
        held = samples[: len(padded) - EDGE * FRAME_HOP]
        padded[EDGE * FRAME_HOP : EDGE * FRAME_HOP + len(held)] = held
        notes, onsets = [], []
        for window in range(windows):
            start = window * kept * FRAME_HOP
            # outputs of the file: 1 is the note's, 2 the onset's
            note, onset = self.session.run(
                ["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"],
                {self.input: padded[None, start : start + SAMPLES, None]},
            )
            notes.append(note[0, EDGE : FRAMES - EDGE])
            onsets.append(onset[0, EDGE : FRAMES - EDGE])
        frames = -(-len(samples) // FRAME_HOP)
        return np.concatenate(notes)[:frames], np.concatenate(onsets)[:frames]

    def __call__(self, audio: Tensor, sample_rate: int) -> np.ndarray:
        """Notes [n, 3] (start s, end s, MIDI pitch), by start."""
        return notes_of(*self.posteriors(audio, sample_rate))


def notes_of(note_FP: np.ndarray, onset_FP: np.ndarray) -> np.ndarray:
    """Notes of posteriors: they start at peaks of the onset and last while the note sounds."""
    before = np.vstack([np.full((1, onset_FP.shape[1]), -1.0), onset_FP[:-1]])
    after = np.vstack([onset_FP[1:], np.full((1, onset_FP.shape[1]), -1.0)])
    starts = (onset_FP >= ONSET_THRESHOLD) & (onset_FP > before) & (onset_FP >= after)
    found = []
    for pitch in np.flatnonzero(starts.any(0)):
        frames = np.flatnonzero(starts[:, pitch])
        silent = np.flatnonzero(note_FP[:, pitch] < NOTE_THRESHOLD)
        # a run of GAP_FRAMES silent frames ends a note
        ends = silent[: len(silent) - GAP_FRAMES + 1]
        ends = ends[silent[GAP_FRAMES - 1 :] - ends == GAP_FRAMES - 1] if len(ends) else ends
        for start, following in zip(frames, [*frames[1:], len(note_FP)], strict=True):
            later = ends[ends > start]
            end = min(int(later[0]) if len(later) else len(note_FP), int(following))
            if end - start >= SHORTEST_FRAMES:
                found.append(
                    (start * FRAME_HOP / RATE, end * FRAME_HOP / RATE, float(pitch + LOWEST_MIDI))
                )
    return np.array(sorted(found), float).reshape(-1, 3)


def matched_notes(a_n3: np.ndarray, b_n3: np.ndarray, *, tolerance: float = ONSET_TOLERANCE) -> int:
    """The most pairs of equal pitch and onsets at most `tolerance` seconds apart.

    With one pitch and one tolerance the intervals are ordered like their centres, so taking the
    earliest partner each time is optimal.
    """
    pairs = 0
    for pitch in np.intersect1d(a_n3[:, 2], b_n3[:, 2]):
        ours, theirs = (np.sort(x[x[:, 2] == pitch, 0]) for x in (a_n3, b_n3))
        i = j = 0
        while i < len(ours) and j < len(theirs):
            gap = theirs[j] - ours[i]
            if abs(gap) <= tolerance + 1e-9:
                pairs, i, j = pairs + 1, i + 1, j + 1
            elif gap > 0:
                i += 1
            else:
                j += 1
    return pairs


def note_f1(reference_n3: np.ndarray, estimate_n3: np.ndarray) -> float:
    """F1 of onsets and pitches; 1 when neither has a note."""
    total = len(reference_n3) + len(estimate_n3)
    return 2 * matched_notes(reference_n3, estimate_n3) / total if total else 1.0
