"""The temporal change lens against closed forms, plain formulas and itself in parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics import restore
from netloupe.lenses.activity.temporal import (
    change_report,
    from_changes,
    operation_density,
    temporal_change,
    temporal_density,
)
from netloupe.lenses.activity.temporal_counts import Changes
from netloupe.nn.delta import insert_delta


def video(seed: int, n: int = 50, p: int = 3, d: int = 4) -> np.ndarray:
    """Each value keeps still with probability 0.6, and some are zero."""
    draw = np.random.default_rng(seed)
    steps = draw.integers(-2, 3, (n, p, d)) * (draw.random((n, p, d)) < 0.5)
    return steps.cumsum(0).astype(float)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tol", [0.0, 1.0])
def test_plain_formulas(seed: int, tol: float):
    x = video(seed)
    found = temporal_change(x, tol=tol)
    moved = np.abs(np.diff(x, axis=0)) > tol
    np.testing.assert_allclose(found.changed, moved.mean((0, 1)))
    np.testing.assert_allclose(found.nonzero, (x != 0).mean((0, 1)))
    np.testing.assert_allclose(found.density_per_step, moved.mean((1, 2)))
    sizes = (np.abs(x[1:]) + np.abs(x[:-1])).sum() / 2
    assert found.relative_change == pytest.approx(np.abs(np.diff(x, axis=0)).sum() / sizes)
    assert found.temporal_density == pytest.approx(temporal_density(torch.tensor(x), dim=0, tol=tol))
    assert f"{100 * found.temporal_density:.1f} ±" in found.paragraph()


def test_closed_forms():
    still = temporal_change(np.ones((10, 4)))
    assert still.summary() == {
        "temporal_density": 0.0, "spatial_density": 1.0, "relative_change": 0.0, "still_units": 1.0, "standard_error": 0.0,
    }  # fmt: skip
    ramp = temporal_change(np.arange(10.0)[:, None] * [1, 0])
    assert ramp.changed.tolist() == [1.0, 0.0]
    assert ramp.relative_change == pytest.approx(9 / 40.5)
    assert temporal_change(np.zeros((2, 3))).relative_change == 0.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_parts_in_any_order_merge_to_the_whole(seed: int, data: st.DataObject):
    x = video(seed, n=30)
    cuts = sorted(data.draw(st.sets(st.integers(1, 29), max_size=5)))
    pieces = [np.arange(a, b) for a, b in zip([0, *cuts], [*cuts, 30])]
    order = data.draw(st.permutations(range(len(pieces))))
    whole = Changes().update(x)
    merged = Changes()
    for index in order:
        rows = pieces[index]
        part = Changes()
        for half in np.array_split(rows, 2):
            part.update(x[half], samples=half)
        merged.merge(restore(part.state()))
    found, expected = merged.result(), whole.result()
    assert np.array_equal(found.changed, expected.changed)
    assert np.array_equal(found.nonzero, expected.nonzero)
    assert np.array_equal(found.steps, expected.steps)
    assert found.relative_change == pytest.approx(expected.relative_change)
    assert merged.ranges.tolist() == [[0, 30]]


def test_two_neighbours_merge_alike_in_either_order():
    x, at = np.random.default_rng(0).standard_normal((60, 5)), np.arange(60)
    one = lambda: Changes().update(x[:20], samples=at[:20])  # noqa: E731
    two = lambda: Changes().update(x[20:], samples=at[20:])  # noqa: E731
    assert one().merge(two()) == two().merge(one())
    assert from_changes(one().merge(two())) == from_changes(two().merge(one()))


def test_samples_that_are_missing_are_not_compared_across():
    x = video(1, n=10, p=1)[:, 0]
    kept = np.array([0, 1, 2, 6, 7])
    steps = Changes().update(x[kept], samples=kept).result().steps
    assert steps[:, 0].tolist() == [0, 1, 6]
    shuffled = np.array([7, 1, 6, 0, 2])
    assert np.array_equal(Changes().update(x[shuffled], samples=shuffled).result().steps, steps)
    with pytest.raises(InputError, match="no two samples follow"):
        Changes().update(x[::2], samples=np.arange(0, 10, 2)).result()


def test_many_small_batches():
    x = video(2, n=700, p=1, d=2)
    parts = Changes()
    for row in x:
        parts.update(row[None])
    assert np.array_equal(parts.result().steps, Changes().update(x).result().steps)


def test_masked_positions_are_left_out():
    x = video(3)
    mask = np.random.default_rng(3).random(x.shape[:2]) < 0.7
    x[~mask] = np.nan
    found = temporal_change(x, torch.tensor(mask))
    both = mask[1:] & mask[:-1]
    np.testing.assert_allclose(found.changed, (np.diff(x, axis=0) != 0)[both].mean(0))
    np.testing.assert_allclose(found.nonzero, (x[mask] != 0).mean(0))


def test_the_standard_error_knows_that_steps_are_related():
    draw, errors, spread = np.random.default_rng(0), [], []
    for _ in range(150):
        level = np.repeat(draw.random(100), 4)[:, None]  # four steps of one activity
        x = (draw.random((400, 20)) < level).cumsum(0).astype(float)
        found = temporal_change(x)
        errors.append(found.standard_error())
        spread.append(found.temporal_density)
    naive = found.density_per_step.std() / len(found.density_per_step) ** 0.5
    assert np.mean(errors) == pytest.approx(np.std(spread), rel=0.3)
    assert naive < 0.7 * np.std(spread)


def test_clips():
    clips = torch.zeros(2, 5, 3, 4, 4)
    clips[0, 2:] = 1  # changes once in four steps in one of two clips
    assert temporal_density(clips) == 1 / 8
    assert temporal_density(clips.bool()) == 1 / 8
    assert temporal_density(clips, tol=1.0) == 0.0
    for bad, dim in ((clips[:, :1], 1), (clips, 7), (clips[:0], 1)):
        with pytest.raises(InputError, match="at least two frames"):
            temporal_density(bad, dim)
    with pytest.raises(NonFiniteError, match="NaN"):
        temporal_density(clips.log())


def test_bad_input():
    with pytest.raises(InputError, match="at least 2"):
        temporal_change(np.ones((1, 3)))
    with pytest.raises(InputError, match="tol"):
        temporal_change(np.ones((3, 3)), tol=-1)
    with pytest.raises(InputError, match="positions"):
        Changes().update(np.ones((3, 2, 4))).update(np.ones((3, 1, 4)))
    with pytest.raises(InputError, match="positions"):
        Changes().update(np.ones((3, 2, 4))).merge(Changes().update(np.ones((3, 1, 4))))
    unharmed = Changes().update(np.ones((3, 4)))
    with pytest.raises(NonFiniteError):
        unharmed.update(np.full((1, 4), np.nan))
    assert unharmed == Changes().update(np.ones((3, 4)))


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(75, 4)).double()


def test_a_networks_report_weighs_by_fan_out():
    model, clips = small_network(), torch.tensor(video(5, n=2 * 7 * 25, p=1, d=1)).view(7, 2, 1, 5, 5)
    report = change_report(model, clips)
    hidden = model[:3](clips.flatten(0, 1)).unflatten(0, (7, 2))
    moved = [(clips[:, 1] != clips[:, 0]).sum(), (hidden[:, 1] != hidden[:, 0]).sum()]
    assert report.changed.tolist() == [int(each) for each in moved]
    expected = (27 * moved[0] + 4 * moved[1]) / (27 * 7 * 25 + 4 * 7 * 75)
    assert operation_density(report) == pytest.approx(float(expected))
    assert report.nonzero.tolist() == [int((clips != 0).sum()), int((hidden != 0).sum())]
    summary = report.summary()
    assert summary["with_first_frame"] == pytest.approx(0.5 + 0.5 * summary["operation_density"])
    assert set(summary) == set(report.meanings)
    halves = change_report(model, [clips[:3], clips[3:]])
    assert halves == report == change_report(model, clips[:3]).merge(change_report(model, clips[3:]))
    report.plot(Figure().subplots())
    with pytest.raises(InputError, match="other sites"):
        report.merge(change_report(model, clips, tol=0.1))
    for bad in (clips[:, :1], [], clips[:0]):
        with pytest.raises(InputError):
            change_report(model, bad)
    with pytest.raises(InputError, match="no convolution"):
        change_report(nn.ReLU(), clips)
    twice = nn.Linear(25, 25).double()
    assert len(change_report(nn.Sequential(nn.Flatten(), twice, nn.ReLU(), twice), clips).sites) == 2
    insert_delta(model, clips[:1, 0], q_init=100.0)
    assert operation_density(change_report(model, clips)) < 0.2
