"""Prototypes that each earn an equal share of a stream of vectors, by selection thresholds that move (FEAST, arXiv 1907.07853).

Every feature has a threshold on its similarity. Winning raises the winner's; a vector that nobody claims lowers all. In the steady state
no threshold drifts, ``gain P(win_i) = loosen m`` for every feature, so that with N of them ``m = gain / (gain + N loosen)`` of the vectors
are missed and each feature wins ``(1 - m) / N``, whatever the data are. Events: :mod:`netloupe.lenses.dictionary.feast`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError
from netloupe.core.rows import as_rows
from netloupe.lenses.dictionary.feast_kernels import learn, learn_plain

Init = Literal["uniform", "normal", "samples", "kmeans++"]
CLOSED = 1 - 1e-6  # a threshold that only a vector equal to the feature passes
FORGETTING = 3  # a feature forgets its start in about this many of its own wins times 1 / eta


class History(NamedTuple):
    """One entry for each window of ``log_every`` vectors.

    ``seen`` vectors up to its end. ``miss_rate``: share of the window that no feature claimed. ``wins`` in the window and ``thresholds``
    ``(feature,)`` at its end. ``threshold_drift``: mean size of the thresholds' change over the window. ``weight_drift``: mean of one minus
    the cosine of each feature with itself at the window's start.
    """

    seen: Int[np.ndarray, " window"]
    miss_rate: Float[np.ndarray, " window"]
    wins: Int[np.ndarray, "window feature"]
    thresholds: Float[np.ndarray, "window feature"]
    threshold_drift: Float[np.ndarray, " window"]
    weight_drift: Float[np.ndarray, " window"]


class AdaptiveThresholdClusters(ClusterMixin, BaseEstimator):
    """Online clustering of vectors by direction, with thresholds that give every feature an equal share.

    For each vector ``d`` of length 1, in order: similarities ``s = W d``. Of the features with ``s_i > threshold_i`` the most similar
    wins (ties: the first): ``W_i <- (1 - eta) W_i + eta d``, made of length 1 again, and its threshold rises by ``gain``. If there is none,
    all thresholds fall by ``loosen`` and no feature changes. Vectors of length 0 are left out.

    Args:
        n_features: N. eta: learning rate; a feature needs about ``3 / eta`` wins to forget its start, so N times as many vectors are a
            floor for a run. gain, loosen: steps of the thresholds, on the scale of the cosine.
        init: of the features: ``uniform`` in 0 to 1 (for vectors without negative entries), ``normal``, ``samples`` (random ones of the
            first vectors) or ``kmeans++`` on these. thresholds: ``closed`` (just below 1) or ``random`` (uniform in 0 to 1).
        adaptive: False is plain winner-take-all: no thresholds, the most similar feature always wins.
        clip: thresholds stay in 0 to 1; the authors' demonstration does not clip, and has gain .001 and loosen .01.
        block: vectors compared with the same features before these learn from them, one by one; above 1 faster, and not quite the rule.
        epochs: passes that ``fit`` makes. log_every: vectors of a window of ``history_``. seed: of the start.
        backend: ``numba``, or ``numpy``, which gives the same winners slowly.

    Attributes: ``directions_`` float64 ``(feature, unit)`` of length 1, ``thresholds_``, ``wins_`` and ``last_win_`` (index of the last
    vector that it won, -1 for never) ``(feature,)``, ``n_seen_``, ``n_missed_``, ``scale_`` ``(feature,)`` (mean length of the vectors
    won), ``history_``.

    Cost O(N d) a vector, one after the other; the state is N vectors, so streams of any length. Raises InputError for options and shapes
    that make no sense, NonFiniteError for NaN.
    """

    def __init__(
        self,
        n_features: int = 100,
        eta: float = 0.001,
        gain: float = 0.001,
        loosen: float = 0.003,
        init: Init = "uniform",
        thresholds: Literal["closed", "random"] = "closed",
        adaptive: bool = True,
        clip: bool = True,
        block: int = 1,
        epochs: int = 1,
        log_every: int = 1000,
        seed: int = 0,
        backend: Literal["numba", "numpy"] = "numba",
    ) -> None:
        self.n_features, self.eta, self.gain, self.loosen = n_features, eta, gain, loosen
        self.init, self.thresholds, self.adaptive, self.clip, self.block = init, thresholds, adaptive, clip, block
        self.epochs, self.log_every, self.seed, self.backend = epochs, log_every, seed, backend

    def fit(self, features: Float[Tensor, "sample unit"] | Any, y: Any = None) -> Self:
        """Forgets what was learned and learns from vectors in their order, ``epochs`` times."""
        self.__dict__.pop("thresholds_", None)
        rows = as_rows(features, ndim=(2,))
        if self.epochs < 1:
            raise InputError(f"epochs is {self.epochs}, expected at least 1")
        for _ in range(self.epochs):
            self.partial_fit(rows)
        return self

    def partial_fit(self, features: Float[Tensor, "sample unit"] | Any, y: Any = None) -> Self:
        """Goes on learning from more vectors, in their order."""
        rows = as_rows(features, ndim=(2,))
        if hasattr(self, "thresholds_") and rows.n_units != self.directions_.shape[1]:
            raise InputError(f"vectors have {rows.n_units} units, those before had {self.directions_.shape[1]}")
        for batch in rows:
            values = batch.values.detach().cpu().double().numpy()
            lengths = np.linalg.norm(values, axis=1)
            kept = lengths > 0
            if kept.any():
                self._learn(np.ascontiguousarray(values[kept] / lengths[kept, None]), lengths[kept])
        if not hasattr(self, "thresholds_"):
            raise InputError("all vectors are 0; there is no direction to learn")
        return self

    def _learn(self, rows: Float[np.ndarray, "sample unit"], lengths: Float[np.ndarray, " sample"]) -> None:
        if not hasattr(self, "thresholds_"):
            self._begin(rows)
        step = learn if self.backend == "numba" else learn_plain
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + self.log_every - self.n_seen_ % self.log_every)
            winners = np.empty(stop - start, np.int64)
            self.n_missed_ += step(
                rows[start:stop], self._weights, self.thresholds_, self.wins_, winners, self.eta, self.gain, self.loosen,
                self.adaptive, self.clip, self.block,
            )  # fmt: skip
            hits = np.flatnonzero(winners >= 0)
            np.maximum.at(self.last_win_, winners[hits], hits + self.n_seen_)
            np.add.at(self._length_won, winners[hits], lengths[start:stop][hits])
            self.n_seen_ += stop - start
            if self.n_seen_ % self.log_every == 0:
                self._log()
            start = stop

    def _begin(self, rows: Float[np.ndarray, "sample unit"]) -> None:
        self._check()
        rng, n, d = np.random.default_rng(self.seed), self.n_features, rows.shape[1]
        if self.init in ("samples", "kmeans++") and len(rows) < n:
            raise InputError(
                f"{n} features were to start at {len(rows)} vectors; give at least as many at first, or init='uniform'"
            )
        if self.init == "samples":
            first = rows[rng.choice(len(rows), n, replace=False)]
        elif self.init == "kmeans++":
            first = kmeans_plusplus(rows, n, random_state=self.seed)[0]
        else:
            first = rng.random((n, d)) if self.init == "uniform" else rng.standard_normal((n, d))
        self._weights = np.ascontiguousarray((first / np.linalg.norm(first, axis=1, keepdims=True)).T)
        self.thresholds_ = np.full(n, CLOSED) if self.thresholds == "closed" else rng.random(n)
        self.wins_, self.last_win_, self._length_won = np.zeros(n, np.int64), np.full(n, -1), np.zeros(n)
        self.n_seen_ = self.n_missed_ = 0
        self._records: list[tuple[Any, ...]] = []
        self._mark()

    def _check(self) -> None:
        if self.n_features < 1 or self.log_every < 1 or self.block < 1:
            raise InputError(
                f"n_features is {self.n_features}, log_every {self.log_every} and block {self.block}; expected at least 1 each"
            )
        if not 0 <= self.eta <= 1 or self.gain < 0 or self.loosen < 0:
            raise InputError(
                f"eta is {self.eta}, gain {self.gain} and loosen {self.loosen}; expected 0 to 1 and two numbers not below 0"
            )
        if (
            self.init not in get_args(Init)
            or self.thresholds not in ("closed", "random")
            or self.backend not in ("numba", "numpy")
        ):
            raise InputError(
                f"init is '{self.init}', thresholds '{self.thresholds}' and backend '{self.backend}'; expected one of "
                f"{', '.join(get_args(Init))}, closed or random, and numba or numpy"
            )

    def _mark(self) -> None:
        self._before = self._weights.copy(), self.thresholds_.copy(), self.wins_.copy(), self.n_missed_

    def _log(self) -> None:
        weights, thresholds, wins, missed = self._before
        self._records.append((
            self.n_seen_, (self.n_missed_ - missed) / self.log_every, self.wins_ - wins, self.thresholds_.copy(),
            float(np.abs(self.thresholds_ - thresholds).mean()), float((1 - (weights * self._weights).sum(0)).mean()),
        ))  # fmt: skip
        self._mark()

    @property
    def directions_(self) -> Float[np.ndarray, "feature unit"]:
        """The features, of length 1."""
        return np.ascontiguousarray(self._weights.T)

    @property
    def scale_(self) -> Float[np.ndarray, " feature"]:
        """Mean length of the vectors that each feature has won; 1 where it has won none."""
        return np.where(self.wins_ > 0, self._length_won / np.maximum(self.wins_, 1), 1.0)

    @property
    def history_(self) -> History:
        """What each window of ``log_every`` vectors was like."""
        n = self.n_features
        columns = list(zip(*self._records, strict=True)) or [[], [], np.empty((0, n), int), np.empty((0, n)), [], []]
        return History(*(np.asarray(column) for column in columns))

    @property
    def expected_miss_rate(self) -> float:
        """``gain / (gain + N loosen)``, the share that is missed once no threshold drifts; holds while none is held at 0 or 1."""
        total = self.gain + self.n_features * self.loosen
        return self.gain / total if self.adaptive and total else 0.0

    def miss_rate(self, last: int | None = None) -> float:
        """Share of vectors that no feature claimed: of all, or of about the ``last`` ones (whole windows)."""
        if last is None:
            return self.n_missed_ / max(self.n_seen_, 1)
        return float(self.history_.miss_rate[-self._windows(last) :].mean())

    def wins(self, last: int | None = None) -> Int[np.ndarray, " feature"]:
        """How often each feature won: ever, or in about the ``last`` vectors (whole windows)."""
        return self.wins_.copy() if last is None else self.history_.wins[-self._windows(last) :].sum(0)

    def _windows(self, last: int) -> int:
        found = -(-last // self.log_every)
        if not 1 <= found <= len(self._records):
            raise InputError(
                f"the last {last} vectors were asked for, {len(self._records)} windows of {self.log_every} are recorded"
            )
        return found

    def evenness(self, last: int | None = None) -> float:
        """Entropy of the wins over log N: 1 when all win alike. NaN for a single feature or none that won."""
        wins = self.wins(last)
        if self.n_features < 2 or not wins.sum():
            return float("nan")
        share = wins[wins > 0] / wins.sum()
        return float(-(share * np.log(share)).sum() / np.log(self.n_features))

    def dead(self) -> Bool[np.ndarray, " feature"]:
        """Features without a win in the last ``3000 N`` vectors (``3 N / eta`` at the default rate)."""
        return self.last_win_ < max(self.n_seen_ - 3000 * self.n_features, 0)

    def predict(self, features: Float[Tensor, "sample unit"] | Any) -> Int[np.ndarray, " sample"]:
        """The most similar feature of each vector; thresholds play no part. A vector of length 0 gets the first."""
        rows = as_rows(features, ndim=(2,))
        if rows.n_units != len(self._weights):
            raise InputError(f"vectors have {rows.n_units} units, the features {len(self._weights)}")
        return np.concatenate([
            (batch.values.detach().cpu().double().numpy() @ self._weights).argmax(1) for batch in rows
        ])  # fmt: skip

    def dictionary(self, site: str = "") -> Dictionary:
        """As a :class:`~netloupe.core.dictionary.Dictionary`: code 1 at the nearest prototype, as long as what it won."""
        unit = torch.from_numpy(self.directions_)
        return Dictionary(
            unit * torch.from_numpy(self.scale_)[:, None], "nearest", site, "adaptive selection thresholds", weight=unit, k=1,
            options={"eta": self.eta, "gain": self.gain, "loosen": self.loosen, "seed": self.seed, "n_seen": int(self.n_seen_)},
        )  # fmt: skip
