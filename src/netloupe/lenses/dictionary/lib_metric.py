"""How a layer's features react to the layer before: integration points, pulled-back gradients, and the metrics they make.

Source: Bushnaq et al., "The Local Interaction Basis", arXiv 2405.10928.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError

Rule = Literal["gradient", "gauss-legendre", "trapezoidal"]
Map = Callable[[Tensor], Tensor]
Sources = int | tuple[int | None, int | None] | None
ROWS = 512  # samples that go through a map at a time
MOST = 2**16  # numbers that gradients pulled back together may fill: what a core's cache holds


@dataclass(frozen=True)
class Readout:
    """Features of what a map gives: ``y @ matrix + offset``; ``matrix`` ``(unit, feature)``, ``offset`` ``(feature,)``."""

    matrix: Tensor
    offset: Tensor

    def __call__(self, y: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows feature"]:
        return y @ self.matrix + self.offset


def integration_points(rule: Rule = "gradient", n_intervals: int = 0) -> list[tuple[float, float]]:
    """Pairs ``(alpha, weight)`` on [0, 1].

    ``gradient`` is the end alone, alpha 1. ``gauss-legendre`` has ``n_intervals + 1`` nodes and is exact for polynomials of
    degree ``2 n_intervals + 1``. ``trapezoidal`` has equal steps between ``eps = 1e-3 / (n_intervals + 1)`` and ``1 - eps``,
    its ends weigh half; with no interval it is the middle. Raises InputError for anything else.
    """
    if rule not in ("gradient", "gauss-legendre", "trapezoidal") or n_intervals < 0:
        raise InputError(
            f"rule is '{rule}' with {n_intervals} intervals, expected gradient, gauss-legendre or trapezoidal and at least 0"
        )
    if rule == "gradient":
        if n_intervals:
            raise InputError(f"the gradient rule looks at one point only, got n_intervals={n_intervals}; give 0")
        return [(1.0, 1.0)]
    if rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n_intervals + 1)
        return [(float(node), float(weight)) for node, weight in zip((nodes + 1) / 2, weights / 2)]
    if n_intervals == 0:
        return [(0.5, 1.0)]
    margin = 1e-3 / (n_intervals + 1)
    weights = np.full(n_intervals + 1, 1 / n_intervals)
    weights[[0, -1]] /= 2
    return list(zip(np.linspace(margin, 1 - margin, n_intervals + 1).tolist(), weights.tolist()))


def pulled_back(
    y: Float[Tensor, "sample *position unit"],
    x: Float[Tensor, "sample *inner source"],
    cotangents: Float[Tensor, "pull sample *position unit"],
) -> Float[Tensor, "pull sample *inner source"]:
    """Gradient of ``(y * cotangent).sum()`` with respect to ``x`` for each cotangent, all in one backward pass.

    A map with an operation that cannot be batched is pulled back one by one. Raises InputError where ``y`` does not
    depend on ``x``, NonFiniteError for a gradient that is not finite.
    """
    if not y.requires_grad:
        raise InputError("a map's output carries no gradient of its input; give a map that torch can differentiate")
    try:
        (found,) = torch.autograd.grad(y, x, cotangents, retain_graph=True, is_grads_batched=True, allow_unused=True)
    except RuntimeError:
        one = [torch.autograd.grad(y, x, each, retain_graph=True, allow_unused=True)[0] for each in cotangents]
        found = None if any(each is None for each in one) else torch.stack([each for each in one if each is not None])
    if found is None:
        raise InputError("a map's output does not depend on its input; the two sites must follow each other")
    if not bool(torch.isfinite(found.sum())):
        raise NonFiniteError("a Jacobian holds NaN or infinity; look for a root, a logarithm or a division at zero")
    return found


def cotangents_of(
    readout: Readout, y: Tensor, sources: Sources, generator: torch.Generator, room: int
) -> Iterator[tuple[Tensor, int]]:
    """Blocks of cotangents on ``y`` whose outer products average to the sum over all features (and positions), and by how
    many random draws each block's share is to be divided.

    ``sources`` is None (every feature at every position), a number of random sign vectors over both, or a pair for
    (positions, features), None for the exact sum on that side. Cost: as many pull-backs as there are cotangents.
    """
    over_positions, over_features = (sources, sources) if isinstance(sources, int) else (sources or (None, None))
    columns = readout.matrix.T
    n_features = len(columns)
    if y.ndim == 2:
        draws = 1 if over_features is None else over_features
        step = max(1, room // (len(y) * max(y.shape[1], 1)))
        if over_features is None:
            for start in range(0, n_features, step):
                block = columns[start : start + step, None]
                yield block.expand(-1, len(y), -1), 1
            return
        for _ in range(draws):
            yield (_signs((len(y), n_features), generator, y) @ columns)[None], draws
        return
    n, length = y.shape[:2]
    draws = (over_positions or 1) * (over_features or 1)
    if isinstance(sources, int):
        draws = sources
        for _ in range(sources):
            yield (_signs((n, length, n_features), generator, y) @ columns)[None], draws
        return
    for t in range(over_positions or length):
        for i in range(over_features or n_features):
            signs = torch.zeros(n, length, n_features, dtype=y.dtype, device=y.device)
            where = (
                slice(None),
                t if over_positions is None else slice(None),
                i if over_features is None else slice(None),
            )
            signs[where] = _signs(tuple(signs[where].shape), generator, y) if (over_positions or over_features) else 1.0
            yield (signs @ columns)[None], draws


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(like)


def jacobian_metric(
    f: Map,
    x: Float[Tensor, "sample *position unit"],
    readout: Readout,
    *,
    points: list[tuple[float, float]],
    sources: Sources = None,
    random_state: int = 0,
) -> Float[Tensor, "unit unit"]:
    """``M' = (1/n) sum_x sum_i grad_x fh_i grad_x fh_i^T``, summed over output positions and input positions and divided by
    the number of these; gradients are averaged over ``points`` first.

    Cost: one pull-back for each feature (and output position) and ``n d^2`` multiply-adds for each; streams over samples.
    """
    generator = torch.Generator().manual_seed(random_state)
    metric = torch.zeros(x.shape[-1], x.shape[-1], dtype=x.dtype, device=x.device)
    for rows in x.split(ROWS):
        inputs = [(alpha * rows).detach().requires_grad_() for alpha, _ in points]
        outputs = [f(each) for each in inputs]
        for block, draws in cotangents_of(readout, outputs[0], sources, generator, MOST):
            weighted = [w * pulled_back(y, z, block) for (_, w), y, z in zip(points, outputs, inputs)]
            gradient = sum(weighted[1:], weighted[0]).reshape(-1, x.shape[-1])
            metric += gradient.T @ gradient / draws
    return metric / x[..., 0].numel()


def integrated_metric(
    f: Map,
    x: Float[Tensor, "sample *position unit"],
    readout: Readout,
    *,
    points: list[tuple[float, float]],
    squared: bool,
) -> tuple[Float[Tensor, "unit unit"], Float[Tensor, "unit unit"]]:
    """``M'`` and ``Lam'`` of the two integrated-gradient bases: mean outer products of ``g`` with itself and with ``x``.

    ``g`` integrates the gradient of ``fh(alpha x) . fh(x)``, or with ``squared`` that of ``-|fh(x) - fh(alpha x)|^2``.
    Cost: one backward pass for each point.
    """
    d = x.shape[-1]
    metric, cross = x.new_zeros(d, d), x.new_zeros(d, d)
    for rows in x.split(ROWS):
        with torch.no_grad():
            end = readout(f(rows))
        gradient = torch.zeros_like(rows)
        for alpha, weight in points:
            z = (alpha * rows).detach().requires_grad_()
            reached = readout(f(z))
            value = -(end - reached).pow(2).sum() if squared else (reached * end).sum()
            (found,) = torch.autograd.grad(value, z)
            gradient += weight * found
        flat = gradient.reshape(-1, d)
        metric += flat.T @ flat
        cross += flat.T @ rows.reshape(-1, d)
    n = x[..., 0].numel()
    if not bool(torch.isfinite(metric.sum())):
        raise NonFiniteError("an integrated gradient holds NaN or infinity; look for a root or a division at zero")
    return metric / n, cross / n
