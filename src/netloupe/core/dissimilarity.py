"""Pairwise structure: how far apart samples are, once for all who ask of pairs.

A :class:`Dissimilarities` holds one or many dissimilarity matrices of the same samples, condensed (each pair once, in
the order of ``scipy.spatial.distance.squareform``), with what is known of samples and of matrices. Representational
similarity analysis, its topological forms and the comparison of networks all read it, and rsatoolbox's ``RDMs`` convert
both ways. A question that a covariance can answer does not belong here: n samples have n (n - 1) / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import squareform
from torch import Tensor

from netloupe.core.errors import InputError, MissingExtraError, StoreError
from netloupe.core.rows import Rows, as_rows

Metric = Literal["euclidean", "squared euclidean", "correlation", "cosine"]
MAX_SAMPLES = 20_000  # 1.6 GB of pairs; more go to a file
BLOCK = 1024  # rows of the table that are computed at a time


@dataclass(frozen=True, eq=False)
class Dissimilarities:
    """Dissimilarity matrices of the same samples.

    values : ``(matrix, pair)`` float64; pair ``(i, j)``, ``i < j``, in row order. NaN marks a pair that is not defined.
    metric : how the numbers came about.
    samples : what is known of samples, by name: ``(sample,)`` each, for example ``{"label": ...}``.
    matrices : what is known of matrices, by name: ``(matrix,)`` each, for example ``{"site": ..., "subject": ...}``.

    Raises InputError for a number of pairs that no number of samples has, descriptions of another length, infinity, or
    fewer than two samples.
    """

    values: Float[np.ndarray, "matrix pair"]
    metric: str = "euclidean"
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.atleast_2d(np.asarray(self.values, dtype=np.float64))
        if values.ndim != 2 or not values.size:
            raise InputError(
                f"dissimilarities have shape {values.shape}, expected (matrix, pair) with at least one pair"
            )
        n = samples_of_pairs(values.shape[1])
        if np.isinf(values).any():
            raise InputError("a dissimilarity is infinite; give a finite number, or NaN for a pair that is not defined")
        described = {"samples": (self.samples, n), "matrices": (self.matrices, len(values))}
        for word, (given, length) in described.items():
            columns = {str(name): np.asarray(column) for name, column in given.items()}
            wrong = [name for name, column in columns.items() if column.shape != (length,)]
            if wrong:
                raise InputError(f"'{wrong[0]}' describes {len(columns[wrong[0]])} {word}, there are {length}")
            object.__setattr__(self, word, columns)
        object.__setattr__(self, "values", values)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return samples_of_pairs(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: Any) -> Dissimilarities:
        """Some of the matrices: an index, a slice, indices or a mask."""
        chosen = np.atleast_1d(np.arange(len(self))[which])
        return replace(
            self, values=self.values[chosen], matrices={name: column[chosen] for name, column in self.matrices.items()}
        )

    def square(self) -> Float[np.ndarray, "matrix sample sample"]:
        """As symmetric tables with a zero diagonal: ``8 n^2`` bytes a matrix."""
        return np.stack([squareform(row, checks=False) for row in self.values])

    def take(self, chosen: Int[np.ndarray, " drawn"] | Sequence[int]) -> Dissimilarities:
        """Samples by index, also several times (a bootstrap); a pair of a sample with itself is NaN, not 0.

        A zero there would make two draws of one sample the closest pair of all, which no experiment could show.
        """
        chosen = np.asarray(chosen)
        if chosen.ndim != 1 or len(chosen) < 2 or chosen.min() < 0 or chosen.max() >= self.n_samples:
            raise InputError(
                f"samples to take are of shape {chosen.shape}, expected two or more indices below {self.n_samples}"
            )
        one, two = np.triu_indices(len(chosen), 1)
        places, same = pair_index(chosen[one], chosen[two], self.n_samples)
        values = self.values[:, places]
        values[:, same] = np.nan
        return replace(self, values=values, samples={name: column[chosen] for name, column in self.samples.items()})

    def ranked(self) -> Dissimilarities:
        """Every matrix by the ranks of its own pairs (1 to the number of pairs; ties share their mean rank)."""
        return replace(
            self, values=np.stack([average_ranks(row) for row in self.values]), metric=f"{self.metric} (ranks)"
        )

    @classmethod
    def from_square(cls, tables: Any, metric: str = "euclidean", **described: Any) -> Dissimilarities:
        """From symmetric tables ``(sample, sample)`` or ``(matrix, sample, sample)`` with a zero diagonal."""
        found = np.asarray(tables, dtype=np.float64)
        found = found[None] if found.ndim == 2 else found
        if found.ndim != 3 or found.shape[1] != found.shape[2]:
            raise InputError(
                f"tables have shape {np.shape(tables)}, expected (sample, sample) or (matrix, sample, sample)"
            )
        scale = np.nanmax(np.abs(found), initial=0.0)
        turned = np.swapaxes(found, 1, 2)
        if not np.allclose(found, turned, rtol=0, atol=1e-8 * scale, equal_nan=True):
            raise InputError("a table of dissimilarities is not symmetric: the pair (i, j) differs from (j, i)")
        if np.nanmax(np.abs(np.diagonal(found, axis1=1, axis2=2)), initial=0.0) > 1e-8 * scale:
            raise InputError("a table of dissimilarities has entries on its diagonal, expected zeros there")
        one, two = np.triu_indices(found.shape[1], 1)
        return cls(found[:, one, two], metric, **described)

    @classmethod
    def stack(cls, parts: Sequence[Dissimilarities]) -> Dissimilarities:
        """Matrices of the same samples one after the other; descriptions that all parts have are kept."""
        if not parts:
            raise InputError("nothing to stack; give at least one set of dissimilarities")
        if len({part.n_samples for part in parts}) > 1 or len({part.metric for part in parts}) > 1:
            said = ", ".join(sorted({f"{part.n_samples} samples under {part.metric}" for part in parts}))
            raise InputError(f"only matrices of the same samples and metric can be stacked, got {said}")
        common = set.intersection(*(set(part.matrices) for part in parts))
        matrices = {name: np.concatenate([part.matrices[name] for part in parts]) for name in sorted(common)}
        return cls(np.concatenate([part.values for part in parts]), parts[0].metric, parts[0].samples, matrices)

    def to_rsatoolbox(self) -> Any:
        """An ``rsatoolbox.rdm.RDMs`` with the same numbers and descriptions. MissingExtraError without it."""
        try:
            from rsatoolbox.rdm import RDMs
        except ImportError as error:
            raise MissingExtraError("rsatoolbox", "rsa", "converting to its objects") from error
        return RDMs(
            self.values.copy(), dissimilarity_measure=self.metric,
            rdm_descriptors={name: column.tolist() for name, column in self.matrices.items()},
            pattern_descriptors={name: column.tolist() for name, column in self.samples.items()},
        )  # fmt: skip

    @classmethod
    def from_rsatoolbox(cls, rdms: Any) -> Dissimilarities:
        """From an ``rsatoolbox.rdm.RDMs``, with its numbers as they are.

        Its ``euclidean`` method gives squared distances divided by the number of units; :func:`dissimilarity` does neither.
        """
        wanted = ("dissimilarities", "rdm_descriptors", "pattern_descriptors", "n_cond")
        if not all(hasattr(rdms, name) for name in wanted):
            raise InputError(f"a {type(rdms).__name__} was given, expected an rsatoolbox RDMs object")
        return cls(
            np.array(rdms.dissimilarities, dtype=np.float64),
            str(rdms.dissimilarity_measure or "unknown"),
            {name: np.asarray(column) for name, column in rdms.pattern_descriptors.items()},
            {name: np.asarray(column) for name, column in rdms.rdm_descriptors.items()},
        )


def dissimilarity(
    features: Float[Tensor, "sample unit"] | Any,
    metric: Metric = "euclidean",
    *,
    max_samples: int = MAX_SAMPLES,
    out: str | Path | None = None,
) -> Float[np.ndarray, " pair"]:
    """Condensed dissimilarities between all samples, float64.

    ``euclidean`` is ``|x_i - x_j|``, ``squared euclidean`` its square, ``correlation`` 1 less the Pearson correlation of two
    samples over units, ``cosine`` 1 less the cosine of their angle.

    Args:
        features: ``(sample, unit)``; a tensor, an array or a stored site, held in memory once as float64.
        max_samples: more are refused, for there are n (n - 1) / 2 pairs.
        out: a ``.npy`` file to hold the pairs instead of memory; it is returned mapped.

    Cost: O(n^2 d) as matrix products of 1,024 rows with all others; 8 n d bytes and 4 n^2 bytes (the latter on disk with
    ``out``). Raises InputError for another metric, more samples, one sample, or (``correlation``, ``cosine``) a sample that has
    no direction; StoreError where ``out`` cannot be written.
    """
    return dissimilarity_of_rows(as_rows(features, ndim=(2,), min_samples=2), metric, max_samples, out)


def dissimilarity_of_rows(
    rows: Rows, metric: str, max_samples: int = MAX_SAMPLES, out: str | Path | None = None
) -> Float[np.ndarray, " pair"]:
    """:func:`dissimilarity` of checked rows."""
    if metric not in get_args(Metric):
        raise InputError(f"metric is '{metric}', expected one of {', '.join(get_args(Metric))}")
    x = rows.array(None if out is not None else max_samples, "a table of distances").double().numpy()
    angular = metric in ("correlation", "cosine")
    x = x - x.mean(1, keepdims=True) if metric == "correlation" else x if angular else x - x.mean(0)
    squares = np.einsum("nd,nd->n", x, x)
    if angular:
        if squares.min() <= 1e-28 * max(squares.max(), 1e-300):
            what = "the same value in all units" if metric == "correlation" else "zero in all units"
            raise InputError(f"a sample has {what}, so its {metric} is not defined; use 'euclidean'")
        x, squares = x / np.sqrt(squares)[:, None], np.ones(len(x))
    found = _pairs_in(out, len(x) * (len(x) - 1) // 2)
    at = 0
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        table = _block(x[start:], block, squares[start:])
        table = table / 2 if angular else np.sqrt(table) if metric == "euclidean" else table
        for i, row in enumerate(table):
            width = len(row) - i - 1
            found[at : at + width] = row[i + 1 :]
            at += width
    return found


def _block(x: np.ndarray, block: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Squared distances of the first ``len(block)`` rows of ``x`` from all of them.

    A large offset was taken out beforehand; small distances are computed again from differences, for as inner products
    they have lost their digits.
    """
    table = block @ x.T
    table *= -2
    table += squares
    table += squares[: len(block), None]
    small = table <= 1e-8 * max(float(squares.max()), 1e-300)
    for i in np.flatnonzero(small.sum(1) > 1):  # every sample is near itself
        near = np.flatnonzero(small[i])
        table[i, near] = ((x[near] - x[i]) ** 2).sum(1)
    return np.maximum(table, 0, out=table)


