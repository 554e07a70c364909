"""Each statistic against numpy, torch and scikit-learn on fresh random input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

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
    average_precision,
    best_threshold,
    update_all,
)

EDGES = np.arange(-3, 4.0)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.uint8, torch.bool]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Fresh values with zeros, negatives and ties, in any dtype."""
    x = torch.randn(*shape) * 3
    if dtype == torch.bool:
        return x > 0
    if dtype == torch.uint8:
        return x.abs().to(dtype)
    return torch.where(torch.rand(*shape) < 0.2, torch.zeros(()), x).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 5), (400, 700), (12, 9, 6), (1, 3)])
def test_moments_equal_numpy(dtype, shape):
    x = draw(*shape, dtype=dtype)
    ref = x.double().numpy().reshape(-1, shape[-1])
    found = Moments().update(x).result()
    assert found.count == len(ref)
    np.testing.assert_allclose(found.mean, ref.mean(0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.variance, ref.var(0), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found.std, ref.std(0), rtol=1e-11, atol=1e-7)
    np.testing.assert_array_equal(found.minimum, ref.min(0))
    np.testing.assert_array_equal(found.maximum, ref.max(0))
    if len(ref) > 1:
        np.testing.assert_allclose(found.variance_with(1), ref.var(0, ddof=1), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [1e4, 1e6, -1e6])
def test_moments_of_a_large_offset_keep_their_digits(dtype, offset):
    x = (torch.randn(3000, 40, dtype=torch.float64) + offset).to(dtype)
    moments = Moments()
    for part in x.split(700):
        moments.update(part)
    ref = x.double().numpy()
    np.testing.assert_allclose(moments.result().variance, ref.var(0), rtol=1e-9)
    np.testing.assert_allclose(moments.result().mean, ref.mean(0), rtol=1e-14)


def test_moments_survive_an_outlying_first_row():
    x = np.random.default_rng().standard_normal((2000, 300)).astype(np.float32)
    x[0] = 1e6
    np.testing.assert_allclose(Moments().update(x).result().variance, x.astype(np.float64).var(0), rtol=1e-11)


def test_moments_at_float64_precision():
    x = 1.0 + 1e-9 * torch.randn(500, 8, dtype=torch.float64)
    found = Moments().update(x).result()
    np.testing.assert_allclose(found.variance, x.numpy().var(0), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1, -0.5, 1e300])
def test_counts_equal_numpy(dtype, absolute, threshold):
    x = draw(211, 333, dtype=dtype)
    ref = x.double().numpy()
    on = (np.abs(ref) if absolute else ref) > threshold
    found = Counts(threshold, absolute).update(x).result()
    np.testing.assert_array_equal(found.active, on.sum(0))
    np.testing.assert_array_equal(found.zero, (ref == 0).sum(0))
    np.testing.assert_array_equal(found.negative, (ref < 0).sum(0))
    np.testing.assert_array_equal(found.rows_with_active, np.bincount(on.sum(1), minlength=334))
    np.testing.assert_array_equal(found.frequency, on.mean(0))
    np.testing.assert_array_equal(found.dead, ~on.any(0))
    assert found.mean_active_units == pytest.approx(on.sum(1).mean())
    assert found.active_fraction == pytest.approx(on.mean())
    assert found.nonzero_fraction == pytest.approx((ref != 0).mean())


def test_counts_are_strict_at_a_threshold_that_float32_cannot_hold():
    just_above, just_below = np.nextafter(np.float32(0.1), np.float32(1)), np.nextafter(np.float32(0.1), np.float32(0))
    x = np.array([[just_below], [0.1], [just_above]], np.float32)
    # float32(0.1) is 0.10000000149, which is above the float64 threshold 0.1.
    assert Counts(0.1).update(x).result().active[0] == 2
    assert Counts(float(np.float32(0.1))).update(x).result().active[0] == 1


