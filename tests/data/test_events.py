"""Events: one layout, checks in one sentence, time surfaces by hand and as tonic has them, simulated recordings with known content."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from netloupe.core.errors import InputError, MissingExtraError, NonFiniteError, SubjectError
from netloupe.data.digits import digits
from netloupe.data.event_simulation import (
    merge_events,
    moving_bars,
    noise_events,
    saccade_events,
    simulate_events,
)
from netloupe.data.events import EVENT, SurfaceMaps, as_events, events_from_tonic, make_events, nmnist, time_surfaces


def _random(n: int, seed: int, sensor: tuple[int, int] = (9, 12), step: int = 1000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.integers(0, step, n))
    return make_events(rng.integers(sensor[1], size=n), rng.integers(sensor[0], size=n), t, rng.integers(2, size=n))


def _by_hand(events: np.ndarray, i: int, radius: int, tau: float, channel: int | None) -> np.ndarray:
    """The surface of event i straight from its definition: for each pixel, search the past."""
    e = events[i]
    found = np.zeros((2 * radius + 1, 2 * radius + 1))
    for other in events[: i + 1]:
        dy, dx = int(other["y"]) - int(e["y"]) + radius, int(other["x"]) - int(e["x"]) + radius
        if 0 <= dy <= 2 * radius and 0 <= dx <= 2 * radius and (channel is None or other["p"] == channel):
            found[dy, dx] = np.exp(-(int(e["t"]) - int(other["t"])) / (tau * 1e6))
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surfaces_are_their_definition(seed: int) -> None:
    events, tau = _random(150, seed), 8e-3
    own = dict(time_surfaces(events, 5, tau, (9, 12)))
    both = dict(time_surfaces(events, 5, tau, (9, 12), stacked=True, chunk=17))
    padded = dict(time_surfaces(events, 5, tau, (9, 12), pad=True))
    inside = [i for i, e in enumerate(events) if 2 <= e["y"] <= 6 and 2 <= e["x"] <= 9]
    assert list(own) == list(both) == inside
    assert list(padded) == list(range(150))
    for i in padded:
        expected = _by_hand(events, i, 2, tau, events["p"][i])
        np.testing.assert_allclose(padded[i][0, 0], expected / np.linalg.norm(expected), atol=1e-14)
        if i in own:
            np.testing.assert_allclose(own[i], padded[i], atol=1e-14)
            pair = np.stack([_by_hand(events, i, 2, tau, c) for c in (0, 1)])
            np.testing.assert_allclose(both[i][:, 0], pair / np.linalg.norm(pair), atol=1e-14)


def test_surfaces_agree_with_tonic() -> None:
    """tonic 1.7's ToTimesurface (one event a slice, so its surface is a slice later: a factor that the length takes away)."""
    rng = np.random.default_rng(3)
    x, y, p = rng.integers(9, size=60), rng.integers(8, size=60), rng.integers(2, size=60)
    events = make_events(x, y, np.arange(60) * 1000, p)
    found = dict(time_surfaces(events, 5, 7e-3, (8, 9)))
    expected = [
        [0.0, 0.0, 0.0, 0.0, 0.0], [0.0484618078, 0.0, 0.0, 0.0, 0.0237240738], [0.6340986808, 0.0, 0.7314740415, 0.0, 0.0],
        [0.2332718684, 0.0018131429, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0743919285],
    ]  # fmt: skip
    np.testing.assert_allclose(found[53][0, 0], expected, atol=1e-9)
    maps = SurfaceMaps(5, 7e-3, (8, 9))
    for i, total in ((10, 2.5844505716), (30, 5.5822468023), (58, 5.5085610574)):  # of the whole surface, tonic's
        maps.reset()
        maps.rows(events[: i + 1])
        assert np.exp((maps.last[p[i]] - i * 1000) / 7000).sum() == pytest.approx(total, rel=1e-9)


def test_infinite_tau_remembers_who_fired_and_speed_is_a_matter_of_tau() -> None:
    events = _random(200, 4)
    for _, surface in time_surfaces(events, 3, np.inf, (9, 12)):
        on = surface > 0
        np.testing.assert_allclose(surface[on], 1 / np.sqrt(on.sum()))
    fast = events.copy()
    fast["t"] = events["t"] * 3
    for (i, one), (j, other) in zip(
        time_surfaces(events, 3, 5e-3, (9, 12)), time_surfaces(fast, 3, 15e-3, (9, 12)), strict=True
    ):
        assert i == j
        np.testing.assert_allclose(one, other, atol=1e-14)


