"""A deployment folder of a tiny model with random weights, exported once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from micro_deployment import micro_config, save_model

__all__ = ["micro_config", "save_model"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), micro_config(outline=True, blocks=1))


@pytest.fixture(scope="session")
def deployed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never written to: a test that breaks it copies it first."""
    from mudit_engine.export.onnx_export import export_onnx

    return export_onnx(model, tmp_path_factory.mktemp("deploy") / "out", flavours=("fp32",))
