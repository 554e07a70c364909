"""The loop of iterative feature merging, on tensors and groups of units: which pairs are merged, in which order, into what.

Source: "Going Beyond Neural Network Feature Similarity: The Network Feature Complexity and Its Interpretation Using Category
Theory", arXiv 2310.06756.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from netloupe.core.errors import InputError
from netloupe.core.units import UnitAxis, UnitGroup

Rule = Literal["sum", "average"]
Distance = Literal["in+out", "in", "out"]
Order = Literal["round-robin", "layerwise"]
BatchNorm = Literal["fold", "exact", "official"]
Kind = Literal["out", "in", "unit", "scale", "shift", "mean", "var"]


class Merge(NamedTuple):
    """One merge: ``first`` and ``second`` are positions in the group at that time (merged units go last), ``distance`` their squared
    distance and ``largest`` the largest one."""

    group: str
    first: int
    second: int
    distance: float
    largest: float


@dataclass(frozen=True)
class Part:
    """How one axis takes part: a parameter's axis, and what is done to it when units merge."""

    axis: UnitAxis
    kind: Kind
    eps: float = 0.0


class _Copy:
    """A tensor with one group's units first, in memory order, and where the other groups' units are in it."""

    def __init__(self, values: np.ndarray, place: int) -> None:
        self.rows = np.moveaxis(values, place, 0).copy(order="C")  # its own: merging writes into it
        self.place = place
        self.whole = np.moveaxis(self.rows, 0, place)  # a view in the split tensor's own order

    def units_of(self, place: int) -> np.ndarray:
        """A view with another group's units first."""
        return np.moveaxis(self.whole, place, 0)


class _Tensor:
    """A parameter, its axes of units split into (outer, unit, inner), with a copy for each such axis."""

    def __init__(self, name: str, values: np.ndarray, axes: Sequence[tuple[str, UnitAxis, int]]) -> None:
        if len({axis.axis for _, axis, _ in axes}) < len(axes):
            raise InputError(f"one axis of '{name}' has units of two groups, which cannot be merged one by one")
        self.name, self.shape = name, values.shape
        by_axis = {axis.axis: (group, axis, n) for group, axis, n in axes}
        split: list[int] = []
        self.places: dict[tuple[str, int], int] = {}
        for number, size in enumerate(values.shape):
            if number in by_axis:
                group, axis, n = by_axis[number]
                self.places[group, number] = len(split) + 1
                split += [axis.outer, n, axis.inner]
            else:
                split.append(size)
        whole = np.asarray(values, dtype=np.float64).reshape(split)
        self.copies = {key: _Copy(whole, place) for key, place in self.places.items()}

    def rows(self, key: tuple[str, int]) -> np.ndarray:
        """``(unit, ...)``: the copy of one axis of units."""
        return self.copies[key].rows

    def write(self, key: tuple[str, int], unit: int, values: np.ndarray | float) -> None:
        """One unit's entries in every copy."""
        for copy in self.copies.values():
            copy.units_of(self.places[key])[unit] = values

    def result(self, kept: Mapping[str, Sequence[int]]) -> np.ndarray:
        """The tensor with each group's units in their order at the end."""
        values = next(iter(self.copies.values())).whole
        for (group, _), place in self.places.items():
            values = values.take(kept[group], axis=place)
        shape = list(self.shape)
        for group, number in self.places:
            n = self.copies[group, number].rows.shape[0]
            shape[number] = shape[number] // n * len(kept[group])
        return np.ascontiguousarray(values).reshape(shape)


class _Group:
    """The units of one group during the loop. A merged unit takes the slot of one of its two; the other slot is emptied."""

    def __init__(self, group: UnitGroup, parts: Sequence[Part]) -> None:
        self.name, self.n, self.parts = group.name, group.n, parts
        self.order = list(range(group.n))
        self.size = np.ones(group.n)
        self.members: dict[int, list[int]] = {slot: [slot] for slot in range(group.n)}
        self.inner = np.zeros((group.n, group.n))
        self.n_merges = 0
        self.closest: tuple[int, int, float, float] | None = None  # the closest pair, until weights change


