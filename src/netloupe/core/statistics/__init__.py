"""Mergeable one-pass statistics of activations: ``update``, ``merge``, ``result``.

moments, active = Moments(), Counts()
for batch in batches:
    update_all([moments, active], batch)
moments.result().variance, active.result().frequency
"""

from netloupe.core.statistics.base import Mergeable, Statistic, restore, update_all
from netloupe.core.statistics.counts import Counts, CountsResult
from netloupe.core.statistics.covariance import (
    Covariance,
    CovarianceResult,
    CrossCovariance,
    CrossCovarianceResult,
)
from netloupe.core.statistics.cross_moments import CrossMoments, JointMoments
from netloupe.core.statistics.histogram import Histogram, HistogramResult
from netloupe.core.statistics.labels import LabelMoments, LabelMomentsResult
from netloupe.core.statistics.moments import Moments, MomentsResult
from netloupe.core.statistics.quantiles import Quantiles, QuantilesResult
from netloupe.core.statistics.ranking import average_precision, best_threshold
from netloupe.core.statistics.topk import TopK, TopKResult

__all__ = [
    "Counts",
    "CountsResult",
    "Covariance",
    "CovarianceResult",
    "CrossCovariance",
    "CrossCovarianceResult",
    "CrossMoments",
    "Histogram",
    "HistogramResult",
    "JointMoments",
    "LabelMoments",
    "LabelMomentsResult",
    "Mergeable",
    "Moments",
    "MomentsResult",
    "Quantiles",
    "QuantilesResult",
    "Statistic",
    "TopK",
    "TopKResult",
    "average_precision",
    "best_threshold",
    "restore",
    "update_all",
]
