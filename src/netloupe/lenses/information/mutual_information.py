"""How many bits a layer carries and how many of them are about the label: one interface over every estimator.

Bins and adaptive noise follow arXiv 1902.09037, diffusion spectra arXiv 2312.04823, nearest neighbours Ross,
doi 10.1371/journal.pone.0087357. No two estimators measure the same noise, so compare numbers of one estimator only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.special import digamma

from netloupe.core.errors import InputError
from netloupe.core.rows import as_rows
from netloupe.lenses.information import diffusion, estimators
from netloupe.lenses.information.estimators import Bound, Information, Labels, Matrix, Scaling

NEIGHBOUR_LIMIT = 10_000


class Estimator(ABC):
    """One way to measure entropy and mutual information, in bits.

    ``name`` is what is printed; ``limit`` the most samples it takes, None where it streams.
    """

    name: ClassVar[str]
    limit: int | None = None

    @abstractmethod
    def entropy(self, features: Matrix) -> float:
        """Bits that ``(sample, unit)`` holds at this estimator's resolution."""

    @abstractmethod
    def mutual_information(self, features: Matrix, labels: Labels) -> Information:
        """``(i_xt, i_ty)``: bits about distinct inputs and bits about the labels ``(sample,)``."""

    def over_labelings(
        self, features: Matrix, labelings: Int[np.ndarray, "labeling sample"]
    ) -> tuple[float, Float[np.ndarray, " labeling"]]:
        """``i_xt`` once and ``i_ty`` for each labeling; a subclass does together what they share."""
        found = [self.mutual_information(features, labeling) for labeling in labelings]
        return found[0].i_xt, np.array([each.i_ty for each in found])


class SymbolEstimator(Estimator):
    """An estimator that gives every sample a symbol and counts."""

    @abstractmethod
    def edges(self, features: Matrix) -> estimators.Edges:
        """Bin edges for this layer."""

    def symbols(self, features: Matrix) -> Int[np.ndarray, " sample"]:
        """One integer a sample, equal where all units fall into the same bins."""
        return estimators.row_symbols(features, self.edges(features).values)

    def entropy(self, features: Matrix) -> float:
        """Plug-in entropy of the rows of bins."""
        return estimators.symbol_entropy(self.symbols(features))

    def mutual_information(self, features: Matrix, labels: Labels) -> Information:
        """Plug-in informations of the rows of bins."""
        return estimators.binned_mi(features, labels, self.edges(features).values)

    def over_labelings(
        self, features: Matrix, labelings: Int[np.ndarray, "labeling sample"]
    ) -> tuple[float, Float[np.ndarray, " labeling"]]:
        """As in :class:`Estimator`, with the symbols found once."""
        symbols = self.symbols(features)
        found = [estimators.symbol_information(symbols, labeling) for labeling in labelings]
        return estimators.symbol_entropy(symbols), np.array(found)


@dataclass(frozen=True)
class Binned(SymbolEstimator):
    """Fixed bins between ``low`` and ``high`` (:func:`estimators.fixed_edges`); one pass over any number of samples."""

    low: float = -1.0
    high: float = 1.0
    n_bins: int = estimators.N_BINS
    name: ClassVar[str] = "binned"

    def edges(self, features: Matrix) -> estimators.Edges:
        """The same for every layer."""
        return estimators.Edges(estimators.fixed_edges(self.low, self.high, self.n_bins), True)


@dataclass(frozen=True)
class AdaptiveBinned(SymbolEstimator):
    """Bins of equally many different values (:func:`estimators.ebab_edges`); two passes over any number of samples.

    Above ``distinct_limit`` different values the edges are those of a sample of them, and ``edges().exact`` says so.
    """

    n_bins: int = estimators.N_BINS
    low: float | None = None
    distinct_limit: int = estimators.LIMIT
    name: ClassVar[str] = "ebab"

    def edges(self, features: Matrix) -> estimators.Edges:
        """From the layer's own values."""
        return estimators.adaptive_edges(features, self.n_bins, self.low, self.distinct_limit)


@dataclass(frozen=True)
class KDE(Estimator):
    """Gaussian noise of variance ``s2`` in every unit (:func:`estimators.kde_mi`); compares all pairs of samples."""

    s2: float = 1e-3
    bound: Bound = "upper"
    limit: int | None = estimators.PAIRWISE_LIMIT
    name: ClassVar[str] = "kde"

    def variance(self, features: Matrix) -> float:
        """The noise for this layer."""
        return self.s2

    def entropy(self, features: Matrix) -> float:
        """Bits that survive the noise: the entropy of the noisy layer less that of the noise."""
        n = as_rows(features, ndim=(2,)).n_samples
        return self.over_labelings(features, np.zeros((1, n), np.int64))[0]

    def mutual_information(self, features: Matrix, labels: Labels) -> Information:
        """Bits that survive the noise, and those about the label."""
        return estimators.kde_mi(features, labels, self.variance(features), self.bound)

    def over_labelings(
        self, features: Matrix, labelings: Int[np.ndarray, "labeling sample"]
    ) -> tuple[float, Float[np.ndarray, " labeling"]]:
        """As in :class:`Estimator`, with one look at every pair of samples."""
        return estimators.kde_labelings(features, labelings, self.variance(features), self.bound)


@dataclass(frozen=True)
class AdaptiveKDE(KDE):
    """Noise that grows with the layer's largest activation (:func:`estimators.noise_variance`)."""

    s0: float = 1e-3
    scaling: Scaling = "max"
    name: ClassVar[str] = "akde"

    def variance(self, features: Matrix) -> float:
        """``s0`` times the layer's own scale."""
        return estimators.noise_variance(features, self.s0, self.scaling)


