"""How many neurons of its feed-forward layers a network can do without on each token, at a fixed loss of quality.

Counting exact zeros works for ReLU alone. Here the neurons whose outputs are shortest are left out, token by token, with one
relative error in every layer, until the perplexity has risen by ``p``: PPL-p% sparsity (later named CETT-PPL-p%). Source: Luo
et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity", arXiv 2411.02335.

The rules on arrays are in :mod:`netloupe.lenses.activity.cett_arrays`, everything they need of a network is in
:class:`netloupe.lenses.activity.sparse_run.SparsityProbe`; both are offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.lenses.activity.cett_arrays import (
    Rule,
    activation_ratio,
    cett_at,
    cett_threshold,
    crossing,
    keep_mask,
    neuron_output_norms,
)
from netloupe.lenses.activity.cett_curve import CettCurve, CettCurveResult
from netloupe.lenses.activity.sparse_run import Loss, SparseRun, SparsityProbe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CettCurve",
    "CettCurveResult",
    "PplSparsity",
    "Rule",
    "SparseRun",
    "SparsityProbe",
    "activation_ratio",
    "cett_at",
    "cett_threshold",
    "common_cett",
    "keep_mask",
    "neuron_output_norms",
    "ppl_sparsity",
    "sparsest",
    "token_agreement",
]

NEAR = 0.01  # the search also ends where the rise of the perplexity is within this share of the one asked for


@dataclass(frozen=True, eq=False)
class PplSparsity(Finding):
    """The sparsest run whose perplexity is at most ``1 + p`` times the untouched network's.

    ``sites``: the output projections, in the order they run. ``cett`` is the relative error that every layer was given and
    ``eps`` ``(site,)`` the thresholds that make it (:attr:`thresholds` by path). ``ratios`` ``(site,)``: share of neurons kept;
    ``nonzero`` ``(site,)``: share whose output is not exactly zero. ``probed`` ``(probe, 3)``: CETT, activation ratio and
    perplexity ratio of every run of the search, by rising CETT. ``frequency``: for each unit the share of tokens on which it
    is kept, site after site (``n_units`` ``(site,)`` of them). ``token_ratio`` ``(token value,)``: mean activation ratio on that
    token, NaN where it does not occur; empty where the data are no tokens. ``n_skipped`` tokens gave some layer no output.
    """

    sites: tuple[str, ...]
    eps: np.ndarray
    ratios: np.ndarray
    nonzero: np.ndarray
    cett: float
    p: float
    ppl_ratio: float
    ppl_error: float | None
    loss_dense: float
    probed: np.ndarray
    n_units: np.ndarray
    frequency: np.ndarray
    token_ratio: np.ndarray
    token_count: np.ndarray
    n_tokens: int
    n_skipped: int

    meanings: ClassVar[dict[str, str]] = {
        "activation_ratio": "share of feed-forward neurons needed on a token, averaged over tokens and layers",
        "sparsity": "share that can be left out at the allowed rise of the perplexity",
        "cett": "relative error that every layer's output bears then",
        "ppl_ratio": "perplexity with these neurons left out, over the untouched network's",
        "ppl_error": "standard error of that ratio over batches",
        "nonzero": "share of neurons whose output is not exactly zero, for comparison",
        "densest_layer": "largest activation ratio of a layer",
        "sparsest_layer": "smallest activation ratio of a layer",
        "loss_dense": "loss of the untouched network, in nats for each prediction",
    }

    @property
    def ratio(self) -> float:
        """The activation ratio."""
        return float(self.ratios.mean())

    @property
    def thresholds(self) -> dict[str, float]:
        """Threshold on a neuron's output by path of its projection, as :func:`netloupe.nn.ffn.threshold_model` takes them."""
        return dict(zip(self.sites, self.eps.tolist(), strict=True))

    def frequency_of(self, site: str) -> Float[np.ndarray, " unit"]:
        """Firing frequency of every unit of one site."""
        if site not in self.sites:
            raise InputError(f"'{site}' was not measured; there are {', '.join(self.sites)}")
        ends = np.cumsum(self.n_units)
        index = self.sites.index(site)
        return self.frequency[ends[index] - self.n_units[index] : ends[index]]

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        found = {
            "activation_ratio": self.ratio,
            "sparsity": 1 - self.ratio,
            "cett": self.cett,
            "ppl_ratio": self.ppl_ratio,
            "nonzero": float(self.nonzero.mean()),
            "densest_layer": float(self.ratios.max()),
            "sparsest_layer": float(self.ratios.min()),
            "loss_dense": self.loss_dense,
        }
        return found if self.ppl_error is None else found | {"ppl_error": self.ppl_error}

    def paragraph(self) -> str:
        """The answer in plain words."""
        error = "" if self.ppl_error is None else f" (standard error {self.ppl_error:.2g})"
        return (
            f"On a token {self.ratio:.1%} of the neurons of {len(self.sites)} feed-forward layers are needed: the other "
            f"{1 - self.ratio:.1%} can be left out and the perplexity on these {self.n_tokens} tokens is "
            f"{self.ppl_ratio:.4f} times the untouched network's{error}, where {1 + self.p:g} times was allowed. "
            f"{1 - float(self.nonzero.mean()):.1%} are exactly zero by themselves."
        )

    def plot(self, axes: Axes) -> None:
        """Share of neurons kept and share not exactly zero, layer by layer."""
        depth = np.arange(len(self.sites))
        axes.bar(depth, self.nonzero, color="C0", alpha=0.25, label="not exactly zero")
        axes.bar(depth, self.ratios, color="C0", label=f"needed at +{self.p:.3g} perplexity")
        axes.axhline(self.ratio, color="C1", linestyle="--", label=f"mean {self.ratio:.3f}")
        axes.set(ylabel="share of neurons on a token", ylim=(0, 1.3 * max(self.nonzero.max(), 0.05)))
        axes.set_xticks(depth, self.sites, rotation=30, ha="right", fontsize="small")
        axes.legend(frameon=False, fontsize="small", loc="upper right")


