"""Words that several rooms share, each defined once: runtimes, samplers, user types, references.

    from mudit_engine.names import RUNTIMES, SAMPLERS, USER_TYPES, REFERENCE_KINDS

The order of USER_TYPES and REFERENCE_KINDS is that of the rows of the networks' embeddings, so a
new name goes to the end.
"""

from __future__ import annotations

from typing import Literal, get_args

SamplerName = Literal["ddim", "ode-euler", "ode-heun", "sde-euler", "dpmpp-2m"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)

GRAPH_RUNTIMES = ("onnxruntime", "openvino")  # run the fp32 graphs of an export on the CPU
RUNTIMES = ("torch", *GRAPH_RUNTIMES, "tensorrt")

USER_TYPES = ("none", "amateur", "professional")  # who wrote a description
REFERENCE_KINDS = ("mix", "vocals", "drums", "chords", "bass")  # what a reference audio holds
