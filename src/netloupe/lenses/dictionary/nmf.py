"""Features as atoms of a non-negative dictionary of a layer's activations, and what kind of atoms they are.

Source: Fel et al., "Understanding Visual Feature Reliance through the Lens of Complexity", arXiv 2407.06076, which fits
10,000 atoms to the 2,048 rectified units before the classifier of a residual network.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError
from netloupe.core.rows import as_rows

Init = Literal["nndsvd", "nndsvda", "nndsvdar", "random"]


class NonNegativeDictionary(TransformerMixin, BaseEstimator):
    """``F ~ Z D`` with ``Z, D >= 0``: the least-squares dictionary of ``n_atoms`` directions (scikit-learn's NMF).

    Args:
        n_atoms: rows of the dictionary; more atoms than units are possible and need ``init="random"``, which is then used.
        init: start of the factors; ``nndsvda`` is deterministic up to its fill.
        max_iter, tol: of the solver, coordinate descent.
        batch_size: with a number, mini-batches (``MiniBatchNMF``) for data that is slow in one piece; the data still
            lies in memory.
        solver: how codes of new activations are found: ``descent`` is scikit-learn's transform, ``nnls`` the exact
            non-negative least squares of each sample, slower.
        random_state: of random starts and batches. Another seed gives other atoms: compare distributions, or match atoms.

    ``components_`` ``(atom, unit)``, ``n_iter_`` and ``reconstruction_`` (share of the centred sum of squares explained on
    the fitted data). Cost O(n d k) an iteration. Raises InputError for negative activations (take a layer behind a
    rectifier), sizes below 1 and shapes that do not fit; NonFiniteError for NaN.
    """

    def __init__(
        self,
        n_atoms: int,
        init: Init = "nndsvda",
        max_iter: int = 400,
        tol: float = 1e-4,
        batch_size: int | None = None,
        solver: Literal["descent", "nnls"] = "descent",
        random_state: int = 0,
    ) -> None:
        self.n_atoms, self.init, self.max_iter, self.tol = n_atoms, init, max_iter, tol
        self.batch_size, self.solver, self.random_state = batch_size, solver, random_state

    def fit(self, features: Float[Tensor, "sample unit"] | Any, y: Any = None) -> Self:
        """Learns the dictionary."""
        self._fit(features)
        return self

    def fit_transform(self, features: Any, y: Any = None, **_: Any) -> Float[np.ndarray, "sample atom"]:
        """Learns the dictionary and returns the codes of the same samples as :meth:`transform` would."""
        self._fit(features)
        return self.transform(features)

    def _fit(self, features: Any) -> None:
        values = _nonnegative(features)
        if self.n_atoms < 1 or self.solver not in ("descent", "nnls"):
            raise InputError(
                f"n_atoms is {self.n_atoms} and solver '{self.solver}', expected atoms, and descent or nnls"
            )
        if not values.any():
            raise InputError("all activations are 0, so there is nothing to learn a dictionary of")
        init: Any = self.init if self.n_atoms <= min(values.shape) else "random"
        common: dict[str, Any] = {
            "n_components": self.n_atoms, "init": init, "max_iter": self.max_iter, "tol": self.tol,
            "random_state": self.random_state,
        }  # fmt: skip
        kind = NMF(**common) if self.batch_size is None else MiniBatchNMF(**common, batch_size=self.batch_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # n_iter_ says it
            try:
                self._model = kind.fit(values)
            except ValueError as error:  # scikit-learn names the option and what it may be
                raise InputError(str(error).splitlines()[0]) from error
        self.components_, self.n_iter_ = self._model.components_.astype(np.float64), int(self._model.n_iter_)
        spread = float(((values - values.mean(0)) ** 2).sum())
        left = float(((values - self.decode(self.transform(values))) ** 2).sum())
        self.reconstruction_ = 1 - left / spread if spread > 0 else 1.0

    def transform(self, features: Float[Tensor, "sample unit"] | Any) -> Float[np.ndarray, "sample atom"]:
        """Non-negative codes of activations."""
        values = _nonnegative(features)
        if values.shape[1] != self.components_.shape[1]:
            raise InputError(f"activations have {values.shape[1]} units, the dictionary {self.components_.shape[1]}")
        if self.solver == "nnls":
            return np.stack([nnls(self.components_.T, row)[0] for row in values])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return self._model.transform(values).astype(np.float64)

    encode = transform

    def decode(self, codes: Float[np.ndarray, "sample atom"]) -> Float[np.ndarray, "sample unit"]:
        """Activations that codes stand for."""
        return np.asarray(codes, dtype=np.float64) @ self.components_

    def dictionary(self, site: str = "") -> Dictionary:
        """As a :class:`~netloupe.core.dictionary.Dictionary` of ``site``, which can be saved and put into a network.

        Its codes are the non-negative least squares to a tolerance of 1e-5, also where ``solver`` is ``descent``.
        """
        return Dictionary(torch.from_numpy(self.components_.copy()), "nonnegative", site, "non-negative factorisation")


def _nonnegative(features: Any) -> Float[np.ndarray, "sample unit"]:
    values = as_rows(features, ndim=(2,)).array().double().cpu().numpy()
    if (values < 0).any():
        raise InputError(
            f"activations go down to {values.min():.3g}, a non-negative dictionary needs a layer behind a rectifier"
        )
    return values


def hoyer(atoms: Float[np.ndarray, "atom unit"]) -> Float[np.ndarray, " atom"]:
    """``(sqrt(d) - |a|_1 / |a|_2) / (sqrt(d) - 1)`` of each row: 1 on a single unit, 0 spread evenly; NaN for a row of zeros."""
    rows = np.atleast_2d(np.asarray(atoms, dtype=np.float64))
    width = rows.shape[1]
    if width < 2:
        raise InputError(f"atoms have {width} unit, at least 2 are needed to tell concentrated from spread")
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.sqrt(width) - np.abs(rows).sum(1) / np.linalg.norm(rows, axis=1)) / (np.sqrt(width) - 1)


class MetaFeatures(NamedTuple):
    """Groups of similar atoms: ``groups`` ``(atom,)``, ``centres`` ``(group, unit)``, ``complexity`` ``(group,)`` their means."""

    groups: Int[np.ndarray, " atom"]
    centres: Float[np.ndarray, "group unit"]
    complexity: Float[np.ndarray, " group"]


def meta_features(
    atoms: Float[np.ndarray, "atom unit"],
    complexity: Float[np.ndarray, " atom"],
    n_groups: int = 150,
    random_state: int = 0,
) -> MetaFeatures:
    """k-means of a dictionary's rows and the mean complexity of each group, groups in order of it; NaN are left out of means.

    Raises InputError for more groups than atoms or a complexity for another number of atoms.
    """
    atoms, values = np.asarray(atoms, dtype=np.float64), np.asarray(complexity, dtype=np.float64)
    if atoms.ndim != 2 or values.shape != (len(atoms),) or not 1 <= n_groups <= len(atoms):
        raise InputError(
            f"atoms have shape {atoms.shape}, complexity {values.shape} and n_groups is {n_groups}; one complexity for each "
            "atom and at most as many groups are expected"
        )
    model = KMeans(n_groups, n_init="auto", random_state=random_state).fit(atoms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a group of features without complexity
        means = np.array([np.nanmean(values[model.labels_ == group]) for group in range(n_groups)])
    order = np.argsort(means)
    rank = np.empty(n_groups, np.int64)
    rank[order] = np.arange(n_groups)
    return MetaFeatures(rank[model.labels_], model.cluster_centers_[order], means[order])
