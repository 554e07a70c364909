"""Entropy and mutual information read from the spectrum of a diffusion over the samples.

Source: Liu, Liao et al., "Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion
Spectral Entropy", arXiv 2312.04823. Every number depends on the bandwidth ``sigma``, on the diffusion time ``t`` and on
the number of samples: keep them with it, and compare only at equal sample numbers and matched scales.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import linalg

from netloupe.core.errors import InputError
from netloupe.core.rows import as_rows
from netloupe.lenses.information.estimators import entropy_of_counts, numbers
from netloupe.lenses.information.spectra import Square, chebyshev_spectrum, lanczos_entropy

MAX_N = 2000
"""most samples whose spectrum is computed; above, a random subset of so many"""
Normalization = Literal["walk", "anisotropic"]
Method = Literal["exact", "slq", "chebyshev", "entries"]
Points = Float[np.ndarray, "sample unit"] | Float[torch.Tensor, "sample unit"] | Any


class DegenerateSpectrumWarning(UserWarning):
    """The bandwidth sees all samples as one, or every sample as alone."""


def suggest_sigma(z: Points, max_n: int = MAX_N, seed: int = 0) -> float:
    """The median distance between two samples of ``(sample, unit)``, of a random ``max_n`` of them where there are more.

    Raises InputError where more than half of all pairs coincide, for then no scale can be read.
    """
    z = points(z, max_n, seed)
    sigma = float(np.sqrt(np.median(_squared_distances(z)[np.triu_indices(len(z), 1)])))
    if sigma == 0:
        raise InputError("more than half of all pairs of samples coincide, so their median distance is 0; give a sigma")
    return sigma


def gaussian_kernel(z: Points, sigma: float = 10.0) -> Square:
    """``exp(-|z_i - z_j|^2 / (2 sigma^2))``, float64 ``(sample, sample)``."""
    _check_positive(sigma=sigma)
    squared = _squared_distances(points(z))
    squared /= -2.0 * sigma**2
    return np.exp(squared, out=squared)


def diffusion_matrix(kernel: Square, normalization: Normalization = "walk", alpha: float = 0.5) -> Square:
    """A symmetric matrix with the eigenvalues of the diffusion over ``kernel``.

    ``walk``: ``G_ij / sqrt(d_i d_j)``, similar to the random walk ``D^-1 G``; this is what the authors' code computes.
    ``anisotropic``: first ``K_ij = G_ij / (d_i d_j)^alpha``, which takes out ``alpha`` of the density, then the walk on
    ``K``; this is the paper's text at ``alpha = 1/2``. The largest eigenvalue is 1 in both.
    """
    if normalization not in ("walk", "anisotropic") or not 0 <= alpha <= 1:
        raise InputError(f"normalization is '{normalization}' and alpha {alpha}; walk or anisotropic, and 0 to 1")
    if normalization == "anisotropic":
        weight = kernel.sum(1) ** -alpha
        kernel = kernel * weight[:, None] * weight
    scale = kernel.sum(1) ** -0.5
    return kernel * scale[:, None] * scale


def diffusion_spectrum(
    z: Points, sigma: float = 10.0, normalization: Normalization = "walk", alpha: float = 0.5
) -> Float[np.ndarray, " sample"]:
    """Eigenvalues of the diffusion over all samples, float64 ``(sample,)`` ascending, of :func:`diffusion_matrix`.

    Args:
        z: ``(sample, unit)``; sigma: bandwidth in the units of ``z``.

    Cost: O(n^2 d + n^3) time and O(n^2) memory; all samples are used. Raises InputError for fewer than two samples or
    ``sigma`` not above 0, NonFiniteError for NaN.
    """
    return kernel_spectrum(gaussian_kernel(z, sigma), normalization, alpha)


def spectral_entropy(
    eigenvalues: Float[np.ndarray, " value"], t: float = 1, base: float = 2, official: bool = False
) -> float:
    """``-sum a log a`` with ``a_i = |e_i|^t / sum_j |e_j|^t``, and ``0 log 0 = 0``.

    ``official`` adds 2.2e-16 to every ``a_i``, as the authors' code does: without it nothing changes but digits.
    """
    _check_positive(t=t)
    weights = np.abs(np.asarray(eigenvalues)) ** t
    if weights.ndim != 1 or not weights.sum() > 0:
        raise InputError(f"eigenvalues of shape {weights.shape} were given; one row that is not all zero is expected")
    return _entropy_of(weights / weights.sum(), official) / np.log2(base)


def diffusion_spectral_entropy(
    z: Points,
    *,
    sigma: float = 10.0,
    t: float = 1,
    max_n: int = MAX_N,
    seed: int = 0,
    method: Method = "exact",
    normalization: Normalization = "walk",
    alpha: float = 0.5,
    official: bool = False,
) -> float:
    """Diffusion spectral entropy in bits: about log2 of the number of structures that the samples form; 0 to log2 n.

    Args:
        z: ``(sample, unit)``; tensor, array or stored site.
        sigma: bandwidth in the units of ``z``. The paper's 10 is absolute: see :func:`suggest_sigma`.
        t: diffusion time; larger washes out more noise. The authors aim at about 1 % of powered eigenvalues over 0.01.
        max_n: above it, a random subset of so many samples (``seed``); values at different n do not compare.
        method: ``exact``; ``slq``, approximate by stochastic Lanczos quadrature (see :func:`lanczos_entropy`);
            ``chebyshev``, the code's approximate density of states, which its authors advise against; ``entries``, the
            entropy of the entries of the transition matrix in place of its spectrum (``t`` is not used).
        normalization, alpha: see :func:`diffusion_matrix`.
        official: the code's draw of the subset (Python's ``random``) and its rounding constant.

    Cost: O(n^2 d + n^3) time and O(n^2) memory; ``slq`` O(n^2) times 40 steps and 20 probes. Raises InputError and
    NonFiniteError as :func:`diffusion_spectrum`. Warns where all samples are alone or all one at this bandwidth.
    """
    _check_positive(t=t, max_n=max_n)
    kernel = gaussian_kernel(points(z, max_n, seed, official), sigma)
    _warn_if_degenerate(kernel, sigma)
    return kernel_entropy(kernel, t, method, normalization, alpha, seed, official)


def kernel_spectrum(
    kernel: Square, normalization: Normalization = "walk", alpha: float = 0.5
) -> Float[np.ndarray, " sample"]:
    """:func:`diffusion_spectrum` of a kernel that is there already."""
    return _eigenvalues(diffusion_matrix(kernel, normalization, alpha))


def kernel_entropy(
    kernel: Square,
    t: float = 1,
    method: Method = "exact",
    normalization: Normalization = "walk",
    alpha: float = 0.5,
    seed: int = 0,
    official: bool = False,
) -> float:
    """:func:`diffusion_spectral_entropy` of a kernel that is there already."""
    matrix = diffusion_matrix(kernel, normalization, alpha)
    if method == "exact":
        return spectral_entropy(_eigenvalues(matrix), t, official=official)
    if method == "slq":
        return lanczos_entropy(matrix, t, seed=seed)[0]
    if method == "chebyshev":
        return spectral_entropy(chebyshev_spectrum(matrix, seed=seed), t, official=official)
    if method == "entries":
        rows = matrix / matrix.sum(1, keepdims=True)
        return _entropy_of((rows / rows.sum()).reshape(-1), official)
    raise InputError(f"method is '{method}', expected exact, slq, chebyshev or entries")


def reference_clusters(reference: Any, n_clusters: int = 10) -> Int[np.ndarray, " sample"]:
    """The discrete variable that a reference stands for, ``(sample,)``.

    Whole numbers ``(sample,)`` are taken as they are; real numbers are cut into ``n_clusters`` equal bins between their
    extremes; vectors ``(sample, unit)`` are grouped by spectral clustering on nearest neighbours. Raises InputError for
    a reference that does not vary.
    """
    array = reference.detach().cpu().numpy() if isinstance(reference, torch.Tensor) else np.asarray(reference)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim not in (1, 2) or len(array) < 2 or array.dtype.kind not in "fiub":
        raise InputError(
            f"the reference has shape {array.shape} and dtype {array.dtype}; numbers (sample,) are expected"
        )
    if not np.isfinite(array).all():
        raise InputError("the reference holds NaN or infinity; remove such samples")
    if (array == array[0]).all():
        raise InputError("the reference is the same for every sample, so nothing can be known about it")
    if array.ndim == 1 and array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array.ndim == 1:
        scaled = (array - array.min()) / (array.max() - array.min())
        return np.digitize(scaled, np.linspace(0, 1, n_clusters + 1)[:-1]).astype(np.int64)
    from sklearn.cluster import SpectralClustering

    grouping = SpectralClustering(n_clusters, affinity="nearest_neighbors", assign_labels="cluster_qr", random_state=0)
    return np.asarray(grouping.fit_predict(array), np.int64)


def diffusion_spectral_mutual_information(
    z: Points,
    reference: Any = None,
    *,
    clusters: Int[np.ndarray, " sample"] | None = None,
    n_clusters: int = 10,
    repeats: int = 5,
    sigma: float = 10.0,
    t: float = 1,
    max_n: int = MAX_N,
    seed: int = 0,
    entropy: Callable[[Float[np.ndarray, "sample unit"]], float] | None = None,
    official: bool = False,
) -> tuple[float, Int[np.ndarray, " sample"]]:
    """How much the entropy drops, in bits, when a label or a group of another variable is known; and the groups.

    ``sum_b p(b) [mean over repeats of H(A*) - H(A | B = b)]``, where ``A*`` are as many random samples as the group has:
    the entropy grows with n, so only equal numbers compare. It may be slightly negative. arXiv 2312.04823.

    Args:
        z: ``(sample, unit)``. reference: labels ``(sample,)``, real numbers, or vectors; :func:`reference_clusters`.
        clusters: the groups, if they are known: compute those of a fixed reference once for a whole training run.
        repeats: random subsets for each group. sigma, t, max_n: of :func:`diffusion_spectral_entropy`.
        entropy: another measure in its place, :func:`classic_entropy` or :func:`adjacency_spectral_entropy`.
        official: the authors' draws (Python's ``random``, seed set anew for each group) and rounding constant.

    Cost: ``(repeats + 1)`` spectra for each group; ten groups cost less than one entropy of all. Raises InputError for a
    constant reference and lengths that differ. Warns of groups of one sample, whose entropy is 0.
    """
    values, terms = group_entropy_drops(
        z, reference, clusters, n_clusters, repeats, sigma, t, max_n, seed, entropy, official
    )
    return float(terms.mean(0).sum()), values


def group_entropy_drops(
    z: Points, reference: Any, clusters: Any, n_clusters: int, repeats: int, sigma: float, t: float, max_n: int,
    seed: int, entropy: Callable[[np.ndarray], float] | None, official: bool,
) -> tuple[Int[np.ndarray, " sample"], Float[np.ndarray, "repeat group"]]:  # fmt: skip
    """The groups, and ``p(b) [H(A*) - H(A | b)]`` of every repeat and group: their sum over groups is the information."""
    rows = points(z)
    groups = reference_clusters(reference, n_clusters) if clusters is None else reference_clusters(clusters)
    if len(groups) != len(rows):
        raise InputError(f"there are {len(rows)} samples and {len(groups)} references; one for each is needed")
    if repeats < 1:
        raise InputError(f"repeats is {repeats}, at least 1 is needed")

    def measure(chosen: np.ndarray) -> float:
        if entropy is not None:
            return entropy(rows[chosen])
        if len(chosen) < 2:
            return 0.0
        kernel = gaussian_kernel(points(rows[chosen], max_n, seed, official), sigma)
        return kernel_entropy(kernel, t, official=official)

    names, counts = np.unique(groups, return_counts=True)
    if counts.min() < 2:
        warnings.warn(f"group {names[counts.argmin()]} has one sample, whose entropy is 0", stacklevel=3)
    terms = np.zeros((repeats, len(names)))
    generator = np.random.default_rng(seed)
    for index, (name, count) in enumerate(zip(names, counts)):
        inside = measure(np.flatnonzero(groups == name))
        python = random.Random(seed)
        for repeat in range(repeats):
            drawn = python.sample(range(len(rows)), int(count)) if official else None
            chosen = generator.choice(len(rows), count, replace=False) if drawn is None else np.array(drawn)
            terms[repeat, index] = count / len(rows) * (measure(chosen) - inside)
    return groups, terms


def classic_entropy(z: Points, bins_per_unit: int = 2, official: bool = False) -> float:
    """Shannon entropy in bits after cutting every unit's range into equal bins: distinct rows of bins are symbols.

    ``(sample, unit)``; a unit that does not vary is one bin. With many units every sample is its own symbol and the
    entropy log2 n, which says nothing.
    """
    _check_positive(bins_per_unit=bins_per_unit)
    rows = points(z)
    low, high = rows.min(0), rows.max(0)
    scaled = (rows - low) / np.where(high > low, high - low, 1.0)
    cut = np.digitize(scaled, np.linspace(0, 1, bins_per_unit + 1)[:-1])
    counts = np.unique(cut, axis=0, return_counts=True)[1]
    return _entropy_of(counts / counts.sum(), True) if official else entropy_of_counts(counts)


def adjacency_spectral_entropy(
    z: Points,
    *,
    kind: Literal["gaussian", "normalized", "knn"] = "gaussian",
    sigma: float = 10.0,
    n_neighbors: int = 10,
    max_n: int = MAX_N,
    seed: int = 0,
    official: bool = False,
) -> float:
    """The same entropy of the spectrum of an adjacency matrix, in bits: a baseline without diffusion.

    ``gaussian``: the kernel itself; ``normalized``: :func:`diffusion_matrix` of it; ``knn``: 1 where a sample is among
    the ``n_neighbors`` nearest of another, itself included (not symmetric: magnitudes of complex eigenvalues).
    """
    rows = points(z, max_n, seed, official)
    if kind == "knn":
        if not 1 <= n_neighbors <= len(rows):
            raise InputError(f"n_neighbors is {n_neighbors} for {len(rows)} samples; 1 to all of them are possible")
        squared = _squared_distances(rows)
        adjacency = (squared <= np.partition(squared, n_neighbors - 1, axis=1)[:, [n_neighbors - 1]]).astype(float)
        symmetric = np.array_equal(adjacency, adjacency.T)
        return spectral_entropy(
            _eigenvalues(adjacency) if symmetric else np.linalg.eigvals(adjacency), official=official
        )
    if kind not in ("gaussian", "normalized"):
        raise InputError(f"kind is '{kind}', expected gaussian, normalized or knn")
    kernel = gaussian_kernel(rows, sigma)
    return spectral_entropy(_eigenvalues(kernel if kind == "gaussian" else diffusion_matrix(kernel)), official=official)


def points(
    z: Points, max_n: int | None = None, seed: int = 0, official: bool = False
) -> Float[np.ndarray, "sample unit"]:
    """``(sample, unit)`` as float64, a random ``max_n`` of the samples where there are more."""
    if isinstance(z, np.ndarray) and z.dtype == np.float64 and z.ndim == 2 and len(z) > 1 and np.isfinite(z).all():
        rows = z
    else:
        rows = np.concatenate([numbers(batch.values) for batch in as_rows(z, ndim=(2,), min_samples=2)])
        rows = rows.astype(np.float64)
    if max_n is None or len(rows) <= max_n:
        return rows
    if official:
        return rows[random.Random(seed).sample(range(len(rows)), max_n)]
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), max_n, replace=False))]


def _squared_distances(rows: Float[np.ndarray, "sample unit"]) -> Square:
    """By one matrix product of centred rows; clipped at 0 and exactly 0 on the diagonal."""
    centred = rows - rows.mean(0)
    lengths = np.einsum("ij,ij->i", centred, centred)
    squared = centred @ centred.T
    squared *= -2.0
    squared += lengths
    squared += lengths[:, None]
    np.maximum(squared, 0.0, out=squared)
    np.fill_diagonal(squared, 0.0)
    return squared


def _eigenvalues(matrix: Square) -> Float[np.ndarray, " sample"]:
    return linalg.eigvalsh(matrix, check_finite=False)


def _entropy_of(shares: Float[np.ndarray, " symbol"], official: bool) -> float:
    if official:
        shares = shares + np.finfo(float).eps
        return float(-(shares * np.log2(shares)).sum())
    kept = shares[shares > 0]
    return float(max(-(kept * np.log2(kept)).sum(), 0.0))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}, a number above 0 is expected")


def _warn_if_degenerate(kernel: Square, sigma: float) -> None:
    np.fill_diagonal(kernel, 0.0)
    largest = kernel.max()
    np.fill_diagonal(kernel, 1.0)
    if largest < 1e-6:
        text = "every sample is alone at this bandwidth, so the entropy is log2 n; raise sigma"
    elif kernel.min() > 0.999:
        text = "all samples are one at this bandwidth, so the entropy is near 0; lower sigma"
    else:
        return
    warnings.warn(f"sigma {sigma:g}: {text}", DegenerateSpectrumWarning, stacklevel=3)