@lens(
    question="How many feed-forward neurons can be left out on each token before the loss suffers?",
    needs=("model", "data"),
    optional=("labels",),
)
def ppl_sparsity(
    model: nn.Module,
    data: Any,
    labels: Int[Tensor, " sample"] | Any = None,
    *,
    sites: str | Sequence[str] | None = None,
    p: float = 0.01,
    tol: float = 1e-4,
    loss: Loss | None = None,
    max_tokens: int = 1024,
    batch_size: int = 16,
) -> PplSparsity:
    """PPL-p% sparsity: the neurons that a network needs while its perplexity rises by at most ``p``.

    A feed-forward layer's output is a sum of one vector ``n_i = W_out[:, i] a_i`` for each neuron. On each token those with
    ``|n_i| < eps_l`` are left out, where ``eps_l`` gives every layer the same mean relative error (CETT). The largest CETT
    with ``exp(loss_sparse - loss_dense) <= 1 + p`` is sought between 0 and 1 and the share of neurons kept there is the activation
    ratio (arXiv 2411.02335). Where leaving out everything costs less than ``p`` the answer is 0.

    Args:
        model: any network with linear layers behind activations: transformers (gated or not), perceptrons, the head of a
            convolutional network.
        data: batches; a language model's tokens ``(sample, position)`` need no labels.
        labels: ``(sample,)``, where the batches carry none.
        sites: output projections by path or glob; by default those that are found.
        p: allowed relative rise of the perplexity ``exp(loss)``, not of the loss.
        tol: width of the last bracket of CETT; the search ends earlier where the rise is within 1 % of ``p``.
        loss: ``(output, batch) -> scalar`` in nats; by default cross-entropy with labels or of the next token.
        max_tokens: tokens (samples where there are no positions) that are looked at, from the front of the data. The
            answer depends on the data and, for few tokens, on chance: compare networks on the same ones.
        batch_size: samples at a time where data is arrays.

    Cost: some 8 passes of the network over the tokens, and 4 multiply-adds for each weight of the projections and token.
    Memory: the inputs, and one batch of activations. Raises InputError where there is no such layer, no loss, ``p`` or ``tol``
    that is not positive, a layer without any output; NonFiniteError for NaN.
    """
    if not (p > 0 and tol > 0 and math.isfinite(p)):
        raise InputError(f"p is {p} and tol {tol}, expected positive numbers such as 0.01 and 0.0001")
    probe = SparsityProbe(model, data, labels, sites=sites, loss=loss, max_tokens=max_tokens, batch_size=batch_size)
    return sparsest(probe, p, tol)


