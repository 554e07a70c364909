"""The collapse numbers against closed forms, a plain pseudo-inverse, and themselves divided into batches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.lens import get_lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import LabelMoments, restore
from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.lenses.geometry.near_collapse import collapsed_solution
from netloupe.lenses.geometry.neural_collapse import (
    CollapseSecondPass,
    NeuralCollapse,
    collapse_metrics,
    collapse_of_moments,
    neural_collapse,
)


def plain(features, labels, weight, bias):
    """All six numbers by their definitions, with a ``d x d`` pseudo-inverse and a loop over samples."""
    n_classes = labels.max() + 1
    means = np.stack([features[labels == k].mean(0) for k in range(n_classes)])
    centred = means - means.mean(0)
    inside = features - means[labels]
    within = inside.T @ inside / len(features)
    between = centred.T @ centred / n_classes
    gram = centred @ centred.T
    simplex = (np.eye(n_classes) - 1 / n_classes) / np.sqrt(n_classes - 1)
    nearest = [np.linalg.norm(means - row, axis=1).argmin() for row in features]
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / n_classes,
        "nc1_trace": np.trace(within) / np.trace(between),
        "nc2": np.linalg.norm(gram / np.linalg.norm(gram) - simplex),
        "nc3": np.linalg.norm(weight / np.linalg.norm(weight) - centred / np.linalg.norm(centred)),
        "nc4": np.mean((features @ weight.T + bias).argmax(1) != nearest),
        "rank": np.linalg.matrix_rank(between),
    }


def clusters(n_classes, n_units, counts, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(n_classes), counts))
    means = rng.standard_normal((n_classes, n_units))
    features = means[labels] + spread * rng.standard_normal((len(labels), n_units))
    return features, labels, rng.standard_normal((n_classes, n_units)), rng.standard_normal(n_classes)


def numbers(answer):
    found = {name: getattr(answer, name) for name in ("nc1", "nc1_trace", "nc2", "nc3", "nc4", "rank")}
    return {name: value for name, value in found.items() if value is not None}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_classes=st.integers(2, 6),
    n_units=st.integers(1, 12),
    extra=st.lists(st.integers(0, 9), min_size=6, max_size=6),
    seed=st.integers(0, 10_000),
)
def test_numbers_equal_their_definitions(n_classes, n_units, extra, seed):
    counts = [2 + more for more in extra[:n_classes]]
    features, labels, weight, bias = clusters(n_classes, n_units, counts, seed)
    answer = neural_collapse(features, labels, weight, bias)
    assert numbers(answer) == pytest.approx(plain(features, labels, weight, bias), rel=1e-7)
    assert answer.counts.tolist() == counts
    assert (answer.n_samples, answer.n_units) == (sum(counts), n_units)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), shift=st.floats(-5, 5))
def test_scale_shift_and_rotation_change_nothing(seed, scale, shift):
    features, labels, _, _ = clusters(4, 6, 5, seed)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((6, 6)))[0]
    before, after = neural_collapse(features, labels), neural_collapse(scale * (features @ rotation + shift), labels)
    for name in ("nc1", "nc1_trace", "nc2"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-8)


def test_collapsed_features_are_zero_in_all_but_nc3():
    """Centring turns the orthogonal frame of means into a simplex, which the uncentred classifier is not."""
    features, weight, labels = collapsed_solution(4, 10, 5, 0.5, 0.3)
    answer = neural_collapse(features, labels, weight)
    assert answer.nc1 == pytest.approx(0, abs=1e-28)
    assert answer.nc1_trace == pytest.approx(0, abs=1e-28)
    assert answer.nc2 == pytest.approx(0, abs=1e-14)
    assert answer.nc3 == pytest.approx(np.sqrt(2 - 2 * np.sqrt(3 / 4)))
    assert answer.nc4 == 0
    assert answer.rank == 3


def test_simplex_with_its_own_classifier_is_zero_everywhere():
    simplex = np.eye(5) - 1 / 5
    labels = np.repeat(np.arange(5), 3)
    answer = neural_collapse(7 * simplex[labels] + 100, labels, 0.2 * simplex, -0.2 * simplex @ np.full(5, 100.0))
    for name in ("nc1", "nc1_trace", "nc2", "nc3", "nc4"):
        assert getattr(answer, name) == pytest.approx(0, abs=1e-13)


def test_isotropic_noise_around_an_orthogonal_frame_has_the_expected_traces():
    """Exact noise: every class gets both signs of every axis, so the within scatter is the closed form, not near it."""
    n_classes, n_units, radius, spread = 3, 8, 2.0, 0.5
    noise = spread * np.sqrt(n_units) * np.concatenate([np.eye(n_units), -np.eye(n_units)])
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((n_units, n_units)))[0][:n_classes]
    features = (radius * frame[:, None] + noise).reshape(-1, n_units)
    answer = neural_collapse(features, np.repeat(np.arange(n_classes), 2 * n_units))
    assert answer.within == pytest.approx(n_units * spread**2, rel=1e-13)
    assert answer.between == pytest.approx(radius**2 * (n_classes - 1) / n_classes, rel=1e-13)
    # between-class eigenvalues are radius^2 / K in K - 1 directions
    assert answer.nc1 == pytest.approx((n_classes - 1) * spread**2 / radius**2, rel=1e-13)
    assert answer.nc2 == pytest.approx(0, abs=1e-13)


def test_noise_spreads_only_where_nc1_looks_for_it():
    """Variation outside the span of the class means counts in the traces but not in NC1."""
    labels = np.repeat(np.arange(3), 4)
    features = np.zeros((12, 5))
    features[:, :3] = np.eye(3)[labels]
    features[:, 4] = np.tile([1.0, -1.0], 6)
    answer = neural_collapse(features, labels)
    assert answer.nc1 == pytest.approx(0, abs=1e-28)
    assert answer.nc1_trace == pytest.approx(1 / (2 / 3))


def test_collinear_means_lower_the_rank_and_stay_finite():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 6)
    inside = rng.standard_normal((24, 7))
    for k in range(4):
        inside[labels == k] -= inside[labels == k].mean(0)
    features = np.outer(labels, np.arange(7.0)) + inside
    answer = neural_collapse(features, labels)
    assert answer.rank == 1
    assert answer.nc1 == pytest.approx(plain(features, labels, np.ones((4, 7)), 0)["nc1"], rel=1e-9)


def test_large_offset_costs_no_digits_of_the_definition():
    features, labels, weight, _ = clusters(3, 6, 8, 1, spread=0.1)
    features = np.round(features * 2**20) / 2**20  # exact under the shift below
    near = neural_collapse(features, labels, weight)
    far = neural_collapse(features + 2.0**20, labels, weight, -(weight @ np.full(6, 2.0**20)))
    assert far.nc1 == pytest.approx(near.nc1, rel=1e-8)
    assert far.nc1_trace == pytest.approx(near.nc1_trace, rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_every_way_in_gives_the_same_numbers(seed):
    features, labels, weight, bias = clusters(4, 9, [3, 7, 5, 12], seed)
    wanted = neural_collapse(features, labels, weight, bias)
    cuts = np.array_split(np.arange(len(labels)), 5)
    full, left, right = LabelMoments(second="full"), LabelMoments(), LabelMoments()
    for index, cut in enumerate(cuts):
        full.update(features[cut], labels=labels[cut])
        (left if index < 2 else right).update(features[cut], labels=labels[cut])
    single = collapse_of_moments(full.result(), weight)
    for name in ("nc1", "nc1_trace", "nc2", "nc3", "rank", "within", "between"):
        assert getattr(single, name) == pytest.approx(getattr(wanted, name), rel=1e-11)
    assert single.nc4 is None
    first = left.merge(right).result()
    assert collapse_of_moments(first).nc1 is None
    halves = [CollapseSecondPass.of(first, weight, bias) for _ in range(2)]
    for index, cut in enumerate(cuts):
        halves[index % 2].update(torch.tensor(features[cut]), labels=torch.tensor(labels[cut]))
    merged = CollapseSecondPass.of(first, weight, bias).merge(halves[0]).merge(halves[1]).result()
    assert numbers(merged) == pytest.approx(numbers(wanted), rel=1e-11)


def test_second_pass_survives_saving():
    features, labels, weight, bias = clusters(3, 5, 6, 0)
    first = LabelMoments().update(features, labels=labels).result()
    for classifier in ((None, None), (weight, None), (weight, bias)):
        half = CollapseSecondPass.of(first, *classifier).update(features[:9], labels=labels[:9])
        for again in (restore(half.state()), pickle.loads(pickle.dumps(half))):
            assert again == half
            done = again.update(features[9:], labels=labels[9:]).result()  # type: ignore[attr-defined]
            assert numbers(done) == pytest.approx(numbers(neural_collapse(features, labels, *classifier)), rel=1e-12)


def test_streaming_in_small_batches_equals_memory(monkeypatch):
    features, labels, weight, bias = clusters(3, 5, 40, 0)
    wanted = numbers(neural_collapse(features, labels, weight, bias))
    monkeypatch.setattr("netloupe.lenses.geometry.collapse_pass._CHUNK", 10)
    rows = as_rows(features, labels, batch_size=7)
    assert numbers(neural_collapse(rows, labels, weight, bias)) == pytest.approx(wanted, rel=1e-12)


def test_a_stored_site_gives_the_numbers_of_the_array(tmp_path):
    features, labels, weight, bias = clusters(4, 6, [9, 14, 20, 7], 3)
    values, classes = torch.tensor(features), torch.tensor(labels)
    specs = {"features": SiteSpec.like(values), "labels": SiteSpec.like(classes)}
    with StoreWriter(tmp_path / "run", specs, rows_per_shard=11) as writer:
        for start in range(0, len(values), 8):
            part = slice(start, start + 8)
            writer.append({"features": values[part], "labels": classes[part]})
    store = Store(tmp_path / "run")
    found = neural_collapse(store["features"], store.labels, weight, bias)
    assert found == neural_collapse(values, classes, weight, bias)
    streamed = neural_collapse(as_rows(store["features"], store.labels, batch_size=5), None, weight, bias)
    assert numbers(streamed) == pytest.approx(numbers(found), rel=1e-12)


@pytest.mark.parametrize("with_classifier", [False, True])
def test_finding_is_the_same_after_saving(tmp_path, with_classifier):
    features, labels, weight, bias = clusters(4, 6, 8, 0)
    found = neural_collapse(features, labels, *((weight, bias) if with_classifier else ()))
    again = Finding.load(found.in_context(site="head:in", seed=3).save(tmp_path / "collapse"))
    assert type(again) is NeuralCollapse
    assert again == found
    assert again.context.site == "head:in"
    assert again.summary() == found.summary()
    assert again != neural_collapse(2 * features, labels, weight, bias)


def test_it_declares_itself_as_a_lens():
    declared = get_lens("neural_collapse")
    assert declared.name == "geometry.neural_collapse"
    assert declared.function is neural_collapse
    assert collapse_metrics is neural_collapse
    assert (declared.needs, declared.optional) == (("features", "labels"), ("weight", "bias"))
    features, labels, _, _ = clusters(2, 3, 2, 0)
    assert declared(features, labels).n_samples == declared.min_samples  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="at least 4"):
        declared(features[:3], labels[:3])


def test_summary_explains_every_number_it_has():
    features, labels, weight, bias = clusters(3, 5, 8, 0)
    without, complete = neural_collapse(features, labels), neural_collapse(features, labels, weight, bias)
    assert list(complete.summary()) == list(NeuralCollapse.meanings)
    assert set(complete.summary()) - set(without.summary()) == {"nc3", "nc4"}
    assert complete.paragraph().count(": ") == 6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n_classes=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_gram_is_that_of_the_class_means(n_classes, seed):
    features, labels, _, _ = clusters(n_classes, 7, 4, seed)
    gram = neural_collapse(features, labels).gram
    means = np.stack([features[labels == k].mean(0) for k in range(n_classes)])
    centred = means - means.mean(0)
    np.testing.assert_allclose(gram, centred @ centred.T / np.linalg.norm(centred @ centred.T), atol=1e-12)
    assert np.linalg.norm(gram) == pytest.approx(1)
    np.testing.assert_allclose(gram.sum(1), 0, atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 5, 30])
def test_plot_shows_the_measured_means_beside_the_simplex(n_classes):
    simplex = np.eye(n_classes) - 1 / n_classes
    labels = np.repeat(np.arange(n_classes), 2)
    figure = Figure()
    axes = figure.subplots()
    neural_collapse(3 * simplex[labels], labels).plot(axes)
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shown[:, :n_classes], shown[:, -n_classes:], atol=1e-12)
    np.testing.assert_allclose(np.diag(shown[:, -n_classes:]), 1)
    assert "nc2" in axes.get_title()


def test_positions_are_samples_of_their_label():
    features, labels, weight, bias = clusters(3, 5, 8, 0)
    order = np.argsort(labels, kind="stable")
    apart = neural_collapse(features[order], labels[order], weight, bias)
    joined = neural_collapse(features[order].reshape(12, 2, 5), labels[order][::2], weight, bias)
    assert numbers(joined) == pytest.approx(numbers(apart), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_features_are_read_in_float64(dtype):
    features, labels, weight, bias = clusters(3, 5, 8, 0)
    low = torch.tensor(features).to(dtype)
    answer = neural_collapse(low.requires_grad_(), torch.tensor(labels), torch.tensor(weight), torch.tensor(bias))
    assert numbers(answer) == pytest.approx(plain(low.detach().double().numpy(), labels, weight, bias), rel=1e-9)


def test_without_a_classifier_its_numbers_are_none():
    features, labels, _, _ = clusters(3, 5, 8, 0)
    answer = neural_collapse(features, labels)
    assert answer.nc3 is None
    assert answer.nc4 is None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # squares of 1e200 overflow on the way to the error
def test_bad_input_is_refused_in_one_sentence():
    features, labels, weight, bias = clusters(3, 5, 8, 0)
    first = LabelMoments().update(features, labels=labels).result()
    broken = features.copy()
    broken[3, 2] = np.inf
    half = CollapseSecondPass.of(first).update(features[:9], labels=labels[:9])
    cases = [
        (lambda: neural_collapse(features, labels[:-1]), "one label for each"),
        (lambda: neural_collapse(features, None), "one label per sample"),
        (lambda: neural_collapse(features[:, 0], labels), r"expected \(sample, unit\)"),
        (lambda: neural_collapse(features, labels * 2), "renumber"),
        (lambda: neural_collapse(features, np.zeros(24, int)), "2 classes"),
        (lambda: neural_collapse(features, np.where(np.arange(24) == 0, 3, labels)), "2 samples of each label"),
        (lambda: neural_collapse(np.ones((24, 5)), labels), "coincide"),
        (lambda: neural_collapse(features * 1e200, labels), "overflow"),
        (lambda: neural_collapse(features * 1e-200, labels), "coincide"),
        (lambda: neural_collapse(features, labels, weight[:2]), "one row per class"),
        (lambda: neural_collapse(features, labels, weight, bias[:2]), "bias has shape"),
        (lambda: neural_collapse(features, labels, 0 * weight), "all zeros"),
        (lambda: neural_collapse(features, labels, None, bias), "without a weight"),
        (lambda: neural_collapse(features, labels, np.nan * weight), "weight holds NaN"),
        (lambda: neural_collapse(broken, labels), "inf"),
        (lambda: CollapseSecondPass.of(first).update(features[:, :4], labels=labels), "same site"),
        (lambda: CollapseSecondPass.of(first).update(features, labels=labels + 1), "0..2"),
        (lambda: half.result(), "show both the same samples"),
        (lambda: half.merge(CollapseSecondPass.of(first, weight)), "weight differ"),
    ]
    for call, fragment in cases:
        with pytest.raises(InputError, match=fragment) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(NonFiniteError):
        neural_collapse(broken, labels)
