"""Means and covariances over each sample's positions, as one mergeable statistic.

Source: Gao et al., "Tuning Pre-trained Model via Moment Probing", arXiv 2307.11342, for the moments of neighbouring
groups of channels; the projection is random here, so that one pass over the data suffices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import ThreadpoolController

from netloupe.core.errors import InputError
from netloupe.core.statistics import Statistic
from netloupe.core.statistics.batch import Batch
from netloupe.nn.moment_head import Center, Pairs, head_pairs

_CHUNK = 1 << 20
"""values turned to float64 at a time (8 MB)"""


@dataclass(frozen=True, eq=False)
class TokenMomentsResult:
    """Of every held sample, in the order of ``samples``."""

    first: Float[np.ndarray, "sample channel"]
    """means over positions of the projected channels"""
    second: Float[np.ndarray, "sample moment"]
    """flattened covariances over positions of neighbouring heads"""
    labels: Int[np.ndarray, " sample"]
    """-1 where a batch came without labels"""
    samples: Int[np.ndarray, " sample"]
    """indices in the data set, rising"""


class TokenMoments(Statistic[TokenMomentsResult]):
    """First and second moments over positions of a random projection, for the first samples of the data.

    Args:
        n_channels: most channels of the projection, a random orthonormal one; a site with fewer units is only rotated.
        n_heads: the channels are cut into so many heads (two where there are fewer than 8 channels), neighbours are
            multiplied.
        n_samples: most samples held: those of the lowest indices, whatever the order in which they come.
        n_positions: most positions read of a sample, evenly spaced.
        random_state: of the projection.
        labelled: pass over batches without labels, which a probe could not use; they are counted and cost nothing.

    Merging is exact: the union in the order of indices, cut to ``n_samples``. A sample's moments do not depend on
    what came in the same batch. Samples with fewer than two unmasked positions are passed over. Memory:
    ``8 (m + (h - 1) (m / h)^2)`` bytes a held sample, 1.8 kB with the defaults. Cost: ``2 d m`` a position.
    """

    _options = ("n_channels", "n_heads", "n_samples", "n_positions", "random_state", "labelled")
    _fields = ("first", "second", "labels", "samples", "most_positions", "n_unlabelled")

    def __init__(
        self,
        n_channels: int = 32,
        n_heads: int = 4,
        n_samples: int = 2000,
        n_positions: int = 256,
        random_state: int = 0,
        labelled: bool = False,
    ) -> None:
        super().__init__()
        if n_heads < 2 or n_channels < n_heads or n_samples < 1 or n_positions < 2:
            raise InputError(
                f"n_channels is {n_channels}, n_heads {n_heads}, n_samples {n_samples} and n_positions {n_positions}, "
                "expected at least 2 heads with a channel each, 1 sample and 2 positions"
            )
        self.n_channels, self.n_heads, self.n_samples = int(n_channels), int(n_heads), int(n_samples)
        self.n_positions, self.random_state = int(n_positions), int(random_state)
        self.labelled = bool(labelled)
        self._allocate(0)

    def result(self) -> TokenMomentsResult:
        """What is held; ``InputError`` where no sample had two positions and two units."""
        self._need_rows()
        if self.most_positions < 2:
            raise InputError("the site has no positions, so there is nothing to take second moments over")
        if len(self.samples) == 0 and self.n_unlabelled:
            raise InputError(
                f"no labels came with the {self.n_unlabelled} samples, and probes read labels; give labels"
            )
        if len(self.samples) == 0:
            raise InputError(
                f"no sample had two positions of at least two units (the site has {self.n_units}), so there are no "
                "second moments"
            )
        return TokenMomentsResult(self.first.copy(), self.second.copy(), self.labels.copy(), self.samples.copy())

    def _allocate(self, n_units: int) -> None:
        n_heads, n_channels = self.layout(n_units)
        self.first = np.zeros((0, n_channels))
        self.second = np.zeros((0, (n_heads - 1) * (n_channels // n_heads) ** 2))
        self.labels, self.samples = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.most_positions = self.n_unlabelled = 0

    def layout(self, n_units: int) -> tuple[int, int]:
        """Heads and channels for a site of so many units."""
        n_heads = self.n_heads if min(self.n_channels, n_units) >= 2 * self.n_heads else 2
        return n_heads, min(self.n_channels, n_units) // n_heads * n_heads

    def _update(self, batch: Batch) -> None:
        self.most_positions = max(self.most_positions, batch.n_positions)
        if batch.n_positions < 2 or batch.n_units < 2:
            return
        samples = batch.samples
        if samples is None:
            samples = np.arange(self.next_sample, self.next_sample + batch.n_samples)
        counts = np.bincount(batch.sample_in_batch, minlength=batch.n_samples)
        wanted = counts >= 2
        if len(self.samples) == self.n_samples:
            wanted &= samples < self.samples[-1]
        chosen = np.flatnonzero(wanted)
        chosen = chosen[np.argsort(samples[chosen], kind="stable")[: self.n_samples]]
        if len(chosen) == 0:
            return
        if self.labelled and batch.labels is None:
            self.n_unlabelled += len(chosen)
            return
        with _one_blas_thread():
            first, second = self._moments(batch, counts, chosen)
        labels = np.full(len(chosen), -1) if batch.labels is None else batch.labels[chosen]
        self._join(first, second, labels, samples[chosen])

    def _moments(
        self, batch: Batch, counts: np.ndarray, chosen: np.ndarray
    ) -> tuple[Float[np.ndarray, "sample channel"], Float[np.ndarray, "sample moment"]]:
        """Moments of the chosen samples; those with equally many positions are taken together."""
        n_heads, n_channels = self.layout(batch.n_units)
        projection = orthonormal(batch.n_units, n_channels, self.random_state)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        first, second = np.empty((len(chosen), n_channels)), np.empty((len(chosen), self.second.shape[1]))
        for length in np.unique(counts[chosen]).tolist():
            places = np.unique(np.linspace(0, length - 1, min(length, self.n_positions)).round().astype(np.int64))
            members = np.flatnonzero(counts[chosen] == length)
            step = max(1, _CHUNK // (len(places) * batch.n_units))
            for begin in range(0, len(members), step):
                part = members[begin : begin + step]
                rows = starts[chosen[part]][:, None] + places
                first[part], second[part] = moments_of(batch.rows[rows].astype(np.float64), projection, n_heads)
        return first, second

    def _join(self, first: np.ndarray, second: np.ndarray, labels: np.ndarray, samples: np.ndarray) -> None:
        order = np.argsort(np.concatenate([self.samples, samples]), kind="stable")[: self.n_samples]
        self.first = np.concatenate([self.first, first])[order]
        self.second = np.concatenate([self.second, second])[order]
        self.labels = np.concatenate([self.labels, labels])[order]
        self.samples = np.concatenate([self.samples, samples])[order]

    def _merge(self, other: Self) -> None:
        self.most_positions = max(self.most_positions, other.most_positions)
        self.n_unlabelled += other.n_unlabelled
        self._join(other.first, other.second, other.labels, other.samples)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Many small products: several threads would spend ten times their work waiting for each other."""
    return _blas().limit(limits=1)


