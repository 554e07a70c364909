"""A network in its local interaction basis, beside principal components: features kept, edges that carry the interaction.

Source: Bushnaq et al., "The Local Interaction Basis", arXiv 2405.10928.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.batches import batches_of, moved, prepare
from netloupe.core.capture import list_sites
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.sites import SiteInfo
from netloupe.lenses.dictionary.lib import InteractionBasis, interaction_basis
from netloupe.lenses.dictionary.lib_cut import cut
from netloupe.lenses.dictionary.lib_edges import interaction_edges
from netloupe.lenses.dictionary.lib_modules import modules

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARE = 0.99  # of a layer pair's interaction
MOST_UNITS = 512
MOST_SAMPLES = 1024
MOST_WORK = 2e11  # parameters x features x samples of a network that is asked without naming sites: some minutes


@dataclass(frozen=True, eq=False)
class LocalInteractions(Finding):
    """Per node layer and pair of them; ``pca_*`` is the same of principal components.

    ``sites`` and ``n_units`` (layers), ``kept``, ``pca_kept`` ``(layer,)``: features. ``edges``, ``pca_edges`` ``(pair,)``: the
    fewest edges that hold 99 % of the interaction of held-out samples; ``possible`` and ``pca_possible`` all of them.
    """

    sites: tuple[str, ...]
    n_units: tuple[int, ...]
    kept: np.ndarray
    pca_kept: np.ndarray
    edges: np.ndarray
    pca_edges: np.ndarray
    possible: np.ndarray
    pca_possible: np.ndarray
    modularity: float
    pca_modularity: float
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        "edges_to_pca": "edges that carry 99 % of the interaction between layers, as a share of those that principal components need",
        "edges": "edges that carry 99 % of the interaction, all pairs of layers together",
        "pca_edges": "the same between principal components",
        "features": "directions that vary and matter for the next layer, all layers but the last together",
        "pca_features": "directions that vary",
        "modularity": "how much interaction stays inside modules, beyond what chance would put there",
        "pca_modularity": "the same between principal components",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        return {
            "edges_to_pca": float(self.edges.sum() / self.pca_edges.sum()),
            "edges": float(self.edges.sum()),
            "pca_edges": float(self.pca_edges.sum()),
            "features": float(self.kept[:-1].sum()),
            "pca_features": float(self.pca_kept[:-1].sum()),
            "modularity": self.modularity,
            "pca_modularity": self.pca_modularity,
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        s = self.summary()
        return (
            f"Of {sum(self.n_units[:-1])} units in {len(self.sites) - 1} layers, {s['pca_features']:.0f} directions vary and "
            f"{s['features']:.0f} matter for the next layer. {s['edges']:.0f} edges between these carry 99 % of the interaction, "
            f"{s['edges_to_pca']:.3g} of the {s['pca_edges']:.0f} that principal components need (modularity {s['modularity']:.3g} "
            f"against {s['pca_modularity']:.3g}). Measured on {self.n_samples} samples that the basis was not made from; carrying "
            "interaction is not the same as being needed, which ablation shows."
        )

    def plot(self, axes: Axes) -> None:
        """Edges of each pair of layers in both bases."""
        place = np.arange(len(self.edges))
        axes.bar(place - 0.2, self.edges / self.possible, 0.4, label="local interaction basis")
        axes.bar(place + 0.2, self.pca_edges / self.pca_possible, 0.4, label="principal components")
        for x, n, m in zip(place, self.edges, self.pca_edges):
            axes.annotate(f"{n:.0f}", (x - 0.2, n / self.possible[x]), ha="center", va="bottom", fontsize="x-small")
            axes.annotate(f"{m:.0f}", (x + 0.2, m / self.pca_possible[x]), ha="center", va="bottom", fontsize="x-small")
        axes.set_xticks(place, [f"from {site}" for site in self.sites[:-1]], fontsize="small")
        axes.set(ylabel="share of edges that carry 99 %", ylim=(0, 1.15))
        axes.legend(frameon=False, fontsize="small")


def carrying(edges: Float[Tensor, "feature_out feature_in"] | Any, share: float = SHARE) -> int:
    """The fewest edges that hold ``share`` of the sum of all."""
    values = np.sort(np.asarray(edges, dtype=np.float64).ravel())[::-1]
    total = values.sum()
    return 0 if total <= 0 else int(np.searchsorted(np.cumsum(values), share * total) + 1)


def node_layers(model: nn.Module, infos: Sequence[SiteInfo]) -> list[SiteInfo]:
    """What each linear layer on ``(sample, unit)`` gives: where a plain network can be cut. InputError where there is none."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = [info for info in infos if len(info.shape) == 1 and info.name in linear]
    if not chosen:
        raise InputError("the network has no linear layer on (sample, unit); name the sites to cut it at")
    return chosen


