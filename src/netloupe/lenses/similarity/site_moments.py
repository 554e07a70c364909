"""What comparing many sites needs of each of them once: centred samples, covariance, whitened directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.arrangement import debiased_alignment
from netloupe.core.errors import InputError
from netloupe.core.rows import Rows, as_rows
from netloupe.lenses.similarity.subspace import KEPT, White, canonical, white

INFLUENCE_SAMPLES = 2000  # over so many samples the spread of their influence is estimated
MAX_GRAM = 4096  # samples; a site of more units than samples is turned into as many coordinates as samples
_KEPT_BYTES = 32 * 2**20
_WIDTH = 1.959963984540054


class Measured(NamedTuple):
    """A similarity, its 95 % interval over samples, and its chance level."""

    value: float
    low: float
    high: float
    chance: float


class Side:
    """One site: its units in random order, so that the first and the last half of its axes are two samples of units.

    A half with more units than samples is given by its principal coordinates, in which every measure here is the same.
    """

    def __init__(self, name: str, rows: Rows, random_state: int, place: int) -> None:
        self.name, self.rows, self.n = name, rows, rows.n_samples
        self.random_state = random_state
        order = np.random.default_rng(random_state + place).permutation(rows.n_units)
        self.halves_of_units = np.split(order, [rows.n_units // 2])
        total = np.zeros(rows.n_units)
        for batch in rows:
            total += batch.values.double().numpy().sum(0)
        self.mean = total / self.n

    def __iter__(self) -> Iterator[Float[np.ndarray, "batch axis"]]:
        """Centred samples in the blocks of ``rows``, whether they are kept or read: pairs walk their blocks together."""
        return iter(self._kept) if self._kept is not None else self._read()

    @property
    def _turned(self) -> bool:
        """Whether a half of the units is given by as many coordinates as samples."""
        return max(len(half) for half in self.halves_of_units) > self.n and self.n <= MAX_GRAM

    @cached_property
    def _kept(self) -> list[np.ndarray] | None:
        """Every block, where all fit or have to be turned."""
        if self._turned:
            parts = np.split(np.concatenate(list(self._read())), [len(self.halves_of_units[0])], axis=1)
            values = np.concatenate([_coordinates(part) for part in parts], axis=1)
            return [values[i : i + self.rows.batch_size] for i in range(0, self.n, self.rows.batch_size)]
        return list(self._read()) if self.n * self.rows.n_units * 8 <= _KEPT_BYTES else None

    def _read(self) -> Iterator[np.ndarray]:
        order = np.concatenate(self.halves_of_units)
        return ((batch.values.double().numpy() - self.mean)[:, order] for batch in self.rows)

    @property
    def middle(self) -> int:
        """Where the second half of the axes begins."""
        first = len(self.halves_of_units[0])
        return min(first, self.n) if self._turned else first

    @cached_property
    def scatter(self) -> Float[np.ndarray, "axis axis"]:
        """Sums of products of deviations."""
        found = sum(block.T @ block for block in self)
        assert isinstance(found, np.ndarray)
        return found

    @cached_property
    def lengths(self) -> Float[np.ndarray, "part sample"]:
        """Squared lengths of the centred samples: of all axes, of the first half, of the second."""
        found = []
        for block in self:
            squared = block * block
            parts = squared[:, : self.middle].sum(1), squared[:, self.middle :].sum(1)
            found.append(np.stack([parts[0] + parts[1], *parts]))
        return np.concatenate(found, axis=1)

    @cached_property
    def norm(self) -> float:
        """``|X'X|_F^2``."""
        return float(np.vdot(self.scatter, self.scatter))

    @cached_property
    def white(self) -> White:
        """Whitened directions with 99 % of the variance."""
        return white(self.scatter, KEPT)

    @cached_property
    def roots(self) -> Float[np.ndarray, " axis"]:
        """Square roots of the eigenvalues of the scatter."""
        return np.sqrt(np.maximum(np.linalg.eigvalsh(self.scatter), 0))

    @cached_property
    def some(self) -> Float[np.ndarray, "drawn axis"]:
        """Some centred samples, the same at every site."""
        return self.at(drawn(self.n, INFLUENCE_SAMPLES, self.random_state))

    def at(self, samples: Int[np.ndarray, " drawn"]) -> Float[np.ndarray, "drawn axis"]:
        """Centred samples by increasing index."""
        found, start = [], 0
        for block in self:
            inside = samples[(samples >= start) & (samples < start + len(block))]
            found.append(block[inside - start])
            start += len(block)
        return np.concatenate(found)

    @cached_property
    def pull(self) -> Float[np.ndarray, " drawn"]:
        """``x' S x / |S|_F^2`` of some samples: how much each moves the norm."""
        return np.einsum("nd,nd->n", self.some @ self.scatter, self.some) / self.norm

    @property
    def varies(self) -> bool:
        """Whether there is more variation than rounding."""
        scale = max(float(np.abs(self.mean).max()), 1e-300)
        return self.norm > 0 and np.sqrt(self.norm) > self.n * (scale * 1e-14) ** 2

    def cross(self, other: Side) -> Float[np.ndarray, "axis axis_other"]:
        """``X'Y``."""
        found = sum(x.T @ y for x, y in zip(self, other, strict=True))
        assert isinstance(found, np.ndarray)
        return found

    def prepare(self, whitened: bool, rooted: bool) -> None:
        """Computes what pairs will ask for, so that threads that share a site do not compute it twice."""
        _ = self.some, self.lengths
        if self.varies:
            _ = self.pull
            if whitened:
                _ = self.white
            if rooted:
                _ = self.roots


