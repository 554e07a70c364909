"""The lazy-neuron study: its smallest run, its full one on made-up files, and the measures behind its verdicts."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from netloupe.core.batches import Batch
from netloupe.core.errors import SubjectError
from netloupe.core.study import StudyResult, run_study
from netloupe.studies import _lazy_neuron_emergence as emergence
from netloupe.studies import _lazy_neuron_full as full
from netloupe.studies import _lazy_neuron_setting as setting
from netloupe.studies import _lazy_neuron_topk as topk
from netloupe.studies import lazy_neuron as study

NAMES = [
    "pressure-cross-entropy", "pressure-squared-error", "pressure-inactive",
    "no-signal-fresh", "no-signal-labels", "larger-is-sparser", "transformer",
    "topk-label-noise-clean", "topk-label-noise-gaussian", "topk-label-noise-impulse",
    "topk-accuracy", "topk-calibration",
]  # fmt: skip
FULL_NAMES = ["transformer-width", "transformer-depth", "transformer-data", "language-model"]


@pytest.fixture(scope="module")
def smoke() -> StudyResult:
    return run_study("lazy-neuron", "smoke", seed=0)


def test_smoke_measures_every_claim_and_every_control_is_negative(smoke):
    assert [claim.name for claim in smoke.claims] == NAMES
    for claim in smoke.claims:
        assert claim.control_is_negative, claim.name
        assert claim.verdict in ("reproduced", "not reproduced"), claim.name
    assert [claim.verdict for claim in smoke.claims[:3]] == ["reproduced"] * 3


def test_the_dead_share_stands_beside_every_sparsity(smoke):
    for claim in smoke.claims[3:]:
        assert "dead" in claim.note, claim.name


def test_every_figure_has_labelled_axes(smoke):
    for claim in smoke.claims:
        axes = Figure().subplots()
        assert claim.plot is not None
        claim.plot(axes)
        assert axes.lines
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_keeping_every_unit_trains_the_ordinary_network_bit_for_bit(smoke):
    for claim in smoke.claims[7:10]:
        assert claim.control == 0.0
        assert "bit for bit: yes" in claim.note


def test_learning_rate_zero_changes_nothing(smoke):
    by_name = {claim.name: claim for claim in smoke.claims}
    assert by_name["transformer"].control == 0.0
    for name in ("no-signal-fresh", "no-signal-labels"):
        assert f"{by_name[name].control:.3f}" in by_name[name].note


def test_margin_is_positive_only_where_shares_fall_and_counts_rise():
    widths = np.array([64, 256, 1024])
    assert emergence.margin(np.array([0.8, 0.4, 0.2]), widths) == pytest.approx(np.log(2))
    assert emergence.margin(np.array([0.8, 0.4, 0.1]), widths) == pytest.approx(0)
    assert emergence.margin(np.array([0.8, 0.4, 0.05]), widths) == pytest.approx(-np.log(2))
    assert emergence.margin(np.array([0.5, 0.5, 0.6]), widths) == pytest.approx(-np.log(1.2))


@pytest.mark.parametrize(
    ("values", "trend"), [((5, 4, 2, 1), -1.0), ((1, 2, 3), 1.0), ((2, 2, 2), 0.0), ((3, 1, 2), -0.5)]
)
def test_rank_trend(values, trend):
    assert emergence.rank_trend(np.array(values, float)) == trend


def test_rank_trend_with_ties_is_that_of_midranks():
    assert emergence.rank_trend(np.array([3.0, 2.0, 2.0, 1.0])) == pytest.approx(-np.sqrt(0.9))


def test_random_k_keeps_k_units_that_are_not_the_largest():
    x = torch.arange(1.0, 101.0).repeat(200, 1)
    kept = topk.RandomK(10)(x)
    assert ((kept != 0).sum(1) == 10).all()
    assert (kept[kept != 0].mean() - 50.5).abs() < 5


def write_idx(path, array: np.ndarray) -> None:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def tiny_full(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 60), ("t10k", 30)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.arange(n) % 10)
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    monkeypatch.setattr(full, "stdlib_docstrings", lambda: ("a few words that repeat and repeat. " * 400,))
    tiny = dataclasses.replace(
        setting.SETTINGS["full"], n_draws=20, n_seeds=1, noise_seeds=1, steps=2, width=8, widths=(8, 16),
        vit=setting.Transformer(8, 16, 64, 1, 2, pad=2), vit_looks=2, vit_steps=1, topk_width=32, topk_steps=2,
        ks=(16, 8), random_side=8, sweep_widths=(64, 128), sweep_depths=(1, 2),
    )  # fmt: skip
    monkeypatch.setitem(setting.SETTINGS, "full", tiny)
    return tiny


def test_full_reads_fashion_mnist_and_measures_more(tiny_full):
    result = run_study("lazy-neuron", "full", seed=0)
    assert [claim.name for claim in result.claims] == NAMES + FULL_NAMES
    assert all(claim.measured is not None for claim in result.claims)
    for claim in result.claims[-4:]:
        assert claim.control_is_negative, claim.name
        axes = Figure().subplots()
        assert claim.plot is not None
        claim.plot(axes)
        assert axes.lines


def test_full_without_its_data_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SubjectError, match="Fashion-MNIST"):
        next(iter(study.run("full", 0)))


def test_next_byte_loss_is_that_of_the_shifted_text():
    ids = torch.tensor([[1, 2, 0]])
    sure = 50 * torch.nn.functional.one_hot(torch.tensor([[2, 0, 1]]), 3).float()
    assert full.next_byte_loss(sure, Batch((ids,), {}, None, None, 1)) < 1e-6
    assert full.next_byte_loss(torch.zeros(1, 3, 3), Batch((ids,), {}, None, None, 1)) == pytest.approx(np.log(3))
