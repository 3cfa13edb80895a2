"""Words that several rooms share, each defined once: embedded models, runtimes, samplers, user
types, references.

    from mudit_engine.names import RUNTIMES, SAMPLERS, USER_TYPES, REFERENCE_KINDS

The order of USER_TYPES, REFERENCE_KINDS, VOICES, STYLES and BAND is that of the rows or columns of
the networks' weights, so a new name goes to the end.
"""

from __future__ import annotations

from typing import Literal, get_args

# models that ship with the package, each a folder of mudit_engine/assets and a preset
EMBEDDED_MODELS = ("tiny", "tiny-mudit")

SamplerName = Literal["ddim", "ode-euler", "ode-heun", "sde-euler", "dpmpp-2m"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)

GRAPH_RUNTIMES = ("onnxruntime", "openvino")  # run the fp32 graphs of an export on the CPU
RUNTIMES = ("torch", *GRAPH_RUNTIMES, "tensorrt")
# what is said of an edited song wherever its runtime is known
EDITS_NEED_TORCH = "edited songs run with --runtime torch: exported graphs know no edits"

USER_TYPES = ("none", "amateur", "professional")  # who wrote a description
REFERENCE_KINDS = ("mix", "vocals", "drums", "chords", "bass")  # what a reference audio holds

VOICES = ("female", "male", "child", "none")  # who sings, as a control of its own
# styles that the corpus plays and the planner knows; the networks have columns for STYLE_COLUMNS
STYLES = (
    "ballad",
    "pop",
    "rock",
    "electronic",
    "folk",
    "jazz",
    "hip-hop",
    "metal",
    "funk",
    "reggae",
    "bossa nova",
    "country",
    "orchestral",
    "children",
)
STYLE_COLUMNS = 16
# what a model without controls of its own was trained on; other styles read as the nearest
FIRST_STYLES = STYLES[:6]
NEAREST_STYLE = {
    "hip-hop": "pop",
    "metal": "rock",
    "funk": "pop",
    "reggae": "pop",
    "bossa nova": "jazz",
    "country": "folk",
    "orchestral": "ballad",
    "children": "pop",
}
BAND = ("drums", "bass", "chords", "pad", "lead")  # who plays in a section of an arrangement
QUIETEST, LOUDEST = -60.0, -5.0  # LUFS that a written song may be asked to have