@dataclass(frozen=True)
class DiffusionSpectral(Estimator):
    """Entropy of the spectrum of a diffusion over the samples (:mod:`netloupe.lenses.information.diffusion`).

    ``i_xt`` is the entropy itself, for a deterministic layer of distinct inputs; ``i_ty`` the drop when the label is
    known. ``sigma=None`` takes the median distance. All samples are used: above ``limit`` it refuses.
    """

    sigma: float | None = 10.0
    t: float = 1
    repeats: int = 5
    random_state: int = 0
    limit: int | None = diffusion.MAX_N
    name: ClassVar[str] = "diffusion"

    def _scale(self, features: Matrix) -> tuple[np.ndarray, float]:
        rows = estimators.all_rows(features, "diffusion spectral entropy", self.limit or diffusion.MAX_N).numpy()
        return rows, diffusion.suggest_sigma(rows) if self.sigma is None else self.sigma

    def entropy(self, features: Matrix) -> float:
        """Diffusion spectral entropy."""
        rows, sigma = self._scale(features)
        return diffusion.diffusion_spectral_entropy(rows, sigma=sigma, t=self.t)

    def mutual_information(self, features: Matrix, labels: Labels) -> Information:
        """Diffusion spectral entropy and mutual information."""
        classes = estimators.class_labels(as_rows(features, labels, ndim=(2,)))
        rows, sigma = self._scale(features)
        entropy = diffusion.diffusion_spectral_entropy(rows, sigma=sigma, t=self.t)
        about, _ = diffusion.diffusion_spectral_mutual_information(
            rows, classes, sigma=sigma, t=self.t, repeats=self.repeats, seed=self.random_state
        )
        return Information(entropy, about)


@dataclass(frozen=True)
class KNN(Estimator):
    """Nearest neighbours of whole rows: Ross's estimator for a discrete label, on scikit-learn's neighbour search.

    With ``e_i`` the largest-coordinate distance to the ``k``-th neighbour of the same class and ``m_i`` the samples
    within it, ``I(T;Y) = psi(n) + psi(k) - mean psi(n_y) - mean psi(m_i)``; no bins and no noise are imposed. For one
    unit it is the estimator inside scikit-learn's ``mutual_info_classif``. It assumes a density: repeated rows
    are refused, and ``entropy`` is the differential entropy of Kozachenko and Leonenko, which may be negative and
    has no ceiling. ``i_xt`` is NaN, for a deterministic map without noise it is infinite.
    """

    k: int = 3
    limit: int | None = NEIGHBOUR_LIMIT
    name: ClassVar[str] = "knn"

    def _rows(self, features: Matrix) -> np.ndarray:
        rows = estimators.all_rows(features, "the nearest-neighbour estimator", self.limit or NEIGHBOUR_LIMIT).numpy()
        if self.k < 1 or len(rows) <= self.k:
            raise InputError(f"k is {self.k} for {len(rows)} samples; 1 <= k < samples is needed")
        if len(np.unique(rows, axis=0)) < len(rows):
            raise InputError("some samples have equal rows, but nearest neighbours need a density; use ebab or akde")
        return rows

    def _radii(self, rows: np.ndarray, k: int) -> np.ndarray:
        from sklearn.neighbors import NearestNeighbors

        # queried without itself, so that the k-th neighbour is another sample
        found, _ = NearestNeighbors(n_neighbors=k, metric="chebyshev").fit(rows).kneighbors()
        return found[:, -1]

    def entropy(self, features: Matrix) -> float:
        """Differential entropy in bits: ``psi(n) - psi(k) + d mean log2(2 e_i)``."""
        rows = self._rows(features)
        radii = self._radii(rows, self.k)
        nats = digamma(len(rows)) - digamma(self.k) + rows.shape[1] * np.mean(np.log(2 * radii))
        return float(nats / np.log(2))

    def mutual_information(self, features: Matrix, labels: Labels) -> Information:
        """NaN, and Ross's estimate in bits; classes of at most ``k`` samples use as many neighbours as they have."""
        from sklearn.neighbors import KDTree

        classes, rows = estimators.class_labels(as_rows(features, labels, ndim=(2,))), self._rows(features)
        radius, neighbours = np.zeros(len(rows)), np.zeros(len(rows))
        sizes = np.bincount(classes)
        for label, size in enumerate(sizes):
            own, k = np.flatnonzero(classes == label), min(self.k, int(size) - 1)
            # the k-th neighbour itself is not counted in m_i: the radius ends just before it
            radius[own], neighbours[own] = np.nextafter(self._radii(rows[own], k), 0), k
        within = KDTree(rows, metric="chebyshev").query_radius(rows, radius, count_only=True)
        nats = digamma(len(rows)) + digamma(neighbours).mean() - digamma(sizes[classes]).mean() - digamma(within).mean()
        return Information(float("nan"), float(nats / np.log(2)))


ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (Binned, AdaptiveBinned, KDE, AdaptiveKDE, DiffusionSpectral, KNN)
}


def as_estimator(estimator: str | Estimator) -> Estimator:
    """An estimator by its name, with its defaults, or the one that was given."""
    if isinstance(estimator, Estimator):
        return estimator
    if estimator not in ESTIMATORS:
        raise InputError(f"there is no estimator '{estimator}'; there are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[estimator]()
