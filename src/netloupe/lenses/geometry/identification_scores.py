"""Distances of responses to the centroids of regions, one subject left out at a time: the arithmetic of identification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.dissimilarity import Dissimilarities, samples_of_pairs
from netloupe.core.errors import InputError, NonFiniteError

Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Responses:
    """Checked vectors with the numbers of their subjects and regions."""

    vectors: np.ndarray
    subject: Int[np.ndarray, " response"]
    region: Int[np.ndarray, " response"]
    names: np.ndarray

    @classmethod
    def of(cls, vectors: Any, subject: Any, region: Any) -> Responses:
        table = np.asarray(vectors.values if isinstance(vectors, Dissimilarities) else vectors, dtype=np.float64)
        if table.ndim != 2 or 0 in table.shape:
            raise InputError(f"vectors have shape {table.shape}, expected condensed distances (response, pair)")
        if not np.isfinite(table).all():
            raise NonFiniteError("a distance is NaN or infinite; leave the stimulus out for all responses")
        samples_of_pairs(table.shape[1])
        who, where = np.asarray(subject), np.asarray(region)
        if who.shape != (len(table),) or where.shape != (len(table),):
            raise InputError(
                f"subject has shape {who.shape} and region {where.shape}, expected one of each for {len(table)} responses"
            )
        names, index = np.unique(where, return_inverse=True)
        return cls(table, np.unique(who, return_inverse=True)[1], index, names)

    def require_all_regions(self) -> None:
        n_subjects, k = int(self.subject.max()) + 1, len(self.names)
        if n_subjects < 2 or k < 2:
            raise InputError(
                f"there are {n_subjects} subjects and {k} regions, at least two of each are needed to tell one from others"
            )
        counts = np.bincount(self.subject * k + self.region, minlength=n_subjects * k).reshape(n_subjects, k)
        if not counts.all():
            who, where = np.argwhere(counts == 0)[0]
            raise InputError(
                f"subject number {who} has no response of region '{self.names[where]}'; leave one of them out"
            )


def transformed(vectors: np.ndarray, transform: Transform | None) -> Float[np.ndarray, "response pair"]:
    return vectors if transform is None else np.stack([transform(row) for row in vectors])


def accuracy_of(vectors: np.ndarray, subject: np.ndarray, region: np.ndarray, k: int) -> float:
    return float((centroid_scores(vectors, subject, region, k).argmin(1) == region).mean())


def centroid_scores(
    vectors: np.ndarray, subject: np.ndarray, region: np.ndarray, k: int
) -> Float[np.ndarray, "response region"]:
    """Squared distance (less the vector's own length) to each region's centroid without the vector's subject; infinite where
    nobody else has the region. All from inner products: ``v . (S_r - A) / n`` with the sums S over all and A over the subject."""
    _, who = np.unique(subject, return_inverse=True)
    n_subjects = int(who.max()) + 1
    cell = who * k + region
    counts = np.bincount(cell, minlength=n_subjects * k).reshape(n_subjects, k)
    own = np.zeros((n_subjects * k, vectors.shape[1]))
    np.add.at(own, cell, vectors)
    own = own.reshape(n_subjects, k, -1)
    total = own.sum(0)
    left = counts.sum(0) - counts
    with_total, with_own = vectors @ total.T, np.empty((len(vectors), k))
    for index, sums in enumerate(own):
        rows = np.flatnonzero(who == index)
        with_own[rows] = vectors[rows] @ sums.T
    squares = (total * total).sum(1) - 2 * np.einsum("kp,skp->sk", total, own) + (own * own).sum(2)
    n = np.maximum(left, 1)
    scores = (squares / n**2)[who] - 2 * (with_total - with_own) / n[who]
    return np.where(left[who] > 0, scores, np.inf)
