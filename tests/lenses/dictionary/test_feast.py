"""Adaptive selection thresholds: the rule step by step, the balance in closed form, another implementation's numbers, events, layers."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.data.event_simulation import moving_bars, noise_events
from netloupe.data.events import SurfaceMaps, make_events, time_surfaces
from netloupe.lenses.dictionary.adaptive_thresholds import CLOSED, AdaptiveThresholdClusters
from netloupe.lenses.dictionary.equal_shares import equal_shares
from netloupe.lenses.dictionary.feast import Feast, pool_labels
from netloupe.lenses.dictionary.feast_kernels import learn, learn_plain


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _clusters(n: int, seed: int, k: int = 5, d: int = 12, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres, which = _unit(np.abs(rng.standard_normal((k, d)))), rng.integers(k, size=n)
    return np.abs(centres[which] + spread * rng.standard_normal((n, d)) / np.sqrt(d)), which


def _state(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.ascontiguousarray(_unit(rng.random((n, d))).T), rng.uniform(0.5, 1, n), np.zeros(n, np.int64)


def test_the_rule_by_hand() -> None:
    """Two features: a hit on the better of the eligible, a hit on the worse because the better is closed, a miss."""
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    thresholds, wins, winners = np.array([0.5, 0.9]), np.zeros(2, np.int64), np.empty(3, np.int64)
    rows = np.array([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    step = (0.1, 0.01, 0.03)
    after = _unit(0.9 * np.array([[1.0, 0.0]]) + 0.1 * rows[:1])[0]
    again = _unit((0.9 * after + 0.1 * rows[1])[None])[0]
    missed = learn(rows[:2], weights, thresholds, wins, winners[:2], *step, True, True, 1)
    assert missed == 0
    np.testing.assert_array_equal(
        winners[:2], [0, 0]
    )  # the second row is nearer to feature 1, whose threshold .9 is above .8
    np.testing.assert_allclose(weights[:, 0], again)
    np.testing.assert_allclose(thresholds, [0.52, 0.9])
    thresholds[1] = 1.0  # even a vector equal to the feature is not above 1: strict
    assert learn(rows[2:], weights, thresholds, wins, winners[2:], *step, True, True, 1) == 1
    assert winners[2] == -1
    np.testing.assert_allclose(thresholds, [0.49, 0.97])
    np.testing.assert_allclose(weights[:, 1], [0, 1])
    np.testing.assert_array_equal(wins, [2, 0])
    tied = np.array([[1.0, 1.0], [0.0, 0.0]])
    assert learn(np.array([[1.0, 0.0]]), tied, np.zeros(2), wins, winners[:1], *step, True, True, 1) == 0
    assert winners[0] == 0  # ties go to the first


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("adaptive", "clip", "block"), [(True, True, 1), (True, False, 1), (False, True, 1), (True, True, 16)]
)
def test_compiled_and_plain_are_one_rule(seed: int, adaptive: bool, clip: bool, block: int) -> None:
    rows = _unit(_clusters(700, seed)[0])
    found = []
    for step in (learn, learn_plain):
        weights, thresholds, wins = _state(seed, 7, rows.shape[1])
        winners = np.empty(len(rows), np.int64)
        missed = step(rows, weights, thresholds, wins, winners, 0.02, 0.02, 0.05, adaptive, clip, block)
        assert missed == (winners < 0).sum()
        np.testing.assert_array_equal(wins, np.bincount(winners[winners >= 0], minlength=7))
        found.append((winners, weights, thresholds))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-12)
    np.testing.assert_allclose(found[0][2], found[1][2], atol=1e-12)


def test_another_implementation_decides_alike() -> None:
    """Numbers of a public Python port of FEAST, from the same events, weights and thresholds (it compares >=, which no number here meets)."""
    rng = np.random.default_rng(7)
    x, y, t = (
        rng.integers(12, size=400),
        rng.integers(12, size=400),
        np.sort(rng.integers(0, 4000, size=400)) * 1000 + 1,
    )
    weights = rng.random((6, 25))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    thresholds, wins = rng.random(6) * 0.5 + 0.3, np.zeros(6, np.int64)
    _, rows = SurfaceMaps(5, 0.1, (12, 12)).rows(make_events(x, y, t, 1))
    winners, state = np.empty(len(rows), np.int64), np.ascontiguousarray(weights.T)
    assert len(rows) == 166
    assert learn(rows, state, thresholds, wins, winners, 0.05, 0.02, 0.05, True, False, 1) == 6
    assert wins.tolist() == [33, 15, 2, 33, 39, 38]
    assert winners[:40].tolist() == [
        -1, -1, -1, 1, -1, 5, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0, 5, 0, 5, 0, 5, 1, 4, 0, 5, 3, 0, 5,
    ]  # fmt: skip
    np.testing.assert_allclose(
        thresholds, [0.8878752978, 0.6308777991, 0.2939347841, 0.7426988838, 0.8495592566, 0.9022671965], atol=1e-9
    )
    np.testing.assert_allclose(
        state.sum(0), [2.7983084457, 4.0919204751, 4.2368377088, 3.5320359772, 3.1263894843, 2.8094820902], atol=1e-8
    )


@pytest.mark.parametrize(("n", "loosen"), [(4, 0.003), (10, 0.003), (10, 0.01), (25, 0.001)])
def test_the_balance_is_the_closed_form_whatever_the_data(n: int, loosen: float) -> None:
    for seed in (0, 1):
        rows, _ = _clusters(80_000, seed)
        model = AdaptiveThresholdClusters(n, eta=0.01, loosen=loosen, seed=seed).fit(rows)
        expected = 0.001 / (0.001 + n * loosen)
        assert model.expected_miss_rate == pytest.approx(expected)
        assert model.miss_rate(40_000) == pytest.approx(expected, rel=0.1)
        wins = model.wins(40_000)
        np.testing.assert_allclose(wins / 40_000, (1 - expected) / n, rtol=0.1)
        assert model.evenness(40_000) > 0.999
        # what holds exactly, at any time: the thresholds' path is gain times wins less loosen times misses
        free = AdaptiveThresholdClusters(n, eta=0.01, loosen=loosen, seed=seed, clip=False).fit(rows[:3000])
        np.testing.assert_allclose(free.thresholds_, CLOSED + 0.001 * free.wins_ - loosen * free.n_missed_, atol=1e-9)


def test_the_paper_constants_at_a_hundred_features() -> None:
    assert AdaptiveThresholdClusters().expected_miss_rate == pytest.approx(1 / 301)
    assert AdaptiveThresholdClusters(adaptive=False).expected_miss_rate == 0
    uneven, _ = _clusters(20_000, 3, k=3)
    plain = AdaptiveThresholdClusters(20, eta=0.01, adaptive=False).fit(uneven)
    even = AdaptiveThresholdClusters(20, eta=0.01).fit(uneven)
    assert plain.miss_rate() == 0
    assert plain.evenness(5000) < 0.9 < 0.98 < even.evenness(5000)
    np.testing.assert_array_equal(plain.dead(), plain.wins_ == 0)  # a run shorter than the span that counts
    assert plain.dead().any()
    assert not even.dead().any()
    long = AdaptiveThresholdClusters(2, eta=0.01, adaptive=False, seed=1).fit(np.tile([[1.0, 0.0, 0.0]], (6001, 1)))
    assert long.dead().tolist() == [bool(long.wins_[0] == 0), bool(long.wins_[1] == 0)]
    assert long.dead().sum() == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_orthogonal_clusters_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    which = rng.integers(2, size=20_000)
    rows = np.abs(0.05 * rng.standard_normal((20_000, 6)))
    rows[np.arange(20_000), 3 * which] += 1.0
    model = AdaptiveThresholdClusters(2, eta=0.01, seed=seed).fit(rows)
    means = np.stack([_unit(_unit(rows)[which == k].mean(0)[None])[0] for k in (0, 1)])
    cosines = model.directions_ @ means.T
    assert sorted(cosines.argmax(1)) == [0, 1]
    assert cosines.max(1).min() > 0.9995
    labels = model.predict(rows)
    assert (labels == cosines.argmax(0)[which]).all()


def test_rate_one_keeps_the_last_vector_and_length_does_not_count() -> None:
    rows, _ = _clusters(500, 0)
    model = AdaptiveThresholdClusters(4, eta=1.0, thresholds="random", seed=2).fit(rows)
    for i, last in enumerate(model.last_win_):
        if last >= 0:
            np.testing.assert_allclose(model.directions_[i], _unit(rows)[last], atol=1e-12)
    longer = AdaptiveThresholdClusters(4, eta=1.0, thresholds="random", seed=2).fit(4.0 * rows)
    np.testing.assert_array_equal(longer.directions_, model.directions_)
    np.testing.assert_allclose(longer.scale_[model.wins_ > 0], 4 * model.scale_[model.wins_ > 0])
    holes = np.insert(rows, [0, 100, 500], 0.0, axis=0)
    np.testing.assert_array_equal(
        AdaptiveThresholdClusters(4, eta=1.0, thresholds="random", seed=2).fit(holes).directions_, model.directions_
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 299), n=st.integers(1, 9))
def test_parts_of_a_stream_are_the_stream(seed: int, cut: int, n: int) -> None:
    rows, _ = _clusters(300, seed)
    options = {"eta": 0.05, "gain": 0.01, "loosen": 0.03, "log_every": 37, "seed": seed}
    whole = AdaptiveThresholdClusters(n, **options).fit(rows)
    parts = AdaptiveThresholdClusters(n, **options).partial_fit(rows[:cut]).partial_fit(rows[cut:])
    np.testing.assert_array_equal(whole.directions_, parts.directions_)
    for one, other in zip(whole.history_, parts.history_, strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.history_.seen.tolist() == list(range(37, 301, 37))
    assert (whole.thresholds_ >= 0).all()
    assert (whole.thresholds_ <= 1).all()
    np.testing.assert_allclose(np.linalg.norm(whole.directions_, axis=1), 1)
    assert whole.wins_.sum() + whole.n_missed_ == whole.n_seen_ == 300


def test_history_is_what_happened() -> None:
    rows, _ = _clusters(1000, 1)
    model = AdaptiveThresholdClusters(5, eta=0.05, log_every=250, seed=1).fit(rows)
    history = model.history_
    assert history.wins.sum(0).tolist() == model.wins_.tolist()
    assert history.miss_rate.mean() == pytest.approx(model.miss_rate())
    np.testing.assert_array_equal(history.thresholds[-1], model.thresholds_)
    np.testing.assert_allclose(history.threshold_drift[1:], np.abs(np.diff(history.thresholds, axis=0)).mean(1))
    half = AdaptiveThresholdClusters(5, eta=0.05, log_every=250, seed=1).fit(rows[:750])
    drift = 1 - (half.directions_ * model.directions_).sum(1)
    assert history.weight_drift[-1] == pytest.approx(drift.mean(), abs=1e-12)
    with pytest.raises(InputError, match="windows"):
        model.miss_rate(5000)


@pytest.mark.parametrize("init", ["uniform", "normal", "samples", "kmeans++"])
def test_starts(init: str) -> None:
    rows, _ = _clusters(3000, 2)
    model = AdaptiveThresholdClusters(6, eta=0.0, gain=0.0, loosen=0.0, init=init, seed=3).fit(rows)  # type: ignore[arg-type]
    assert np.linalg.norm(model.directions_, axis=1) == pytest.approx(np.ones(6))
    if init in ("samples", "kmeans++"):
        assert ((model.directions_ @ _unit(rows).T).max(1) > 1 - 1e-12).all()
        with pytest.raises(InputError, match="were to start"):
            AdaptiveThresholdClusters(6, init=init).fit(rows[:5])  # type: ignore[arg-type]
    assert (model.directions_ < 0).any() == (init == "normal")


def test_as_a_dictionary() -> None:
    rows, _ = _clusters(4000, 0)
    rows = torch.from_numpy(3.0 * rows)
    model = AdaptiveThresholdClusters(5, eta=0.02, init="kmeans++").fit(rows)
    made = model.dictionary("block")
    codes = made.encode(rows)
    assert (codes.sum(1) == 1).all()
    np.testing.assert_array_equal(codes.argmax(1).numpy(), model.predict(rows))
    np.testing.assert_allclose(made.unit_directions().numpy(), model.directions_, atol=1e-12)
    assert float((made.reconstruct(rows) - rows).pow(2).sum() / rows.pow(2).sum()) < 0.15
    assert made.site == "block"


def test_bad_vectors_are_one_sentence() -> None:
    rows, _ = _clusters(50, 0)
    for options, match in (
        ({"n_features": 0}, "n_features is 0"), ({"eta": 2.0}, "eta is 2"), ({"gain": -1.0}, "gain"), ({"init": "zeros"}, "init is"),
        ({"backend": "c"}, "backend"), ({"block": 0}, "block"), ({"epochs": 0}, "epochs"), ({"log_every": 0}, "log_every"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            AdaptiveThresholdClusters(**options).fit(rows)
    with pytest.raises(NonFiniteError):
        AdaptiveThresholdClusters(3).fit(rows * np.nan)
    with pytest.raises(InputError, match="all vectors are 0"):
        AdaptiveThresholdClusters(3).fit(0 * rows)
    with pytest.raises(InputError, match="one unit"):
        AdaptiveThresholdClusters(3).fit(rows[:0])
    with pytest.raises(InputError, match="expected"):
        AdaptiveThresholdClusters(3).fit(rows[0])
    model = AdaptiveThresholdClusters(3).fit(rows[:1])
    assert model.n_seen_ == 1
    assert np.isnan(AdaptiveThresholdClusters(1).fit(rows).evenness())
    for call in (model.partial_fit, model.predict):
        with pytest.raises(InputError, match="units"):
            call(rows[:, :5])


def _feast(n: int = 6, **options: object) -> Feast:
    return Feast(n, 5, 10e-3, **({"eta": 0.02, "sensor": (20, 20), "per_polarity": False} | options))  # type: ignore[arg-type]


def _bars(n: int, seed: int = 0, **options: object) -> np.ndarray:
    return moving_bars(n, 4, sensor=(20, 20), length=8.0, seed=seed, **options)[0]  # type: ignore[arg-type]


def test_events_are_their_surfaces_under_the_rule() -> None:
    events = _bars(3000)
    rows = np.stack([s.ravel() for _, s in time_surfaces(events, 5, 10e-3, (20, 20))])
    direct = AdaptiveThresholdClusters(6, eta=0.02).fit(rows)
    found = _feast().fit(events)
    np.testing.assert_allclose(found.features_[0].reshape(6, 25), direct.directions_, atol=1e-12)
    np.testing.assert_allclose(found.thresholds_[0], direct.thresholds_)
    labels = found.transform(events)
    np.testing.assert_array_equal(labels[labels >= 0], direct.predict(rows))
    border = (events["x"] < 2) | (events["x"] > 17) | (events["y"] < 2) | (events["y"] > 17)
    np.testing.assert_array_equal(labels == -1, border)
    parts = _feast()
    for start in range(0, 3000, 700):
        parts.partial_fit(events[start : start + 700])
    np.testing.assert_array_equal(parts.features_, found.features_)
    fast = events.copy()
    fast["t"] *= 2  # speed is a matter of tau alone
    slower = Feast(6, 5, 20e-3, eta=0.02, sensor=(20, 20), per_polarity=False).fit(fast)
    np.testing.assert_allclose(slower.features_, found.features_, atol=1e-12)


def test_polarities_apart_together_and_stacked() -> None:
    events = _bars(6000, width=4.0)
    apart = _feast(per_polarity=True).fit(events)
    assert apart.features_.shape == (2, 6, 5, 5)
    assert apart.n_labels == 12
    on = events[events["p"] == 1]
    alone = _feast(per_polarity=False, seed=1).fit(on)  # the second population starts at the next seed
    np.testing.assert_allclose(apart.features_[1], alone.features_[0], atol=1e-12)
    labels = apart.transform(events)
    known = labels >= 0
    np.testing.assert_array_equal(labels[known] // 6, events["p"][known])
    assert len(apart.history_) == 2
    stacked = _feast(per_polarity="stacked").fit(events)
    assert stacked.features_.shape == (1, 6, 2, 5, 5)
    scales = Feast(6, 5, (5e-3, 20e-3), sensor=(20, 20), per_polarity=False)
    assert scales.fit(events).features_.shape == (1, 6, 2, 5, 5)
    with pytest.raises(InputError, match="polarity 0"):
        _ = _feast(per_polarity=True).fit(on).features_
    with pytest.raises(InputError, match="per_polarity is"):
        _feast(per_polarity="both").fit(events)


def test_recordings_begin_anew() -> None:
    one, two = _bars(1500, 0), _bars(1500, 1)
    both = _feast(seed=4).fit([one, two])
    order = [(one, two)[i] for i in np.random.default_rng(4).permutation(2)]
    hand = _feast(seed=4).partial_fit(order[0]).partial_fit(order[1], new=True)
    np.testing.assert_array_equal(both.features_, hand.features_)
    with pytest.raises(InputError, match="ended at"):
        _feast().partial_fit(one).partial_fit(two)
    twice = _feast(epochs=2).fit(one)
    assert twice.populations_[0].n_seen_ == 2 * _feast().fit(one).populations_[0].n_seen_
    seen = Feast(3, 5, per_polarity=False).fit([one[one["x"] < 10], one])  # a sensor as far as all recordings reach
    assert seen.sensor_ == (20, 20)


def test_a_second_layer_sees_features() -> None:
    events = _bars(6000, width=4.0)
    first = _feast(4, per_polarity=True).fit(events)
    middle = first.feature_events(events)
    labels = first.transform(events)
    np.testing.assert_array_equal(middle["p"], labels[labels >= 0])
    np.testing.assert_array_equal(middle["t"], events["t"][labels >= 0])
    second = first.layer_above(5, eta=0.05)
    assert second.tau == (20e-3,)
    second.fit(middle)
    assert second.features_.shape == (1, 5, 8, 5, 5)
    top = second.transform(middle)
    assert set(top) <= set(range(-1, 5))
    assert len(set(top[top >= 0])) > 1


def test_pooling_counts() -> None:
    events = make_events([0, 19, 0, 19], [0, 0, 19, 19], [0, 10, 20, 30])
    labels = np.array([0, 1, 1, -1])
    plain = pool_labels(events, labels, 2, (20, 20), (2, 2), scale=None).reshape(2, 2, 2)
    expected = np.zeros((2, 2, 2))
    expected[0, 0, 0] = expected[0, 1, 1] = expected[1, 0, 1] = 1
    np.testing.assert_array_equal(plain, expected)
    halves = pool_labels(events, labels, 2, (20, 20), slices=2, scale=None)
    np.testing.assert_array_equal(halves, [1, 1, 0, 1])
    np.testing.assert_allclose(pool_labels(events, labels, 2, (20, 20)), np.log1p([1, 2]))
    assert pool_labels(events[:0], labels[:0], 2, (20, 20)).tolist() == [0, 0]
    model = _feast().fit(_bars(2000))
    assert model.pool([_bars(500, 2), _bars(500, 3)], (2, 2), 3).shape == (2, 3 * 4 * 6)
    with pytest.raises(InputError, match="one label for"):
        pool_labels(events, labels[:2], 2, (20, 20))


def test_noise_makes_a_feature_of_an_isolated_event_and_bars_do_not() -> None:
    noise = _feast(3).fit(noise_events(2.0, 40.0, (20, 20)))
    assert noise.noise_features().any()
    assert noise.isolated().max() > 0.99
    delta = np.zeros((5, 5))
    delta[2, 2] = 1
    np.testing.assert_allclose(noise.isolated(), (noise.features_ * delta).sum((2, 3)), atol=1e-12)
    clean = _feast(6)
    found = clean.size_heuristic(_bars(20_000, noise=0.0), [6, 2])
    assert found.sizes == (2, 6)
    assert found.found is None
    assert max(found.closest) < 0.9
    with_noise = clean.size_heuristic(_bars(20_000, noise=0.3), [2, 6, 16])
    assert with_noise.found is not None
    assert with_noise.features[with_noise.sizes.index(with_noise.found)] > 0
    with pytest.raises(InputError, match="sizes"):
        clean.size_heuristic(_bars(100), [])


def test_bad_events_are_refused_and_the_run_is_said() -> None:
    events = _bars(2000)
    with pytest.raises(InputError, match="nothing was learned"):
        _feast().transform(events)
    with pytest.raises(InputError, match="no recording"):
        _feast().fit([])
    with pytest.raises(InputError, match="odd"):
        Feast(3, 4, sensor=(20, 20)).fit(events)
    with pytest.raises(InputError, match="expected 0 to 9"):
        Feast(3, 5, sensor=(20, 10)).fit(events)
    with pytest.raises(InputError, match="eta"):
        _feast(eta=-1.0).fit(events)
    with pytest.raises(InputError, match="structured"):
        _feast().fit(np.zeros((1, 5, 4)))
    figure, axes = plt.subplots()
    _feast(7).fit(events).plot(axes)  # three by three patches of five pixels and a line between
    assert axes.images[0].get_array().shape == (17, 17)
    plt.close(figure)
    text = _feast(log_every=100).fit(events).said()
    assert "missed" in text
    assert "N 6" in text
    milliseconds = events.copy()
    milliseconds["t"] //= 1000
    with pytest.warns(UserWarning, match="microseconds"):
        _feast().fit(milliseconds)
    single = _feast().fit(make_events([10], [10], [0]))
    assert single.populations_[0].n_seen_ == 1
    assert single.transform(events[:0]).shape == (0,)


def test_asked_of_a_site() -> None:
    rows, which = _clusters(600, 0, k=4, d=16)
    found = equal_shares(rows, n_features=4)
    assert found.summary()["closeness"] > 0.9
    assert found.evenness > 0.99
    assert len(set(which[found.typical])) == 4  # one prototype a cluster
    assert "4 prototypes" in found.paragraph()
    quiet = np.zeros((50, 16))
    quiet[:3] = rows[:3]
    assert np.isfinite(list(equal_shares(quiet).summary().values())).all()
    with pytest.raises(InputError, match="presented"):
        equal_shares(rows, presented=10)
