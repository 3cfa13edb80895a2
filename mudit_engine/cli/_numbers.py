"""Numbers of the command line that are numbers: click's own ranges let `nan` through, which no
comparison refuses.

    @click.option("--seconds", type=FiniteRange(1))
"""

from __future__ import annotations

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """click's range of floats without NaN and infinity.

    Examples:
        >>> FiniteRange(0).convert("2.5", None, None)
        2.5
    """

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"'{value}' is no finite number", param, ctx)
        return found
