"""Packaging. Run `make` targets rather than this file."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "mudit_engine/__init__.py").read_text())[1]

# constraints.txt names the exact set that `make` installs, and which every change is tested on. The
# lower ends of torch and Triton are what images for GPU hosts still carry (`make test-floor`);
# Triton 3.8 and 3.9 spill registers where 3.7 does not.
CORE = [
    "torch>=2.11,<2.14",
    "triton>=3.6,<3.8; platform_system == 'Linux'",
    "numpy>=1.26",
    "pydantic>=2.10,<3",
    "click>=8.1,<9",
    "rich>=13.7",
    "safetensors>=0.5",
    "soundfile>=0.13",
    "pypinyin>=0.55,<0.56",
    "cn2an>=0.5.23,<0.6",
    "num2words>=0.5.14,<0.6",
    "matplotlib>=3.9",
    "packaging>=24",
    "llguidance>=1.9,<2",  # grammars over vocabularies: lyrics that keep their form
]
EXTRAS = {
    "train": ["deepspeed==0.19.8", "tensorboard>=2.18", "psutil>=6", "scipy>=1.14"],
    "lyrics": [
        "transformers==5.23.0",
        "peft==0.21.2",
        "bitsandbytes==0.50.2",
        "accelerate==1.15.0",
    ],
    "export": [
        "onnx==1.23.2",
        "onnxscript==0.7.2",
        "onnxruntime==1.32.0",
        "openvino==2026.4.1",
        "tensorrt-rtx==1.7.1.116",
    ],
    "lora": ["peft==0.21.2"],
    "hub": ["huggingface_hub>=1.0"],
    "serve": [
        "fastapi>=0.165,<0.166",
        "uvicorn>=0.54,<0.55",
        "python-multipart>=0.0.34",
        "prometheus-client>=0.26,<0.27",
    ],
    "trace": ["opentelemetry-sdk>=1.45,<2", "opentelemetry-exporter-otlp-proto-http>=1.45,<2"],
    "eval": ["onnxruntime==1.32.0", "scipy>=1.14"],
    "quality": ["pesq==0.0.4", "visqol-python>=3.8,<4"],  # what listeners lose to the codec
    # pyworld 0.3.5 imports pkg_resources, which setuptools 81 dropped
    "corpus": ["pyworld==0.3.5", "setuptools>=77,<81", "mido>=1.3,<2", "scipy>=1.14"],
    "flash": ["flash-attn>=2.8"],
    "ray": ["ray[data,serve]==2.60.0"],
    "omni": ["vllm-omni>=0.30,<0.31"],  # in an environment of its own: it wants other transformers
    # stems and lyrics of songs that come without
    "listen": ["demucs==4.1.0", "faster-whisper==1.2.1", "funasr==1.4.16"],
    # other groups' judges of songs; both pull torchaudio in
    "judges": ["muq==0.1.0", "audiobox-aesthetics==0.0.4"],
    "track": ["wandb>=0.19", "mlflow>=2.19"],
    "bench": ["diffusers==0.42.1", "transformers==5.23.0"],
    "peers": ["liger-kernel==0.8.5"],
    "docs": ["mkdocs==1.6.1", "mkdocs-material==9.8.2", "mkdocstrings[python]==1.0.8"],
    # in an environment of its own: it wants another onnx
    "quantize": ["nvidia-modelopt[onnx]>=0.47,<0.48"],
    # only where its GPU is
    "tensorrt": ["tensorrt==11.4.0.106"],
}
EXTRAS["dev"] = [
    "pytest==9.2.0",
    "pytest-randomly==5.1.0",
    "pytest-xdist==3.8.0",
    "hypothesis>=6.150,<7",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "tritonclient==2.65.0",  # the protobuf of config.pbtxt; from 2.66 on it pins an old ml-dtypes
    *EXTRAS["train"],
    *EXTRAS["export"],
    *EXTRAS["bench"],
    *EXTRAS["lyrics"],
    *EXTRAS["corpus"],
    *EXTRAS["eval"],
    *EXTRAS["peers"],
    *EXTRAS["docs"],  # a test builds the site
    *EXTRAS["serve"],
    "opentelemetry-sdk>=1.45,<2",
    "httpx>=0.28,<0.29",
    "selenium>=4.51,<5",
    "schemathesis>=4.32,<5",
]


def folders_of(name: str) -> list[str]:
    return find_namespace_packages(where=str(ROOT / name))


# Folders that the package links to; where git made plain files of the links, setuptools is told
# where they lie.
LINKED = ("kernels", "training", "export", "benchmarks")
UNLINKED = [name for name in LINKED if (ROOT / "mudit_engine" / name).is_file()]

setup(
    name="mudit-engine",
    version=VERSION,
    description="Text and lyrics to whole songs in one stage: the engine for MuDiT and MuSiT",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8")
    if (ROOT / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_namespace_packages(include=["mudit_engine", "mudit_engine.*"])
    + [f"mudit_engine.{name}" for name in UNLINKED]
    + [f"mudit_engine.{name}.{folder}" for name in UNLINKED for folder in folders_of(name)],
    package_dir={f"mudit_engine.{name}": name for name in UNLINKED},
    package_data={
        "": [
            f"*.{kind}"
            for kind in ("json", "safetensors", "tsv", "txt", "md", "html", "js", "css", "svg")
        ]
        + ["*.yaml", "*.png", "*.jsonl"]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["mudit = mudit_engine.cli.main:main"],
        "vllm_omni.general_plugins": ["mudit = mudit_engine.serving.omni:register"],
    },
)
