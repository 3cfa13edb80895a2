"""One `pytest` runs everything: Triton kernels are interpreted, as there is no GPU to count on
(TRITON_INTERPRET=0: run them on one).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# read by triton.jit when a kernel module is first imported, which any test file may do
os.environ.setdefault("TRITON_INTERPRET", "1")

# a table that this user made by `mudit bench tune` changes no test
os.environ.setdefault("MUDIT_BACKENDS", "off")

# A runner started in the background of a script ignores Ctrl-C and would hand that down to the
# programs whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that took 200 ms says that the machine was busy; the same examples are tried each time.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The test files import some ten thousand modules, which stay. To walk through them for
    garbage, again and again while they grow, is a quarter of the time that this takes; and later
    rounds are spared them too, and come seldom: the objects of a traced graph, which nearly all
    stay, would be walked through hundreds of times.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        gc.enable()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """What a test draws does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def levels_of_logs() -> None:
    """A command that ran in an earlier test of this process left its level of messages."""
    for name in ("mudit_engine", "mudit_engine.training"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small tensors: a second thread only waits for the first."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder small enough to run in every test, with random weights."""
    from micro_model import save_micro

    return save_micro(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that exercises every input of the exported graphs, with random weights."""
    from micro_deployment import micro_config, save_model

    return save_model(tmp_path_factory.mktemp("model"), micro_config(outline=True, blocks=1))


@pytest.fixture(scope="session")
def deployed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployment folder of `model`. Never written to: a test that breaks it copies it first.

    It takes most of a minute, so that the workers of one run share it: the first that asks makes
    it, another waits. A worker that fails leaves nothing, and the next tries itself.
    """
    from mudit_engine.export.onnx_export import export_onnx

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # otherwise the parent outlives this run
        folder = folder.parent
    with FileLock(folder / "deployed.lock"):
        if not (folder / "deployed").is_dir():  # renamed when it is whole
            export_onnx(model, folder / "deployed", flavours=("fp32",))
    return folder / "deployed"
