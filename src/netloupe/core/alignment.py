"""Two arrays of the same samples, read side by side; linear alignment of single directions with a site.

Source: linear CKA, Kornblith et al., arXiv 1905.00414, for a representation and a single feature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.rows import Rows, as_rows
from netloupe.core.statistics import Covariance, CrossCovariance, CrossMoments, JointMoments

_BATCH_VALUES = 2**23  # a batch of samples with many positions is cut to so many numbers: 64 MiB


def vector_cka(
    features: Float[Tensor, "sample unit"] | Any, codes: Float[Tensor, "sample feature"] | Any
) -> Float[np.ndarray, " feature"]:
    """``|X'z|^2 / (|X'X|_F |z|^2)`` of centred ``X`` and each centred column ``z``: 1 where ``X`` varies along ``z`` alone.

    Args:
        features: ``(sample, unit)``. codes: ``(sample, feature)`` of the same samples, or ``(sample,)`` for one.

    Returns:
        One number in [0, 1] for each feature; NaN for a feature that does not vary, and for all if no unit does.

    Cost O(n d (d + k)) and O(d (d + k)) memory; streams. Raises InputError for shapes that do not fit and fewer than two
    samples, NonFiniteError for NaN.
    """
    x, z = paired_rows(features, codes, min_samples=2)
    own, cross = Covariance(), CrossCovariance()
    for one, other in zip(x, z, strict=True):
        own.update(one.values)
        cross.update(one.values, other.values)
    found = cross.result()
    return cka_of_scatter(own.result().scatter, found.scatter, found.squares_b)


def cka_of_scatter(
    own: Float[np.ndarray, "unit unit"],
    cross: Float[np.ndarray, "unit feature"],
    squares: Float[np.ndarray, " feature"],
) -> Float[np.ndarray, " feature"]:
    """:func:`vector_cka` from sums of products of deviations."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (cross**2).sum(0) / (np.linalg.norm(own) * squares)
    found[squares <= 0] = np.nan
    return np.minimum(found, 1.0) if own.any() else np.full(len(squares), np.nan)


def paired_rows(features: Any, codes: Any, min_samples: int, ndim: tuple[int, ...] = (2,)) -> tuple[Rows, Rows]:
    """Two arrays of the same samples, read in batches of one size; a single column may come as ``(sample,)``.

    With ``ndim=(2, 3)`` both may have positions, which must be as many.
    """
    if getattr(codes, "ndim", 2) == 1:
        codes = codes[:, None]
    x, z = as_rows(features, ndim=ndim, min_samples=min_samples), as_rows(codes, ndim=ndim, min_samples=min_samples)
    if x.n_samples != z.n_samples:
        raise InputError(
            f"features have {x.n_samples} samples and the other {z.n_samples}; the same samples are needed in both"
        )
    if x.shape[1:-1] != z.shape[1:-1]:
        raise InputError(
            f"features have shape {x.shape} and the other {z.shape}; the same positions are needed in both, or none: pool both"
        )
    positions = x.shape[1] if len(x.shape) == 3 else 1
    size = min(x.batch_size, z.batch_size, max(1, _BATCH_VALUES // (positions * max(x.n_units, z.n_units))))
    return Rows(x.source, None, None, size), Rows(z.source, None, None, size)


def joint_moments(x: Rows, z: Rows) -> JointMoments:
    """Means and all correlations of the units of two sites (:func:`paired_rows`), in one pass."""
    moments = CrossMoments()
    for one, other in zip(x, z, strict=True):
        moments.update(one.values, other.values)
    return moments.result()
