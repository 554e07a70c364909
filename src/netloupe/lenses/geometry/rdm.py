"""Representational dissimilarity matrices, condensed: a thin face on :mod:`netloupe.core.dissimilarity`.

Source: Kriegeskorte, Mur and Bandettini (2008), doi 10.3389/neuro.06.004.2008; ranks as in Lin and Kriegeskorte, arXiv 2309.11028.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from netloupe.core.dissimilarity import Metric, crossnobis, dissimilarity
from netloupe.core.errors import InputError
from netloupe.core.geotopology import rank_minmax

__all__ = ["rank_minmax", "rdm"]


def rdm(
    features: Float[Tensor, "sample unit"] | Any,
    metric: Metric = "euclidean",
    cv_folds: Any = None,
    conditions: Any = None,
    precision: Float[np.ndarray, "unit unit"] | None = None,
) -> Float[np.ndarray, " pair"]:
    """Distances between all samples or, cross-validated, between conditions that were measured several times.

    Args:
        features: ``(sample, unit)``. metric: see :func:`netloupe.core.dissimilarity.dissimilarity`.
        cv_folds, conditions: ``(sample,)`` each: the run and the condition of every measurement. Then distances are cross-validated
            (crossnobis, squared, in rising order of the conditions) with ``precision`` the inverse covariance of the noise.

    Returns float64 ``(pair,)``, n (n - 1) / 2 of them. Cost O(n^2 d). Raises InputError for ``cv_folds`` without ``conditions`` and
    the reverse, and as those functions do.
    """
    if (cv_folds is None) != (conditions is None):
        raise InputError("cross-validated distances need both cv_folds and conditions; give both, or neither")
    if cv_folds is not None:
        if metric != "euclidean":
            raise InputError(f"metric is '{metric}', but cross-validated distances are Euclidean ones; leave it out")
        return crossnobis(features, conditions, cv_folds, precision)[0]
    return dissimilarity(features, metric)