@pytest.mark.parametrize("edges", [np.linspace(-2, 2, 9), np.array([-1.0, 0.0, 0.3, 5.0]), np.linspace(0, 0.7, 71)])
@pytest.mark.parametrize("per_unit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_histogram_equals_numpy(edges, per_unit, dtype):
    x = draw(301, 250, dtype=dtype)
    x[:3, :2] = torch.tensor(edges[[0, -1, 1]])[:, None].to(dtype)
    found = Histogram(edges, per_unit).update(x).result()
    ref = x.double().numpy()
    if per_unit:
        np.testing.assert_array_equal(found.counts, [np.histogram(column, edges)[0] for column in ref.T])
    else:
        np.testing.assert_array_equal(found.counts, np.histogram(ref, edges)[0])
    axis = 0 if per_unit else None
    np.testing.assert_array_equal(found.under, (ref < edges[0]).sum(axis))
    np.testing.assert_array_equal(found.over, (ref > edges[-1]).sum(axis))
    assert found.count == ref.size
    inside = (found.density * np.diff(edges)).sum(-1)
    np.testing.assert_allclose(inside, ((ref >= edges[0]) & (ref <= edges[-1])).mean(axis), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_quantiles_keep_their_bound(dtype, scale):
    if dtype == torch.float16 and scale in (1e-30, 1e30):
        scale = 1.0
    x = (torch.randn(900, 91).exp() * draw(900, 91)).double().mul(scale).to(dtype)
    found = Quantiles().update(x).result()
    q = np.array([0, 0.001, 0.02, 0.3, 0.5, 0.77, 0.99, 1])
    ref = np.quantile(x.double().numpy(), q, method="inverted_cdf")
    assert found.relative_error == 2.0**-8
    assert (np.abs(found.quantile(q) - ref) <= found.relative_error * np.abs(ref)).all()
    assert (found.lower <= found.values).all()
    assert (found.values <= found.upper).all()
    assert (np.diff(found.values) > 0).all()
    assert found.counts.sum() == found.count == x.numel()


@pytest.mark.parametrize("rows", [40, 900])
def test_quantiles_of_bfloat16_are_exact(rows):
    x = (torch.randn(rows, 100) * 10 ** torch.randn(rows, 100)).bfloat16()
    found = Quantiles().update(x).result()
    assert found.relative_error == 0
    q = np.linspace(0, 1, 57)
    ref = x.double().numpy()
    np.testing.assert_array_equal(found.quantile(q), np.quantile(ref, q, method="inverted_cdf"))
    at = np.array([-3.0, -0.1, 0.0, 0.25, 8.0])
    np.testing.assert_allclose(found.cdf(at), [(ref <= a).mean() for a in at], rtol=1e-14)
    edges = np.linspace(-4, 4, 33)
    np.testing.assert_array_equal(found.histogram(edges), np.histogram(ref, edges)[0])


def test_quantiles_of_zeros_denormals_and_huge_values():
    x = np.array([[0.0], [-0.0], [1e-45], [-1e-45], [1e-310], [3.4e38], [-1e300], [1e300]])
    found = Quantiles().update(x).result()
    assert found.values[0] == pytest.approx(-np.finfo(np.float32).max, rel=2**-8)
    assert found.values[-1] == pytest.approx(np.finfo(np.float32).max, rel=2**-8)
    assert found.quantile(0.5) == 0
    assert found.counts.tolist() == [1, 5, 2]
    assert Quantiles().update(np.zeros((4, 2), np.float32)).result().values.tolist() == [0.0]


def test_quantiles_approximate_cdf_and_histogram():
    x = torch.randn(2000, 50)
    found = Quantiles().update(x).result()
    edges = np.linspace(-5, 5, 41)
    ref = np.histogram(x.double().numpy(), edges)[0]
    # A bin is at most 2^-7 of its value wide: 5 * 2^-7 of 0.25 is the share that can change sides at most.
    assert found.histogram(edges).sum() == pytest.approx(ref.sum(), abs=5)
    assert np.abs(found.histogram(edges) - ref).max() < 0.16 * ref.max()
    assert found.cdf(0.0) == pytest.approx((x <= 0).double().mean().item(), abs=1e-12)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_quantiles_per_unit(bits):
    x = torch.randn(600, 7) * torch.logspace(-3, 3, 7)
    found = Quantiles(per_unit=True, bits=bits).update(x).result()
    q = np.array([0.1, 0.5, 0.9])
    ref = np.quantile(x.double().numpy(), q, axis=0, method="inverted_cdf")
    assert found.quantile(q).shape == (3, 7)
    assert (np.abs(found.quantile(q) - ref) <= found.relative_error * np.abs(ref)).all()
    assert found.relative_error == 2.0 ** -(bits - 8)
    assert found.cdf(np.zeros(2)).shape == (2, 7)
    assert found.histogram(np.linspace(-1, 1, 5)).shape == (4, 7)


def best_rows(x, k, largest, distinct):
    """The definition of top-k, by sorting every entry of each unit."""
    found = []
    for unit in range(x.shape[-1]):
        entries = [(-v if largest else v, s, p) for s, row in enumerate(x[..., unit]) for p, v in enumerate(row)]
        kept, seen = [], set()
        for v, s, p in sorted(entries):
            if not (distinct and s in seen):
                kept.append((-v if largest else v, s, p))
                seen.add(s)
        found.append(kept[:k])
    return found


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("shape", [(90, 1, 40), (40, 50, 20), (3, 70, 5), (300, 3, 20), (2, 2, 1)])
@pytest.mark.parametrize("ties", [True, False])
def test_topk_equals_sorting(largest, distinct, shape, ties):
    x = torch.randn(shape).mul(2).round() if ties else torch.randn(shape)
    top = TopK(5, largest, distinct)
    for part in x.split(37):
        top.update(part if shape[1] > 1 else part[:, 0])
    found, ref = top.result(), best_rows(x.double().numpy(), 5, largest, distinct)
    np.testing.assert_array_equal(found.values, [[e[0] for e in unit] for unit in ref])
    np.testing.assert_array_equal(found.samples, [[e[1] for e in unit] for unit in ref])
    np.testing.assert_array_equal(found.positions, [[e[2] for e in unit] for unit in ref])


def test_topk_equals_torch_on_many_rows():
    x = torch.randn(5000, 90)
    values, samples = x.topk(11, dim=0)
    found = TopK(11).update(x).result()
    np.testing.assert_array_equal(found.values, values.T.double())
    np.testing.assert_array_equal(found.samples, samples.T)


def test_topk_in_any_sample_order_and_after_repeats():
    x, order = torch.randn(600, 30).mul(4).round(), torch.randperm(600)
    straight = TopK(7).update(x)
    shuffled = TopK(7).update(x[order][:200], samples=order[:200]).update(x[order][200:], samples=order[200:])
    assert shuffled == straight
    assert shuffled.update(x, samples=torch.arange(600)) == TopK(7).update(torch.cat([x, x]), samples=[*range(600)] * 2)
    np.testing.assert_array_equal(shuffled.result().samples, straight.result().samples)


@pytest.mark.parametrize("second", ["trace", "diagonal", "full"])
@pytest.mark.parametrize("positions", [1, 4])
def test_label_moments_equal_numpy(second, positions):
    x = torch.randn(200, positions, 12) + 100
    labels = torch.randint(0, 6, (200,))
    labels[labels == 3] = 4
    statistic = LabelMoments(second=second)
    for part, part_labels in zip(x.split(64), labels.split(64), strict=True):
        statistic.update(part if positions > 1 else part[:, 0], labels=part_labels)
    found = statistic.result()
    rows, row_labels = x.double().numpy().reshape(-1, 12), labels.numpy().repeat(positions)
    np.testing.assert_array_equal(found.counts, np.bincount(row_labels))
    assert np.isnan(found.means[3]).all()
    centred = rows.copy()
    per_class = np.zeros((len(found.counts), 12))
    for c in np.unique(row_labels):
        mine = rows[row_labels == c]
        np.testing.assert_allclose(found.means[c], mine.mean(0), rtol=1e-13)
        centred[row_labels == c] -= mine.mean(0)
        per_class[c] = ((mine - mine.mean(0)) ** 2).sum(0)
    ref = {"trace": per_class.sum(1), "diagonal": per_class, "full": centred.T @ centred}[second]
    np.testing.assert_allclose(found.within, ref, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.global_mean, rows.mean(0), rtol=1e-13)
    total = ((rows - rows.mean(0)) ** 2).sum()
    assert found.within_total + found.between_total == pytest.approx(total, rel=1e-10)
    if second == "full":
        np.testing.assert_allclose(found.within_covariance, ref / len(rows), rtol=1e-9, atol=1e-9)


def test_covariance_equals_numpy():
    x = torch.randn(500, 20) @ torch.randn(20, 20) + 50
    covariance = Covariance()
    for part in x.split(130):
        covariance.update(part)
    found, ref = covariance.result(), x.double().numpy()
    np.testing.assert_allclose(found.mean, ref.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance(), np.cov(ref.T, ddof=0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.covariance(ddof=1), np.cov(ref.T), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.correlation, np.corrcoef(ref.T), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("own", [False, True])
def test_cross_covariance_equals_numpy(own):
    a, b = torch.randn(300, 4, 6) + 9, torch.randn(300, 4, 3)
    b[..., 0] = a[..., 0] * 2
    b[..., 2] = 5.0
    mask = torch.rand(300, 4) > 0.3
    cross = CrossCovariance(own=own)
    for part in (slice(0, 110), slice(110, 300)):
        cross.update(a[part], b[part], mask=mask[part])
    found = cross.result()
    rows_a, rows_b = a[mask].double().numpy(), b[mask].double().numpy()
    ref = np.cov(rows_a.T, rows_b.T, ddof=0)
    np.testing.assert_allclose(found.cross, ref[:6, 6:], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(found.mean_a, rows_a.mean(0))
    np.testing.assert_allclose(found.correlation[0, 0], 1.0, rtol=1e-12)
    assert np.isnan(found.correlation[:, 2]).all()
    if own:
        np.testing.assert_allclose(found.scatter_a, ref[:6, :6] * found.count, rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(found.scatter_b, ref[6:, 6:] * found.count, rtol=1e-9, atol=1e-8)
    else:
        assert found.scatter_a is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn(dtype, ties):
    scores = (torch.randn(400, 25, dtype=dtype) * 2).round() if ties else torch.randn(400, 25, dtype=dtype)
    positives = torch.rand(400) < 0.2
    positives[0] = True
    scores[::7] *= -0.0
    ref = [average_precision_score(positives.numpy(), column) for column in scores.T.numpy()]
    np.testing.assert_allclose(average_precision(scores, positives), ref, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_best_threshold_beats_every_other(dtype):
    scores = (torch.randn(120, 10, dtype=dtype) * 3).round()
    positives = torch.rand(120) < 0.3
    positives[:2] = torch.tensor([True, False])
    scores[:, 0], scores[:, 1] = 4.0, positives.to(dtype)
    thresholds, accuracy = best_threshold(scores, positives)
    values, wanted = scores.numpy(), positives.numpy()

    def balanced(column, t):
        return 0.5 * ((column[wanted] > t).mean() + (column[~wanted] <= t).mean())

    for unit in range(10):
        column = values[:, unit]
        assert balanced(column, thresholds[unit]) == pytest.approx(accuracy[unit], abs=1e-12)
        others = [balanced(column, t) for t in [column.min() - 1, *np.unique(column)]]
        assert max(others) == pytest.approx(accuracy[unit], abs=1e-12)
    assert accuracy[0] == 0.5
    assert (thresholds[1], accuracy[1]) == (0.5, 1.0)


def test_ranking_refuses_bad_input():
    scores, positives = torch.randn(10, 3), torch.zeros(10, dtype=torch.bool)
    with pytest.raises(InputError, match="all False"):
        average_precision(scores, positives)
    with pytest.raises(InputError, match="both kinds"):
        best_threshold(scores, ~positives)
    with pytest.raises(InputError, match="expected bool"):
        average_precision(scores, positives[:9])
    with pytest.raises(InputError, match="axes"):
        average_precision(scores[0], positives)
    with pytest.raises(NonFiniteError):
        average_precision(scores * float("nan"), ~positives)


def test_update_all_equals_separate_updates():
    x, labels = draw(700, 300), torch.randint(0, 4, (700,))

    def build():
        return [
            Moments(), Counts(), TopK(4), Quantiles(), Histogram(np.linspace(-3, 3, 9)), LabelMoments(), Covariance()
        ]  # fmt: skip

    together, apart = build(), build()
    update_all(together, x, labels=labels)
    for statistic in apart:
        statistic.update(x, labels=labels)
    assert together == apart


def test_answers_do_not_depend_on_the_number_of_threads():
    x = torch.randn(3000, 200)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            statistics = [
                Moments(),
                Counts(),
                TopK(6),
                Quantiles(),
                Quantiles(True),
                Histogram(np.arange(-3, 4.0), True),
            ]
            update_all(statistics, x)
            found.append(statistics)
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