def orthonormal(n_units: int, n_channels: int, random_state: int) -> Float[np.ndarray, "unit channel"]:
    """Random orthonormal columns."""
    drawn = np.random.default_rng(random_state).standard_normal((n_units, n_units if n_units < 64 else n_channels))
    return np.linalg.qr(drawn)[0][:, :n_channels]


def moments_of(
    tokens: Float[np.ndarray, "sample position unit"],
    projection: Float[np.ndarray, "unit channel"] | None,
    n_heads: int,
    pairs: Pairs = "near",
    center: Center = "token",
) -> tuple[Float[np.ndarray, "sample channel"], Float[np.ndarray, "sample moment"]]:
    """Means over positions, and flattened cross-moments of heads; each sample's numbers are its own, to the bit."""
    projected = tokens if projection is None else np.matmul(tokens, projection)
    first = projected.mean(1)
    heads = projected.reshape(*projected.shape[:2], n_heads, -1)
    if center == "token":
        heads = heads - first.reshape(len(first), 1, n_heads, -1)
    elif center == "scalar":
        heads = heads - heads.mean((1, 3), keepdims=True)
    maps = [np.matmul(heads[:, :, i].transpose(0, 2, 1), heads[:, :, j]) for i, j in head_pairs(n_heads, pairs)]
    return first, (np.stack(maps, 1) / tokens.shape[1]).reshape(len(tokens), -1)
