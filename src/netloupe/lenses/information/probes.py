"""Probes: what a simple decoder can read about labels from features, in bits and in accuracy.

A probe's accuracy says little by itself. The usable information (V-information) of a family of decoders is ``H(Y)`` minus
the cross-entropy of its best member on held-out samples: the bits about the label that this family, and not an
unlimited reader, can use. Source: Xu et al., "A Theory of Usable Information under Computational Constraints", arXiv
2002.10689; a sample's own share follows Ethayarajh et al., arXiv 2110.08420.

The estimators follow scikit-learn: ``fit``, ``predict``, ``predict_proba``, ``score``, and ``usable_information``.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from netloupe.core.errors import InputError
from netloupe.core.nulls import permuted
from netloupe.core.rows import as_rows
from netloupe.core.splits import bootstrap, holdout
from netloupe.lenses.information.perceptron import LOWEST, Perceptron, Settings, cross_entropy

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MIN_PER_CLASS = 4


class Probe(ClassifierMixin, BaseEstimator):
    """Base of the probes: checks, standardises by the fitted samples alone, and counts bits.

    Attributes after ``fit``: ``classes_`` ``(class,)``; ``prior_`` ``(class,)``, the shares of the classes among the
    fitted samples; ``mean_`` and ``scale_`` ``(unit,)`` (1 where a unit does not vary). Features are ``(sample, unit)``,
    tensors, arrays or stored sites; arithmetic is float64.
    """

    ndim_: ClassVar[int] = 2

    def fit(self, features: Any, labels: Any) -> Self:
        """Learns to read ``labels`` ``(sample,)`` from ``features``.

        Raises InputError for other shapes, labels that are no whole numbers, fewer than two classes, or a class with a
        single sample; NonFiniteError for NaN and infinity.
        """
        x, found = self._inputs(features, labels)
        self.classes_, codes = np.unique(found, return_inverse=True)
        counts = np.bincount(codes)
        if len(counts) < 2 or counts.min() < 2:
            raise InputError(
                f"the labels name {len(counts)} classes, the rarest with {counts.min()} samples; "
                "at least 2 classes with 2 samples each are needed"
            )
        self.prior_ = counts / counts.sum()
        rows = x.reshape(-1, x.shape[-1])
        self.mean_, spread = rows.mean(0), rows.std(0)
        self.scale_ = np.where(spread > 1e-12 * (1 + np.abs(self.mean_)), spread, 1.0)
        with threadpool_limits(1), warnings.catch_warnings():  # two threads lose more by waiting than they gain
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._fit((x - self.mean_) / self.scale_, codes)
        return self

    def unfitted(self, **changes: Any) -> Self:
        """A probe of the same settings, or with some of them changed, that has seen nothing."""
        return type(self)(**{**self.get_params(deep=False), **changes})

    def predict_proba(self, features: Any) -> Float[np.ndarray, "sample class"]:
        """The probability of each class, in the order of ``classes_``."""
        x, _ = self._inputs(features, None)
        if x.shape[-1] != len(self.mean_):
            raise InputError(f"features have {x.shape[-1]} units, the probe was fitted to {len(self.mean_)}")
        with threadpool_limits(1):
            return self._probabilities((x - self.mean_) / self.scale_)

    def predict(self, features: Any) -> Int[np.ndarray, " sample"]:
        """The likeliest class of each sample."""
        return self.classes_[self.predict_proba(features).argmax(1)]

    def pointwise_information(self, features: Any, labels: Any) -> Float[np.ndarray, " sample"]:
        """Bits about each sample's label: ``log2 p(y | x) - log2 p(y)``, with ``p(y)`` the share among fitted samples."""
        _, found = self._inputs(features, labels)
        codes = np.searchsorted(self.classes_, found)
        known = self.classes_[np.minimum(codes, len(self.classes_) - 1)] == found
        if not known.all():
            raise InputError(f"label {found[~known][0]} was not among the fitted samples; give classes that were")
        given = self.predict_proba(features)[np.arange(len(found)), codes]
        return np.log2(np.maximum(given, LOWEST)) - np.log2(self.prior_[codes])

    def usable_information(self, features: Any, labels: Any) -> float:
        """Bits about the label that this probe can use, on average: ``H(Y)`` minus the cross-entropy; may fall below 0."""
        return float(self.pointwise_information(features, labels).mean())

    def _inputs(self, features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = as_rows(features, labels, ndim=(self.ndim_,))
        found = np.empty(0, np.int64) if rows.labels is None else rows.labels.cpu().numpy()
        return rows.array().double().cpu().numpy(), found

    @abstractmethod
    def _fit(self, x: np.ndarray, codes: np.ndarray) -> None: ...

    @abstractmethod
    def _probabilities(self, x: np.ndarray) -> np.ndarray: ...


class LinearProbe(Probe):
    """Multinomial logistic regression with a ridge penalty on standardised features (scikit-learn's, L-BFGS).

    Args:
        C: inverse strength of the penalty. None chooses among 1e-4, 1e-3, 1e-2, 0.1 and 1 the one that predicts a fifth
            of the fitted samples best, then fits them all: the family's best member, not an overfitted one.
        max_iter: of the solver.
        random_state: of that inner split.

    ``strength_`` is the C in use, ``coef_`` ``(class, unit)`` and ``intercept_`` act on standardised features. Cost
    O(n d K) an iteration.
    """

    def __init__(self, C: float | None = None, max_iter: int = 200, random_state: int = 0) -> None:
        self.C, self.max_iter, self.random_state = C, max_iter, random_state

    def _fit(self, x: np.ndarray, codes: np.ndarray) -> None:
        if self.C is not None and not self.C > 0:
            raise InputError(f"C is {self.C}, expected a positive number or None")
        self.strength_ = self._chosen(x, codes) if self.C is None else self.C
        self._model = self._regression(self.strength_).fit(x, codes)
        self.coef_, self.intercept_ = self._model.coef_, self._model.intercept_

    def _regression(self, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=self.max_iter)

    def _chosen(self, x: np.ndarray, codes: np.ndarray) -> float:
        n_classes = int(codes.max()) + 1
        n_judged = max(len(codes) // 5, n_classes)
        if len(codes) < 2 * n_judged:
            return 1e-2
        pair = holdout(len(codes), n_judged / len(codes), labels=codes, random_state=self.random_state)
        fitted, judged = (side.numpy() for side in pair)
        model, losses = LogisticRegression(max_iter=self.max_iter, warm_start=True), []
        for strength in STRENGTHS:
            model.set_params(C=strength).fit(x[fitted], codes[fitted])
            losses.append(cross_entropy(model.predict_proba(x[judged]), codes[judged]))
        return STRENGTHS[int(np.argmin(losses))]

    def _probabilities(self, x: np.ndarray) -> np.ndarray:
        return self._model.predict_proba(x)


class MLPProbe(Probe):
    """A perceptron with one small hidden layer of rectified units (Adam), stopped where the cross-entropy on a tenth of the
    fitted samples was lowest.

    Args:
        n_hidden: rectified units.
        max_iter: most epochs.
        learning_rate, batch_size: of Adam.
        alpha: L2 penalty.
        random_state: of initial weights, batches and the inner split; one number, one answer.

    Cost O(n h (d + K)) an epoch; some tens of epochs.
    """

    def __init__(
        self,
        n_hidden: int = 32,
        max_iter: int = 200,
        learning_rate: float = 1e-2,
        batch_size: int = 32,
        alpha: float = 1e-2,
        random_state: int = 0,
    ) -> None:
        self.n_hidden, self.max_iter, self.learning_rate = n_hidden, max_iter, learning_rate
        self.batch_size, self.alpha, self.random_state = batch_size, alpha, random_state

    def _fit(self, x: np.ndarray, codes: np.ndarray) -> None:
        if self.n_hidden < 1:
            raise InputError(f"n_hidden is {self.n_hidden}, expected at least 1")
        n_classes, rng = int(codes.max()) + 1, np.random.default_rng(self.random_state)
        share = min(0.5, max(0.1, 1.5 * n_classes / len(codes)))
        fitted, judged = (
            side.numpy() for side in holdout(len(codes), share, labels=codes, random_state=self.random_state)
        )
        settings = Settings(self.learning_rate, self.batch_size, self.alpha, self.max_iter)
        self._model = Perceptron(x.shape[1], self.n_hidden, n_classes, rng)
        self._model.fit((x[fitted], codes[fitted]), (x[judged], codes[judged]), settings, rng)

    def _probabilities(self, x: np.ndarray) -> np.ndarray:
        return self._model.probabilities(x)

    @staticmethod
    def matched(n_parameters: int, n_units: int, n_classes: int) -> int:
        """The ``n_hidden`` whose perceptron comes nearest to a number of parameters; at least 1."""
        return max(1, round((n_parameters - n_classes) / (n_units + 1 + n_classes)))


@dataclass(frozen=True)
class Judged:
    """A probe on samples that it was not fitted to; intervals are 95 % bootstrap intervals over these.

    ``hits`` and ``pointwise`` ``(sample,)`` are what the means are taken of, ``judged`` the samples' indices.
    ``chance_*`` belong to the same probe fitted to, and judged on, permuted labels; NaN where not asked for.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    bits: float
    bits_interval: tuple[float, float]
    label_bits: float
    chance_accuracy: float
    chance_bits: float
    n_fitted: int
    judged: Int[np.ndarray, " sample"]
    hits: np.ndarray
    pointwise: Float[np.ndarray, " sample"]


def judge(
    probe: Probe,
    features: Any,
    labels: Any,
    *,
    share: float = 0.25,
    groups: Any = None,
    chance: bool = True,
    n_bootstrap: int = 500,
    random_state: int = 0,
) -> Judged:
    """Fits a copy of ``probe`` to some samples and says what it can read of the others.

    Args:
        probe: any :class:`Probe`; it is left as it is.
        features, labels: as the probe takes them.
        share: of samples held out, with the same share of every class.
        groups: one value a sample (subject, file); groups are then held out whole.
        chance: whether to fit permuted labels too, which is what the numbers must be compared with.
        n_bootstrap: draws for the intervals.
        random_state: of the split, the permutation and the draws.

    Raises InputError for unusable input, or fewer than four samples of a class.
    """
    rows = as_rows(features, labels, ndim=(probe.ndim_,), min_samples=MIN_PER_CLASS)
    targets = required_labels(rows.labels)
    values = rows.array()
    fitted, judged = holdout(len(targets), share, None if groups is not None else targets.numpy(), groups, random_state)
    used = probe.unfitted().fit(values[fitted], targets[fitted])
    given, pointwise = values[judged], used.pointwise_information(values[judged], targets[judged])
    hits = used.predict(given) == targets[judged].numpy()
    lost, guesses = float("nan"), float("nan")
    if chance:
        blind = probe.unfitted().fit(values[fitted], permuted(targets[fitted], random_state))
        nothing = permuted(targets[judged], random_state + 1)
        lost = blind.usable_information(given, nothing)
        guesses = float((blind.predict(given) == nothing.numpy()).mean())
    draws = draws_of(len(judged), n_bootstrap, random_state)
    codes = np.searchsorted(used.classes_, targets[judged].numpy())
    return Judged(
        accuracy=float(hits.mean()), accuracy_interval=interval(hits, draws),
        bits=float(pointwise.mean()), bits_interval=interval(pointwise, draws),
        label_bits=float(-np.log2(used.prior_[codes]).mean()), chance_accuracy=guesses, chance_bits=lost,
        n_fitted=len(fitted), judged=judged.numpy(), hits=hits, pointwise=pointwise,
    )  # fmt: skip


def required_labels(labels: torch.Tensor | None) -> torch.Tensor:
    """Labels with at least two classes and :data:`MIN_PER_CLASS` samples of each, on the CPU."""
    if labels is None:
        raise InputError("no labels were given, and a probe reads labels; give one class index for each sample")
    found, counts = torch.unique(labels.cpu(), return_counts=True)
    if len(found) < 2 or int(counts.min()) < MIN_PER_CLASS:
        raise InputError(
            f"the labels name {len(found)} classes, the rarest with {int(counts.min())} samples; at least 2 classes "
            f"with {MIN_PER_CLASS} samples each are needed"
        )
    return labels.cpu().long()


def draws_of(n_samples: int, n_draws: int, random_state: int) -> Int[np.ndarray, "draw sample"]:
    """Bootstrap draws of sample indices."""
    return np.stack([drawn.numpy() for drawn in bootstrap(n_samples, n_draws, random_state=random_state)])


def interval(values: np.ndarray, draws: Int[np.ndarray, "draw sample"]) -> tuple[float, float]:
    """95 % percentile interval of the mean."""
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)
