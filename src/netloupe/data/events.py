"""Event cameras: one layout of events, the checks, and the local time surface around each event.

An event says that the brightness of a pixel changed: column ``x``, row ``y``, time ``t`` in whole microseconds, polarity ``p`` (1 for
brighter, 0 for darker; for events between layers of features the number of the feature). Durations are in seconds.

The time surface of an event at time ``t`` is ``exp((T - t) / tau)`` of the last times ``T`` of the pixels around it, 0 where none fired,
1 at the event's own pixel (arXiv 1907.07853 takes it after HOTS, arXiv 1605.01999); here of length 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError, MissingExtraError, NonFiniteError, SubjectError
from netloupe.core.statistics.kernels import compiled

EVENT = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "<i2")])
MICRO = 1e6  # microseconds in a second
Shape = tuple[int, int]


def make_events(x: Any, y: Any, t: Any, p: Any = 1) -> np.ndarray:
    """Events from columns, in order of time (equal times keep their order)."""
    times = np.asarray(t)
    found = np.empty(len(times), EVENT)
    order = np.argsort(times, kind="stable")
    for name, column in (("x", x), ("y", y), ("t", times), ("p", p)):
        found[name] = np.broadcast_to(np.asarray(column), times.shape)[order]
    return found


def as_events(events: Any, sensor: Shape | None = None, n_channels: int = 2) -> np.ndarray:
    """Checks events and gives them the one layout, :data:`EVENT`.

    Args:
        events: a structured array with the fields x, y, t, p (any integer types; p also bool). Polarities -1 and +1 become 0 and 1, with
            a warning. sensor: rows and columns; not checked without. n_channels: p is 0 to ``n_channels - 1``.

    Raises InputError for other layouts, times that fall (the first is named) or are not whole, and events outside the sensor or the
    channels; NonFiniteError for NaN.
    """
    given = np.asarray(events)
    names = given.dtype.names or ()
    if given.ndim != 1 or not {"x", "y", "t", "p"} <= set(names):
        raise InputError(
            f"events have shape {given.shape} and fields {', '.join(names) or 'none'}; expected a structured array (event,) with the "
            "fields x, y, t and p (make_events makes one from columns)"
        )
    found = np.empty(len(given), EVENT)
    for name in ("x", "y", "t", "p"):
        column = given[name]
        if column.dtype.kind == "f":
            if not np.isfinite(column).all():
                raise NonFiniteError(f"the events' {name} hold NaN or infinity; remove such events")
            if not np.array_equal(column, np.round(column)):
                hint = "whole microseconds; multiply seconds by 1e6" if name == "t" else "whole numbers"
                raise InputError(
                    f"the events' {name} are fractions such as {column[column % 1 != 0][0]:g}, expected {hint}"
                )
        elif column.dtype.kind not in "iub":
            raise InputError(f"the events' {name} have dtype {column.dtype}, expected whole numbers")
        if name != "t" and len(column) and (column.min() < -32768 or column.max() > 32767):
            raise InputError(f"the events' {name} go to {max(column.max(), -column.min())}, at most 32767 are possible")
        found[name] = column
    if not len(found):
        return found
    falls = np.flatnonzero(np.diff(found["t"]) < 0)
    if len(falls):
        i = int(falls[0]) + 1
        raise InputError(
            f"event {i} is at {found['t'][i]} us, before the one in front of it ({found['t'][i - 1]} us); sort events by time, and "
            "give separate recordings separately"
        )
    if n_channels == 2 and (found["p"] == -1).any():
        warnings.warn("polarities -1 and +1 are read as 0 and 1", stacklevel=2)
        found["p"] = found["p"] > 0
    height, width = sensor or (32768, 32768)
    for name, limit in (("x", width), ("y", height), ("p", n_channels)):
        bad = np.flatnonzero((found[name] < 0) | (found[name] >= limit))
        if len(bad):
            raise InputError(
                f"event {bad[0]} has {name} = {found[name][bad[0]]}, expected 0 to {limit - 1}"
                + (f" on a sensor of {height} rows and {width} columns" if name != "p" else "; polarities are 0 and 1")
            )
    return found


class SurfaceMaps:
    """Last times of a sensor's pixels, and the normalised surfaces around events as these go by.

    Args:
        patch: edge of a surface in pixels, odd. tau: seconds, or several: their surfaces stand one after another. sensor: rows and
            columns. n_channels: polarities (or features) with maps of their own. stacked: a surface holds all channels, otherwise the
            event's own. pad: events at the border, too, with 0 outside; otherwise these give no surface.

    State: ``last`` float64 ``(channel, row, column)``, minus infinity where nothing fired. Cost O(patch^2) an event (times channels where
    stacked, times taus). Raises InputError for sizes that make no sense.
    """

    def __init__(
        self,
        patch: int,
        tau: float | Iterable[float],
        sensor: Shape,
        n_channels: int = 2,
        stacked: bool = False,
        pad: bool = False,
    ) -> None:
        self.taus = np.atleast_1d(np.asarray(tau, dtype=np.float64))
        if patch < 1 or patch % 2 == 0:
            raise InputError(f"patch is {patch}, expected an odd number of pixels, so that the event is in the middle")
        if self.taus.ndim != 1 or not len(self.taus) or not (self.taus > 0).all():
            raise InputError(f"tau is {tau}, expected seconds above 0 (infinity is allowed)")
        if len(sensor) != 2 or min(sensor) < 1 or n_channels < 1 or (not pad and patch > min(sensor)):
            raise InputError(
                f"the sensor is {tuple(sensor)} and has {n_channels} channels, expected rows and columns, at least {patch} each "
                "(a patch), and at least one channel"
            )
        self.patch, self.sensor, self.n_channels = patch, (int(sensor[0]), int(sensor[1])), n_channels
        self.stacked, self.pad = stacked, pad
        self.width = (n_channels if stacked else 1) * len(self.taus) * patch**2
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new recording begins."""
        self.last = np.full((self.n_channels, *self.sensor), -np.inf)
        self.latest = -np.inf

    def rows(self, events: np.ndarray) -> tuple[Int[np.ndarray, " kept"], Float[np.ndarray, "kept unit"]]:
        """Indices of the events that have a surface, and these surfaces, float64 of length 1, as ``(channel, tau, row, column)`` flat.

        ``events`` are as :func:`as_events` gives them and go on from those before. Raises InputError where they start before these ended.
        """
        if not len(events):
            return np.empty(0, np.int64), np.empty((0, self.width))
        if events["t"][0] < self.latest:
            raise InputError(
                f"events start at {events['t'][0]} us, the ones before ended at {self.latest:.0f} us; give chunks in order of time, or "
                "reset for a new recording"
            )
        self.latest = float(events["t"][-1])
        x, y, channel = (events[name].astype(np.int64) for name in ("x", "y", "p"))
        found, kept = np.empty((len(events), self.width)), np.empty(len(events), np.int64)
        n = _surfaces(
            x, y, events["t"].astype(np.float64), channel, self.last, self.taus * MICRO, self.patch // 2, self.stacked, self.pad,
            found, kept,
        )  # fmt: skip
        return kept[:n], found[:n]


