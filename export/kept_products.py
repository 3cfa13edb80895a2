"""Which products stay in half precision: those that cost a song most in 8 bits, by measurement.

    loss of a call = 1 - cos(exact, rough)      # of what the network says, at the same latents

    search = Search(model, ranges, calls, kind="int8", work=folder)
    choice = search.choose(loss=0.008, most=18)
    choice.kept                                 # names of weights whose products stay as they are

Recorded calls are asked with one product in 8 bits at a time, which ranks the products. Beginning
with all of them in 8 bits, the costliest ones are put back until no call loses more than it may;
those that turn out not to be needed are then given to the 8 bits again. Only the worst calls are
asked on the way, and all of them in the end: one that still loses too much joins the worst ones,
and the search goes on from there. Products without ranges, which ModelOpt leaves out because they
are too small for a kernel in 8 bits, stay as they are in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine.errors import GateError
from mudit_engine.export import calibration
from mudit_engine.export.quantized_graph import Ranges, insert, products, widened

HARD = 4  # calls that are asked on the way
Call = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Args:
        kept: names of the weights whose products stay in half precision, the costliest first.
        losses: of the worst call with one product alone in 8 bits, by its weight's name.
        before: loss of the worst call with all products in 8 bits.
        after: the same with those kept.
    """

    kept: tuple[str, ...]
    losses: dict[str, float]
    before: float
    after: float


class Search:
    """Graphs with some products in 8 bits, asked the recorded calls of `step`.

    Args:
        model: the graph whose products the ranges are of.
        ranges: of products, by their nodes' names.
        calls: inputs of the graph.
        kind: "fp8" or "int8".
        work: a folder for the graphs that are asked.
        report: told how far it is.

    Raises GateError for ranges of no product.
    """

    def __init__(
        self,
        model: Any,
        ranges: Mapping[str, Ranges],
        calls: Sequence[Call],
        *,
        kind: str,
        work: Path,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.ranges, self.calls = model, ranges, calls
        self.kind, self.work, self.report = kind, work, report
        known = products(model.graph)
        self.names = [one.weight for one in known if one.node.name in ranges]
        self.left_out = tuple(one.weight for one in known if one.node.name not in ranges)
        if not self.names:
            raise GateError(f"none of {len(known)} products was measured: ModelOpt left them out")
        self._ranked: dict[str, float] = {}
        self._hard: list[int] = []
        exact = self._session(model)
        self.exact = [said(call, exact.run(None, dict(call))[0]) for call in calls]

    def losses(self, kept: Sequence[str], rows: Sequence[int] | None = None) -> list[float]:
        """Of calls by their numbers, or all, where these products stay as they are."""
        rough = type(self.model)()
        rough.CopyFrom(self.model)
        insert(rough, self.ranges, kind=self.kind, kept=[*self.left_out, *kept])
        session = self._session(rough)
        return [
            loss(
                self.exact[row], said(self.calls[row], session.run(None, dict(self.calls[row]))[0])
            )
            for row in (range(len(self.calls)) if rows is None else rows)
        ]

    def choose(self, *, loss: float, most: int, kept: Sequence[str] = ()) -> Choice:
        """The products to keep so that no call loses more than `loss`, at most `most` of them,
        beginning with `kept`. Raises GateError where those are not enough.
        """
        whole = self.losses(())
        self._hard = self._hard or _hardest(whole, self.calls)
        chosen = list(kept)
        while True:
            self._rank()
            chosen = self._fewest(self._enough(chosen, loss=loss, most=most), loss=loss)
            after = self.losses(chosen)
            worst = int(np.argmax(after))
            if after[worst] <= loss:
                break
            self._hard.append(worst)  # not among them yet: those are within the limit
        chosen.sort(key=lambda name: -self._ranked[name])
        return Choice(tuple(chosen), dict(self._ranked), max(whole), after[worst])

    def _rank(self) -> None:
        """Measures what each product costs alone, once."""
        for number, name in enumerate(self.names):
            if name not in self._ranked:
                self.report(f"product {number + 1} of {len(self.names)} alone")
                others = [one for one in self.names if one != name]
                self._ranked[name] = max(self.losses(others, self._hard))

    def _enough(self, chosen: list[str], *, loss: float, most: int) -> list[str]:
        """Adds the costliest products until the hard calls are within the limit."""
        left = sorted(
            (name for name in self.names if name not in chosen), key=lambda name: self._ranked[name]
        )
        while (now := max(self.losses(chosen, self._hard))) > loss:
            if len(chosen) >= most or not left:
                raise GateError(
                    f"with {len(chosen)} of {len(self.names)} products kept out of {self.kind} the "
                    f"worst recorded call still has a cosine of {1 - now:.4f}, where "
                    f"{1 - loss:.4f} is wanted: choose the other kind, or let more of them stay"
                )
            chosen = [*chosen, left.pop()]
            self.report(f"{len(chosen)} kept")
        return chosen

    def _fewest(self, chosen: list[str], *, loss: float) -> list[str]:
        """Gives back products that the limit does not need, those that cost least alone first."""
        for name in sorted(chosen, key=lambda name: self._ranked[name]):
            without = [one for one in chosen if one != name]
            if max(self.losses(without, self._hard)) <= loss:
                chosen = without
                self.report(f"{len(chosen)} kept")
        return chosen

    def _session(self, model: Any) -> Any:
        import onnxruntime

        path = self.work / "asked.onnx"
        calibration.save_model(widened(model), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # engines sum in 32 bits; without this, processors that have no VNNI saturate at 16
        options.add_session_config_entry("session.x64quantprecision", "1")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def said(call: Mapping[str, Any], following: Any) -> np.ndarray:
    """What the network said in a call of `step`, fp64, of the latents that follow.

    next = a x + b out + c kept + d noise
    """
    a, b, c, d = (np.asarray(call["coefficients"][:, i, None, None], np.float64) for i in range(4))
    x, kept, noise = (np.asarray(call[name], np.float64) for name in ("x", "kept", "noise"))
    found: np.ndarray = (np.asarray(following, np.float64) - a * x - c * kept - d * noise) / b
    return found.ravel()


def loss(exact: np.ndarray, rough: np.ndarray) -> float:
    """1 - cosine; an answer that is no number loses everything."""
    cosine = float(exact @ rough / max(np.linalg.norm(exact) * np.linalg.norm(rough), 1e-30))
    return 1 - cosine if np.isfinite(cosine) else 2.0


def _hardest(losses: Sequence[float], calls: Sequence[Call]) -> list[int]:
    """Numbers of the worst calls, of songs of different lengths first."""
    order = np.argsort(losses)[::-1].tolist()
    worst_of: dict[int, int] = {}
    for row in order:
        worst_of.setdefault(calls[row]["x"].shape[1], row)
    first = list(worst_of.values())
    return [*first, *(row for row in order if row not in first)][:HARD]
