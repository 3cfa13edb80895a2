"""Plans: clusters and their links, lengths, ranking, what a plan says in all, pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mudit_engine.config import load_config
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training.dataset.lengths import Lengths, read_lengths
from mudit_engine.training.planning import plan as planning
from mudit_engine.training.planning.clusters import GIB, Assumptions, Cluster, assume, make_cluster
from mudit_engine.training.planning.plan import Plan, Request, make_plan, scaling
from mudit_engine.training.planning.plots import save_plots
from mudit_engine.training.planning.report import report
from mudit_engine.training.planning.state_bytes import state_bytes
from round_costs import cost_model
from small_songs import write_songs

CONFIG = load_config("musit-380m")


def a100(nodes: int = 8, **links: float) -> Cluster:
    return make_cluster("a100-80g", nodes=nodes, gpus_per_node=8, **links)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are of test_step_cost.py: here they are round figures."""
    monkeypatch.setattr(
        planning, "fit", lambda config, *, precision, checkpointing: cost_model(checkpointing)
    )


@pytest.fixture(scope="module")
def lengths() -> Lengths:
    """A seventh of the mix's sample: packing it takes a moment, and most tests ask no more."""
    mix = read_lengths("songs", CONFIG)
    return dataclasses.replace(mix, frames=mix.frames[:3000], tokens=mix.tokens[:3000])


def plan(lengths: Lengths, cluster: Cluster | None = None, **changes: object) -> Plan:
    return make_plan(Request("musit-380m", CONFIG, cluster or a100(), **changes), lengths)  # type: ignore[arg-type]


def test_a_ring_pass() -> None:
    """Three passes of 380 M bf16 gradients on 64 GPUs: 14 ms with 160 GB/s a node, eight times that
    with one NIC.
    """
    three = [3 * a100(nics=nics).pass_seconds(760e6, calls=0) for nics in (8, 1)]
    assert three == pytest.approx([0.0140, 0.1122], rel=0.01)
    assert make_cluster("a100-80g", nodes=1, gpus_per_node=8).pass_seconds(
        760e6, calls=0
    ) == pytest.approx(760e6 * 7 / 8 / 240e9)
    assert make_cluster("a100-80g", nodes=1, gpus_per_node=1).pass_seconds(760e6) == 0


def test_overridden_links_and_assumptions() -> None:
    cluster = make_cluster(
        "h100-80g", nodes=2, gpus_per_node=4, nvlink_gbs=100, nic_gbs=12.5, nics=2, memory_gib=40
    )
    assert (
        cluster.gpu.nvlink_gbs,
        cluster.gpu.nic_gbs,
        cluster.gpu.nics,
        cluster.gpu.memory_gib,
    ) == (100, 12.5, 2, 40)
    assert cluster.bus_gbs(2, 4) == 25 * 0.8
    assert assume(["gemm=0.5", "hop_us=3"]) == Assumptions(gemm=0.5, hop_us=3)
    with pytest.raises(InputError, match="did you mean 'gemm'"):
        assume(["gem=0.5"])
    with pytest.raises(InputError, match="shares lie in"):
        assume(["gemm=1.5"])
    with pytest.raises(InputError, match="a100-80g, h100-80g"):
        make_cluster("v100", nodes=1, gpus_per_node=8)
    with pytest.raises(InputError, match="nic_gbs=-1"):
        make_cluster("a100-80g", nodes=1, gpus_per_node=8, nic_gbs=-1)


def test_any_gpu_by_its_figures() -> None:
    for name in ("h200", "b200", "rtx-5090", "l40s"):
        assert make_cluster(name, nodes=1, gpus_per_node=8).gpu.bf16_tflops > 200
    with pytest.raises(InputError, match=r"of another GPU give all figures \(memory_gib, bf16_"):
        make_cluster("mine", nodes=1, gpus_per_node=1)
    figures = {"memory_gib": 24.0, "bf16_tflops": 100.0, "fp32_tflops": 50.0, "hbm_gbs": 900.0}
    cluster = make_cluster(
        "mine", nodes=1, gpus_per_node=2, **figures, nvlink_gbs=30, nic_gbs=1, nics=1
    )
    assert cluster.gpu.name == "mine" and cluster.peak_flops("bf16") == 1e14