def sparsest(probe: SparsityProbe, p: float = 0.01, tol: float = 1e-4) -> PplSparsity:
    """:func:`ppl_sparsity` of a probe that is there already."""
    runs: dict[float, SparseRun] = {}

    def rise(cett: float) -> float:
        runs[cett] = probe.at_cett(cett)
        return float(np.log(max(runs[cett].ppl_ratio, 1e-300)) - np.log1p(p))

    everything = rise(1.0)
    cett = 1.0
    if everything > 0:
        nothing = rise(0.0)
        cett = 0.0 if nothing > 0 else crossing(rise, 0.0, 1.0, nothing, everything, tol, NEAR * math.log1p(p))[0]
    return _found(probe, p, cett, runs)


def _found(probe: SparsityProbe, p: float, cett: float, runs: dict[float, SparseRun]) -> PplSparsity:
    chosen = runs[cett] if cett in runs else probe.at_cett(cett)
    paths = [site.path for site in probe.sites]
    thresholds = probe.thresholds(cett)
    counts = np.zeros(0) if chosen.token_counts is None else chosen.token_counts
    kept = np.zeros(0) if chosen.token_kept is None else chosen.token_kept
    with np.errstate(invalid="ignore", divide="ignore"):
        token_ratio = kept / counts
    return PplSparsity(
        sites=tuple(paths),
        # what is dropped whole has no finite threshold in theory, but a network that runs needs one
        eps=np.array([min(thresholds[path], float(np.finfo(np.float32).max)) for path in paths]),
        ratios=chosen.ratios,
        nonzero=np.array([probe.curves[path].ratio[0] for path in paths]),
        cett=cett,
        p=p,
        ppl_ratio=chosen.ppl_ratio,
        ppl_error=probe.ppl_error(chosen),
        loss_dense=probe.loss_dense,
        probed=np.array([[at, runs[at].ratio, runs[at].ppl_ratio] for at in sorted(runs)]),
        n_units=np.array([len(frequency) for frequency in chosen.frequency]),
        frequency=np.concatenate(chosen.frequency),
        token_ratio=token_ratio,
        token_count=counts,
        n_tokens=probe.n_tokens,
        n_skipped=sum(curve.n_skipped for curve in probe.curves.values()),
        context=Context(n_samples=sum(batch.n_samples for batch in probe.batches), options={"p": p}),
    )


def common_cett(probes: Sequence[SparsityProbe], p: float = 0.01, tol: float = 1e-4) -> float:
    """One CETT for several checkpoints of a run: the largest at which their perplexity ratios average at most ``1 + p``.

    The paper's stabilising rule: find it for the last five checkpoints, then measure every checkpoint at it
    (:meth:`SparsityProbe.at_cett`). 1 where leaving out everything costs less than ``p``.

    Raises InputError without a probe and for ``p`` or ``tol`` that is not positive.
    """
    if not probes or not (p > 0 and tol > 0):
        raise InputError(
            f"{len(probes)} probes, p {p} and tol {tol} were given; at least one and positive numbers are needed"
        )

    def rise(cett: float) -> float:
        return float(np.mean([probe.at_cett(cett).ppl_ratio for probe in probes])) - 1 - p

    everything = rise(1.0)
    return 1.0 if everything <= 0 else crossing(rise, 0.0, 1.0, -p, everything, tol, NEAR * p)[0]


def token_agreement(one: PplSparsity, other: PplSparsity, min_count: int = 5) -> float:
    """Pearson correlation of two networks' activation ratios over token values that both saw ``min_count`` times.

    Raises InputError where fewer than three such tokens are shared.
    """
    n = min(len(one.token_ratio), len(other.token_ratio))
    shared = (one.token_count[:n] >= min_count) & (other.token_count[:n] >= min_count)
    if shared.sum() < 3:
        raise InputError(
            f"only {int(shared.sum())} token values occur {min_count} times in both, at least 3 are needed; give more text"
        )
    a, b = one.token_ratio[:n][shared], other.token_ratio[:n][shared]
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0
