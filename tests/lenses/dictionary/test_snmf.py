"""Semi-NMF: closed forms, the numbers of the paper's code, streams, trees, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.rows import as_rows
from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.lenses.dictionary import semi_nmf
from netloupe.lenses.dictionary.groups import neuron_groups
from netloupe.lenses.dictionary.score import mmcs
from netloupe.lenses.dictionary.snmf import RecursiveSemiNMF, SemiNMF, residual_directions
from netloupe.studies._snmf_planted import Sizes, planted


def seven() -> np.ndarray:
    """The input on which the paper's code was run."""
    rng = np.random.default_rng(7)
    codes = np.maximum(rng.standard_normal((60, 5)), 0)
    return (codes @ rng.standard_normal((5, 30)) + 0.1 * rng.standard_normal((60, 30))).astype(np.float32)


# squared error, summed sizes of each direction, summed codes, units of each direction; sparsity .1, 30 iterations, seed 42
OFFICIAL = {
    "random": (1501.0517578125, [22.7731647, 31.5892105, 31.0472317, 31.7393265], [5.9080262, 5.2391744, 4.6936188, 4.3063369],
               [(6, 12, 15), (4, 18, 24), (19, 26, 28), (1, 6, 15)]),
    "svd": (1509.697265625, [32.9072838, 32.4604809, 30.5414791, 18.8358192], [5.2379713, 2.8651149, 4.5815992, 3.4797430],
            [(4, 18, 24), (1, 6, 15), (19, 26, 28), (8, 9, 12)]),
    "kmeans": (1429.44287109375, [33.8668327, 31.2397537, 31.2387886, 21.8859329], [5.3361048, 4.6831765, 2.9800518, 4.2698074],
               [(4, 7, 24), (19, 26, 28), (1, 6, 15), (5, 9, 29)]),
}  # fmt: skip

# fine-tuning steps: squared error, summed sizes of W2's columns and of the last level's rows; ranks 6 and 3, sparsity .2
TREE = {
    0: (1520.6218, [1.0895157, 1.1195709, 1.0000005], [48.6651878, 48.6450157, 43.0967484]),
    25: (1438.5848, [1.1508780, 1.1695749, 1.0905163], [49.2264786, 49.2611580, 43.5966530]),
}


@pytest.mark.parametrize("init", list(OFFICIAL))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_papers_code_gives_the_same(init: str, dtype: str):
    loss, sizes, sums, units = OFFICIAL[init]
    model = SemiNMF(4, 0.1, init, max_iter=30, seed=42, dtype=dtype, official=True).fit(seven())  # type: ignore[arg-type]
    assert model.loss_ == pytest.approx(loss, rel=1e-5)
    found, wanted = np.abs(model.directions_).sum(1), np.array(sizes)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_allclose(model.codes_.sum(0), sums, rtol=1e-4)
    assert [tuple(np.flatnonzero(row)) for row in model.directions_] == units


