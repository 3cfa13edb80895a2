"""The micro model, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from micro_model import save_micro


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro(tmp_path_factory.mktemp("micro"))
