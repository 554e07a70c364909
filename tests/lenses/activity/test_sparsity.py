"""The sparsity lens against closed forms, itself in parts, stored sites and networks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import nn

from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.finding import Finding
from netloupe.core.recording import record
from netloupe.lenses.activity.sparsity import (
    ActivityReport,
    ActivityStats,
    activity_report,
    from_counts,
    mlp_flops,
    nonzero_fraction,
    nonzero_per_position,
    sparsity,
    top_k_share,
)
from netloupe.models.small import mlp
from netloupe.nn import swap_topk


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("mean", [0.0, -1.5, 0.7, 2.0])
def test_normal_pre_activations_give_phi(mean):
    n, d = 4000, 25
    found = sparsity(torch.tensor(normal(n, d) + mean).relu())
    expected = norm.cdf(mean)
    assert found.active_fraction == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / (n * d)))
    assert found.zero_fraction == pytest.approx(1 - found.active_fraction, abs=1e-12)
    assert found.standard_error() == pytest.approx(math.sqrt(expected * (1 - expected) / (n * d)), rel=0.1)


def test_symmetric_pre_activations_give_exactly_one_half():
    x = normal(500, 12)
    assert sparsity(np.maximum(np.concatenate([x, -x]), 0)).active_fraction == 0.5


def test_numbers_equal_plain_counting():
    x = np.maximum(normal(300, 16) - np.linspace(-1, 4, 16), 0)
    x[:, 3] = 0
    found = sparsity(x)
    active = x > 0
    assert np.array_equal(found.frequency, active.mean(0))
    assert np.array_equal(found.active_per_row, np.bincount(active.sum(1), minlength=17))
    numbers = found.summary()
    assert numbers["dead_fraction"] == (active.sum(0) == 0).mean()
    assert numbers["lazy_fraction"] == (active.mean(0) < 0.1).mean()
    assert (numbers["highest_frequency"], numbers["lowest_frequency"]) == (active.mean(0).max(), 0.0)
    assert numbers["active_units"] == pytest.approx(active.sum(1).mean())
    assert found.dead[3]


def test_threshold_is_strict_and_absolute_counts_negatives():
    x = np.array([[-2.0, 0.0, 1.0, 2.0]])
    assert sparsity(x, threshold=1.0).frequency.tolist() == [0, 0, 0, 1]
    assert sparsity(x, threshold=1.0, absolute=True).frequency.tolist() == [1, 0, 0, 1]
    assert nonzero_fraction(torch.tensor(x), threshold=1.0, dim=None) == 0.25
    assert nonzero_fraction(torch.tensor(x), dim=0).tolist() == [0, 0, 1, 1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(2, 30), d=st.integers(1, 9), cut=st.integers(1, 29), seed=st.integers(0, 999))
def test_merge_equals_one_pass_and_order_does_not_matter(n, d, cut, seed):
    x = np.maximum(normal(n, d, seed), 0)
    cut = min(cut, n - 1)
    whole = sparsity(x)
    parts = [ActivityStats().update(part) for part in (x[:cut], x[cut:])]
    assert from_counts(parts[1].merge(parts[0])) == whole
    rng = np.random.default_rng(seed)
    shuffled = sparsity(x[rng.permutation(n)][:, rng.permutation(d)])
    assert shuffled.summary() == pytest.approx(whole.summary(), abs=1e-12)
    assert sparsity(x * 2.0**-7) == whole


def test_positions_are_rows_and_padding_is_left_out():
    x = np.maximum(normal(60, 8), 0).reshape(10, 6, 8)
    assert sparsity(x) == sparsity(x.reshape(60, 8))
    mask = np.random.default_rng(1).random((10, 6)) < 0.6
    mask[:, 5] = False
    x[~mask] = np.nan
    assert sparsity(x, mask=mask) == sparsity(x[mask])
    by_position = nonzero_per_position(x, mask)
    assert math.isnan(by_position[5])
    for position in range(5):
        kept = x[mask[:, position], position]
        assert by_position[position] == pytest.approx((kept > 0).mean())


def test_stored_site_equals_memory(tmp_path):
    model, x = mlp(6, (10, 7), 3, random_state=0), torch.randn(50, 6)
    store = record(model, x, "act*", to=tmp_path / "run", batch_size=16)
    with torch.no_grad():
        wanted = sparsity(model.act1(model.fc1(x)))
    assert sparsity(store["act1"]) == wanted
    report = activity_report(model, x, batch_size=7)
    assert report["act1"] == wanted
    assert report.sites == ("act1", "act2")


def test_nan_is_refused_not_counted_as_silent():
    x = torch.zeros(3, 4)
    x[1, 2] = math.nan
    for ask in (lambda: sparsity(x), lambda: nonzero_fraction(x)):
        with pytest.raises(NonFiniteError):
            ask()


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU, nn.Identity, nn.Softplus])
def test_report_refuses_smooth_activations_unless_a_threshold_is_given(act):
    model = nn.Sequential(nn.Linear(5, 40), act())
    with torch.no_grad():
        model[0].weight.mul_(8)  # far negative inputs, where GELU underflows to an exact zero
    x = torch.randn(100, 5)
    with pytest.raises(InputError, match="site '1' is not rectified"):
        activity_report(model, x, "1")
    with pytest.raises(InputError, match="no ReLU module"):
        activity_report(model, x)
    assert 0 < activity_report(model, x, "1", threshold=0.1).summary()["mean_active_fraction"] < 1


def test_report_reads_top_k_layers():
    model = mlp(6, (20,), 3, random_state=0)
    swap_topk(model, 4)
    report = activity_report(model, torch.randn(80, 6))
    assert report.sites == ("act1.act", "act1.topk")
    assert (report["act1.topk"].active_per_row[5:] == 0).all()
    signed = activity_report(nn.Sequential(nn.Linear(6, 9)), torch.randn(8, 6), "0", absolute=True)
    assert signed["0"].active_fraction == 1.0


def test_report_is_a_finding_that_survives_the_disk(tmp_path: Path):
    report = activity_report(mlp(6, (10, 7), 3, random_state=0), torch.randn(50, 6))
    loaded = Finding.load(report.save(tmp_path / "report"))
    assert isinstance(loaded, ActivityReport)
    assert loaded == report
    assert list(loaded) == ["act1", "act2"]
    assert len(loaded) == 2
    assert loaded["act2"].n_rows == 50
    assert loaded["act2"].context.site == "act2"
    assert report.summary()["mean_active_fraction"] == pytest.approx(
        np.mean([report[site].active_fraction for site in report.sites])
    )
    with pytest.raises(SiteError, match="act3"):
        report["act3"]


def test_figures_show_every_unit_and_site():
    report = activity_report(mlp(6, (10, 7), 3, random_state=0), torch.randn(50, 6))
    axes = Figure().subplots(1, 2)
    report.plot(axes[0])
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["act1", "act2"]
    assert axes[0].get_yscale() == "log"
    report["act1"].plot(axes[1])
    assert len(axes[1].lines[0].get_ydata()) == 10


def test_flops_and_top_k_share():
    cost = mlp_flops(768, 3072, 0.03 * 3072)
    assert cost.dense == 4 * 768 * 3072
    assert cost.first + 2 * 768 * 3072 == cost.dense
    assert cost.second == pytest.approx(0.03 * 2 * 768 * 3072)
    assert cost.saved == pytest.approx(0.97)
    with pytest.raises(InputError, match="active"):
        mlp_flops(2, 4, 5)
    assert top_k_share(torch.ones(2, 8), 2).tolist() == [0.25, 0.25]
    assert top_k_share(torch.tensor([[0.0, -3.0, 1.0], [0.0, 0.0, 0.0]]), 1).tolist() == [0.75, 1.0]
    with pytest.raises(InputError, match="k is 4"):
        top_k_share(torch.ones(2, 3), 4)
