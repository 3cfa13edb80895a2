"""Attention on packed rows, as TensorRT's builder is asked for it: the network is defined here, and
what only a GPU's builder can say is said to be missing.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from mudit_engine.availability import available
from mudit_engine.export import tensorrt_probe
from mudit_engine.export.tensorrt_probe import HEADS, define, main, probe
from mudit_engine.hardware import machine

needs_rtx = pytest.mark.skipif(not available("tensorrt_rtx"), reason="needs tensorrt-rtx")


@needs_rtx
def test_the_network_is_packed_and_one_kernel_or_none() -> None:
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    layer = define(trt, network, 96)
    assert layer.query_form == layer.key_value_form == trt.AttentionIOForm.PACKED_NHD
    assert layer.query_lengths.name == layer.key_value_lengths.name == "lengths"
    assert layer.mask is None and not layer.decomposable
    assert tuple(layer.get_output(0).shape) == (-1, HEADS, 96)
    assert layer.get_output(0).dtype == trt.DataType.BF16
    assert [network.get_input(i).name for i in range(network.num_inputs)] == [
        "query",
        "key",
        "value",
        "lengths",
    ]


@needs_rtx
def test_the_builders_answer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    import tensorrt_rtx as trt

    row = probe(trt, 64, capability="SM80")
    # release 1.7 refuses; a later one that builds it says how large it is
    assert row["built"] or row["reason"] != ""
    code = main(["--package", "tensorrt_rtx", "--capability", "SM80", "--width", "64"])
    assert json.loads(capsys.readouterr().out) == row
    assert code == (0 if row["built"] else tensorrt_probe.REFUSED)


@pytest.mark.skipif(bool(machine().gpus), reason="is what a machine without a GPU says")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == tensorrt_probe.MISSING
    assert "no GPU here" in capsys.readouterr().err


def test_an_older_version_is_named() -> None:
    old = SimpleNamespace(__name__="tensorrt", __version__="10.13")
    with pytest.raises(RuntimeError, match="tensorrt 10.13 has no packed attention"):
        define(old, None, 64)
