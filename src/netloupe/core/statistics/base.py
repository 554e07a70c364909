"""The contract of every mergeable statistic: ``update``, ``merge``, ``result``, ``state``.

A statistic sees activations batch by batch and never twice. Two of them that saw different data can be merged
into what one of them would have been after both, so the same object serves an array in memory, a recording larger
than memory, and many machines. This module checks what comes in (once, whatever the number of statistics), turns
it into rows, and runs the statistics over the rows in blocks small enough to stay in a core's cache.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch

from netloupe.core.errors import InputError
from netloupe.core.statistics.batch import Batch, prepare
from netloupe.core.statistics.blocks import BlockPass, run

R = TypeVar("R")
Array = torch.Tensor | np.ndarray
Plain = np.ndarray | int | float | str

_CLASSES: dict[str, type[Mergeable]] = {}


class Mergeable(ABC, Generic[R]):
    """What can be merged, saved and read out, whatever it is updated with.

    A subclass names its constructor's arguments in ``_options`` and the attributes that accumulate in ``_fields``;
    merging checks, equality and checkpoints follow from these two. Its constructor ends with ``_allocate(0)``.
    """

    _options: ClassVar[tuple[str, ...]] = ()
    _fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.n_units: int | None = None
        self.n_rows: int = 0
        self.next_sample: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CLASSES[cls.__name__] = cls

    def merge(self, other: Self) -> Self:
        """Take in what ``other`` has seen and return ``self``; ``other`` stays as it is.

        Integer statistics and ``TopK`` merge exactly, in any order and grouping; floating-point sums to rounding.

        Raises:
            InputError: ``other`` is another kind of statistic, has other settings or another number of units.
        """
        if type(other) is not type(self):
            raise InputError(
                f"cannot merge {type(other).__name__} into {type(self).__name__}: merge statistics of the same type"
            )
        for name in self._options:
            mine, theirs = getattr(self, name), getattr(other, name)
            if not _same(mine, theirs):
                raise InputError(
                    f"cannot merge two {type(self).__name__} with {name}={mine!r} and {name}={theirs!r}: "
                    f"build both with the same settings"
                )
        if other.n_units is None:
            self.next_sample = max(self.next_sample, other.next_sample)
            return self
        self._check_width(other)
        if self.n_units is None:
            self._adopt(other)
            return self
        other_rows = other.n_rows
        self._merge(other)
        self.n_rows += other_rows
        self.next_sample = max(self.next_sample, other.next_sample)
        return self

    def state(self) -> dict[str, Plain]:
        """Everything needed to build an equal statistic with ``restore``: arrays and numbers by name.

        Absent values (an open number of classes, units not seen yet) are left out of the dictionary.
        """
        names = ("n_units", "n_rows", "next_sample", *self._options, *self._fields)
        found: dict[str, Plain] = {"type": type(self).__name__}
        for name in names:
            value = getattr(self, name)
            if value is not None:
                found[name] = value.copy() if isinstance(value, np.ndarray) else value
        return found

    def copy(self) -> Self:
        """An independent statistic that has seen the same data."""
        return copy.deepcopy(self)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self.state(), other.state()
        return mine.keys() == theirs.keys() and all(_same(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # mutable, compared by value

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickled arrays may be read-only views of shared memory (a cluster's object store); ours accumulate."""
        for name, value in state.items():
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                state = {**state, name: value.copy()}
        for name, value in state.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options)
        return f"<{type(self).__name__}({options}): {self.n_rows} rows of {self.n_units} units>"

    @abstractmethod
    def result(self) -> R:
        """The answer so far; ``InputError`` when nothing was seen."""

    @abstractmethod
    def _allocate(self, n_units: int) -> None:
        """Create the empty accumulators for ``n_units`` units (0 while nothing was seen)."""

    @abstractmethod
    def _merge(self, other: Self) -> None:
        """Add the accumulators of ``other``, whose type, settings and width were checked."""

    def _check_width(self, other: Self) -> None:
        if self.n_units is not None and self.n_units != other.n_units:
            raise InputError(
                f"cannot merge {type(self).__name__} of {self.n_units} and of {other.n_units} units: "
                f"merge statistics of the same site"
            )

    def _adopt(self, other: Self) -> None:
        next_sample = max(self.next_sample, other.next_sample)
        for name in ("n_units", "n_rows", *self._fields):
            setattr(self, name, copy.deepcopy(getattr(other, name)))
        self.next_sample = next_sample

    def _need_rows(self) -> None:
        if self.n_rows == 0:
            raise InputError(f"{type(self).__name__} has seen no rows: call update with at least one unmasked sample")


