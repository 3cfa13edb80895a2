"""What tuning a language model on lyrics takes: memory and time by formula from a model's published
numbers. Modelled, not measured.

    base        NF4: (4 + 8/64 + 32/(64 * 256)) / 8 bytes a linear layer's weight; 2 bytes for lora
    rest        embeddings, output layer and norms, in fp32 for qlora (as peft prepares them)
    adapters    r (in + out) of every linear layer: fp32 weights, gradients, two moments
    activations one bf16 input a layer and token (recomputed), the widest layer's own,
                and the logits of the answer's tokens in fp32, three times
    time        6 FLOPs a weight and token (forward, twice, and gradients of activations) at the
                gemm share of the peak, and every NF4 weight dequantised to bf16 three times a pack

    plan = plan_lyrics(model_shape("qwen3-8b"), make_cluster("a100-80g", nodes=1, gpus_per_node=8))
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mudit_engine.errors import InputError
from mudit_engine.training.planning.clusters import GIB, Cluster

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
PACK_TOKENS = 4096
ANSWER_SHARE = 0.6  # of a pack's tokens: the rest are prompts
TOKENS_A_SONG = 700  # of a whole song, prompt and answer, in Qwen's vocabulary


@dataclass(frozen=True)
class ModelShape:
    """A decoder's numbers as its config.json gives them."""

    name: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    tied: bool = False

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear layers: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        w, m = self.width, self.mlp_width
        return [(w, q), (w, kv), (w, kv), (q, w), (w, m), (w, m), (m, w)]

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(a * b for a, b in self.linears())

    @property
    def other_weights(self) -> int:
        ends = self.vocabulary * self.width * (1 if self.tied else 2)
        return ends + (2 * self.layers + 1) * self.width

    @property
    def weights(self) -> int:
        return self.linear_weights + self.other_weights

    def adapter_weights(self, rank: int) -> int:
        return self.layers * sum(rank * (a + b) for a, b in self.linears())


# from the models' config.json; Qwen 1 halves its stated MLP width of 27392 between gate and up
SHAPES = {
    "qwen-14b": ModelShape("qwen-14b", 152064, 5120, 40, 40, 40, 128, 13696),
    "qwen3-8b": ModelShape("qwen3-8b", 151936, 4096, 36, 32, 8, 128, 12288),
    "qwen3-14b": ModelShape("qwen3-14b", 151936, 5120, 40, 40, 8, 128, 17408),
}


def model_shape(name: str) -> ModelShape:
    """A known model's numbers, or those of a config.json (or the folder that holds one)."""
    if name.lower() in SHAPES:
        return SHAPES[name.lower()]
    file = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not file.is_file():
        raise InputError(
            f"--lyrics {name}: neither one of {', '.join(SHAPES)} nor a config.json or its folder"
        )
    try:
        c = json.loads(file.read_text(encoding="utf-8"))
        heads, width = int(c["num_attention_heads"]), int(c["hidden_size"])
        return ModelShape(
            file.parent.name,
            int(c["vocab_size"]),
            width,
            int(c["num_hidden_layers"]),
            heads,
            int(c.get("num_key_value_heads", heads)),
            int(c.get("head_dim") or width // heads),
            int(c["intermediate_size"]),
            bool(c.get("tie_word_embeddings", False)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{file}' is no decoder's config.json ({error!r})") from None


@dataclass(frozen=True)
class LyricOption:
    """One way to tune. Bytes are of a rank."""

    method: str
    zero_stage: int
    memory: dict[str, float]
    peak_bytes: float
    fits: bool
    step_seconds: float
    gpu_hours: float


def plan_lyrics(
    shape: ModelShape,
    cluster: Cluster,
    *,
    songs: int = 20_000,
    epochs: float = 3.0,
    rank: int = 16,
    pack_tokens: int = PACK_TOKENS,
) -> dict[str, Any]:
    """Options by method and ZeRO stage, those that fit first, then by GPU-hours and memory; a step
    is one pack a rank.
    """
    adapters, world = shape.adapter_weights(rank), cluster.world
    options = []
    methods: tuple[Literal["qlora", "lora"], ...] = ("qlora", "lora")
    for method in methods:
        for stage in (0, 2, 3) if world > 1 else (0,):
            if method == "qlora" and stage == 3:
                continue  # packed 4-bit weights are not partitioned
            options.append(
                _option(shape, cluster, method, stage, adapters, songs, epochs, pack_tokens)
            )
    options.sort(key=lambda o: (not o.fits, o.gpu_hours, o.peak_bytes))
    return {
        "model": asdict(shape)
        | {"weights": shape.weights, "adapter_weights": adapters, "rank": rank},
        "cluster": {"gpu": cluster.gpu.name, "ranks": world, "memory_gib": cluster.gpu.memory_gib},
        "data": {
            "songs": songs,
            "epochs": epochs,
            "tokens_a_song": TOKENS_A_SONG,
            "pack_tokens": pack_tokens,
        },
        "options": [asdict(option) for option in options],
        "assumptions": asdict(cluster.assumptions),
        "kind": "modelled: formulas over the model's published numbers, nothing was run",
    }


def _option(
    shape: ModelShape,
    cluster: Cluster,
    method: Literal["qlora", "lora"],
    stage: int,
    adapters: int,
    songs: int,
    epochs: float,
    pack_tokens: int,
) -> LyricOption:
    world, assumed = cluster.world, cluster.assumptions
    linear = shape.linear_weights * (NF4_BYTES if method == "qlora" else 2.0)
    rest = shape.other_weights * (4.0 if method == "qlora" else 2.0)
    split = world if stage == 3 else 1
    widest = max(a + b for a, b in shape.linears())
    memory = {
        "base": (linear + rest) / split,
        "adapters": adapters * 4.0 / split,
        "gradients": adapters * 4.0 / (world if stage >= 2 else 1),
        "optimiser": adapters * 8.0 / (world if stage >= 1 else 1),
        "layer_inputs": 2.0 * pack_tokens * shape.width * shape.layers,
        "widest_layer": 2.0 * pack_tokens * (6 * shape.width + 3 * widest),
        "logits": 3 * 4.0 * ANSWER_SHARE * pack_tokens * shape.vocabulary,
        "mask": float(pack_tokens * pack_tokens),
        "context": assumed.context_gib * GIB,
    }
    peak = sum(memory.values()) * (1 + assumed.fragmentation)
    seconds = 6.0 * (shape.weights + adapters) * pack_tokens
    seconds /= cluster.peak_flops("bf16") * assumed.gemm
    if method == "qlora":
        moved = shape.linear_weights * (NF4_BYTES + 2.0 + 2.0)
        seconds += 3 * moved / (cluster.gpu.hbm_gbs * 1e9 * assumed.hbm)
    seconds += cluster.pass_seconds(adapters * 4.0) * (2 if world > 1 else 0)
    if stage == 3:
        seconds += 3 * cluster.pass_seconds(linear + rest, calls=3 * shape.layers)
    steps = songs * epochs * TOKENS_A_SONG / (pack_tokens * world)
    return LyricOption(
        method,
        stage,
        memory,
        peak,
        peak <= cluster.gpu.memory_gib * GIB,
        seconds,
        steps * seconds * world / 3600,
    )
