"""Which prototypes activations gather around when each must earn an equal share, asked of one site.

Source: arXiv 1907.07853; the rule is :class:`netloupe.lenses.dictionary.adaptive_thresholds.AdaptiveThresholdClusters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding, Place
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.lenses.dictionary.adaptive_thresholds import AdaptiveThresholdClusters

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_FEATURES, PRESENTED = 16, 20_000


@dataclass(frozen=True, eq=False)
class EqualShares(Finding):
    """Prototypes of a site's samples, by direction.

    ``directions`` float64 ``(feature, unit)`` of length 1; ``thresholds`` ``(window, feature)``, how the selection thresholds moved;
    ``share`` ``(feature,)``: of the samples, for which each is the most similar; ``typical``: the sample most similar to each.
    """

    directions: Float[np.ndarray, "feature unit"]
    thresholds: Float[np.ndarray, "window feature"]
    share: Float[np.ndarray, " feature"]
    typical: Int[np.ndarray, " feature"]
    closeness: float
    evenness: float
    miss_rate: float
    miss_rate_in_balance: float
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "closeness": "mean cosine between a sample and its most similar prototype",
        "evenness": "entropy of the wins while learning over the logarithm of the number of prototypes; 1 is equal shares",
        "miss_rate": "share of samples that no prototype claimed, in the second half of learning",
        "miss_rate_in_balance": "what that share is once no threshold drifts, whatever the data are",
        "largest_share": "share of samples that the most frequent prototype is nearest to, thresholds aside",
        "dead": "prototypes that are nearest to no sample",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        found = (
            self.closeness, self.evenness, self.miss_rate, self.miss_rate_in_balance, self.share.max(), (self.share == 0).sum(),
        )  # fmt: skip
        return dict(zip(self.meanings, map(float, found), strict=True))

    def paragraph(self) -> str:
        """The answer in plain words."""
        gap = abs(self.miss_rate / self.miss_rate_in_balance - 1)
        return (
            f"A sample's direction has a cosine of {self.closeness:.2f} with the nearest of {len(self.directions)} prototypes that were "
            f"made to win equally often; nearest to most samples is one with {100 * self.share.max():.0f} % of {self.n_samples}, and "
            f"{int((self.share == 0).sum())} to none. While learning {100 * self.miss_rate:.1f} % were claimed by nobody"
            + (
                "."
                if gap <= 0.3
                else f", in balance {100 * self.miss_rate_in_balance:.1f} %: the thresholds still drift."
            )
        )

    def places(self) -> list[Place]:
        """The sample most like each of the most frequent prototypes, at the prototype's heaviest unit."""
        order = np.argsort(-self.share, kind="stable")[:8]
        found = []
        for i in order[self.share[order] > 0]:
            unit = int(np.abs(self.directions[i]).argmax())
            found.append(Place(float(self.directions[i, unit]), int(self.typical[i]), 0, unit))
        return found

    def plot(self, axes: Axes) -> None:
        """How the thresholds moved."""
        axes.plot(np.arange(1, len(self.thresholds) + 1), self.thresholds, lw=0.8)
        axes.set(xlabel="thousands of presented samples", ylabel="selection thresholds")


@lens(
    question="Around which prototypes do samples gather when each must win an equal share?",
    needs=("features",),
    pooled=True,
    min_samples=2,
)
def equal_shares(
    features: Float[Tensor, "sample unit"] | Any,
    n_features: int | None = None,
    eta: float = 0.01,
    gain: float = 0.001,
    loosen: float = 0.003,
    presented: int = PRESENTED,
    random_state: int = 0,
) -> EqualShares:
    """Learns prototypes of a site's samples by adaptive selection thresholds, the samples gone through again and again.

    Args:
        features: ``(sample, unit)``; only directions count, samples of length 0 are left out. n_features: default 16, or as many as
            there are samples if fewer. eta, gain, loosen: :class:`AdaptiveThresholdClusters`, started with k-means++.
        presented: so many samples are shown at least. random_state: of the start.

    Cost O(presented x n_features x unit); reads the samples once an epoch. Raises InputError for sizes that make no sense and for
    activations that are all 0, NonFiniteError for NaN.
    """
    rows = as_rows(features, ndim=(2,), min_samples=2)
    if presented < 2000:
        raise InputError(f"presented is {presented}, expected at least 2000, or no prototype forgets its start")
    n = min(N_FEATURES, rows.n_samples) if n_features is None else n_features
    epochs = -(-presented // rows.n_samples)
    start = "kmeans++" if n <= min(rows.n_samples, 1000) else "normal"
    model = AdaptiveThresholdClusters(n, eta, gain, loosen, start, epochs=epochs, seed=random_state)
    try:
        model.fit(rows)
    except InputError as error:
        if start == "normal" or "were to start" not in str(error):
            raise
        model.set_params(init="normal").fit(rows)  # most samples are 0: too few directions to start at
    counts, best, typical, total, seen = np.zeros(n), np.full(n, -np.inf), np.zeros(n, np.int64), 0.0, 0
    for batch in rows:
        x = batch.values.detach().cpu().double().numpy()
        lengths = np.linalg.norm(x, axis=1)
        kept = np.flatnonzero(lengths > 0)
        cosines = x[kept] @ model.directions_.T / lengths[kept, None]
        if not len(kept):
            continue
        counts += np.bincount(cosines.argmax(1), minlength=n)
        total, seen = total + float(cosines.max(1).sum()), seen + len(kept)
        first = cosines.argmax(0)
        better = cosines[first, np.arange(n)] > best
        best[better], typical[better] = cosines[first, np.arange(n)][better], batch.samples.numpy()[kept[first[better]]]
    half = max(model.n_seen_ // 2, model.log_every) if len(model.history_.seen) else None
    evenness = model.evenness(half)
    return EqualShares(
        model.directions_, model.history_.thresholds, counts / seen, typical, total / seen,
        evenness if np.isfinite(evenness) else 0.0, model.miss_rate(half), model.expected_miss_rate, rows.n_samples,
    )  # fmt: skip