def test_stage_3_costs_what_its_hooks_do(lengths: Lengths) -> None:
    """One pack a rank: stage 3 sends half of what stage 1 reduces, and is no faster for it."""
    by_stage = {
        option.stage: option
        for option in plan(lengths, modes=("none",)).options
        if option.micro_batches == 1
    }
    assert by_stage[3].step_seconds > by_stage[1].step_seconds
    assert by_stage[3].seconds["hooks"] > 0 and "hooks" not in by_stage[1].seconds


def test_data_and_saving_stall_a_step(lengths: Lengths) -> None:
    slow = dataclasses.replace(a100(), assumptions=Assumptions(load_ms=4000.0))
    base, reading = plan(lengths).best, plan(lengths, slow).best
    assert base.seconds["data"] == 0 < reading.seconds["data"]
    songs = plan(lengths).packings[base.pack_size].songs * base.micro_batches
    rest = sum(
        value for part, value in reading.seconds.items() if part not in ("data", "checkpoint")
    )
    assert reading.seconds["data"] == pytest.approx(songs * 4.0 / 4 - rest)
    waiting = plan(lengths, asynchronous=False, save_every=50).best.seconds["checkpoint"]
    copied = plan(lengths, save_every=50).best.seconds["checkpoint"]
    assert 0 < copied < 0.01 * base.step_seconds < waiting


def test_a_range_holds_what_was_not_set(lengths: Lengths) -> None:
    free = plan(lengths).best
    named = dataclasses.replace(a100(), assumptions=Assumptions(gemm=0.6))
    fixed = plan(lengths, named).best
    assert free.seconds_range[0] < free.step_seconds < free.seconds_range[1]
    assert fixed.seconds_range[1] - fixed.seconds_range[0] < (
        free.seconds_range[1] - free.seconds_range[0]
    )