def _pairs_in(out: str | Path | None, n_pairs: int) -> np.ndarray:
    if out is None:
        return np.empty(n_pairs)
    try:
        return np.lib.format.open_memmap(out, mode="w+", dtype=np.float64, shape=(n_pairs,))
    except OSError as error:
        raise StoreError(f"the dissimilarities could not be written to '{out}': {error.strerror or error}") from error


def crossnobis(
    features: Float[Tensor, "measurement unit"] | Any,
    conditions: Any,
    folds: Any,
    precision: Float[np.ndarray, "unit unit"] | None = None,
) -> tuple[Float[np.ndarray, " pair"], np.ndarray]:
    """Cross-validated squared (Mahalanobis) distances between conditions: unbiased, and 0 on average where two are equal.

    With condition means ``m_i`` of each fold, the mean over pairs of different folds of ``(m_i - m_j)' P (m_i - m_j)``, the first
    difference from one fold and the second from the other (Walther et al. 2016, doi 10.1016/j.neuroimage.2015.12.012).

    Args:
        features: ``(measurement, unit)``. conditions, folds: ``(measurement,)`` each, any values.
        precision: ``(unit, unit)`` inverse of the noise covariance; identity by default.

    Returns:
        Condensed distances between the sorted conditions, and the conditions. A distance may be negative.

    Cost O(n d + k d^2 + k^2 d) for k conditions. Raises InputError for fewer than two folds or conditions, or a condition
    that a fold lacks.
    """
    x = as_rows(features, ndim=(2,), min_samples=2).array().double().numpy()
    condition, fold = np.asarray(conditions), np.asarray(folds)
    if condition.shape != (len(x),) or fold.shape != (len(x),):
        raise InputError(f"conditions and folds need one value for each of {len(x)} measurements")
    names, which = np.unique(condition, return_inverse=True)
    parts, part = np.unique(fold, return_inverse=True)
    if len(names) < 2 or len(parts) < 2:
        raise InputError(f"there are {len(names)} conditions in {len(parts)} folds, at least two of each are needed")
    counts = np.zeros((len(parts), len(names)))
    np.add.at(counts, (part, which), 1)
    if not counts.all():
        missing = np.argwhere(counts == 0)[0]
        raise InputError(f"fold {parts[missing[0]]} has no measurement of condition {names[missing[1]]}")
    means = np.zeros((len(parts), len(names), x.shape[1]))
    np.add.at(means, (part, which), x)
    means /= counts[..., None]
    means -= means.mean(1, keepdims=True)
    weighted = means if precision is None else means @ np.asarray(precision, dtype=np.float64)
    total, own = means.sum(0) @ weighted.sum(0).T, np.einsum("fid,fjd->ij", means, weighted)
    kernel = (total - own) / (len(parts) * (len(parts) - 1))
    kernel = (kernel + kernel.T) / 2
    one, two = np.triu_indices(len(names), 1)
    diagonal = np.diagonal(kernel)
    return diagonal[one] + diagonal[two] - 2 * kernel[one, two], names


