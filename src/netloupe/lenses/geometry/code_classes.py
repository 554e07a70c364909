"""What trivial algorithms recover of the class from the on/off pattern alone: K-Means, K-NN, logistic regression.

Source: He et al., "Neural networks behave as hash encoders: An empirical study", arXiv 2101.05490.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.geometry.code_neighbours import classes_of, knn_votes
from netloupe.lenses.geometry.codes import K, redundancy_ratio
from netloupe.lenses.geometry.packed_codes import PackedCodes, as_codes, drop_constant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("kmeans", "knn", "logistic")
SEED = 9  # of K-Means and of the regression, as published
Method = Literal["kmeans", "knn", "logistic"]


@dataclass(frozen=True, eq=False)
class CodeCategorization(Finding):
    """Redundancy of training and test codes, and how well the class is read from the bits; None for methods not asked.

    ``kmeans_*`` is purity: every cluster is given the class of most of its members, which flatters; ``matched_*`` the accuracy
    with clusters and classes matched one to one.
    """

    redundancy_train: float
    redundancy_test: float
    knn: float | None
    logistic: float | None
    kmeans_train: float | None
    kmeans_test: float | None
    matched_train: float | None
    matched_test: float | None
    largest_class: float
    n_train: int
    n_test: int
    n_bits: int
    n_dropped: int
    k: int

    meanings: ClassVar[dict[str, str]] = {
        "knn": "test accuracy of the nearest codes' vote",
        "redundancy_train": "share of training samples that repeat a code",
        "redundancy_test": "share of test samples that repeat a code of the test samples",
        "logistic": "test accuracy of one-against-one logistic regressions on the bits",
        "kmeans_train": "purity of K-Means clusters of the training codes",
        "kmeans_test": "purity of K-Means clusters of the test codes",
        "matched_train": "the same on training codes with one class a cluster",
        "matched_test": "the same on test codes with one class a cluster",
        "largest_class": "share of the largest class among the test samples",
        "standard_error": "largest standard error of a test accuracy",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains, without those not asked for."""
        named = {name: getattr(self, name) for name in self.meanings if name != "standard_error"}
        named["standard_error"] = self.standard_error
        return {name: float(value) for name, value in named.items() if value is not None}

    @property
    def standard_error(self) -> float:
        """Largest binomial standard error among the test accuracies; 0 where none was asked for."""
        tested = [value for value in (self.knn, self.logistic, self.kmeans_test) if value is not None]
        return max((float(np.sqrt(p * (1 - p) / self.n_test)) for p in tested), default=0.0)

    def plot(self, axes: Axes) -> None:
        """Bars of all shares."""
        shown = {name: value for name, value in self.summary().items() if name != "standard_error"}
        colours = [
            "C3" if name.startswith("redundancy") else "0.7" if name == "largest_class" else "C0" for name in shown
        ]
        axes.barh(list(shown), list(shown.values()), color=colours)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share")


def contingency(clusters: Any, labels: Any) -> np.ndarray:
    """``(cluster, class)``: how many samples of each class every cluster has."""
    (_, a), (_, b) = classes_of(clusters), classes_of(labels)
    if len(a) != len(b) or not len(a):
        raise InputError(f"{len(a)} clusters and {len(b)} labels were given; one of each for every sample is needed")
    table = np.zeros((a.max() + 1, b.max() + 1), np.int64)
    np.add.at(table, (a, b), 1)
    return table


def purity(labels_pred: Any, y: Any) -> float:
    """``(1/n) sum_clusters max_class n(cluster, class)``: each cluster is given the class of most of its members.

    Many clusters may be given one class. At least the share of the largest class, and it rises with the number of
    clusters: report :func:`matched_accuracy` beside it.

    Args:
        labels_pred, y: whole numbers ``(sample,)``.

    Raises InputError for other shapes or different lengths.
    """
    table = contingency(labels_pred, y)
    return float(table.max(1).sum() / table.sum())


def matched_accuracy(labels_pred: Any, y: Any) -> float:
    """Accuracy with clusters and classes matched one to one in the best way (Hungarian)."""
    table = contingency(labels_pred, y)
    return float(table[linear_sum_assignment(-table)].sum() / table.sum())