@compiled
def _surfaces(x, y, t, channel, last, taus, radius, stacked, pad, found, kept):
    """Writes the surfaces of events into ``found``, their indices into ``kept``; returns how many there are."""
    n_channels, height, width = last.shape
    count = 0
    for event in range(len(t)):
        row, column, now = y[event], x[event], t[event]
        last[channel[event], row, column] = now  # before the surface is read: the event itself is 1
        inside = row >= radius and row + radius < height and column >= radius and column + radius < width
        if not inside and not pad:
            continue
        place, total = 0, 0.0
        for c in range(n_channels):
            if not stacked and c != channel[event]:
                continue
            for k in range(len(taus)):
                for i in range(row - radius, row + radius + 1):
                    for j in range(column - radius, column + radius + 1):
                        value = 0.0
                        if i >= 0 and i < height and j >= 0 and j < width:
                            before = last[c, i, j]
                            if before != -np.inf:
                                value = np.exp((before - now) / taus[k])
                        found[count, place] = value
                        total += value * value
                        place += 1
        length = np.sqrt(total)
        for place in range(found.shape[1]):
            found[count, place] /= length
        kept[count] = event
        count += 1
    return count


def time_surfaces(
    events: Any,
    patch: int = 11,
    tau: float | Iterable[float] = 30e-3,
    sensor: Shape | None = None,
    *,
    n_channels: int = 2,
    stacked: bool = False,
    pad: bool = False,
    chunk: int = 4096,
) -> Iterator[tuple[int, Float[np.ndarray, "channel tau row column"]]]:
    """Index and normalised time surface of each event of one recording that has one; streams ``chunk`` events at a time.

    ``sensor``: rows and columns, default as far as the events reach. Other arguments, cost and errors: :class:`SurfaceMaps`,
    :func:`as_events`.
    """
    checked = as_events(events, sensor, n_channels)
    maps = SurfaceMaps(patch, tau, sensor or extent(checked, patch), n_channels, stacked, pad)
    shape = (n_channels if stacked else 1, len(maps.taus), patch, patch)
    for start in range(0, len(checked), chunk):
        kept, rows = maps.rows(checked[start : start + chunk])
        for i, row in zip(kept, rows, strict=True):
            yield start + int(i), row.reshape(shape)


def extent(events: np.ndarray, least: int = 1) -> Shape:
    """Rows and columns that events reach, at least ``least``."""
    if not len(events):
        return least, least
    return max(int(events["y"].max()) + 1, least), max(int(events["x"].max()) + 1, least)


def events_from_tonic(dataset: Any, indices: Iterable[int] | None = None) -> Iterator[tuple[np.ndarray, Any]]:
    """Events, as :func:`as_events` gives them, and target of each recording of a tonic data set (or any sequence of such pairs)."""
    for i in range(len(dataset)) if indices is None else indices:
        events, target = dataset[i]
        yield as_events(events), target


def nmnist(folder: str | Path, train: bool = True) -> Any:
    """tonic's N-MNIST from files that are there: ``folder/NMNIST/Train`` and ``Test`` with their ten class folders.

    Nothing is downloaded. Needs the extra ``events``. Raises SubjectError where the files are missing.
    """
    part = Path(folder) / "NMNIST" / ("Train" if train else "Test")
    if not part.is_dir():
        raise SubjectError(f"there is no folder '{part}'; unpack N-MNIST's Train.zip and Test.zip in '{folder}/NMNIST'")
    try:
        from tonic.datasets import NMNIST
    except ImportError as error:
        raise MissingExtraError("tonic", "events", "reading N-MNIST") from error
    return NMNIST(save_to=str(folder), train=train)
