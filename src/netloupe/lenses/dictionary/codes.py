"""Reading hidden states that are codes: an index of where each code fires, and how well codes and units stand for something.

Source: Tamkin, Taufeeque and Goodman, "Codebook Features", arXiv 2310.17230. The codes are those of
:class:`netloupe.nn.codebook.Codebook`; whole numbers from anywhere else will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.isolation import device_of, guest
from netloupe.core.losses import logits_of
from netloupe.nn.codebook_model import CodebookModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Law = Callable[[CodebookModel, Tensor], Tensor]


class CodeScores(NamedTuple):
    """``precision`` (NaN for codes that never fired) and ``recall`` float64 ``(group, code)``; ``hits`` int64, both at once."""

    precision: Float[np.ndarray, "group code"]
    recall: Float[np.ndarray, "group code"]
    hits: Int[np.ndarray, "group code"]


def code_counts(ids: Any, n_codes: int) -> Int[np.ndarray, "group code"]:
    """How often each code fires, int64 ``(group, code)``, in ids ``(*rows, group, k)``; -1 counts nowhere. Cost: one pass."""
    found = _ids(ids)
    groups = found.shape[1]
    places = found + np.arange(groups)[:, None] * n_codes
    if found.size and int(found.max()) >= n_codes:
        raise InputError(f"ids go up to {int(found.max())}, the codebook has {n_codes} codes")
    return np.bincount(places[found >= 0], minlength=groups * n_codes).reshape(groups, n_codes)


def code_scores(ids: Any, mask: Any, n_codes: int) -> CodeScores:
    """Each code as a detector of the rows of ``mask``: precision ``hits / firings`` and recall ``hits / rows``.

    Give all positions, not only those of one kind, or every code looks precise.

    Args:
        ids: ``(*rows, group, k)``. mask: bool ``(*rows,)``, at least one True.

    Raises InputError for shapes that do not fit.
    """
    found, wanted = _ids(ids), np.asarray(mask).reshape(-1)
    if wanted.dtype != np.bool_ or len(wanted) != len(found) or not wanted.any():
        raise InputError(
            f"the mask is {wanted.dtype} of {len(wanted)} rows, {int(wanted.sum())} of them chosen; expected bool for {len(found)} "
            "rows, one at least"
        )
    fired, hits = code_counts(found, n_codes), code_counts(found[wanted], n_codes)
    return scores_of(fired, hits, int(wanted.sum()))


def scores_of(fired: np.ndarray, hits: np.ndarray, n_wanted: int) -> CodeScores:
    """Precision and recall from counts."""
    precision = np.divide(hits, fired, out=np.full(fired.shape, np.nan), where=fired > 0)
    return CodeScores(precision, hits / max(1, n_wanted), hits)


def neuron_precision_at_recall(
    acts: Float[Tensor, "sample unit"] | Any, mask: Any, recall: Any, *, either_sign: bool = True
) -> Float[np.ndarray, "unit target"]:
    """Precision of every unit where its threshold gives the recall asked for; float64 ``(unit,)`` or ``(unit, target)``.

    The threshold is the highest at which "value >= threshold" reaches the recall; equal values enter together. With
    ``either_sign`` a unit may fire by being low as well, and the better sign counts.

    Args:
        acts: ``(sample, unit)``. mask: bool ``(sample,)`` or ``(sample, target)``. recall: in (0, 1], one number or one a target.

    Cost: one sort a unit and sign, then O(n) a unit and target. Raises InputError for shapes that do not fit, no positives or a
    recall outside (0, 1], NonFiniteError for NaN.
    """
    x = np.asarray(acts.detach().cpu() if isinstance(acts, Tensor) else acts)
    wanted = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    if x.ndim != 2 or wanted.dtype != np.bool_ or wanted.ndim not in (1, 2) or len(wanted) != len(x) or not x.size:
        raise InputError(
            f"acts have shape {x.shape} and mask is {wanted.dtype} of shape {wanted.shape}; expected (sample, unit) and bool "
            "(sample,) or (sample, target)"
        )
    if not np.isfinite(x).all():
        raise NonFiniteError("activations hold NaN or infinity; look for an overflow in the network")
    targets = wanted.reshape(len(x), -1)
    at = np.broadcast_to(np.asarray(recall, dtype=float), targets.shape[1:])
    positives = targets.sum(0)
    if not positives.all() or not ((at > 0) & (at <= 1)).all():
        raise InputError("every target needs a positive sample and a recall above 0 and at most 1")
    needed = np.ceil(at * positives - 1e-9).astype(int)
    best = np.zeros((x.shape[1], targets.shape[1]))
    for sign in (1, -1) if either_sign else (1,):
        for unit in range(x.shape[1]):
            order = np.argsort(-sign * x[:, unit], kind="stable")
            values = x[order, unit]
            ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # the last of each run of equal values
            hits = np.cumsum(targets[order], axis=0)
            for target, count in enumerate(needed):
                first = np.searchsorted(hits[:, target], count)
                last = ends[np.searchsorted(ends, first)]
                best[unit, target] = max(best[unit, target], hits[last, target] / (last + 1))
    return best[:, 0] if wanted.ndim == 1 else best


def code_purity(ids: Any, keys: Any, n_codes: int, *, min_count: int = 1) -> float:
    """Share of the codes that fired on which only one key ever fell; NaN where none fired often enough.

    A code that fired once is pure whatever it means: ``min_count`` leaves the rare ones out.

    Args:
        ids: ``(*rows, group, k)``. keys: whole numbers ``(*rows,)``, such as the pair of digits at each position; -1 is left out.
    """
    found, wanted = _ids(ids), np.asarray(keys).reshape(-1)
    if len(wanted) != len(found) or wanted.dtype.kind not in "iu":
        raise InputError(
            f"keys are {wanted.dtype} for {len(wanted)} rows, expected whole numbers for {len(found)} rows"
        )
    kept = wanted >= 0
    found, wanted = found[kept], wanted[kept]
    counts = code_counts(found, n_codes).reshape(-1)
    places = (found + np.arange(found.shape[1])[:, None] * n_codes)[found >= 0]
    on = np.broadcast_to(wanted[:, None, None], found.shape)[found >= 0]
    low, high = np.full(len(counts), np.iinfo(np.int64).max), np.full(len(counts), -1)
    np.minimum.at(low, places, on)
    np.maximum.at(high, places, on)
    fired = counts >= max(1, min_count)
    return float((low == high)[fired].mean()) if fired.any() else float("nan")


class Bits(NamedTuple):
    """What leaves a table for each vector: ``most`` bits, ``used`` (entropy of how often each code fires, times k), ``dense`` bits
    of the vector itself, and ``ratio`` ``dense / most``."""

    most: float
    used: float
    dense: float
    ratio: float


def code_bits(counts: Int[np.ndarray, "group code"], k: int, width: int, number_bits: int = 32) -> Bits:
    """``most = g log2 binomial(C, k)`` against ``width * number_bits``; ``used`` is at most ``g k`` times the entropy of the counts."""
    table = np.atleast_2d(np.asarray(counts, dtype=float))
    groups, n_codes = table.shape
    if not 1 <= k <= n_codes or table.sum(1).min() <= 0:
        raise InputError(
            f"k is {k} and {int(table.sum())} codes fired; expected 1 to {n_codes} and firings in every group"
        )
    share = table / table.sum(1, keepdims=True)
    entropy = -np.where(share > 0, share * np.log2(np.where(share > 0, share, 1)), 0).sum(1)
    most = groups * math.log2(math.comb(n_codes, k)) if k < n_codes else 0.0
    dense = float(width * number_bits)
    return Bits(most, float(k * entropy.sum()), dense, dense / most if most else float("inf"))


@dataclass(frozen=True, eq=False)
class Interchange(Finding):
    """How far codes alone carry what another input said: Jensen-Shannon divergence to that input's answer, in nats.

    ``before``, ``after`` float64 ``(sample,)``: of the network as it is, and with the codes of the other input in place.
    """

    before: Float[np.ndarray, " sample"]
    after: Float[np.ndarray, " sample"]

    meanings: ClassVar[dict[str, str]] = {
        "fall": "share of the divergence from the other input's answer that its codes take away",
        "before": "mean divergence without them, in nats",
        "after": "mean divergence with them, in nats",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        before, after = float(self.before.mean()), float(self.after.mean())
        return {"fall": 1 - after / before if before > 0 else float("nan"), "before": before, "after": after}

    def plot(self, axes: Axes) -> None:
        """Every pair of inputs."""
        axes.plot(self.before, self.after, ".", alpha=0.5)
        top = float(max(self.before.max(), self.after.max()))
        axes.plot([0, top], [0, top], ":", color="0.4")
        axes.set(xlabel="divergence without codes", ylabel="with the other input's codes")


def next_token_law(model: CodebookModel, tokens: Int[Tensor, "sample position"]) -> Float[Tensor, "sample token"]:
    """Probabilities of the token after the last position, float64."""
    logits = logits_of(model(tokens.to(device_of(model))))
    if logits is None or logits.ndim != 3:
        raise InputError("the network gives no logits (sample, position, token); give a law of your own")
    return logits[:, -1].double().softmax(-1).cpu()


@torch.no_grad()
def interchange(
    model: CodebookModel,
    base: Int[Tensor, "sample position"],
    source: Int[Tensor, "sample position"],
    positions: Any = (-1,),
    law: Law = next_token_law,
    *,
    sites: Any = None,
    codes: dict[str, Tensor] | None = None,
) -> Interchange:
    """Runs ``base`` with the codes that ``source`` has at ``positions``, and asks whether the answer becomes that of ``source``.

    Args:
        model: with codebooks. base, source: tokens of one shape, a pair a row.
        positions: where codes are exchanged. sites: codebooks that take part (default all).
        law: the answer, ``(model, tokens)`` to ``(sample, outcome)``, normalised here; it may run each row several times in a row
            and longer, as a law of several tokens does.
        codes: ids ``(sample, position, group, k)`` to put in, in place of the source's (a control).

    Cost: three evaluations of the law and one pass. Raises InputError for shapes that do not fit, SiteError for unknown sites.
    """
    if base.shape != source.shape or base.ndim != 2 or not len(base):
        raise InputError(
            f"base has shape {tuple(base.shape)} and source {tuple(source.shape)}; expected one (sample, position)"
        )
    places = [int(p) % base.shape[1] for p in np.atleast_1d(np.asarray(positions))]
    names = model.sites if sites is None else tuple(sites)
    with guest(model):
        model(source.to(device_of(model)))
        found = {name: model[name].ids for name in names}
        wanted = {name: ids.clone() if codes is None else codes[name] for name, ids in found.items() if ids is not None}
        target, before = _normal(law(model, source)), _normal(law(model, base))
        with model.force({name: _putting(ids, places) for name, ids in wanted.items()}):
            after = _normal(law(model, base))
    return Interchange(jensen_shannon(before, target), jensen_shannon(after, target))


def _putting(wanted: Tensor, places: list[int]) -> Callable[[Tensor], Tensor]:
    def put(ids: Tensor) -> Tensor:
        changed = ids.clone()
        rows = wanted[:, places].repeat_interleave(len(ids) // len(wanted), 0)
        changed[:, places] = rows.to(changed)
        return changed

    return put


def _normal(law: Tensor) -> Float[np.ndarray, "sample outcome"]:
    values = law.double().cpu().numpy()
    return values / values.sum(1, keepdims=True)


def jensen_shannon(one: Shaped[np.ndarray, "sample outcome"], other: np.ndarray) -> Float[np.ndarray, " sample"]:
    """``(KL(p | m) + KL(q | m)) / 2`` with ``m = (p + q) / 2``, row by row, in nats: 0 to ln 2."""
    middle = (one + other) / 2

    def part(p: np.ndarray) -> np.ndarray:
        return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.where(middle > 0, middle, 1)), 0).sum(-1)

    return np.maximum((part(one) + part(other)) / 2, 0)


def switch_on(code: int, group: int = 0, slot: int = -1) -> Callable[[Tensor], Tensor]:
    """For :meth:`CodebookModel.force`: puts a code in place of one of the ``k`` of its group (default: the farthest), everywhere.

    To steer by several codes, give each a slot of its own and apply them in turn.
    """

    def put(ids: Tensor) -> Tensor:
        changed = ids.clone()
        changed[..., group, slot] = code
        return changed

    return put


def _ids(ids: Any) -> Int[np.ndarray, "row group k"]:
    found = np.asarray(ids.detach().cpu() if isinstance(ids, Tensor) else ids)
    if found.ndim < 3 or found.dtype.kind not in "iu" or not found.size:
        raise InputError(f"ids are {found.dtype} of shape {found.shape}, expected whole numbers (*rows, group, k)")
    return found.reshape(-1, *found.shape[-2:]).astype(np.int64, copy=False)
