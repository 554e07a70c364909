"""How many distinct features does each layer hold? The units that iterative merging leaves, at several tolerances.

Source: arXiv 2310.06756.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from netloupe.core.batches import batches_of, prepare
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.units import Unknown
from netloupe.lenses.similarity.feature_merging import BETAS, merge_features
from netloupe.lenses.similarity.merging_engine import BatchNorm, Distance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ASKED = (0.05, 0.1, 0.2)
MAX_UNITS = 4096


@dataclass(frozen=True, eq=False)
class FeatureComplexity(Finding):
    """Units left, ``(tolerance, group)``, of ``n_units`` each; groups ``names`` in the order of their layers.

    ``n_parameters`` ``(tolerance,)`` of the merged networks, ``all_parameters`` before. ``left_alone``: groups that were not merged,
    and why.
    """

    names: tuple[str, ...]
    n_units: Int[np.ndarray, " group"]
    betas: Float[np.ndarray, " tolerance"]
    left: Int[np.ndarray, "tolerance group"]
    n_parameters: Int[np.ndarray, " tolerance"]
    all_parameters: int
    left_alone: dict[str, str]

    meanings: ClassVar[dict[str, str]] = {
        "left": "share of units left when units that are computed and read alike are merged, at tolerance 0.1",
        "beta": "the tolerance: largest distance merged over the largest distance in the layer",
        "least": "the same in the layer where it is smallest",
        "parameters": "share of parameters left",
        "layers": "layers that could be merged",
    }

    @property
    def fractions(self) -> Float[np.ndarray, "tolerance group"]:
        """Share of each group's units left."""
        return self.left / self.n_units

    def _main(self) -> int:
        return int(np.abs(self.betas - 0.1).argmin())

    def summary(self) -> dict[str, float]:
        """``left`` over all layers and ``least`` in one, at the tolerance nearest 0.1."""
        at = self._main()
        return {
            "left": float(self.left[at].sum() / self.n_units.sum()),
            "beta": float(self.betas[at]),
            "least": float(self.fractions[at].min()),
            "parameters": float(self.n_parameters[at] / self.all_parameters),
            "layers": float(len(self.names)),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        n, at = self.summary(), self._main()
        place = self.names[int(self.fractions[at].argmin())]
        alone = f" {len(self.left_alone)} groups were left alone." if self.left_alone else ""
        return (
            f"At tolerance {n['beta']:g}, {100 * n['left']:.0f} % of {int(self.n_units.sum())} units are distinct; fewest in '{place}', "
            f"{100 * n['least']:.0f} %. {100 * n['parameters']:.0f} % of the parameters remain.{alone} From weights alone: test the merged "
            f"network before you use it."
        )

    def plot(self, axes: Axes) -> None:
        """Share of units left by layer, a line for each tolerance."""
        for beta, row in zip(self.betas, self.fractions, strict=True):
            axes.plot(range(len(row)), row, "o-", markersize=3, label=f"tolerance {beta:g}")
        axes.set(xlabel="layer, first to last", ylabel="share of units left", ylim=(0, 1.05))
        if len(self.names) <= 12:
            axes.set_xticks(range(len(self.names)), self.names, rotation=30, ha="right", fontsize=7)
        axes.legend(frameon=False, fontsize=7)


def feature_complexity(
    model: nn.Module,
    example: Any,
    betas: Sequence[float] = BETAS,
    bn: BatchNorm = "fold",
    distance: Distance = "in+out",
    max_ratio: float = 1.0,
    unknown: Unknown = "refuse",
) -> FeatureComplexity:
    """Units of each layer left at each tolerance (:func:`~netloupe.lenses.similarity.feature_merging.merge_features`).

    Args:
        example: an input to trace shapes with. betas: tolerances from 0 to 1; each is a run of its own, for what one merges first
            another may not.

    Cost and errors as :func:`merge_features`, once for each tolerance; InputError for none.
    """
    if not len(betas):
        raise InputError("betas is empty, at least one tolerance is needed")
    runs = [
        merge_features(model, example, float(beta), max_ratio, None, bn, distance, unknown=unknown) for beta in betas
    ]
    names = tuple(runs[0].original)
    return FeatureComplexity(
        names, np.array([runs[0].original[name] for name in names]), np.array(betas, dtype=np.float64),
        np.array([[run.complexity[name] for name in names] for run in runs]), np.array([run.n_parameters[1] for run in runs]),
        runs[0].n_parameters[0], runs[0].left_alone, context=Context(options={"bn": bn, "distance": distance}),
    )  # fmt: skip


@lens(
    question="How many distinct features does each layer hold, told from its weights alone?",
    needs=("model", "data"),
)
def distinct_features(model: nn.Module, data: Any, *, betas: Sequence[float] = ASKED) -> FeatureComplexity:
    """:func:`feature_complexity` of a network, traced with the first sample of its data; no activation is looked at.

    Batch norms are folded where that is possible and kept, with deviations adding up, where not. Parts that cannot be traced (heads of
    attention, for example) are left alone.

    Args:
        data: batches; one sample, ``(sample, ...)``, is enough.

    Cost: a tracing and O(n^2 f) for each layer of n units with f weights, for each tolerance. Raises InputError for a network that
    cannot be traced or has nothing to merge, tied parameters, a layer of more than 4,096 units, or no data.
    """
    first = next(iter(batches_of(data)), None)
    if first is None:
        raise InputError("data is empty, one batch is needed to trace the network with")
    batch = prepare(first, model)
    if batch.kwargs:
        raise InputError(
            f"the network is called with {sorted(batch.kwargs)} by name; only positional inputs are traced"
        )
    example = tuple(value[:1] for value in batch.args)
    wide = [name for name, value in model.named_parameters() if value.ndim > 1 and value.shape[0] > MAX_UNITS]
    if wide:
        raise InputError(f"'{wide[0]}' has more than {MAX_UNITS} rows, distinct_features takes at most {MAX_UNITS}")
    try:
        return feature_complexity(model, example, betas, unknown="pin")
    except InputError as error:
        if "cannot be folded" not in str(error):
            raise
        return feature_complexity(model, example, betas, "exact", unknown="pin")