@lens(
    question="In which directions do a layer's features matter downstream, and with how few of the next layer's do they interact?",
    needs=("model", "data"),
)
def local_interactions(
    model: nn.Module, data: Any, *, sites: Sequence[str] | None = None, max_samples: int = MOST_SAMPLES
) -> LocalInteractions:
    """The local interaction basis of a network and the edges between its features, beside principal components.

    The basis (arXiv 2405.10928) is made from the even samples, edges are measured on the odd ones with the gradient rule.

    Args:
        model: any network; a float64 copy of it runs in evaluation mode. data: batches.
        sites: two or more, in the order they run, each ``(sample, unit)`` or ``(sample, position, unit)``, that hold all that
            flows; by default what enters each linear layer of a plain network and the last output.
        max_samples: from the front of the data, half of them for the edges.

    Cost: one backward pass for each feature, in both bases. Raises InputError where a site is bypassed (a residual network's
    parts), for more than 512 units, fewer than 4 samples, or a network without linear layers, and the errors of ``cut``; without
    ``sites`` also for a network whose parameters times features times samples exceed 2e11.
    """
    batches = _front(model, data, max_samples)
    chosen = list(sites) if sites is not None else _unasked(model, batches)
    acts, maps = cut(model, chosen, batches)
    widest = max(each.shape[-1] for each in acts)
    if widest > MOST_UNITS:
        raise InputError(
            f"a site has {widest} units, local_interactions takes at most {MOST_UNITS}; choose other sites"
        )
    if len(acts[0]) < 4:
        raise InputError(f"the data has {len(acts[0])} samples, at least 4 are needed")
    fitted, judged = [each[::2] for each in acts], [each[1::2] for each in acts]
    found: list[tuple[InteractionBasis, list[Tensor], float]] = []
    for kind in ("jacobian", "pca"):
        basis = interaction_basis(fitted, maps, basis=kind)
        tables = [interaction_edges(basis, l, judged[l], f) for l, f in enumerate(maps)]
        inner = [each[basis.n_constant[l + 1] :, basis.n_constant[l] :] for l, each in enumerate(tables)]
        if any(0 in each.shape or not float(each.sum()) for each in inner):
            raise InputError(
                "a pair of layers does not interact at all over these samples, so there are no edges to weigh"
            )
        found.append((basis, inner, modules(inner, n_constant=0).modularity))
    (own, edges, modularity), (pca, pca_edges, pca_modularity) = found
    return LocalInteractions(
        tuple(chosen), tuple(each.shape[-1] for each in acts), np.array(own.n_features), np.array(pca.n_features),
        np.array([carrying(each) for each in edges]), np.array([carrying(each) for each in pca_edges]),
        np.array([each.numel() for each in edges]), np.array([each.numel() for each in pca_edges]),
        modularity, pca_modularity, len(judged[0]),
    )  # fmt: skip


def _unasked(model: nn.Module, batches: list[Any]) -> list[str]:
    """What enters each linear layer of a plain network and what leaves the last, where that is not the work of minutes."""
    chosen = node_layers(model, list_sites(model, batches))
    n_features = sum(info.n_units for info in chosen)
    n_samples = sum(prepare(raw, model).n_samples for raw in batches)
    work = sum(parameter.numel() for parameter in model.parameters()) * n_features * n_samples
    if work > MOST_WORK:
        raise InputError(
            f"{n_features} features of a network of this size would take {work / MOST_WORK:.1f} times what is asked for unasked; "
            "name the sites to cut it at, or give fewer samples"
        )
    return [*(f"{info.name}:in" for info in chosen), chosen[-1].name]


def _front(model: nn.Module, data: Any, most: int) -> list[Any]:
    """The first ``most`` samples, in whole and shortened batches that can be read again."""
    if most < 4:
        raise InputError(f"max_samples is {most}, at least 4 are needed")
    kept, n = [], 0
    for raw in batches_of(data):
        size, room = prepare(raw, model).n_samples, most - n

        def front(value: Any, size: int = size, room: int = room) -> Any:
            sized = isinstance(value, (Tensor, np.ndarray)) and value.ndim and len(value) == size
            return value[:room] if sized else value

        kept.append(raw if size <= room else moved(raw, front))
        n += min(size, room)
        if n >= most:
            break
    if not kept:
        raise InputError("data is empty, at least 4 samples are needed")
    return kept