def test_several_taus_stand_side_by_side_and_chunks_go_on() -> None:
    events = _random(120, 5)
    maps, many = SurfaceMaps(3, (5e-3, 50e-3), (9, 12)), SurfaceMaps(3, (5e-3, 50e-3), (9, 12))
    kept, rows = maps.rows(events)
    first, second = many.rows(events[:50]), many.rows(events[50:])
    np.testing.assert_array_equal(kept, np.concatenate([first[0], second[0] + 50]))
    np.testing.assert_array_equal(rows, np.concatenate([first[1], second[1]]))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    single = SurfaceMaps(3, 5e-3, (9, 12)).rows(events)[1]
    half = rows.reshape(-1, 2, 9)[:, 0]
    np.testing.assert_allclose(half / np.linalg.norm(half, axis=1, keepdims=True), single, atol=1e-14)
    with pytest.raises(InputError, match="ended at"):
        many.rows(events[:10])
    many.reset()
    np.testing.assert_array_equal(many.rows(events)[1], rows)
    assert many.rows(events[:0])[1].shape == (0, 18)


def test_other_layouts_become_the_one() -> None:
    given = np.zeros(3, [("t", "u8"), ("x", "u2"), ("y", "u2"), ("p", bool)])
    given["t"], given["x"], given["p"] = [5, 5, 9], [1, 2, 3], [True, False, True]
    found = as_events(given, (4, 5))
    assert found.dtype == EVENT
    np.testing.assert_array_equal(found["p"], [1, 0, 1])
    signed = make_events([0, 1], [0, 1], [0, 1], [-1, 1])
    with pytest.warns(UserWarning, match="-1 and"):
        np.testing.assert_array_equal(as_events(signed)["p"], [0, 1])
    whole = np.zeros(2, [(n, "f8") for n in "xytp"])
    whole["t"] = [3.0, 4.0]
    np.testing.assert_array_equal(as_events(whole)["t"], [3, 4])
    assert len(as_events(given[:0])) == 0