def test_lengths_from_a_mix_a_file_and_a_data_set(tmp_path: Path) -> None:
    mix = read_lengths("songs", CONFIG).describe()
    assert mix["songs"] is None
    assert 190 < float(mix["seconds_p50"] or 0) < 215
    assert float(mix["mean_lyric_tokens"] or 0) == pytest.approx(517, rel=0.1)
    file = tmp_path / "seconds.txt"
    file.write_text("60\n\n180.5\n")
    assert read_lengths(str(file), CONFIG).frames.tolist() == [646, 1944]
    write_songs(tmp_path / "data", 24)
    encoded = read_lengths(str(tmp_path / "data"), CONFIG)
    assert (encoded.songs, len(encoded.frames), len(encoded.tokens)) == (24, 24, 24)
    assert 8 <= encoded.frames.min() <= encoded.frames.max() <= 40
    for text, match in (
        ("60\nlong\n", "line 2: 'long'"),
        ("", "is empty"),
        ("-3\n", "not a positive"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=match):
            read_lengths(str(file), CONFIG)
    with pytest.raises(InputError, match="no lengths 'nothing'"):
        read_lengths("nothing", CONFIG)


def test_packs_of_the_mix_are_full() -> None:
    found = plan(read_lengths("songs", CONFIG))
    assert found.best.pack_size == 17664
    assert found.best.efficiency >= 0.97
    assert all(1 <= packing.imbalance < 1.2 for packing in found.packings.values())
    for option in found.options:
        assert option.pack_size * option.packs_per_step == pytest.approx(
            found.frames_per_step, rel=0.03
        )


def test_options_are_ranked_and_the_simplest_of_equals_is_first(lengths: Lengths) -> None:
    found = plan(lengths)
    fitting = [option for option in found.options if option.fits]
    assert found.best.gpu_hours <= 1.03 * min(option.gpu_hours for option in fitting)
    assert (found.best.stage, found.best.checkpointing, found.best.micro_batches) == (1, "none", 1)
    assert [option.fits for option in found.options] == sorted(
        (option.fits for option in found.options), reverse=True
    )


def test_memory_decides_what_fits(lengths: Lengths) -> None:
    """16 GiB: a pack of 17,664 frames needs checkpointing or more micro-batches; 4 GiB: nothing
    without it.
    """
    found = plan(lengths, a100(memory_gib=16))
    whole = {
        option.checkpointing: option.fits
        for option in found.options
        if option.stage == 1 and option.micro_batches == 1
    }
    assert whole == {"none": False, "selective": True, "full": True}
    assert found.best.checkpointing == "none" and found.best.micro_batches > 1
    assert not plan(lengths, a100(memory_gib=2)).best.fits
    for option in found.options:
        assert option.fits == (sum(option.memory.values()) <= 16 * GIB)


def test_the_parts_of_a_rank_add_up(lengths: Lengths) -> None:
    found = plan(lengths)
    option = found.best
    from mudit_engine.training.planning.state_bytes import Sharding

    state = state_bytes(found.parameters, Sharding(1, 64))
    assert {
        kind: option.memory[kind] for kind in ("weights", "gradients", "moments", "average")
    } == {kind: state[kind] for kind in ("weights", "gradients", "moments", "average")}
    # eight songs, 8 description rows each, 900 KB a row
    assert option.memory["activations"] == pytest.approx(9e5 * (option.pack_size + 64), rel=1e-3)
    tensors = sum(size for kind, size in option.memory.items() if kind != "reserve")
    assert option.memory["reserve"] == pytest.approx(0.05 * tensors + 1.2 * GIB, rel=1e-6)


def test_time_goes_with_the_work_and_the_links(lengths: Lengths) -> None:
    base = plan(lengths).best
    # by hand: 2.3 GFLOPs of products a row at 65 % of 312 TFLOP/s
    rows = base.efficiency * base.pack_size * (1 + 8 / lengths.frames.mean())
    assert base.seconds["products"] == pytest.approx(2.3e9 * rows / (312e12 * 0.65), rel=0.01)
    assert (
        plan(lengths, make_cluster("h100-80g", nodes=8, gpus_per_node=8)).best.step_seconds
        < 0.6 * base.step_seconds
    )
    slow = plan(lengths, a100(nics=1), stages=(1,)).best
    assert slow.seconds["communication"] > 4 * base.seconds["communication"]
    assert plan(lengths, epochs=20.0).best.gpu_hours == pytest.approx(2 * base.gpu_hours)
    host = dataclasses.replace(a100(), assumptions=Assumptions(host_us=1e5))
    assert plan(lengths, host).best.seconds["host"] > base.step_seconds


def test_a_batch_too_small_for_the_ranks_is_refused(lengths: Lengths) -> None:
    with pytest.raises(InputError, match=r"raise --batch-songs to \d+"):
        plan(lengths, batch_songs=16)


def test_the_report_is_json_and_stands_beside_the_paper(lengths: Lengths) -> None:
    found = plan(lengths)
    document = json.loads(json.dumps(report(found)))
    assert document["paper"]["gpu_hours"] == 53_760
    assert document["paper"]["epochs_for_as_many_gpu_hours"] == pytest.approx(
        10 * 53_760 / found.best.gpu_hours
    )
    assert "modelled" in document["kind_of_figures"]["time"]
    assert document["best"]["set"][:2] == ["strategy=deepspeed", "parallel.zero_stage=1"]
    assert (
        document["token_budget"]["full"] > document["token_budget"]["none"] > found.best.pack_size
    )
    assert {message["kind"] for message in document["best"]["messages"]} == {
        "all-reduce",
        "all-gather",
    }


def test_what_a_plan_sets_is_a_recipe(lengths: Lengths) -> None:
    from mudit_engine.training.parallel.deepspeed_config import micro_batches
    from mudit_engine.training.recipe import load_recipe

    best = plan(lengths).best
    recipe = load_recipe("tiny-dit-pretrain", overrides=best.overrides)
    assert micro_batches(recipe, 64) == best.micro_batches
    assert recipe.dit.checkpointing == best.checkpointing
    with pytest.raises(ConfigError):
        load_recipe("tiny-dit-pretrain", overrides=["parallel.zero_stage=4"])


def test_more_nodes_take_less_time_and_more_gpu_hours(lengths: Lengths) -> None:
    found = scaling(plan(lengths), (1, 4, 16, 64))
    # 64 nodes would get less than the longest song each
    assert [count for count, _ in found] == [1, 4, 16]
    hours = np.array([option.gpu_hours for _, option in found])
    assert (np.diff(hours) > 0).all()
    assert (np.diff(hours / np.array([8, 32, 128])) < 0).all()


def test_pictures(lengths: Lengths, tmp_path: Path) -> None:
    paths = save_plots(plan(lengths), tmp_path)
    assert [path.name for path in paths] == ["memory.png", "step.png", "scaling.png", "lengths.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
