"""Ranking units for groups: closed forms, scikit-learn and scipy as oracles, and bad input."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.core.unit_sets import UnitSpace, by_length, mlp_projections, pooled_responses
from netloupe.lenses.naming import relation_units
from netloupe.lenses.naming.relation_units import average_precision_columns, rank_units
from netloupe.models.gpt import ByteGPT


def material(seed: int, n: int = 120, n_units: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 4)
    return rng.standard_normal((n, n_units)).astype(np.float32) + 0.3 * labels[:, None], labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [1, 8])
def test_scores_equal_scikit_learn_and_scipy_also_with_ties(seed: int, digits: int):
    x, y = material(seed)
    x = np.round(x, digits)
    ap = average_precision_columns(x, y == 2)
    np.testing.assert_allclose(ap, [average_precision_score(y == 2, column) for column in x.T], rtol=1e-12)
    auc = rank_units(x, y, score="auc", ratio=None)
    np.testing.assert_allclose(auc.scores[3], [roc_auc_score(y == 3, column) for column in x.T], rtol=1e-12)
    u = mannwhitneyu(x[y == 0, 0], x[y != 0, 0]).statistic / ((y == 0).sum() * (y != 0).sum())
    assert auc.scores[0, 0] == pytest.approx(u, rel=1e-12)


def test_perfect_constant_and_silent_units():
    y = np.repeat([0, 1, 2], 20)
    x = np.stack([y == 0, np.full(60, 3.0), -1.0 * (y == 0)], axis=1).astype(np.float64)
    found = rank_units(x, y, ratio=None)
    assert found.scores[0, 0] == 1
    np.testing.assert_allclose(found.scores[:, 1], 1 / 3)
    np.testing.assert_allclose(found.chance, 1 / 3)
    assert found.order[0].tolist() == [0, 1, 2]
    assert found.bottom(0, 1).tolist() == [2]
    assert found.both_ends(0, 1).tolist() == [0, 2]
    diff = rank_units(x, y, score="diff", ratio=None)
    assert diff.scores[0, 1] == 0
    assert diff.order[0].tolist() == [0, 1, 2]
    low, high = x[y != 0, 0] + [0.5, -0.5] * 20, x[y == 0, 0]
    spread = np.sqrt((40 * low.var() + 20 * high.var()) / 60)
    noisy = np.where(y == 0, x[:, 0], np.nan)
    noisy[y != 0] = low
    assert rank_units(noisy[:, None], y, score="diff", ratio=None).scores[0, 0] == pytest.approx(1 / spread)


def test_negatives_are_drawn_and_the_null_is_of_all_units():
    x, y = material(5, n=400)
    found = rank_units(x, np.minimum(y, 1) * (np.arange(400) >= 20), ratio=2)
    small = rank_units(x, (np.arange(400) < 20).astype(int), groups=[1], ratio=4)
    assert small.chance[0] == pytest.approx(0.2)
    assert found.null.shape == (2,)
    assert (small.null > small.chance).all(), "the best of 30 units is above chance with labels that mean nothing"
    assert 0 <= small.summary()["above_null"] <= 0.2


def test_a_store_read_in_blocks_of_units_gives_the_same(tmp_path, monkeypatch):
    x, y = material(6)
    with StoreWriter(tmp_path / "s", {"u": SiteSpec.like(torch.from_numpy(x))}, rows_per_shard=32) as writer:
        writer.append({"u": torch.from_numpy(x)})
    whole = rank_units(x, y)
    monkeypatch.setattr(relation_units, "_BLOCK_VALUES", 7 * len(x))
    assert rank_units(Store(tmp_path / "s")["u"], y) == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": "best"}, "expected ap, auc or diff"),
        ({"ratio": 0}, "expected a positive number"),
        ({"groups": [9]}, "group 9 has 0 samples"),
        ({"labels": np.r_[np.zeros(117), np.ones(3)].astype(int)}, "group 1 has 3 samples"),
        ({"labels": np.zeros(120, dtype=int)}, "the others 0"),
        ({"labels": None}, "labels are missing"),
    ],
)
def test_bad_input(change, words):
    x, y = material(0)
    with pytest.raises(InputError, match=words):
        rank_units(**{"features": x, "labels": y, **change})


def test_bad_values_and_sizes():
    x, y = material(0)
    x[3, 4] = np.nan
    with pytest.raises(NonFiniteError):
        rank_units(x, y)
    found = rank_units(np.nan_to_num(x), y)
    with pytest.raises(InputError, match="expected 1 to 30"):
        found.top(0, 31)
    with pytest.raises(InputError, match="no group 7"):
        found.top(7, 3)


class Block(nn.Module):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))


@pytest.mark.parametrize(
    "names",
    [
        ("gate_proj", "up_proj", "down_proj"),
        ("gate_up_proj", "down_proj"),
        ("fc1", "fc2"),
        ("fc_in", "fc_out"),
        ("dense_h_to_4h",),
    ],
)
def test_projections_by_name(names: tuple[str, ...]):
    model = nn.ModuleDict({"attn": Block(("q_proj", "o_proj", "dense")), "mlp": Block(names)})
    assert mlp_projections(model) == [f"mlp.{name}" for name in names]


def test_projections_of_bert_and_unknown_names():
    model = nn.ModuleDict(
        {
            "attention": nn.ModuleDict({"output": Block(("dense",))}),
            "intermediate": Block(("dense",)),
            "output": Block(("dense",)),
        }
    )
    assert mlp_projections(model) == ["intermediate.dense", "output.dense"]
    with pytest.raises(SiteError, match=r"give patterns for 0, 1"):
        mlp_projections(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert mlp_projections(nn.Sequential(nn.Linear(2, 2)), patterns=[r"0"]) == ["0"]


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_responses_of_prompts_of_different_lengths(pool):
    model = ByteGPT(8, 2, 2, 12, 8, vocab=20, random_state=0)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8], [9]]
    sites = mlp_projections(model)
    assert len(sites) == 6
    found, space = pooled_responses(model, prompts, sites, pool=pool)
    assert space.sizes == (12, 8, 12) * 2 or space.sizes == tuple(
        model.get_submodule(site).out_features for site in sites
    )
    seen = []
    hook = model.get_submodule(sites[0]).register_forward_hook(lambda _, __, out: seen.append(out[0].detach()))
    for prompt in prompts:
        model(torch.tensor([prompt]))
    hook.remove()
    expected = [{"mean": one.mean(0), "max": one.amax(0), "last": one[-1]}[pool] for one in seen]
    np.testing.assert_allclose(found[:, : space.sizes[0]], torch.stack(expected).numpy(), atol=1e-6)


def test_unit_space():
    space = UnitSpace(("a", "b", "c"), (3, 4, 2))
    assert len(space) == 9
    assert {site: units.tolist() for site, units in space.split([8, 0, 2, 7, 2]).items()} == {"a": [0, 2], "c": [0, 1]}
    assert space.histogram([0, 2, 3, 8]).tolist() == [2, 1, 1]
    like = np.array([0, 1, 3, 7])
    drawn = space.random(4, 3, like)
    assert space.histogram(drawn).tolist() == [2, 1, 1]
    assert len(np.unique(space.random(9))) == 9
    with pytest.raises(InputError, match="expected 0 to 8"):
        space.split([9])
    with pytest.raises(InputError, match="ask for fewer"):
        space.random(10)
    with pytest.raises(InputError, match="expected at least one"):
        by_length([])
    with pytest.raises(InputError, match="each with a token"):
        by_length([[1], []])


def test_numbers_of_the_selfcond_code():
    """What apple/ml-selfcond (arXiv 2110.02802) computes for tied responses."""
    rng = np.random.default_rng(2502)
    y = np.arange(40) % 5 == 0
    x = np.round(rng.standard_normal((40, 6)) + 0.8 * y[:, None], 1)
    theirs = [
        0.673951048951049, 0.6961137990549755, 0.370343137254902, 0.6319477935857246, 0.3945771619684663, 0.41204741379310345,
    ]  # fmt: skip
    np.testing.assert_allclose(average_precision_columns(x, y), theirs, rtol=1e-12)
