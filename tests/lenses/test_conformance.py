"""What every lens must do, asked of every lens that is found; a new one needs no line here."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import NetloupeError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import INVARIANCES, Lens, find_lenses, get_lens
from netloupe.core.store import SiteSpec, Store, StoreWriter

LENSES = find_lenses()
N, D, D_OTHER, K, P = 60, 6, 4, 3, 5
ARRAYS = ("features", "labels", "other", "weight", "bias", "mask")
# A lens that asks the network itself is checked in its own tests; the array lenses are checked here.
OF_ARRAYS = [lens for lens in LENSES.values() if set(lens.needs) <= set(ARRAYS)]
every_lens = pytest.mark.parametrize("lens", OF_ARRAYS, ids=lambda lens: lens.name)


def material(
    seed: int = 0, dtype: torch.dtype = torch.float64, n: int = N, positions: bool = False
) -> dict[str, torch.Tensor]:
    """Classes with means of their own, some exact zeros, and a second representation of the same samples.

    With ``positions`` every sample has ``P`` of them around its features.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    means = 2 * torch.randn(K, D, generator=generator)
    features = means[labels] + torch.randn(n, D, generator=generator)
    other = features @ torch.randn(D, D_OTHER, generator=generator) + torch.randn(n, D_OTHER, generator=generator)
    weight, bias = torch.randn(K, D, generator=generator), torch.randn(K, generator=generator)
    if positions:
        features = features[:, None] + torch.randn(n, P, D, generator=generator)
    given_ = {"features": features, "other": other, "weight": weight, "bias": bias}
    return {**{name: value.to(dtype) for name, value in given_.items()}, "labels": labels}


def ask(lens: Lens, given_: dict[str, Any], optional: bool = False) -> Finding:
    names = [*lens.needs, *(name for name in lens.optional if optional and name in given_)]
    return lens.function(**{name: given_[name] for name in names})


def close(one: Finding, other: Finding, rtol: float = 1e-7) -> None:
    a, b = one.summary(), other.summary()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=rtol, abs=1e-9), name


def test_lenses_are_found_by_being_there():
    assert {"activity.sparsity", "geometry.neural_collapse", "similarity.cka"} <= set(LENSES)
    assert get_lens("cka") is LENSES["similarity.cka"]
    with pytest.raises(NetloupeError, match="there is no lens 'ckaa'"):
        get_lens("ckaa")


@every_lens
def test_question_needs_and_docstring(lens: Lens):
    assert lens.question.endswith("?")
    text = inspect.getdoc(lens.function) or ""
    assert re.search(r"\(sample, |\(sample,\)|\(class, unit\)", text), "the docstring names shapes"
    module = inspect.getdoc(inspect.getmodule(lens.function)) or ""
    assert "arXiv" in text + module or "doi" in text + module, "the docstring names its source"
    for word in ("Cost", "Raises"):
        assert word in text, f"the docstring says {word}"
    assert set(lens.invariances) <= set(INVARIANCES)


@every_lens
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_numpy_give_a_finding_that_repeats(lens: Lens, dtype: torch.dtype):
    given_ = material(dtype=dtype, positions=lens.positions)
    before = {name: value.clone() for name, value in given_.items()}
    finding = ask(lens, given_)
    assert isinstance(finding, Finding)
    assert finding == ask(lens, given_)
    assert all(torch.equal(given_[name], before[name]) for name in given_), "inputs are left alone"
    if dtype != torch.bfloat16:
        close(finding, ask(lens, {name: value.numpy() for name, value in given_.items()}))
    exact = ask(lens, {name: value.double() if value.is_floating_point() else value for name, value in given_.items()})
    close(finding, exact, rtol=1e-6)


@every_lens
@pytest.mark.parametrize("optional", [False, True])
def test_summary_is_explained_saved_loaded_and_drawn(lens: Lens, optional: bool, tmp_path: Path):
    finding = ask(lens, material(positions=lens.positions), optional).in_context(
        site="layer", n_samples=N, options={"pool": "mean"}
    )
    summary = finding.summary()
    assert summary
    assert all(isinstance(value, float) and np.isfinite(value) for value in summary.values())
    assert set(summary) <= set(finding.meanings), "each number has its meaning in one sentence"
    assert finding.paragraph()
    loaded = Finding.load(finding.save(tmp_path / "finding"))
    assert loaded == finding
    assert loaded.context == finding.context
    assert isinstance(loaded.context, Context)
    figure, axes = plt.subplots()
    finding.plot(axes)
    figure.canvas.draw()
    assert axes.has_data() or figure.axes[0].get_children()
    plt.close(figure)


