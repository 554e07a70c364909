"""Simulated event-camera recordings with known content: bars, noise, images under saccades, and any frames.

All durations are seconds, times of events whole microseconds; layout and checks: :mod:`netloupe.data.events`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics.kernels import compiled
from netloupe.data.events import EVENT, MICRO, Shape, make_events

# The three saccades of a triangle, as offsets (rows, columns) in pixels from corner to corner, as N-MNIST's camera made them.
TRIANGLE = ((-3.0, -3.0), (3.0, 0.0), (-3.0, 3.0), (-3.0, -3.0))


def simulate_events(
    frames: Float[np.ndarray, "time row column"] | Any,
    threshold: float = 0.2,
    dt: float = 1e-3,
    refractory: float = 0.0,
    floor: float = 1e-2,
) -> np.ndarray:
    """What an event camera would say of frames: one event each time a pixel's log intensity has moved by ``threshold``.

    Between frames the log intensity moves along a straight line, on which the times of events lie.

    Args:
        frames: intensities, none negative; ``floor`` is added before the logarithm. threshold: of the log intensity.
        dt: seconds between frames. refractory: seconds for which a pixel is silent after an event.

    Cost O(frames x pixels + events log events). Raises InputError for other shapes and NonFiniteError for NaN.
    """
    film = np.asarray(frames, dtype=np.float64)
    if film.ndim != 3 or 0 in film.shape or min(threshold, dt, floor) <= 0 or refractory < 0:
        raise InputError(
            f"frames have shape {film.shape}, threshold is {threshold}, dt {dt}, floor {floor} and refractory "
            f"{refractory}; expected (time, row, column), three numbers above 0 and the last not negative"
        )
    if not np.isfinite(film).all():
        raise NonFiniteError("frames hold NaN or infinity; remove them")
    if film.min() < 0:
        raise InputError(f"frames go down to {film.min():g}, intensities are not negative; shift or scale them")
    levels = np.log(film + floor)
    reference, columns = levels[0].copy(), []
    for step in range(1, len(levels)):
        before, after = levels[step - 1], levels[step]
        moved = after - reference
        counts = np.floor(np.abs(moved) / threshold + 1e-9).astype(np.int64)
        y, x = np.nonzero(counts)
        if not len(y):
            continue
        n = counts[y, x]
        sign = np.sign(moved[y, x])
        rank = np.arange(1, n.sum() + 1) - np.repeat(n.cumsum() - n, n)  # 1, 2, .. for each pixel
        y, x, sign = np.repeat(y, n), np.repeat(x, n), np.repeat(sign, n)
        crossing = reference[y, x] + sign * rank * threshold
        share = np.clip((crossing - before[y, x]) / (after - before)[y, x], 0, 1)
        columns.append((x, y, np.round((step - 1 + share) * dt * MICRO).astype(np.int64), (sign > 0).astype(np.int64)))
        reference += np.sign(moved) * counts * threshold
    if not columns:
        return np.empty(0, EVENT)
    found = make_events(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))
    if not refractory:
        return found
    columns = found["x"].astype(np.int64), found["y"].astype(np.int64), found["t"].astype(np.int64)
    return found[_rested(*columns, round(refractory * MICRO), np.full(film.shape[1:], -(2**62)))]


@compiled
def _rested(x, y, t, pause, last):
    """Which events find their pixel rested; ``last`` int64 ``(row, column)`` holds the times of the events that count."""
    keep = np.zeros(len(t), np.bool_)
    for i in range(len(t)):
        if t[i] - last[y[i], x[i]] >= pause:
            keep[i] = True
            last[y[i], x[i]] = t[i]
    return keep


def noise_events(rate: float, duration: float, sensor: Shape = (34, 34), seed: int = 0) -> np.ndarray:
    """Independent events, uniform over pixels, time and polarity: ``rate`` a pixel and second (their number is Poisson)."""
    if rate < 0 or duration < 0 or min(sensor) < 1:
        raise InputError(
            f"rate is {rate}, duration {duration} and the sensor {sensor}; expected no negative number and no empty sensor"
        )
    rng = np.random.default_rng(seed)
    n = int(rng.poisson(rate * duration * sensor[0] * sensor[1]))
    y, x, p = rng.integers(sensor[0], size=n), rng.integers(sensor[1], size=n), rng.integers(2, size=n)
    return make_events(x, y, rng.integers(max(round(duration * MICRO), 1), size=n), p)


def merge_events(*recordings: np.ndarray) -> np.ndarray:
    """Several recordings over each other, in order of time."""
    found = np.concatenate(recordings)
    return found[np.argsort(found["t"], kind="stable")]


def moving_bars(
    n_events: int,
    directions: int = 8,
    shares: Sequence[float] | None = None,
    noise: float = 0.1,
    sensor: Shape = (34, 34),
    length: float = 12.0,
    step: float = 1e-3,
    gap: int = 20,
    width: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, Int[np.ndarray, " event"]]:
    """Bars that cross the sensor one after another, and the direction each event is of (-1: noise).

    A bar is a straight edge across its motion that moves by one pixel in ``step`` seconds through a random place; each pixel that it
    passes fires once (nine in ten do), a third of a step early or late. ``gap`` steps lie between bars.

    Args:
        directions: equally spaced from rightward. shares: how often each is drawn, default falling evenly in ratio from .35 to .02.
        noise: share of events that are uniform over the sensor and the time. length: of the edge, pixels.
        width: so many pixels behind the edge a second one follows, of polarity 0; with 0 there is none, and all events have polarity 1.
    """
    chances = np.asarray(np.geomspace(0.35, 0.02, directions) if shares is None and directions > 0 else shares, float)
    if (
        n_events < 1
        or directions < 1
        or chances.shape != (directions,)
        or not (chances >= 0).all()
        or not chances.sum()
    ):
        raise InputError(
            f"{n_events} events of {directions} directions with {np.size(chances)} shares were asked for; expected positive numbers and "
            "one share, not negative, for each direction"
        )
    if not 0 <= noise < 1 or min(sensor) < 1 or length <= 0 or step <= 0 or gap < 0 or width < 0:
        raise InputError(
            f"noise is {noise}, the sensor {sensor}, length {length}, step {step}, gap {gap} and width {width}; expected a share below 1 "
            "and no negative number"
        )
    rng = np.random.default_rng(seed)
    wanted, columns, labels, now = n_events - round(noise * n_events), [], [], 0.0
    y, x = (grid.ravel() for grid in np.indices(sensor))
    at = np.stack([x - (sensor[1] - 1) / 2, y - (sensor[0] - 1) / 2])
    while sum(map(len, labels)) < wanted:
        which = int(rng.choice(directions, p=chances / chances.sum()))
        angle = 2 * np.pi * which / directions
        along = np.cos(angle) * at[0] + np.sin(angle) * at[1]
        across = np.cos(angle) * at[1] - np.sin(angle) * at[0]
        near = np.abs(across - rng.uniform(-0.5, 0.5) * min(sensor)) <= length / 2
        start = along[near].min() if near.any() else 0.0
        for polarity, behind in ((1, 0.0), (0, width)) if width else ((1, 0.0),):
            on = np.flatnonzero(near & (rng.random(len(x)) < 0.9))
            when = now + along[on] - start + behind + rng.normal(0, 1 / 3, len(on)) + 1
            columns.append((x[on], y[on], when, np.full(len(on), polarity)))
            labels.append(np.full(len(on), which))
        now = max(now, *(part[2].max(initial=now) for part in columns[-2:])) + gap
    signal = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    order = np.argsort(signal[2], kind="stable")[:wanted]
    signal, label = [part[order] for part in signal], np.concatenate(labels)[order]
    n, end = n_events - wanted, signal[2].max()
    extra = [
        rng.integers(sensor[1], size=n), rng.integers(sensor[0], size=n), rng.uniform(0, end, n),
        rng.integers(2, size=n) if width else np.ones(n, np.int64),
    ]  # fmt: skip
    x, y, t, p = (np.concatenate(pair) for pair in zip(signal, extra, strict=True))
    times = np.round(np.maximum(t, 0) * step * MICRO).astype(np.int64)
    every = np.concatenate([label, np.full(n, -1)])
    return make_events(x, y, times, p), every[np.argsort(times, kind="stable")]


def saccade_events(
    image: Float[np.ndarray, "row column"] | Any,
    paths: Sequence[tuple[float, float]] = TRIANGLE,
    noise_rate: float = 0.0,
    sensor: Shape = (34, 34),
    duration: float = 0.1,
    n_frames: int = 12,
    threshold: float = 0.6,
    seed: int = 0,
) -> np.ndarray:
    """A still image before a camera that moves along straight ``paths``, as N-MNIST was recorded.

    Args:
        image: intensities; scaled, undistorted, to three quarters of the sensor and put in its middle.
        paths: corners (row, column) in pixels; each two in succession are one saccade of ``duration`` seconds and ``n_frames`` frames.
        noise_rate: independent events a pixel and second. threshold: of the log intensity (:func:`simulate_events`, with a floor of .1).
    """
    picture, corners = np.asarray(image, dtype=np.float64), np.asarray(paths, dtype=np.float64)
    if picture.ndim != 2 or 0 in picture.shape or corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 2:
        raise InputError(
            f"the image has shape {picture.shape} and the paths {corners.shape}; expected (row, column) and at least two corners "
            "(corner, 2)"
        )
    if not np.isfinite(picture).all():
        raise NonFiniteError("the image holds NaN or infinity")
    if n_frames < 1 or duration <= 0:
        raise InputError(f"n_frames is {n_frames} and duration {duration}, expected positive numbers")
    scale = 0.75 * min(sensor[0] / picture.shape[0], sensor[1] / picture.shape[1])
    places = np.concatenate([
        corners[:1], *(a + (b - a) * np.arange(1, n_frames + 1)[:, None] / n_frames for a, b in pairwise(corners))
    ])  # fmt: skip
    middle = (np.array(sensor) - 1) / 2
    frames = [
        ndimage.affine_transform(
            picture, np.array([1 / scale] * 2), (np.array(picture.shape) - 1) / 2 - (middle + place) / scale,
            output_shape=sensor, order=1, mode="grid-constant",
        )
        for place in places
    ]  # fmt: skip
    found = simulate_events(np.clip(frames, 0, None), threshold, duration / n_frames, floor=0.1)
    if not noise_rate:
        return found
    return merge_events(found, noise_events(noise_rate, duration * (len(corners) - 1), sensor, seed))
