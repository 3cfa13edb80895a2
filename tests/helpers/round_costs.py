"""Round figures in place of what a network costs, for tests of what plans make of them."""

from __future__ import annotations

from mudit_engine.config import load_config
from mudit_engine.training.planning.step_cost import LINEAR, CostModel

CONFIG = load_config("musit-380m")


def cost_model(mode: str) -> CostModel:
    """Round figures of the size of musit-380m's: 900, 450 or 150 KB and 2.3 (3.1) GFLOPs of
    products a row.
    """
    peak = {"none": 9e5, "selective": 4.5e5, "full": 1.5e5}[mode]
    slopes = dict.fromkeys(LINEAR, 0.0) | {
        "peak_bytes": peak,
        "saved_bytes": peak,
        "gemm_flops": 3.1e9 if mode == "full" else 2.3e9,
    }
    slopes |= {"forward_gemm_flops": 7.7e8, "moved_bytes": 4e6 if mode == "none" else 6e6}
    outer = {name: (0.0, slope, 0.0) for name, slope in slopes.items()} | {
        "launches": (1000.0, 0.0, 0.0)
    }
    outer["recomputed_attention"] = (0.0 if mode == "none" else 20.0, 0.0, 0.0)
    return CostModel(CONFIG.dit, mode, "bf16", outer, dict.fromkeys(LINEAR, (0.0, 0.0, 0.0)))  # type: ignore[arg-type]
