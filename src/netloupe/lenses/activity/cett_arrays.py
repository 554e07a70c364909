"""Which neurons of a feed-forward layer are weak on which token, and what leaving them out costs the layer.

All on two arrays: ``a``, what the output projection reads, ``(token, unit)``, and the projection ``W_out`` ``(out, unit)``. Its
output is a sum of one vector for each neuron, ``n_i = W_out[:, i] a_i``; a bias plays no part. Source: Luo et al., "Sparsing
Law: Towards Large Language Models with Greater Activation Sparsity", arXiv 2411.02335.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.activity.cett_curve import CettCurve

Rule = Literal["cett", "topk", "topk_pooled", "fat", "zero", "random"]
_BLOCK = 1 << 22  # values of a block of tokens: 16 MiB of float32


def neuron_output_norms(
    a: Float[Tensor, "token unit"], w_out: Float[Tensor, "out unit"]
) -> Float[Tensor, "token unit"]:
    """Length of every neuron's output, ``|n_i| = |a_i| |W_out[:, i]|``; in float32 or the wider type given."""
    a, w_out = _checked(a, w_out)
    return a.abs() * column_lengths(w_out)


def column_lengths(w_out: Float[Tensor, "out unit"]) -> Float[Tensor, " unit"]:
    """``|W_out[:, i]|``."""
    return torch.linalg.vector_norm(w_out, dim=0)


def cett_at(a: Float[Tensor, "token unit"], w_out: Float[Tensor, "out unit"], eps: float) -> float:
    """CETT: relative error of the layer's output when neurons with ``|n_i| < eps`` are left out, averaged over tokens.

    ``mean_token |sum_{|n_i| < eps} n_i| / |sum_i n_i|``. Tokens without any output are skipped.

    Args:
        a: ``(token, unit)``, padding taken out. w_out: ``(out, unit)``. eps: in the unit of the layer's output.

    Cost: one product of ``(token, unit)`` with the projection. Raises InputError for shapes that do not fit, a negative
    ``eps`` and where no token has an output, NonFiniteError for NaN.
    """
    if not eps >= 0:
        raise InputError(f"eps is {eps}, expected a length of at least 0")
    return _Layer(a, w_out).cett(eps)


def cett_threshold(
    a: Float[Tensor, "token unit"], w_out: Float[Tensor, "out unit"], target: float, tol: float = 1e-5
) -> float:
    """The largest threshold (to ``tol`` in CETT) whose error :func:`cett_at` does not exceed ``target``.

    :class:`netloupe.lenses.activity.cett_curve.CettCurve` brackets it to 3 % in one pass, then probes narrow it by false
    position on ``log eps`` with every third step a bisection. With few tokens the error jumps, and the threshold just
    before the jump over ``target`` is returned. ``target = 0`` gives the length of the shortest non-zero output (only exact
    zeros are dropped), 1 one beyond the longest.

    Cost: one curve and about three times :func:`cett_at`. Raises InputError for a target outside [0, 1]; otherwise as :func:`cett_at`.
    """
    if not 0 <= target <= 1:
        raise InputError(f"target is {target}, expected a CETT from 0 to 1")
    layer = _Layer(a, w_out)
    if layer.n_counted == 0:
        raise InputError(_NO_OUTPUT)
    shortest, longest = layer.span()
    beyond = longest * (1 + 1e-5)
    if target == 1:
        return beyond
    low, high, f_low, f_high = shortest, beyond, -target, 1 - target
    curve = CettCurve(layer.w_out.cpu().numpy()).update(layer.a).result()
    after = int(np.searchsorted(np.maximum.accumulate(curve.cett), target, side="right"))
    if shortest < curve.eps[after - 1] and curve.eps[after] < beyond:
        low, high = float(curve.eps[after - 1]), float(curve.eps[after])
        f_low, f_high = float(curve.cett[after - 1]) - target, float(curve.cett[after]) - target
    found, _ = crossing(
        lambda x: layer.cett(math.exp(x)) - target, math.log(low), math.log(high), min(f_low, 0.0), f_high, 1e-7, tol
    )
    return math.exp(found)


def crossing(
    f: Callable[[float], float], low: float, high: float, f_low: float, f_high: float, xtol: float, ftol: float,
    max_steps: int = 80,
) -> tuple[float, float]:  # fmt: skip
    """A bracket ``f(low) <= 0 < f(high)`` narrowed until it is ``xtol`` wide or ``-ftol <= f(low)``.

    Illinois' false position with a bisection every third step: what is left is a crossing that bisection could have
    found, in fewer evaluations, also where ``f`` has steps.
    """
    side = 0
    for step in range(max_steps):
        if high - low <= xtol or f_low >= -ftol:
            break
        x = (low + high) / 2 if step % 3 == 2 else low + (high - low) * f_low / (f_low - f_high)
        margin = 1e-3 * (high - low)
        x = min(max(x, low + margin), high - margin)
        value = f(x)
        if value <= 0:
            low, f_low = x, value
            f_high = f_high / 2 if side == -1 else f_high
            side = -1
        else:
            high, f_high = x, value
            f_low = f_low / 2 if side == 1 else f_low
            side = 1
    return low, high


