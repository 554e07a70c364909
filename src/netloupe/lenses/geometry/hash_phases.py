"""Where on the way from too small to large enough is a network: redundancy and categorisation over size and training.

Source: He et al., "Neural networks behave as hash encoders: An empirical study", arXiv 2101.05490. The paper draws three
regimes; the rule that tells them here by numbers is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.geometry.code_classes import METHODS, SEED, Method, code_categorization
from netloupe.lenses.geometry.codes import K

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REGIMES = ("under-expressive", "critically-expressive", "sufficiently-expressive")
MOST_REDUNDANT = 0.05
"""training redundancy above which a network is under-expressive"""
NEAR_BEST = 0.02
"""how far K-NN accuracy may be under the best of its row for a network to be sufficiently expressive"""


class Cell(NamedTuple):
    """What a trained network gives to the chart: codes (or bits) and classes of training and test samples."""

    train: Any
    y: Any
    test: Any
    y_test: Any


@dataclass(frozen=True, eq=False)
class HashPhases(Finding):
    """The chart. All tables are ``(row, size)``: a row is one training time or sample size, ``axis2``.

    ``regime`` int64: place in ``REGIMES``. ``knn``, ``logistic``, ``kmeans`` (purity on training codes): NaN where not asked.
    """

    sizes: tuple[float, ...]
    axis2: tuple[float, ...]
    redundancy_train: np.ndarray
    redundancy_test: np.ndarray
    knn: np.ndarray
    logistic: np.ndarray
    kmeans: np.ndarray
    regime: np.ndarray
    names: tuple[str, str]

    meanings: ClassVar[dict[str, str]] = {
        "sufficient_share": "share of the chart where codes are unique and neighbours as good as the best of the row",
        "under_share": "share where training samples share codes",
        "critical_share": "share in between: unique codes, neighbours not yet as good",
        "monotone_last": "share of steps in size, in the last row, that do not lead to a lower regime",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        shares = [float((self.regime == index).mean()) for index in range(3)]
        return {
            "sufficient_share": shares[2],
            "under_share": shares[0],
            "critical_share": shares[1],
            "monotone_last": float((np.diff(self.regime[-1]) >= 0).mean()) if len(self.sizes) > 1 else 1.0,
        }

    def plot(self, axes: Axes) -> None:
        """Regimes as colours, with K-NN accuracy (above) and training redundancy (below) in each cell."""
        axes.imshow(self.regime, cmap="RdYlGn", vmin=-0.5, vmax=2.5, origin="lower", aspect="auto", alpha=0.6)
        for row in range(len(self.axis2)):
            for column in range(len(self.sizes)):
                text = f"{self.knn[row, column]:.2f}\nR {self.redundancy_train[row, column]:.2f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6)
        axes.set(
            xticks=range(len(self.sizes)), xticklabels=[f"{size:g}" for size in self.sizes], xlabel=self.names[0],
            yticks=range(len(self.axis2)), yticklabels=[f"{value:g}" for value in self.axis2], ylabel=self.names[1],
        )  # fmt: skip


class HashPhaseChart:
    """Runs a grid of model size and training time (or sample size) and tells the regime of every cell.

    Under-expressive: training redundancy above 0.05. Critically expressive: not that, but K-NN accuracy more than 0.02
    under the best of its row, which are the sizes at one ``axis2`` value (or of the whole ``chart``). Else sufficiently.

    Args:
        sizes, axis2: the grid; rising numbers.
        train_fn: ``train_fn(size, value)`` gives the :class:`Cell` of a network; keep trained networks there if values of
            ``axis2`` are checkpoints of one run.
        methods, k, seed: of :func:`code_categorization`; ``knn`` is always among them, for the rule needs it.
        best: ``row`` or ``chart``, what K-NN accuracy is compared with.
        names: of the two axes.

    Cost: that of ``train_fn`` and of the categorisation, for each cell. Raises InputError for an empty grid.
    """

    def __init__(
        self,
        sizes: Sequence[float],
        axis2: Sequence[float],
        train_fn: Callable[[Any, Any], Cell | tuple[Any, Any, Any, Any]],
        *,
        methods: Sequence[Method] = METHODS,
        k: int = K,
        seed: int = SEED,
        best: Literal["row", "chart"] = "row",
        names: tuple[str, str] = ("model size", "training time"),
    ) -> None:
        if not len(sizes) or not len(axis2) or best not in ("row", "chart"):
            raise InputError(
                f"the chart has {len(sizes)} sizes, {len(axis2)} values and best='{best}'; at least one of each, and row or chart, "
                "are needed"
            )
        self.sizes, self.axis2, self.train_fn = tuple(sizes), tuple(axis2), train_fn
        self.methods: tuple[Method, ...] = tuple(dict.fromkeys(("knn", *methods)))
        self.best: Literal["row", "chart"] = best
        self.k, self.seed, self.names = k, seed, names

    def run(self, reference: Float[np.ndarray, "row size"] | None = None) -> HashPhases:
        """The chart. ``reference``: K-NN accuracies ``(row, size)`` of another chart, whose best take the place of its own."""
        shape = (len(self.axis2), len(self.sizes))
        tables = {
            name: np.full(shape, np.nan)
            for name in ("redundancy_train", "redundancy_test", "knn", "logistic", "kmeans")
        }
        for row, value in enumerate(self.axis2):
            for column, size in enumerate(self.sizes):
                cell = Cell(*self.train_fn(size, value))
                found = code_categorization(*cell, methods=self.methods, k=self.k, seed=self.seed)
                for name, table in tables.items():
                    got = getattr(found, "kmeans_train" if name == "kmeans" else name)
                    table[row, column] = np.nan if got is None else got
        compared = tables["knn"] if reference is None else np.asarray(reference, float)
        if compared.shape != shape:
            raise InputError(f"reference has shape {compared.shape}, expected {shape}: rows of axis2, columns of sizes")
        regime = regimes(tables["redundancy_train"], tables["knn"], compared, self.best)
        return HashPhases(
            tuple(float(s) for s in self.sizes), tuple(float(v) for v in self.axis2), tables["redundancy_train"],
            tables["redundancy_test"], tables["knn"], tables["logistic"], tables["kmeans"], regime, self.names,
        )  # fmt: skip


def regimes(
    redundancy: Float[np.ndarray, "row size"],
    knn: Float[np.ndarray, "row size"],
    compared: Float[np.ndarray, "row size"],
    best: Literal["row", "chart"] = "row",
) -> Int[np.ndarray, "row size"]:
    """Place in ``REGIMES`` of every cell, by the rule of :class:`HashPhaseChart`."""
    top = compared.max(1, keepdims=True) if best == "row" else compared.max()
    return np.where(redundancy > MOST_REDUNDANT, 0, np.where(knn < top - NEAR_BEST, 1, 2)).astype(np.int64)
