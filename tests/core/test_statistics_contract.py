"""What every mergeable statistic promises: any split, any merge order, masks, state, and refusals."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics import (
    Counts,
    Covariance,
    CrossCovariance,
    Histogram,
    LabelMoments,
    Moments,
    Quantiles,
    TopK,
    kernels,
    restore,
    update_all,
)

EXACT = {
    "counts": Counts,
    "counts-absolute": lambda: Counts(0.5, absolute=True),
    "histogram": lambda: Histogram(np.linspace(-2, 2, 9)),
    "histogram-unit": lambda: Histogram(np.array([-1.0, 0.0, 3.0]), per_unit=True),
    "quantiles": Quantiles,
    "quantiles-unit": lambda: Quantiles(per_unit=True),
    "topk": lambda: TopK(3),
    "topk-smallest": lambda: TopK(4, largest=False),
    "topk-all": lambda: TopK(3, distinct_samples=False),
}
ROUNDED = {
    "moments": Moments,
    "covariance": Covariance,
    "labels-trace": LabelMoments,
    "labels-diagonal": lambda: LabelMoments(n_classes=4, second="diagonal"),
    "labels-full": lambda: LabelMoments(second="full"),
}
ALL = {**EXACT, **ROUNDED}
PER_UNIT = [name for name in ALL if name not in ("histogram", "quantiles", "labels-trace")]

quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def data(seed: int, n: int = 60, positions: int = 3, units: int = 5):
    rng = np.random.default_rng(seed)
    x = np.round(rng.standard_normal((n, positions, units)) * 2, 1).astype(np.float32)
    return x, rng.integers(0, 4, n), rng.random((n, positions)) < 0.7


def feed(make, x, labels, mask, samples):
    return make().update(x, labels=labels, mask=mask, samples=samples)


def agree(name: str, a, b) -> None:
    """Equal bits for integer statistics, equal to rounding for sums."""
    if name in EXACT:
        assert a == b
        return
    left, right = a.state(), b.state()
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, right[key], rtol=1e-9, atol=1e-9)
        else:
            assert value == right[key]


@pytest.mark.parametrize("name", ALL)
@given(seed=seeds, cuts=st.lists(st.integers(0, 60), max_size=5))
@quick
def test_any_split_equals_one_pass(name, seed, cuts):
    x, labels, mask = data(seed)
    bounds = [0, *sorted(cuts), 60]
    split = ALL[name]()
    for start, stop in pairwise(bounds):
        split.update(x[start:stop], labels=labels[start:stop], mask=mask[start:stop])
    agree(name, split, ALL[name]().update(x, labels=labels, mask=mask))


@pytest.mark.parametrize("name", ALL)
@given(seed=seeds, first=st.integers(0, 60), second=st.integers(0, 60))
@quick
def test_merge_is_associative_and_commutative(name, seed, first, second):
    x, labels, mask = data(seed)
    low, high = sorted((first, second))
    order = np.random.default_rng(seed).permutation(60)

    def parts():
        for rows in (order[:low], order[low:high], order[high:]):
            yield feed(ALL[name], x[rows], labels[rows], mask[rows], rows)

    a, b, c = parts()
    before = b.copy()
    left = a.copy().merge(b).merge(c)
    assert b == before
    agree(name, left, a.copy().merge(b.copy().merge(c)))
    agree(name, left, c.copy().merge(b).merge(a))
    agree(name, left, feed(ALL[name], x, labels, mask, np.arange(60)))


@pytest.mark.parametrize("name", ALL)
@given(seed=seeds)
@quick
def test_masked_rows_are_removed_rows(name, seed):
    x, labels, mask = data(seed)
    junk = x.copy()
    junk[~mask] = np.nan
    masked = ALL[name]().update(junk, labels=labels, mask=mask)
    removed = ALL[name]()
    if name.startswith("topk"):
        whole = np.where(mask[..., None], x, -np.inf if removed.largest else np.inf)
        rows = [(s, p) for s in range(60) for p in range(3) if mask[s, p]]
        found = masked.result()
        for unit in range(5):
            best = sorted((-removed.sign * whole[s, p, unit], s, p) for s, p in rows)
            assert (-removed.sign * found.values[unit, 0], found.samples[unit, 0], found.positions[unit, 0]) == best[0]
        return
    removed.update(x[mask], labels=labels.repeat(3).reshape(60, 3)[mask])
    removed.next_sample = masked.next_sample
    agree(name, masked, removed)


@pytest.mark.parametrize("name", PER_UNIT)
@given(seed=seeds)
@quick
def test_permuted_units_permute_the_answer(name, seed):
    x, labels, mask = data(seed)
    order = np.random.default_rng(seed).permutation(5)
    straight = ALL[name]().update(x, labels=labels, mask=mask)
    permuted = ALL[name]().update(x[..., order], labels=labels, mask=mask)
    fields = {
        "counts": ("active", "zero", "negative"),
        "topk": ("keys", "samples", "positions"),
        "labels": ("means",),
        "histogram": ("table",),
        "quantiles": ("table",),
        "moments": ("mean", "m2", "minimum", "maximum"),
        "covariance": ("mean",),
    }[name.split("-")[0]]
    for field in fields:
        axis = 1 if name.startswith("labels") else 0
        np.testing.assert_allclose(np.take(getattr(straight, field), order, axis), getattr(permuted, field), rtol=1e-12)
    if name == "covariance":
        np.testing.assert_allclose(straight.scatter[np.ix_(order, order)], permuted.scatter, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_pickle_state_and_copy_make_equal_and_independent_objects(name):
    x, labels, mask = data(1)
    for statistic in (ALL[name](), ALL[name]().update(x, labels=labels, mask=mask)):
        before = statistic.copy()
        for twin in (pickle.loads(pickle.dumps(statistic)), restore(statistic.state()), statistic.copy()):
            assert twin == statistic
            twin.update(x, labels=labels)
            assert twin != statistic
            assert statistic == before
        assert all(isinstance(v, np.ndarray | int | float | str) for v in statistic.state().values())


@pytest.mark.parametrize("name", ALL)
def test_a_state_written_to_disk_comes_back_equal(name, tmp_path):
    x, labels, mask = data(2)
    statistic = ALL[name]().update(x, labels=labels, mask=mask)
    np.savez(tmp_path / "state.npz", **statistic.state())
    with np.load(tmp_path / "state.npz") as stored:
        assert restore(dict(stored)) == statistic


@pytest.mark.parametrize("name", ALL)
def test_merging_with_what_saw_nothing(name):
    x, labels, _ = data(3)
    full = ALL[name]().update(x, labels=labels)
    before = full.copy()
    assert full.merge(ALL[name]()) == before
    assert ALL[name]().merge(full) == before
    doubled = full.copy().merge(full)
    assert doubled.n_rows == 2 * before.n_rows
    assert full == before


@pytest.mark.parametrize("name", ALL)
def test_nothing_seen_has_no_result(name):
    statistic = ALL[name]()
    for empty in (np.zeros((0, 4)), np.zeros((0, 2, 4), np.float32)):
        assert statistic.update(empty, labels=np.zeros(0, int)) == ALL[name]()
    with pytest.raises(InputError, match="seen no rows"):
        statistic.result()
    statistic.update(np.ones((2, 3, 4)), mask=np.zeros((2, 3), bool), labels=[0, 0])
    assert statistic.next_sample == 2
    with pytest.raises(InputError, match="seen no rows"):
        statistic.result()


def given_values(values, **options):
    return {"values": values, **options}


def refused(name: str):
    """Keyword arguments of update that every statistic refuses, with part of the sentence."""
    good = np.ones((4, 3, 5), np.float32)
    nan, inf = good.copy(), good.astype(np.float64)
    nan[2, 1, 4] = np.nan
    inf[0, 0, 0] = -np.inf
    labels = np.zeros(4, int)
    return {
        "nan": (given_values(nan, labels=labels), NonFiniteError, "sample 2, position 1 of the batch in unit 4"),
        "nan-named": (given_values(nan, labels=labels, samples=[5, 6, 9, 7]), NonFiniteError, "sample 9, position 1"),
        "inf": (given_values(inf, labels=labels), NonFiniteError, "-inf at sample 0"),
        "0-d": (given_values(np.float32(1.0), labels=labels), InputError, "shape ()"),
        "1-d": (given_values(np.ones(4), labels=labels), InputError, "shape (4,)"),
        "4-d": (given_values(np.ones((4, 1, 1, 5)), labels=labels), InputError, "flatten positions"),
        "no units": (given_values(np.ones((4, 0)), labels=labels), InputError, "no units"),
        "units": (given_values(good[..., :3], labels=labels), InputError, "one statistic per site"),
        "labels": (given_values(good, labels=labels[:3]), InputError, "labels have shape (3,)"),
        "label type": (given_values(good, labels=labels + 0.5), InputError, "expected integers"),
        "samples": (given_values(good, labels=labels, samples=[1, 2]), InputError, "samples have shape"),
        "negative": (given_values(good, labels=labels, samples=[-1, 0, 1, 2]), InputError, "the index -1"),
        "mask": (given_values(good, labels=labels, mask=np.ones((4, 2), bool)), InputError, "mask has shape (4, 2)"),
        "mask type": (given_values(good, labels=labels, mask=np.ones((4, 3))), InputError, "expected bool"),
        "pooled mask": (
            given_values(good[:, 0], labels=labels, mask=np.ones((4, 3), bool)),
            InputError,
            "no positions",
        ),
        "text": (given_values(np.array([["a"] * 5] * 4), labels=labels), InputError, "expected real numbers"),
        "complex": (given_values(torch.ones(4, 5) * 1j, labels=labels), InputError, "dense real"),
    }[name]


CASES = [
    "nan", "nan-named", "inf", "0-d", "1-d", "4-d", "no units", "units", "labels", "label type", "samples", "negative",
    "mask", "mask type", "pooled mask", "text", "complex",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ALL)
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_trace(name, case):
    arguments, error, words = refused(case)
    seen = ALL[name]().update(np.ones((4, 3, 5)), labels=np.zeros(4, int))
    for statistic in [seen] if case == "units" else [seen, ALL[name]()]:
        before = statistic.copy()
        with pytest.raises(error) as caught:
            statistic.update(**arguments)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert statistic == before


def test_update_all_leaves_no_trace_when_one_statistic_refuses():
    statistics = [Counts(), Moments(), LabelMoments()]
    with pytest.raises(InputError, match="without labels"):
        update_all(statistics, np.ones((3, 2)))
    assert statistics == [Counts(), Moments(), LabelMoments()]
    with pytest.raises(InputError, match="given twice"):
        update_all([statistics[0], statistics[0]], np.ones((3, 2)))
    with pytest.raises(InputError, match="single site"):
        update_all([CrossCovariance()], np.ones((3, 2)))  # pyright: ignore[reportArgumentType]


def test_merging_refuses_what_does_not_match():
    x = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="same type"):
        Moments().merge(Counts())  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"threshold=0\.0"):
        Counts().merge(Counts(0.5))
    with pytest.raises(InputError, match="edges"):
        Histogram(np.arange(3.0)).merge(Histogram(np.arange(4.0)))
    with pytest.raises(InputError, match="2 and of 3 units"):
        Moments().update(x).merge(Moments().update(np.ones((3, 3))))
    with pytest.raises(InputError, match="second"):
        CrossCovariance().update(x, x).merge(CrossCovariance().update(x, np.ones((3, 4))))


def test_settings_are_checked():
    for make in (
        lambda: Counts(float("nan")), lambda: TopK(0), lambda: Quantiles(bits=17), lambda: Histogram(np.ones(3)),
        lambda: Histogram(np.array([0.0])), lambda: LabelMoments(0), lambda: LabelMoments(second="none"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            make()
    with pytest.raises(InputError, match="state of type"):
        restore({"type": "Nothing"})
    with pytest.raises(InputError, match="labels hold -1"):
        LabelMoments().update(np.ones((2, 2)), labels=[0, -1])
    with pytest.raises(InputError, match="labels hold 5"):
        LabelMoments(n_classes=5).update(np.ones((2, 2)), labels=[0, 5])
    with pytest.raises(InputError, match="ddof"):
        Moments().update(np.ones((1, 2))).result().variance_with(1)
    with pytest.raises(InputError, match="ddof"):
        Covariance().update(np.ones((1, 2))).result().covariance(ddof=1)
    with pytest.raises(InputError, match="from 0 to 1"):
        Quantiles().update(np.ones((1, 2))).result().quantile(1.5)


@pytest.mark.parametrize("own", [False, True])
@given(seed=seeds, cut=st.integers(0, 60))
@quick
def test_cross_covariance_merges(own, seed, cut):
    x, _, mask = data(seed)
    a, b = x[..., :3], x[..., 2:]
    left = CrossCovariance(own).update(a[:cut], b[:cut], mask=mask[:cut])
    right = CrossCovariance(own).update(a[cut:], b[cut:], mask=mask[cut:])
    whole = CrossCovariance(own).update(a, b, mask=mask)
    merged, swapped = left.copy().merge(right), right.copy().merge(left)
    for field in ("mean_a", "mean_b", "scatter", "squares_a", "squares_b", "scatter_a", "scatter_b"):
        for found in (merged, swapped):
            np.testing.assert_allclose(getattr(found, field), getattr(whole, field), rtol=1e-9, atol=1e-9)
    assert restore(whole.state()) == whole


def test_cross_covariance_refuses_unpaired_rows():
    x = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="same rows"):
        CrossCovariance().update(x, x[:2])
    with pytest.raises(InputError, match="pair of sites"):
        CrossCovariance().update(x, x).update(x, x[:, :1])
    with pytest.raises(NonFiniteError):
        CrossCovariance().update(x, x * np.nan)
    with pytest.raises(InputError, match="seen no rows"):
        CrossCovariance().update(x[:0], x[:0]).result()


def test_layouts_devices_and_read_only_arrays_make_no_difference():
    x = torch.randn(50, 6, 8)
    ref = Moments().update(x)
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    channels_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    for same in (frozen, channels_first, x.clone().requires_grad_(), x.numpy()[::1].astype(">f4")):
        assert Moments().update(same) == ref
    assert TopK(3).update(frozen) == TopK(3).update(x)


def test_samples_without_a_label_can_be_masked():
    x = torch.randn(4, 3, 2)
    mask = torch.tensor([[True] * 3, [False] * 3, [True, False, True], [True] * 3])
    found = LabelMoments().update(x, mask=mask, labels=[1, -100, 0, 1]).result()
    assert found.counts.tolist() == [2, 6]


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels, "njit", njit)
    assert kernels.compiled(max) is max
    assert [options.get("cache", False) for options in asked] == [True, False]