def keep_mask(
    a: Float[Tensor, "token unit"],
    lengths: Float[Tensor, " unit"],
    rule: Rule,
    arg: float = 0.0,
    score: Float[Tensor, "token unit"] | None = None,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "token unit"]:
    """Which neurons a rule keeps on which token; ``lengths`` are those of the projection's columns.

    ``cett``: ``|a_i| lengths_i >= arg``, here with the threshold itself. ``zero``: the score is not 0. ``fat``: ``|score| >=
    arg``. ``topk``: on each token the ``round(arg d_ff)`` largest ``|score|``; ``topk_pooled``: the same share, pooled over all
    tokens of the batch, as the authors' code does. ``random``: as many as ``topk``, drawn at random. ``score`` is ``a`` where
    none is given; in a gated block the paper's rules other than CETT look at the activation of the gate alone.
    """
    score = a if score is None else score
    if rule == "cett":
        return (a.abs() * lengths.to(a.dtype) >= arg) & (a != 0)
    if rule == "zero":
        return score != 0
    if rule == "fat":
        return (score.abs() >= arg) & (score != 0)
    if rule not in get_args(Rule):
        raise InputError(f"rule is '{rule}', expected one of {', '.join(get_args(Rule))}")
    if not 0 <= arg <= 1:
        raise InputError(f"the rule '{rule}' was given {arg}, expected the share of neurons to keep, 0 to 1")
    if rule == "topk_pooled":
        return _largest(score.abs().reshape(1, -1), arg).reshape(score.shape)
    if rule == "random":
        score = torch.rand(score.shape, generator=generator, dtype=torch.float32).to(score.device)
    return _largest(score.abs(), arg)


def activation_ratio(
    a: Float[Tensor, "token unit"],
    w_out: Float[Tensor, "out unit"],
    rule: Rule = "cett",
    arg: float = 0.0,
    score: Float[Tensor, "token unit"] | None = None,
    random_state: int = 0,
) -> float:
    """Share of neurons that a rule keeps, averaged over tokens: 1 minus the activation sparsity.

    Args:
        a, w_out: as in :func:`cett_at`.
        rule: as in :func:`keep_mask`.
        arg: for ``cett`` the CETT aimed at (the threshold is found by :func:`cett_threshold`), for ``fat`` the threshold on
            the score, for ``topk``, ``topk_pooled`` and ``random`` the share to keep; not used by ``zero``.
        score: ``(token, unit)``, what the rules other than ``cett`` rank by; ``a`` by default.

    Raises InputError for an unknown rule, an argument out of range or shapes that do not fit.
    """
    a, w_out = _checked(a, w_out)
    if score is not None and score.shape != a.shape:
        raise InputError(f"the scores have shape {tuple(score.shape)}, expected that of a, {tuple(a.shape)}")
    given = cett_threshold(a, w_out, arg) if rule == "cett" else arg
    generator = torch.Generator().manual_seed(random_state)
    return float(keep_mask(a, column_lengths(w_out), rule, given, score, generator).double().mean())


def _largest(score: Tensor, share: float) -> Tensor:
    k = round(share * score.shape[-1])
    mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    if k == 0:
        return mask
    return mask.scatter_(-1, score.topk(k, -1, sorted=False).indices, True)


_NO_OUTPUT = (
    "the layer's output is zero on every token, so no error can be measured; it is dead or the input is padding"
)


class _Layer:
    """The layer on its tokens, with the length of its output on each; thresholds are probed in blocks of tokens."""

    def __init__(self, a: Tensor, w_out: Tensor) -> None:
        self.a, self.w_out = _checked(a, w_out)
        self.lengths = column_lengths(self.w_out)
        whole = torch.cat([torch.linalg.vector_norm(rows @ self.w_out.T, dim=1) for rows in self._blocks()])
        self.counted, self.whole = whole > 0, torch.where(whole > 0, whole, 1)
        self.n_counted = int(self.counted.sum())

    def _blocks(self) -> Iterator[Tensor]:
        return iter(self.a.split(max(1, _BLOCK // self.a.shape[1])))

    def span(self) -> tuple[float, float]:
        """Lengths of the shortest non-zero and of the longest output of a neuron."""
        low, high = math.inf, 0.0
        for rows in self._blocks():
            norms = rows.abs() * self.lengths
            high = max(high, float(norms.max()))
            low = min(low, float(torch.where(norms > 0, norms, torch.inf).min()))
        return low, high

    def cett(self, eps: float) -> float:
        if self.n_counted == 0:
            raise InputError(_NO_OUTPUT)
        cuts = torch.where(self.lengths > 0, eps / self.lengths, torch.inf)
        total, start = 0.0, 0
        for rows in self._blocks():
            weak = torch.where(rows.abs() < cuts, rows, 0)
            errors = torch.linalg.vector_norm(weak @ self.w_out.T, dim=1) / self.whole[start : start + len(rows)]
            total += float(errors[self.counted[start : start + len(rows)]].sum(dtype=torch.float64))
            start += len(rows)
        return total / self.n_counted


def _checked(a: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor]:
    a, w_out = torch.as_tensor(a).detach(), torch.as_tensor(w_out).detach()
    if a.ndim != 2 or w_out.ndim != 2 or a.shape[1] != w_out.shape[1] or 0 in (*a.shape, *w_out.shape):
        raise InputError(
            f"a has shape {tuple(a.shape)} and w_out {tuple(w_out.shape)}, expected (token, unit) and (out, unit) with the "
            "same units and at least one token; take padding out and flatten positions into tokens"
        )
    # bfloat16 sums would break the search: at least float32
    dtype = torch.promote_types(torch.promote_types(a.dtype, w_out.dtype), torch.float32)
    a, w_out = a.to(dtype), w_out.to(a.device, dtype)
    for name, values in (("a", a), ("w_out", w_out)):
        if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
            raise NonFiniteError(f"{name} holds NaN or infinity; remove such tokens or repair the network")
    return a, w_out