def test_bad_events_are_one_sentence() -> None:
    good = _random(20, 0)

    def changed(name: str, i: int, value: int) -> np.ndarray:
        one = good.copy()
        one[name][i] = value
        return one

    seconds = np.zeros(3, [(n, "f8") for n in "xytp"])
    seconds["t"] = [0.1, 0.2, 0.3]
    broken = seconds.copy()
    broken["t"][1] = np.nan
    cases = [
        (np.zeros((3, 4)), "structured array"), (good[["x", "y"]], "fields x, y"), (changed("t", 7, -5), "event 7 is at"),
        (changed("x", 3, 12), "event 3 has x = 12"), (changed("y", 2, -1), "event 2 has y"), (changed("p", 1, 2), "polarities"),
        (seconds, "multiply seconds by 1e6"),
    ]  # fmt: skip
    for events, match in cases:
        with pytest.raises(InputError, match=match) as caught:
            as_events(events, (9, 12))
        assert "\n" not in str(caught.value)
    with pytest.raises(NonFiniteError, match="t hold NaN"):
        as_events(broken)
    for options, match in (
        ({"patch": 4, "tau": 1.0}, "odd"), ({"patch": 3, "tau": 0.0}, "tau"), ({"patch": 3, "tau": np.nan}, "tau"),
        ({"patch": 11, "tau": 1.0}, "sensor"), ({"patch": 0, "tau": 1.0}, "odd"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            SurfaceMaps(**options, sensor=(9, 12))


def test_a_film_says_when_each_level_is_crossed() -> None:
    """One pixel rises evenly in log intensity, another falls, a third rests; floor almost none."""
    level = np.linspace(0, 1.0, 11)
    frames = np.zeros((11, 1, 3)) + 1.0
    frames[:, 0, 0], frames[:, 0, 1] = np.exp(level), np.exp(-level)
    found = simulate_events(frames, threshold=0.25, dt=1e-3, floor=1e-12)
    rising, falling = found[found["x"] == 0], found[found["x"] == 1]
    np.testing.assert_array_equal(rising["t"], [2500, 5000, 7500, 10000])
    np.testing.assert_array_equal(falling["t"], rising["t"])
    assert set(rising["p"]) == {1}
    assert set(falling["p"]) == {0}
    assert len(found) == 8
    jump = np.ones((2, 1, 1))
    jump[1] = np.exp(1.0)
    np.testing.assert_array_equal(simulate_events(jump, 0.25, 1e-3, floor=1e-12)["t"], [250, 500, 750, 1000])
    rested = simulate_events(jump, 0.25, 1e-3, refractory=4e-4, floor=1e-12)
    np.testing.assert_array_equal(rested["t"], [250, 750])
    assert len(simulate_events(np.ones((3, 2, 2)))) == 0
    for bad, match in ((np.ones((3, 2)), "time, row"), (-np.ones((3, 2, 2)), "not negative")):
        with pytest.raises(InputError, match=match):
            simulate_events(bad)
    with pytest.raises(NonFiniteError):
        simulate_events(np.full((2, 2, 2), np.nan))


@pytest.mark.parametrize("seed", [0, 1])
def test_bars_move_where_they_should(seed: int) -> None:
    events, labels = moving_bars(20_000, 4, [0.25] * 4, noise=0.2, seed=seed)
    assert len(events) == len(labels) == 20_000
    assert (labels == -1).sum() == 4000
    assert (np.diff(events["t"]) >= 0).all()
    assert set(events["p"]) == {1}
    as_events(events, (34, 34))
    for direction, (dx, dy) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        mine = events[labels == direction]
        breaks = np.flatnonzero(np.diff(mine["t"]) > 5000)
        one = mine[: breaks[0] + 1] if len(breaks) else mine  # a single bar
        along = one["x"] * dx + one["y"] * dy
        slope, _ = np.polyfit(one["t"] / 1000.0, along, 1)
        assert slope == pytest.approx(1.0, abs=0.03)  # one pixel a step along its own direction
    again, _ = moving_bars(20_000, 4, [0.25] * 4, noise=0.2, seed=seed)
    np.testing.assert_array_equal(events, again)
    pair, _ = moving_bars(2000, 2, width=3.0, seed=seed)
    assert set(pair["p"]) == {0, 1}
    for options in ({"n_events": 0}, {"directions": 0}, {"shares": [1.0]}, {"noise": 1.0}, {"step": 0.0}):
        with pytest.raises(InputError):
            moving_bars(**({"n_events": 100} | options))


def test_noise_is_poisson_and_uniform() -> None:
    counts = [len(noise_events(2.0, 1.0, (20, 30), seed)) for seed in range(30)]
    assert np.mean(counts) == pytest.approx(1200, abs=5 * np.sqrt(1200 / 30))
    found = noise_events(20.0, 1.0, (20, 30), 0)
    assert np.bincount(found["p"]) == pytest.approx([len(found) / 2] * 2, rel=0.1)
    assert found["x"].mean() == pytest.approx(14.5, abs=0.5)
    assert len(noise_events(0.0, 1.0)) == 0
    both = merge_events(found, noise_events(5.0, 1.0, (20, 30), 1))
    assert (np.diff(both["t"]) >= 0).all()
    with pytest.raises(InputError):
        noise_events(-1.0, 1.0)


def test_saccades_show_the_edges_that_face_the_motion() -> None:
    images, _ = digits()
    found = saccade_events(images[0, 0].numpy())
    as_events(found, (34, 34))
    assert 1000 < len(found) < 10_000
    assert found["t"].max() <= 300_000
    assert 0.4 < found["p"].mean() < 0.6  # what rises at one edge falls at the other
    still = saccade_events(images[0, 0].numpy(), paths=[(0, 0), (0, 0)])
    assert len(still) == 0
    half = np.zeros((8, 8))
    half[:, 4:] = 1.0
    right = saccade_events(half, paths=[(0, 0), (0, 3)])  # bright half moves right: its left edge gets darker
    edge = right[(right["x"] > 10) & (right["x"] < 24) & (right["y"] > 10) & (right["y"] < 24)]
    assert len(edge)
    assert set(edge["p"]) == {0}
    noisy = saccade_events(images[0, 0].numpy(), noise_rate=2.0, seed=1)
    assert len(noisy) - len(found) == pytest.approx(2 * 0.3 * 34 * 34, rel=0.2)
    with pytest.raises(InputError, match="two corners"):
        saccade_events(half, paths=[(0, 0)])
    with pytest.raises(InputError, match="n_frames"):
        saccade_events(half, n_frames=0)
    with pytest.raises(NonFiniteError):
        saccade_events(half * np.nan)


def test_tonic_is_asked_only_where_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubjectError, match="Test"):
        nmnist(tmp_path, train=False)
    (tmp_path / "NMNIST" / "Train").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "tonic", None)
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    with pytest.raises(MissingExtraError, match="netloupe\\[events\\]"):
        nmnist(tmp_path)
    layout = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])  # tonic's
    pairs = [(np.array([(1, 2, 3, 1), (4, 5, 6, 0)], layout), 7)] * 3
    found = list(events_from_tonic(pairs, [0, 2]))
    assert [target for _, target in found] == [7, 7]
    assert found[0][0].dtype == EVENT
    assert len(list(events_from_tonic(pairs))) == 3