class Merger:
    """Merges units of several groups whose tensors hang together.

    Args:
        tensors: parameters by name. groups: their groups. parts: for each group what is done to each of its axes.
        distance: which weights tell units apart. rule: ``sum`` (the paper's: rows that compute add up, columns that read are
            averaged) or ``average`` (the other way round, which is exact for duplicates behind any function).
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        groups: Sequence[UnitGroup],
        parts: Mapping[str, Sequence[Part]],
        distance: Distance = "in+out",
        rule: Rule = "sum",
    ) -> None:
        self.rule: Rule = rule
        kinds = {"in+out": ("out", "in"), "in": ("out",), "out": ("in",)}[distance]
        self.groups = {group.name: _Group(group, parts[group.name]) for group in groups}
        held: dict[str, list[tuple[str, UnitAxis, int]]] = {}
        for group in groups:
            for part in parts[group.name]:
                held.setdefault(part.axis.parameter, []).append((group.name, part.axis, group.n))
        self.tensors = {name: _Tensor(name, tensors[name], axes) for name, axes in held.items()}
        self.counted: dict[str, list[Part]] = {}
        self.own: dict[str, bool] = {}
        for group in self.groups.values():
            counted = [part for part in group.parts if part.kind in kinds and tensors[part.axis.parameter].ndim >= 2]
            self.counted[group.name] = counted
            names = [part.axis.parameter for part in counted]
            self.own[group.name] = len(set(names)) < len(names)  # a tensor with this group on two axes
            if not counted:
                raise InputError(f"group '{group.name}' has no weights to compare units by with distance='{distance}'")
            self._measure(group)

    def _measure(self, group: _Group) -> None:
        group.inner[:] = 0
        for part in self.counted[group.name]:
            rows = self._rows(group, part).reshape(group.n, -1)
            group.inner += rows @ rows.T

    def _rows(self, group: _Group, part: Part) -> np.ndarray:
        return self.tensors[part.axis.parameter].rows((group.name, part.axis.axis))

    def distances(self, name: str) -> np.ndarray:
        """Squared distances of a group's present units, in their present order; the diagonal is infinite."""
        group = self.groups[name]
        inner = group.inner[np.ix_(group.order, group.order)]
        squares = np.diagonal(inner)
        found = np.maximum(squares[:, None] + squares - 2 * inner, 0.0)
        np.fill_diagonal(found, np.inf)
        return found

    def candidate(self, name: str, beta: float) -> Merge | None:
        """The closest pair of a group, if it is within ``beta`` of the largest distance."""
        group = self.groups[name]
        if len(group.order) < 2:
            return None
        if group.closest is None:
            table = self.distances(name)
            first, second = sorted(divmod(int(table.argmin()), len(table)))
            smallest = float(table[first, second])
            np.fill_diagonal(table, 0.0)
            group.closest = first, second, smallest, float(table.max())
        first, second, smallest, largest = group.closest
        return Merge(name, first, second, smallest, largest) if smallest <= beta * largest else None

    def merge(self, name: str, first: int, second: int) -> None:
        """Makes the units at two positions of a group one, which goes last."""
        group = self.groups[name]
        i, j = group.order[first], group.order[second]
        a, b = group.size[i], group.size[j]
        touched = self._others(name)
        for other, part, key in touched:
            self._add(other, part, key, (i, j), -1.0)
        for part in group.parts:
            tensor, key = self.tensors[part.axis.parameter], (name, part.axis.axis)
            rows = tensor.rows(key)
            merged = _merged(part, rows[i], rows[j], a, b, self.rule)
            tensor.write(key, j, merged)
            tensor.write(key, i, 0.0)
        for other, part, key in touched:
            self._add(other, part, key, (j,), 1.0)
        group.order = [slot for slot in group.order if slot not in (i, j)] + [j]
        group.size[j], group.size[i] = a + b, 0.0
        group.members[j] = group.members.pop(i) + group.members[j]
        group.n_merges += 1
        group.closest = None
        if self.own[name]:
            self._measure(group)
        else:
            self._measure_unit(group, i, j)

    def _measure_unit(self, group: _Group, gone: int, new: int) -> None:
        products = np.zeros(group.n)
        for part in self.counted[group.name]:
            rows = self._rows(group, part).reshape(group.n, -1)
            products += rows @ rows[new]
        group.inner[new], group.inner[:, new] = products, products
        group.inner[gone] = group.inner[:, gone] = 0.0

    def _others(self, name: str) -> list[tuple[_Group, Part, tuple[str, int]]]:
        """Groups whose weights lose and gain columns when this one merges, with the axis by which this one indexes them."""
        found = []
        for part in self.groups[name].parts:
            tensor = self.tensors[part.axis.parameter]
            for other in self.groups.values():
                if other.name != name:
                    found += [
                        (other, each, (name, part.axis.axis))
                        for each in self.counted[other.name]
                        if each.axis.parameter == tensor.name
                    ]
        return found

    def _add(self, other: _Group, part: Part, key: tuple[str, int], units: Sequence[int], sign: float) -> None:
        """Adds what a few columns contribute to another group's products."""
        tensor = self.tensors[part.axis.parameter]
        copy = tensor.copies[other.name, part.axis.axis]
        columns = copy.units_of(tensor.places[key])[list(units)]
        place = tensor.places[other.name, part.axis.axis]
        # the other group's units first; in the view above they moved by one where they came before this group's
        rows = np.moveaxis(columns, place + (place < tensor.places[key]), 0).reshape(other.n, -1)
        other.inner += sign * (rows @ rows.T)
        other.closest = None

    def run(self, beta: float, max_ratio: float, order: Order, limit: Literal["merges", "sweeps"]) -> Iterator[Merge]:
        """Merges until no group has a pair within ``beta``, or each has used up its share; yields every merge."""
        names = list(self.groups)
        if order == "layerwise":
            for name in names:
                while (found := self._next(name, beta, max_ratio, self.groups[name].n_merges)) is not None:
                    yield found
            return
        sweep = 0
        while True:
            merged = False
            for name in names:
                found = self._next(name, beta, max_ratio, sweep if limit == "sweeps" else self.groups[name].n_merges)
                if found is not None:
                    merged = True
                    yield found
            sweep += 1
            if not merged:
                return

    def _next(self, name: str, beta: float, max_ratio: float, used: int) -> Merge | None:
        if used >= max_ratio * self.groups[name].n:
            return None
        found = self.candidate(name, beta)
        if found is not None:
            self.merge(name, found.first, found.second)
        return found

    def result(self) -> dict[str, np.ndarray]:
        """The tensors as they are now."""
        kept = {name: group.order for name, group in self.groups.items()}
        return {name: tensor.result(kept) for name, tensor in self.tensors.items()}

    def members(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """For each group the units that each present unit was made of."""
        return {name: tuple(tuple(group.members[slot]) for slot in group.order) for name, group in self.groups.items()}


def _merged(part: Part, x: np.ndarray, y: np.ndarray, a: float, b: float, rule: Rule) -> np.ndarray:
    """What two units' entries become; a and b are the numbers of units merged in them."""
    average = (a * x + b * y) / (a + b)
    if rule == "average":
        return x + y if part.kind == "in" else average
    found: dict[Kind, Callable[[], np.ndarray]] = {
        "out": lambda: x + y,
        "in": lambda: average,
        "unit": lambda: average,
        "scale": lambda: x + y,
        "shift": lambda: x + y,
        "mean": lambda: x + y,
        # of two equal units the deviations add up, not the variances
        "var": lambda: (np.sqrt(x + part.eps) + np.sqrt(y + part.eps)) ** 2 - part.eps if part.eps else x + y,
    }
    return found[part.kind]()