class Statistic(Mergeable[R]):
    """A mergeable statistic of one site's activations."""

    def update(
        self,
        values: Array,
        *,
        mask: Array | None = None,
        labels: Array | None = None,
        samples: Array | None = None,
    ) -> Self:
        """Take in one batch and return ``self``.

        Args:
            values: activations ``(sample, unit)`` or ``(sample, position, unit)``; a torch tensor on any device or a
                numpy array. bfloat16, float16, bool and integers of up to 16 bits are read as float32, wider
                integers as float64: nothing is rounded. A batch of no samples changes nothing.
            mask: bool ``(sample, position)``, or ``(sample,)`` where values have no positions; False leaves a
                position out of the statistic altogether.
            labels: int ``(sample,)``; every position of a sample carries its label.
            samples: int ``(sample,)``, each row's index in the data set; by default the count goes on where the
                last batch ended. Needed where several workers see parts of one data set.

        Raises:
            InputError: shapes that do not fit, or another number of units than before.
            NonFiniteError: NaN or infinity in an unmasked position; the statistic is left as it was.
        """
        update_all([self], values, mask=mask, labels=labels, samples=samples)
        return self

    def _check(self, batch: Batch) -> None:
        """Raise ``InputError`` where this statistic cannot use ``batch``, before anything changes."""
        if self.n_units is not None and self.n_units != batch.n_units:
            raise InputError(
                f"{type(self).__name__} has seen {self.n_units} units and was given {batch.n_units}: "
                f"use one statistic per site"
            )

    def _begin(self, batch: Batch, n_workers: int) -> BlockPass:
        """Start a pass over ``batch``; by default the whole batch is taken at once, after the other passes."""
        return _Whole(self, batch)

    def _update(self, batch: Batch) -> None:
        """Take in the rows of ``batch``; for statistics that do not work by blocks."""
        raise NotImplementedError(f"{type(self).__name__} takes batches in blocks")


class _Whole(BlockPass):
    """The pass of a statistic that reads a batch in one piece."""

    def __init__(self, statistic: Statistic, batch: Batch) -> None:
        self.statistic, self.batch = statistic, batch

    def commit(self) -> None:
        self.statistic._update(self.batch)


def update_all(
    statistics: Sequence[Statistic],
    values: Array,
    *,
    mask: Array | None = None,
    labels: Array | None = None,
    samples: Array | None = None,
) -> None:
    """Update several statistics with one batch: checked once, read once.

    The rows are walked in blocks that fit a core's cache, every statistic reading a block while it is there, on as
    many threads as torch uses. Answers do not depend on the number of threads. Arguments as in
    ``Statistic.update``; when the batch is refused no statistic has changed.
    """
    for statistic in statistics:
        if not isinstance(statistic, Statistic):
            raise InputError(
                f"update_all was given a {type(statistic).__name__}: give it statistics of a single site "
                f"(a statistic of two sites is updated by itself)"
            )
    if len({id(statistic) for statistic in statistics}) != len(statistics):
        raise InputError("the same statistic was given twice to update_all: pass each one once")
    batch = prepare(values, mask=mask, labels=labels, samples=samples)
    if batch.n_samples == 0:
        return
    for statistic in statistics:
        statistic._check(batch)
    if batch.n_rows:
        _run_on(statistics, batch)
    for statistic in statistics:
        statistic.n_rows += batch.n_rows
        statistic.next_sample = batch.next_sample(statistic.next_sample)


def _run_on(statistics: Sequence[Statistic], batch: Batch) -> None:
    """Run a pass over ``batch``, with accumulators for those statistics that have seen nothing yet."""
    fresh = [statistic for statistic in statistics if statistic.n_units is None]
    for statistic in fresh:
        statistic._allocate(batch.n_units)
    try:
        run(batch, [statistic._begin for statistic in statistics])
    except BaseException:
        for statistic in fresh:
            statistic._allocate(0)
        raise
    for statistic in fresh:
        statistic.n_units = batch.n_units


def restore(state: dict[str, Plain]) -> Mergeable:
    """The statistic whose ``state()`` this is; equal to it and independent of the arrays given.

    Raises:
        InputError: the dictionary is not the state of a statistic that this version knows.
    """
    cls = _CLASSES.get(str(state.get("type")))
    if cls is None:
        raise InputError(
            f"state of type {state.get('type')!r} was given, expected one of {', '.join(sorted(_CLASSES))}: "
            f"pass what a statistic's state() returned"
        )
    missing = [name for name in ("n_rows", "next_sample") if name not in state]
    if missing:
        raise InputError(f"a state without {missing[0]!r} was given: pass what a statistic's state() returned")
    made = cls(**{name: _plain(state[name]) for name in cls._options if name in state})
    for name in ("n_units", "n_rows", "next_sample", *cls._fields):
        if name in state:
            setattr(made, name, _plain(state[name]))
    return made


def _plain(value: Plain) -> Plain:
    """A private copy; 0-d arrays, which checkpoints on disk make of numbers, become numbers again."""
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else value.copy()
    return value


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(np.asarray(a), np.asarray(b))
    return a == b