def aligned_sides(
    sites_a: Mapping[str, Any], sites_b: Mapping[str, Any], random_state: int
) -> tuple[list[Side], list[Side]]:
    """Sides of two networks read in batches of one size; InputError where samples differ in number."""
    given = [
        (name, as_rows(site, ndim=(2,), min_samples=4)) for group in (sites_a, sites_b) for name, site in group.items()
    ]
    counts = {rows.n_samples: name for name, rows in given}
    if len(counts) > 1:
        said = " and ".join(f"{n} at '{name}'" for n, name in list(counts.items())[:2])
        raise InputError(f"there are {said}; the same samples are needed at all sites of both networks")
    size = min(rows.batch_size for _, rows in given)
    sides = [Side(name, Rows(rows.source, None, None, size), random_state, i) for i, (name, rows) in enumerate(given)]
    return sides[: len(sites_a)], sides[len(sites_a) :]


def drawn(n: int, wanted: int, random_state: int) -> Int[np.ndarray, " drawn"]:
    """Increasing indices of at most ``wanted`` of ``n`` samples."""
    if n <= wanted:
        return np.arange(n)
    return np.sort(np.random.default_rng(random_state).choice(n, wanted, replace=False))


def between(a: Side, b: Side, measure: str, cross: Float[np.ndarray, "axis axis_other"]) -> Measured:
    """``cka``, ``svcca`` or ``procrustes`` of two sites with ``X'Y``."""
    for side in (a, b):
        if not side.varies:
            raise InputError(f"'{side.name}' is the same for every sample, so its similarity to another is not defined")
    return {"cka": _cka, "svcca": _svcca, "procrustes": _procrustes}[measure](a, b, cross)


def _interval(value: float, influence: Float[np.ndarray, " drawn"], n: int, chance: float, low: float) -> Measured:
    error = float(np.sqrt(n * (influence**2).mean()))
    return Measured(value, max(low, value - _WIDTH * error), min(1.0, value + _WIDTH * error), chance)


def _cka(a: Side, b: Side, cross: np.ndarray) -> Measured:
    both = float(np.vdot(cross, cross))
    value = _debiased(both, a.norm, b.norm, a.lengths[0], b.lengths[0])
    biased = both / np.sqrt(a.norm * b.norm)
    shared = np.einsum("nd,nd->n", a.some @ cross, b.some) / max(both, 1e-300)
    return _interval(value, biased * (2 * shared - a.pull - b.pull), a.n, 0.0, -1.0)


def _debiased(both: float, own_a: float, own_b: float, lengths_a: np.ndarray, lengths_b: np.ndarray) -> float:
    found = debiased_alignment(both, own_a, own_b, lengths_a, lengths_b)
    if found is None:
        raise InputError("there are too few samples to tell the sites' own arrangement from noise; give more")
    return float(np.clip(found, -1, 1))


def _svcca(a: Side, b: Side, cross: np.ndarray) -> Measured:
    found = canonical(a.white, b.white, cross, a.n)
    z, t = a.some @ found.axes_a, b.some @ found.axes_b
    rho = found.correlations
    influence = (z * t - rho / 2 * (z * z + t * t)).mean(1)
    noise = np.random.default_rng(a.random_state).standard_normal((a.white.rank, b.white.rank)) / np.sqrt(a.n - 1)
    chance = min(1.0, float(np.linalg.svd(noise, compute_uv=False).mean()))
    return _interval(float(rho.mean()), influence, a.n, chance, 0.0)


def _procrustes(a: Side, b: Side, cross: np.ndarray) -> Measured:
    left, values, right = np.linalg.svd(cross, full_matrices=False)
    total_a, total_b = (float(side.lengths[0].sum()) for side in (a, b))
    scale = np.sqrt(total_a * total_b)
    value = float(min(1.0, values.sum() / scale))
    turned = np.einsum("nd,nd->n", (a.some @ left) @ right, b.some) / scale
    own = (a.some**2).sum(1) / total_a + (b.some**2).sum(1) / total_b
    chance = min(1.0, float(np.linalg.svd(_null(a, b), compute_uv=False).sum() / scale))
    return _interval(value, turned - value / 2 * own, a.n, chance, 0.0)


def _null(a: Side, b: Side) -> np.ndarray:
    """A cross-scatter of unrelated samples, in both sites' principal axes: normal, with their variances."""
    draw = np.random.default_rng(a.random_state)
    noise = draw.standard_normal((len(a.roots), len(b.roots)))
    return a.roots[:, None] * noise * b.roots / np.sqrt(a.n - 1)


def halves(side: Side, measure: str) -> float:
    """The measure between two random halves of one site's units."""
    m, scatter = side.middle, side.scatter
    if m == 0:
        raise InputError(f"'{side.name}' has a single unit, so its units cannot be divided in two")
    first, second, cross = scatter[:m, :m], scatter[m:, m:], scatter[:m, m:]
    if measure == "svcca":
        one, two = white(first, KEPT), white(second, KEPT)
        return float(canonical(one, two, cross, side.n).correlations.mean())
    if measure == "procrustes":
        both = np.sqrt(np.trace(first) * np.trace(second))
        if not both > 0:
            raise InputError(f"half of the units of '{side.name}' never vary")
        return float(min(1.0, np.linalg.svd(cross, compute_uv=False).sum() / both))
    both, one, two = (float(np.vdot(part, part)) for part in (cross, first, second))
    return _debiased(both, one, two, side.lengths[1], side.lengths[2])


def _coordinates(values: Float[np.ndarray, "sample unit"]) -> Float[np.ndarray, "sample axis"]:
    """Principal coordinates: as many axes as samples, with the same inner products."""
    if values.shape[1] <= len(values):
        return values
    own, vectors = np.linalg.eigh(values @ values.T)
    return vectors * np.sqrt(np.maximum(own, 0))