@every_lens
def test_a_stored_site_gives_what_memory_gives(lens: Lens, tmp_path: Path):
    given_ = material(positions=lens.positions)
    sites = {name: given_[name] for name in ("features", "other") if name in lens.needs}
    with StoreWriter(tmp_path / "s", {k: SiteSpec.like(v) for k, v in sites.items()}, rows_per_shard=16) as writer:
        for start in range(0, N, 7):
            writer.append({name: value[start : start + 7] for name, value in sites.items()})
    store = Store(tmp_path / "s")
    close(ask(lens, {**given_, **{name: store[name] for name in sites}}), ask(lens, given_))


@every_lens
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_declared_invariances_hold(lens: Lens, seed: int):
    given_ = material(seed, positions=lens.positions)
    expected = ask(lens, given_)
    draw = torch.Generator().manual_seed(seed + 1)
    rows, units = torch.randperm(N, generator=draw), torch.randperm(D, generator=draw)
    rotation, _ = torch.linalg.qr(torch.randn(D, D, generator=draw, dtype=torch.float64))
    features = given_["features"]
    per_sample = {name: given_[name][rows] for name in ("features", "other", "labels")}
    changes = {
        "sample permutation": per_sample,
        "unit permutation": {"features": features[..., units]},
        "rotation": {"features": features @ rotation},
        "scale": {"features": 3.7 * features},
        "translation": {"features": features + 5 * torch.randn(D, generator=draw, dtype=torch.float64)},
    }
    for name in lens.invariances:
        close(ask(lens, {**given_, **changes[name]}), expected, rtol=1e-6)


@every_lens
def test_bad_input_is_one_sentence(lens: Lens):
    good = material(positions=lens.positions)
    features, labels, other = good["features"], good["labels"], good["other"]
    spots = torch.eye(N, D).bool().reshape(N, *[1] * lens.positions, D)
    cases: dict[str, dict[str, Any]] = {
        "NaN": {"features": features.masked_fill(spots, float("nan"))},
        "infinity": {"features": features.masked_fill(spots, float("inf"))},
        "no samples": {name: good[name][:0] for name in ("features", "labels", "other")},
        "no units": {"features": features[..., :0]},
        "one axis": {"features": features.reshape(N, -1)[:, 0]},
        "four axes": {"features": features[:, :, None, None]},
        "words": {"features": np.array([["a"] * D] * N)},
        "nothing": {"features": None},
    }
    if lens.min_samples > 1:
        cases["one sample"] = {name: good[name][:1] for name in ("features", "labels", "other")}
    if "labels" in lens.needs:
        cases["fewer labels"] = {"labels": labels[:-1]}
        cases["labels of two axes"] = {"labels": labels[:, None]}
        cases["fractional labels"] = {"labels": labels + 0.5}
    if "other" in lens.needs:
        cases["fewer others"] = {"other": other[:-1]}
        cases["constant"] = {"features": torch.ones_like(features)}
    for name, change in cases.items():
        with pytest.raises(NetloupeError) as caught:
            ask(lens, {**good, **change})
        message = str(caught.value)
        assert message, name
        assert "\n" not in message, name
        assert len(message) < 400, name


@every_lens
def test_a_streaming_lens_concludes_the_same(lens: Lens):
    if lens.conclude is None:
        assert not lens.statistics
        return
    given_ = material(positions=lens.positions)
    parts = [{name: factory() for name, factory in lens.statistics.items()} for _ in range(2)]
    for half, rows in zip(parts, (slice(0, 20), slice(20, N))):
        for statistic in half.values():
            statistic.update(given_["features"][rows], labels=given_["labels"][rows], samples=torch.arange(N)[rows])
    merged = {name: statistic.merge(parts[1][name]) for name, statistic in parts[0].items()}
    close(lens.conclude(merged), ask(lens, given_))