def test_the_papers_tree_gives_the_same():
    options = {"sparsity": 0.2, "max_iter": 20, "init": "svd", "official": True, "dtype": "float32"}
    for steps, (loss, weights, last) in TREE.items():
        model = RecursiveSemiNMF((6, 3), steps, strict=False, options=options).fit(seven())
        assert model.error_[1] * float((seven() ** 2).sum()) == pytest.approx(loss, rel=1e-4)
        np.testing.assert_allclose(np.abs(model.weights_[1]).sum(0), weights, rtol=1e-3)
        np.testing.assert_allclose(np.abs(model.directions_).sum(1), last, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_one_feature_is_the_largest_singular_value(seed: int):
    x = np.random.default_rng(seed).random((40, 12))
    model = SemiNMF(1, 1.0, seed=seed, ridge=0).fit(x)
    assert model.loss_ == pytest.approx((x**2).sum() - np.linalg.svd(x)[1][0] ** 2, rel=1e-6)
    exact = np.outer(np.random.default_rng(seed).random(40), np.random.default_rng(seed + 9).standard_normal(12))
    assert (
        SemiNMF(1, 1.0, seed=seed, ridge=0).fit(exact).relative_error_ < 1e-5
    )  # the step's floor of 1e-6 keeps it from 0


@pytest.mark.parametrize("seed", range(3))
def test_directions_are_least_squares_and_steps_never_raise_the_error(seed: int):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((50, 9)))
    data = semi_nmf.samples(as_rows(x), torch.float64)
    codes = semi_nmf.start(data, 3, "random", torch.float64, seed)
    wanted = np.linalg.lstsq(codes.numpy(), x.numpy(), rcond=None)[0]
    size = semi_nmf.codes_length(codes.T @ codes)
    one = semi_nmf.factorise(data, codes.clone(), 1.0, 1, 5, 0.0, 0.0)
    np.testing.assert_allclose((one.directions / size).T.numpy(), wanted, atol=1e-9)
    kept, directions = codes / size, one.directions
    for _ in range(30):
        before = float((x - kept @ directions.T).pow(2).sum())
        semi_nmf._pass(data, kept, directions, torch.ones(3, dtype=torch.float64))
        assert float((x - kept @ directions.T).pow(2).sum()) <= before + 1e-5
        assert float(kept.min()) >= 0
    found = SemiNMF(3, 0.3, seed=seed, max_iter=40).fit(x)
    residual = ((x.numpy() - found.codes_ @ found.directions_) ** 2).sum()
    assert found.loss_ == pytest.approx(residual, rel=1e-9)
    assert found.loss_ == pytest.approx(found.loss_path_.min(), rel=1e-9), "the best iterate, not the last"
    assert ((found.directions_ != 0).sum(1) == 3).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_samples_and_units_may_come_in_any_order(seed: int):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((30, 8))
    rows, units = rng.permutation(30), rng.permutation(8)
    options = {"sparsity": 0.4, "init": "svd", "max_iter": 8}
    one, other = SemiNMF(3, **options).fit(x), SemiNMF(3, **options).fit(x[rows][:, units])
    assert one.loss_ == pytest.approx(other.loss_, rel=1e-6)
    np.testing.assert_allclose(np.abs(one.directions_[:, units]), np.abs(other.directions_), atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_planted_groups_are_found_and_need_sparsity(seed: int):
    true, x = planted(Sizes(d=200, n=1000, k=8, own=10), seed)
    sparse = SemiNMF(8, 0.05, max_iter=200, seed=seed).fit(x)
    dense = SemiNMF(8, 1.0, max_iter=200, seed=seed).fit(x)
    assert mmcs(true, sparse.directions_) > 0.99 > 0.9 > mmcs(true, dense.directions_)
    assert abs(sparse.relative_error_ - dense.relative_error_) < 0.01
    exact = sparse.transform(x[:40], solver="exact")
    steps = sparse.transform(x[:40])
    errors = [((x[:40] - codes @ sparse.directions_) ** 2).sum() for codes in (exact, steps)]
    assert errors[0] <= errors[1] * (1 + 1e-9) <= 1.01 * errors[0] + 1e-6
    np.testing.assert_allclose(steps, exact, atol=0.02)
    np.testing.assert_allclose(sparse.dictionary("here").encode(x[:40]).numpy(), steps)


def test_a_recording_larger_than_memory_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x = torch.from_numpy(seven()).double()
    with StoreWriter(tmp_path / "s", {"site": SiteSpec.like(x)}, rows_per_shard=16) as writer:
        writer.append({"site": x})
    store = Store(tmp_path / "s")["site"]
    for init in ("random", "svd", "kmeans"):
        memory = SemiNMF(4, 0.1, init, max_iter=15).fit(x)
        with monkeypatch.context() as changed:
            changed.setattr(semi_nmf, "IN_MEMORY", 0)
            rows = as_rows(store, ndim=(2,), batch_size=7)
            stream = SemiNMF(4, 0.1, init, max_iter=15, codes_file=str(tmp_path / "codes.npy")).fit(rows)
        np.testing.assert_allclose(stream.directions_, memory.directions_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(stream.codes_, memory.codes_, rtol=1e-6, atol=1e-9)


def test_trees_stay_in_their_sets_and_name_children(tmp_path: Path):
    x = np.maximum(seven(), 0)
    options = {"sparsity": 0.2, "max_iter": 40}
    model = RecursiveSemiNMF((6, 3), 60, options=options).fit(x)
    assert model.error_[1] < model.error_[0]
    assert all((w >= 0).all() for w in model.weights_)
    assert ((model.directions_ != 0).sum(1) <= 6).all()
    tree = model.tree(max_children=2)
    column = model.weights_[1][:, 0]
    assert tree.children[0][0][0] == column.argmax()
    assert all(column[i] >= 0.15 * column.max() for i in tree.children[0][0])
    assert max(map(len, tree.children[0].values())) <= 2
    np.testing.assert_allclose(model.codes(2), model.weights_[0] @ model.weights_[1])
    again = {"options": options, "checkpoint": str(tmp_path), "checkpoint_every": 20}
    RecursiveSemiNMF((6, 3), 40, **again).fit(x)
    resumed = RecursiveSemiNMF((6, 3), 60, **again).fit(x)
    np.testing.assert_allclose(resumed.directions_, model.directions_)


def test_groups_of_a_site_name_units_and_samples():
    true, x = planted(Sizes(d=100, n=600, k=4, own=3), 0)
    found = neuron_groups(x, n_features=4, sparsity=0.03)
    assert mmcs(true, found.directions) > 0.9
    assert found.reconstructed == pytest.approx(SemiNMF(4, 0.03, "svd", max_iter=100).fit(x).relative_error_ * -1 + 1)
    best = np.abs(true @ found.directions[0]).argmax()
    assert np.abs(x[found.samples[0, 0]] @ true[best]) > np.quantile(np.abs(x @ true[best]), 0.99)
    assert found.places()[0].unit == np.abs(found.directions[0]).argmax()
    assert "groups of" in found.paragraph()


def test_residual_directions():
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.eye(8)[:2]
    torch.testing.assert_close(residual_directions(rows, weight), weight.T[:2])
    torch.testing.assert_close(residual_directions(rows, weight, torch.ones(5)), weight.T[:2] + 1)
    with pytest.raises(InputError, match="takes 8"):
        residual_directions(torch.ones(7), weight)


def test_refusals_and_what_is_reported():
    x = seven()
    x[:, 3] = 0
    assert SemiNMF(2, 0.1, max_iter=3).fit(x).dead_units_.tolist() == [3]
    with pytest.warns(UserWarning, match="not determined"):
        SemiNMF(31, 0.1, max_iter=2).fit(x)
    for bad, words in [
        (lambda: SemiNMF(2).fit(x), "less than one"),
        (lambda: SemiNMF(2, 1.5).fit(x), "less than one"),
        (lambda: SemiNMF(0, 0.1).fit(x), "n_components is 0"),
        (lambda: SemiNMF(2, 0.1, "guess").fit(x), "random, svd or kmeans"),  # type: ignore[arg-type]
        (lambda: SemiNMF(2, 0.1).fit(np.zeros((5, 30))), "all activations are 0"),
        (lambda: SemiNMF(2, 0.1).fit(x[:1]), "at least 2"),
        (lambda: SemiNMF(2, 0.1).fit(x[0]), "expected"),
        (lambda: SemiNMF(2, 0.1, max_iter=2).fit(x).transform(x[:, :9]), "have 9 units"),
        (lambda: RecursiveSemiNMF((3, 3)).fit(x), "fall from level"),
        (lambda: SemiNMF(2, 0.1, max_iter=2).fit(x).dictionary().decode([[-1.0, 0]]), "never negative"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    x[0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        SemiNMF(2, 0.1).fit(x)


def test_activations_that_still_have_a_gradient_are_taken():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    plain = SemiNMF(2, sparsity=0.5, max_iter=5).fit(x)
    tracked = SemiNMF(2, sparsity=0.5, max_iter=5).fit(x.clone().requires_grad_())
    np.testing.assert_array_equal(plain.directions_, tracked.directions_)
