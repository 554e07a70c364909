"""What each rule for leaving out neurons costs at every activation ratio.

Source: Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity", arXiv 2411.02335.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.lenses.activity.cett_arrays import Rule
from netloupe.lenses.activity.sparse_run import SparsityProbe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIOS = tuple(np.round(np.arange(0.05, 0.601, 0.05), 2).tolist())
RULES: tuple[Rule, ...] = ("cett", "topk", "fat", "random")
_SCORES = 1 << 20  # activations kept to find the threshold that goes with a share


@dataclass(frozen=True, eq=False)
class SparsityPareto(Finding):
    """Measured activation ratio and perplexity ratio of every rule: both ``(rule, point)``, by rising ratio."""

    rules: tuple[str, ...]
    ratios: np.ndarray
    ppl_ratios: np.ndarray
    loss_dense: float
    n_tokens: int

    meanings: ClassVar[dict[str, str]] = {
        f"{rule}_at_quarter": f"perplexity ratio of the rule '{rule}' with a quarter of the neurons kept"
        for rule in ("cett", "topk", "topk_pooled", "fat", "random")
    }

    def at(self, rule: str, ratio: float) -> float:
        """The perplexity ratio of a rule at an activation ratio; between points by interpolation of its logarithm."""
        if rule not in self.rules:
            raise InputError(f"the rule '{rule}' was not measured; there are {', '.join(self.rules)}")
        row = self.rules.index(rule)
        return float(np.exp(np.interp(ratio, self.ratios[row], np.log(self.ppl_ratios[row]))))

    def summary(self) -> dict[str, float]:
        """Every rule's perplexity ratio with a quarter of the neurons kept."""
        return {f"{rule}_at_quarter": self.at(rule, 0.25) for rule in self.rules}

    def plot(self, axes: Axes) -> None:
        """Perplexity ratio less 1 against activation ratio, on a logarithmic axis; a gain has no mark."""
        for row, rule in enumerate(self.rules):
            rise = self.ppl_ratios[row] - 1
            axes.plot(self.ratios[row], np.where(rise > 0, rise, np.nan), "o-", markersize=3, label=rule)
        axes.set(yscale="log", xlabel="share of neurons kept", ylabel="rise of the perplexity")
        axes.legend(frameon=False, fontsize="small")


def sparsity_pareto(
    model: nn.Module | SparsityProbe,
    data: Any = None,
    labels: Any = None,
    *,
    ratios: Sequence[float] = RATIOS,
    rules: Sequence[Rule] = RULES,
    random_state: int = 0,
    **options: Any,
) -> SparsityPareto:
    """Runs the network under every rule at every activation ratio.

    Args:
        model: a network (then ``data``, ``labels`` and ``options`` are those of :class:`SparsityProbe`), or a probe.
        ratios: shares of neurons aimed at. CETT and FAT find their one number in the untouched network, so that the
            share in the sparse run differs a little: what is reported, and interpolated by ``at``, is the share measured.
        rules: of :func:`netloupe.lenses.activity.cett_arrays.keep_mask`, ``zero`` excepted, which has no share to choose.
        random_state: of the rule ``random``.

    Cost: one pass over the tokens for each rule and ratio. Raises InputError for ratios outside (0, 1] and ``zero``.
    """
    probe = model if isinstance(model, SparsityProbe) else SparsityProbe(model, data, labels, **options)
    wanted = np.sort(np.asarray(ratios, dtype=float))
    if wanted.size == 0 or wanted.min() <= 0 or wanted.max() > 1 or "zero" in rules or not rules:
        raise InputError(
            f"ratios {list(ratios)} and rules {list(rules)} were given; expected ratios in (0, 1], no rule 'zero'"
        )
    found = np.zeros((len(rules), len(wanted), 2))
    for row, rule in enumerate(rules):
        for column, arg in enumerate(_arguments(probe, rule, wanted)):
            sparse = probe.at_cett(arg) if rule == "cett" else probe.run(rule, arg, random_state)
            found[row, column] = sparse.ratio, sparse.ppl_ratio
        found[row] = found[row, np.argsort(found[row, :, 0], kind="stable")]
    return SparsityPareto(
        tuple(rules), found[..., 0], found[..., 1], probe.loss_dense, probe.n_tokens,
        context=Context(n_samples=sum(batch.n_samples for batch in probe.batches)),
    )  # fmt: skip


def _arguments(probe: SparsityProbe, rule: Rule, wanted: Float[np.ndarray, " point"]) -> list[float]:
    """What a rule must be given to keep these shares in the untouched network."""
    if rule == "cett":
        grid = np.linspace(0, 1, 401)
        shares = np.array([probe.dense_ratio(cett) for cett in grid])
        return np.interp(-wanted, -shares, grid).tolist()
    if rule == "fat":
        return np.quantile(_scores(probe), 1 - wanted).tolist()
    return wanted.tolist()


def _scores(probe: SparsityProbe) -> Float[np.ndarray, " value"]:
    """``|score|`` of all sites on all tokens, thinned evenly; one threshold for all layers is a quantile of it."""
    names = [site.score or site.input for site in probe.sites]
    total = sum(site.weight.shape[1] * site.n_rows for site in probe.sites) * sum(b.n_samples for b in probe.batches)
    step = max(1, total // _SCORES)
    batches = [batch.kwargs or batch.args for batch in probe.batches]
    kept = []
    for captured in capture(probe.model, batches, names):
        for values in captured.activations.values():
            kept.append(values.abs().reshape(-1)[::step].double().cpu().numpy())
    return np.concatenate(kept)