def code_categorization(
    train: Any,
    y: Any,
    test: Any,
    y_test: Any,
    methods: Sequence[Method] = METHODS,
    k: int = K,
    seed: int = SEED,
    *,
    n_init: int | Literal["auto"] = "auto",
    official: bool = False,
) -> CodeCategorization:
    """Redundancy of both sets and the class read from the bits by K-NN, logistic regression and K-Means.

    Bits that are constant over training and test codes together are dropped first. K-NN (Hamming distance, equal weights)
    and logistic regression (one against one) are fitted on the training codes and judged on the test codes; K-Means has as many
    clusters as ``y`` has classes and is fitted and judged on the same set, either set by itself.

    Args:
        train, test: packed codes, or bits ``(sample, unit)``, of the same units.
        y, y_test: classes, ``(sample,)`` whole numbers.
        methods: which of ``kmeans, knn, logistic``. k: neighbours. seed: random state of K-Means and of the regression.
        n_init: starts of K-Means; ``auto`` is scikit-learn's one.
        official: break ties among neighbours as scikit-learn's brute force does, which depends on the order of samples; by
            default those tied for the last places share them.

    Cost: K-NN n m U / 64 counts of bits; K-Means and regression on n U doubles. Raises InputError for activations in place of
    bits, different units, more neighbours than training codes, an unknown method, or labels that do not fit. Codes whose bits
    are all constant give redundancy (n - 1) / n, a warning, and the accuracies of a guess.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError(f"'{unknown[0]}' is no method; there are {', '.join(METHODS)}")
    a, b = as_codes(train), as_codes(test)
    n_before = a.n_bits
    a, b = drop_constant(a, b)
    (classes, y_a), (known, y_b) = classes_of(y), classes_of(y_test)
    if len(y_a) != len(a) or len(y_b) != len(b):
        raise InputError(f"{len(y_a)} and {len(y_b)} labels were given for {len(a)} and {len(b)} codes")
    truth = known[y_b]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no bits are left was said above
        redundancies = redundancy_ratio(a), redundancy_ratio(b)
    found: dict[str, float | None] = dict.fromkeys(
        ("knn", "logistic", "kmeans_train", "kmeans_test", "matched_train", "matched_test")
    )
    if "knn" in methods:
        found["knn"] = float((_nearest(a, classes, y_a, b, k, official) == truth).mean())
    if "logistic" in methods:
        found["logistic"] = float((_regressed(a, classes, y_a, b, seed) == truth).mean())
    if "kmeans" in methods:
        for name, codes, labels in (("train", a, y_a), ("test", b, y_b)):
            clusters = _clustered(codes, len(classes), seed, n_init)
            found[f"kmeans_{name}"], found[f"matched_{name}"] = (
                purity(clusters, labels),
                matched_accuracy(clusters, labels),
            )
    return CodeCategorization(
        *redundancies, found["knn"], found["logistic"], found["kmeans_train"], found["kmeans_test"], found["matched_train"],
        found["matched_test"], largest_class=float(np.bincount(y_b).max() / len(y_b)),
        n_train=len(a), n_test=len(b), n_bits=a.n_bits, n_dropped=n_before - a.n_bits, k=k,
    )  # fmt: skip


def _nearest(
    train: PackedCodes, classes: np.ndarray, y: np.ndarray, test: PackedCodes, k: int, official: bool
) -> np.ndarray:
    if not official or not train.n_bits:
        return classes[knn_votes(train, y, len(classes), test, k).argmax(1)]
    from sklearn.neighbors import KNeighborsClassifier

    if k > len(train):
        raise InputError(f"k is {k}, but there are {len(train)} other codes; fewer neighbours are needed")
    model = KNeighborsClassifier(k, metric="hamming").fit(train.bits().astype(np.int8), y)
    return classes[model.predict(test.bits().astype(np.int8))]


def _regressed(train: PackedCodes, classes: np.ndarray, y: np.ndarray, test: PackedCodes, seed: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsOneClassifier

    if len(classes) < 2 or not train.n_bits:
        return np.full(len(test), classes[np.bincount(y).argmax()])
    model = OneVsOneClassifier(LogisticRegression(random_state=seed)).fit(train.bits().astype(np.float64), y)
    return classes[model.predict(test.bits().astype(np.float64))]


def _clustered(codes: PackedCodes, n_clusters: int, seed: int, n_init: int | Literal["auto"]) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if not codes.n_bits:
        return np.zeros(len(codes), np.int64)
    if len(codes) < n_clusters:
        raise InputError(f"{len(codes)} codes cannot make {n_clusters} clusters, one a class; give more samples")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # fewer different codes than clusters is a finding, not a fault
        model = KMeans(n_clusters, n_init=n_init, random_state=seed)  # pyright: ignore[reportArgumentType]
        return np.asarray(model.fit_predict(codes.bits().astype(np.float64)), np.int64)
