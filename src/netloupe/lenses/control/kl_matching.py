"""Steering at equal disturbance: how far to push along a direction until the network's next-token distribution has moved so much.

Source: arXiv 2506.10920, which compares features at Kullback-Leibler divergences of .025 to .5 from the unsteered network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.capture import run_all
from netloupe.core.errors import InputError
from netloupe.core.intervene import intervene, steer
from netloupe.core.losses import logits_of


class KLMatch(NamedTuple):
    """``alpha``: length of the step found, ``kl`` there, ``converged``: within ``tol`` of the target, ``n_runs`` of the network."""

    alpha: float
    kl: float
    converged: bool
    n_runs: int


def last_logits(model: nn.Module, ids: Any, *edits: Any) -> Float[Tensor, "prompt token"]:
    """Logits after the last token of each prompt ``(prompt, position)``, float64, with edits in force."""
    found = []
    with intervene(model, *edits):
        for output, _ in run_all(model, ids, nonfinite="allow"):
            logits = logits_of(output)
            if logits is None or logits.ndim not in (2, 3):
                raise InputError("the network gives no logits (sample, position, token); a language model is needed")
            found.append((logits if logits.ndim == 2 else logits[:, -1]).double().cpu())
    return torch.cat(found)


def divergence(base: Float[Tensor, "prompt token"], steered: Float[Tensor, "prompt token"]) -> float:
    """Mean over prompts of ``KL(p_base || p_steered)`` in nats, from logits; infinite where steering made no number."""
    if not bool(torch.isfinite(steered).all()):
        return float("inf")
    p, q = F.log_softmax(base, -1), F.log_softmax(steered, -1)
    return max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))


def kl_matched_alpha(
    model: nn.Module,
    site: str,
    direction: Float[Tensor, " unit"],
    ids: Int[Tensor, "prompt position"] | Any,
    target: float,
    low: float = 1.0,
    high: float = 2000.0,
    steps: int = 20,
    tol: float = 0.01,
) -> KLMatch:
    """Bisection for ``alpha`` with ``KL(base || h + alpha unit(direction)) = target`` after the last token of neutral prompts.

    Args:
        site: where the direction is added, at all positions. ids: prompts of one length, such as the tokens of "I think that"; for
            a network without positions in its outputs any data that :func:`netloupe.core.capture.run_all` takes.
        target: nats. low, high: bracket; where ``low`` already disturbs more, 0 to ``low`` is searched instead.
        steps, tol: most halvings, and how near is near enough, in nats.

    The divergence need not rise with ``alpha``: the answer is one place where it has the target's value. Where the bracket's upper
    end does not reach the target, or the steps do not suffice, ``converged`` is False and the nearest end or try is given. For the
    other sign give ``-direction``. Cost: at most ``steps + 3`` runs. Raises InputError for a bracket or target that make no sense,
    and what :func:`netloupe.core.intervene.steer` refuses.
    """
    if not 0 < low < high or target <= 0 or steps < 1 or tol <= 0:
        raise InputError(
            f"target is {target:g}, the bracket {low:g} to {high:g}, steps {steps} and tol {tol:g}; expected positive numbers, low < high"
        )
    base = last_logits(model, ids)
    runs = 1

    def moved(alpha: float) -> float:
        nonlocal runs
        runs += 1
        return divergence(base, last_logits(model, ids, steer(site, direction, alpha)))

    return _bisect(moved, target, low, high, steps, tol, lambda: runs)


def _bisect(
    moved: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    steps: int,
    tol: float,
    runs: Callable[[], int],
) -> KLMatch:
    at_low = moved(low)
    if abs(at_low - target) < tol:
        return KLMatch(low, at_low, True, runs())
    if at_low > target:
        low, high = 0.0, low
    else:
        at_high = moved(high)
        if at_high < target:
            return KLMatch(high, at_high, abs(at_high - target) < tol, runs())
    best = (float("inf"), low, at_low)
    for _ in range(steps):
        middle = 0.5 * (low + high)
        kl = moved(middle)
        best = min(best, (abs(kl - target), middle, kl))
        if best[0] < tol:
            break
        low, high = (middle, high) if kl < target else (low, middle)
    return KLMatch(best[1], best[2], best[0] < tol, runs())