def samples_of_pairs(n_pairs: int) -> int:
    """The number of samples that has so many pairs; InputError where none has."""
    n = (1 + int(np.sqrt(1 + 8 * n_pairs) + 0.5)) // 2
    if n < 2 or n * (n - 1) // 2 != n_pairs:
        raise InputError(f"{n_pairs} pairs are not all pairs of any number of samples; n samples have n (n - 1) / 2")
    return n


def pair_index(one: np.ndarray, two: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of pairs in a condensed vector of ``n`` samples, and which pairs are of a sample with itself (place 0)."""
    low, high, same = np.minimum(one, two), np.maximum(one, two), one == two
    return np.where(same, 0, low * (2 * n - low - 1) // 2 + high - low - 1), same


def average_ranks(values: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
    """Ranks from 1; equal values share their mean rank, and NaN stays NaN.

    Values that differ by rounding (1e-10 of the largest) are equal, else a turn of the axes would reorder pairs. A pair's number
    is packed below its value, so that one sort of integers gives the order: several times faster than sorting floats
    by index. Raises InputError where all are equal, for then there is no order.
    """
    known = ~np.isnan(values)
    if not known.all():
        ranks = np.full(len(values), np.nan)
        ranks[known] = average_ranks(values[known])
        return ranks
    bits = len(values).bit_length()
    low = float(values.min()) if len(values) else 0.0
    largest = max(float(np.abs(values).max()), 0.0) if len(values) else 0.0
    if not largest > 0:
        raise InputError("all samples are equally far apart, so there is no order of pairs to compare")
    keys = np.rint((values - min(low, 0.0)) * (1e10 / largest / (2 if low < 0 else 1))).astype(np.int64)
    if bits > 29:
        keys >>= bits - 29  # more than half a billion pairs: coarser, but each still has a number
    keys <<= bits
    keys |= np.arange(len(keys))
    keys.sort()
    order = keys & ((1 << bits) - 1)
    keys >>= bits
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    if len(first) == 1:
        raise InputError("all samples are equally far apart, so there is no order of pairs to compare")
    ranks = np.empty(len(keys))
    sizes = np.diff(first, append=len(keys))
    ranks[order] = np.repeat(first + (sizes + 1) / 2, sizes)
    return ranks
