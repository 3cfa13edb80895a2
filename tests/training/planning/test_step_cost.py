"""The network's cost on fake tensors: equal to a real run, linear, and on the path a GPU takes."""

from __future__ import annotations

from typing import Any

import pytest

from mudit_engine.config import ModelConfig, load_config
from mudit_engine.training.planning.step_cost import LINEAR, PRIMES, Pack, Primes, fit, run_once

PACK = Pack.of([70, 41], [19, 0], 3)


def config(**changes: Any) -> ModelConfig:
    """A network small enough to run, with everything that a big one has."""
    base = load_config("musit-380m")
    small = {"width": 128, "heads": 2, "blocks": 2, "lyric_width": 64, "lyric_blocks": 1}
    return base.model_copy(update={"dit": base.dit.model_copy(update=small | changes)})


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("cross_attention", ["serial", "parallel"])
def test_fake_tensors_cost_what_real_ones_do(checkpointing: Any, cross_attention: str) -> None:
    given: Any = {"precision": "fp32", "checkpointing": checkpointing, "backend": "eager"}
    fake, real = (
        run_once(config(cross_attention=cross_attention), PACK, fake=one, **given)
        for one in (True, False)
    )
    for name in (
        "saved_bytes",
        "kept_bytes",
        "peak_bytes",
        "gemm_flops",
        "gemm_bytes",
        "launches",
        "recomputed_attention",
    ):
        assert getattr(fake, name) == getattr(real, name), name


def test_a_model_with_an_outline_runs_too() -> None:
    fake, real = (
        run_once(config(outline=True), PACK, precision="fp32", backend="eager", fake=one)
        for one in (True, False)
    )
    assert (
        fake.saved_bytes
        == real.saved_bytes
        > run_once(config(), PACK, precision="fp32", backend="eager").saved_bytes
    )


@pytest.mark.parametrize("preset", ["mudit-380m", "published"])
def test_ddpm_and_per_block_modulation_run_on_the_path_of_a_gpu(preset: str) -> None:
    base = load_config(preset)
    shallow = base.model_copy(update={"dit": base.dit.model_copy(update={"blocks": 3})})
    two, three = (
        run_once(shallow, Pack.of(frames, [40] * len(frames)), checkpointing="full")
        for frames in ([100, 100], [100, 100, 100])
    )
    assert 0 < two.saved_bytes < three.saved_bytes < 1.6 * two.saved_bytes


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_fit_gives_other_sizes_and_depths(checkpointing: Any) -> None:
    deep = config(blocks=7)
    run = run_once(deep, Pack.of([900, 350], [300, 10]), checkpointing=checkpointing)
    fitted = fit(deep, checkpointing=checkpointing).at(Pack.of([900, 350], [300, 10]))
    for name in LINEAR:
        assert getattr(fitted, name) == pytest.approx(getattr(run, name), rel=2e-3), name


def test_a_size_says_what_it_is_made_of() -> None:
    """Both songs' rows, their frames, lyric tokens, rows and lyrics, and what goes with neither."""
    primes = Primes(*PRIMES[0])
    rows, tokens = primes.pack.rows, primes.pack.tokens
    for size in (48 * rows, 96 * (rows - 16), 512 * tokens, 64 * (rows + tokens), 1536 * 6144):
        constant, row, token = primes.parts(size)
        assert constant + row * rows + token * tokens == size
        assert bool(row) == (size != 1536 * 6144 and size != 512 * tokens)
    for pair in PRIMES:
        bases = (pair[0], pair[0] - 8, pair[1], sum(pair) // 2)
        assert len(set(bases)) == 4 and sum(pair) % 2 == 0
        assert all(base % k for base in bases for k in range(2, 33))


def test_a_width_that_holds_a_prime_takes_another_pair() -> None:
    taken = config().dit
    assert Primes.of(taken) == Primes(*PRIMES[0])
    other = taken.model_copy(update={"vocabulary_size": 2 * PRIMES[0][0]})
    assert Primes.of(other) == Primes(*PRIMES[1])


def test_checkpointing_trades_bytes_for_products() -> None:
    """On the kernels' path in bf16; a full recomputation repeats the blocks' forward pass, a
    selective one no product of matrices.
    """
    none, selective, full = (
        run_once(config(), Pack.of([700], [90]), checkpointing=mode)
        for mode in ("none", "selective", "full")
    )
    assert none.saved_bytes > full.saved_bytes
    assert none.kept_bytes > selective.kept_bytes > full.kept_bytes >= full.saved_bytes
    assert none.peak_bytes > selective.peak_bytes > full.peak_bytes
    assert none.gemm_flops == pytest.approx(3 * none.forward_gemm_flops, rel=0.1)
    assert selective.gemm_flops == none.gemm_flops
    assert none.gemm_flops < full.gemm_flops < none.gemm_flops + none.forward_gemm_flops
    assert (none.recomputed_attention, full.recomputed_attention) == (
        0,
        2 * config().dit.blocks,
    )


def test_flops_are_those_of_the_matrices() -> None:
    """Forward, of one song: 2 multiply-adds for every weight that a row passes."""
    base = config(lyric_blocks=0)
    frames, lyrics = 500, 120
    pack = Pack.of([frames], [lyrics], 4)
    d = base.dit
    block = (3 + 1 + 1 + 1) * d.width**2 + 2 * d.width * d.mlp_width
    rows = d.blocks * block * pack.rows
    conditions = d.blocks * 2 * d.width * d.lyric_width * lyrics
    ends = 2 * d.latent_channels * d.width * frames + d.description_width * d.width * 4
    found = run_once(base, pack).forward_gemm_flops
    assert found == pytest.approx(2 * (rows + conditions + ends), rel=0.01)
    assert pack.attention_flops(d)[0] == 4 * d.blocks * d.width * (
        pack.rows**2 + pack.rows * lyrics
    )


def test_a_token_budget_holds_its_pack() -> None:
    fitted = fit(config())
    budget = 3e8
    rows = fitted.largest_rows(budget, tokens_per_row=0.25)
    assert fitted.at(Pack.of([rows - 8], [round(0.25 * rows)], 8)).peak_bytes == pytest.approx(
        budget, rel=1e-3
    )
    assert fitted.largest_rows(0, tokens_per_row=0.25) == 0
