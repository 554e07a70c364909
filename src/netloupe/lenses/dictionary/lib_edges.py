"""Interactions between the features of neighbouring layers, and what is left when features or interactions are taken out.

Source: Bushnaq et al., "The Local Interaction Basis", arXiv 2405.10928.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.rows import as_rows
from netloupe.lenses.dictionary.lib import InteractionBasis, as_map
from netloupe.lenses.dictionary.lib_metric import (
    MOST,
    ROWS,
    Map,
    Readout,
    Rule,
    integration_points,
    pulled_back,
)

Score = Callable[[Tensor], float]


def interaction_edges(
    basis: InteractionBasis,
    layer: int,
    x: Any,
    f: Callable[[Tensor], Tensor],
    *,
    rule: Rule = "gradient",
    n_intervals: int = 0,
    form: Literal["squared", "functional"] = "squared",
    sources: int | None = None,
    random_state: int = 0,
) -> Float[Tensor, "feature_out feature_in"]:
    """How much feature j of ``layer`` acts on feature i of the next.

    ``E_ij = (1/n) sum_x (int_0^1 sum_s d fh_i(alpha fh) / d fh_js  fh_js d alpha)^2``, with ``f`` run on ``alpha fh C^+``; for
    sequences squares are summed over output positions and divided by input positions. ``functional`` is the older form:
    without square, the attribution of ``-(fh_i(fh) - fh_i(alpha fh))^2``, which may be negative. For a linear map the first
    form gives ``E_ij = B_ij^2 E[fh_j^2]``, whose sum over i is feature j's importance.

    Args:
        basis, layer: the features; ``layer`` is where edges start.
        x: activations of that layer, ``(sample, unit)`` or ``(sample, position, unit)``: not those of the basis, for an
            honest number. f: the map to the next layer.
        rule, n_intervals: of the integral. sources: random signs over output positions in place of their sum.

    Cost: ``n_intervals + 1`` backward passes for each feature of the next layer (times its positions, or ``sources``);
    streams over samples. Raises InputError for shapes that do not fit.
    """
    if form not in ("squared", "functional"):
        raise InputError(f"form is '{form}', expected squared or functional")
    values, function = _given(basis, layer, x), as_map(f, basis.C[layer].dtype)
    points, generator = integration_points(rule, n_intervals), torch.Generator().manual_seed(random_state)
    back, readout = basis.back(layer), basis.readout(layer + 1)
    edges = values.new_zeros(readout.matrix.shape[1], len(back))
    for rows in values.split(ROWS):
        features = basis.encode(layer, rows)
        if form == "squared":
            edges += _squared(function, features, back, readout, points, sources, generator)
        else:
            edges += _functional(function, features, back, readout, points)
    return edges / values[..., 0].numel()


def _squared(
    f: Map,
    features: Tensor,
    back: Tensor,
    readout: Readout,
    points: list[tuple[float, float]],
    sources: int | None,
    generator: torch.Generator,
) -> Tensor:
    inputs = [(alpha * features).detach().requires_grad_() for alpha, _ in points]
    outputs = [f(z @ back) for z in inputs]
    y, columns = outputs[0], readout.matrix.T
    step = max(1, MOST // (len(features) * max(features[0].numel(), y[0].numel())))
    found = features.new_zeros(len(columns), features.shape[-1])
    if y.ndim == 2:
        directions, n_draws = [y.new_ones(len(y), 1)], 1
    elif sources is None:
        directions, n_draws = list(torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None, :, None]), 1
    else:
        signs = 2 * torch.randint(0, 2, (sources, *y.shape[:2], 1), generator=generator) - 1
        directions, n_draws = list(signs.to(y)), sources
    for where in directions:
        for start in range(0, len(columns), step):
            block = columns[start : start + step].reshape(-1, *[1] * (y.ndim - 1), y.shape[-1])
            cotangents = (where * block).expand(-1, *y.shape)
            weighted = [w * pulled_back(y_, z, cotangents) for (_, w), y_, z in zip(points, outputs, inputs)]
            acted = sum(weighted[1:], weighted[0]) * features
            if y.ndim == 3:
                acted = acted.sum(2)
            found[start : start + step] += acted.pow(2).sum(1) / n_draws
    return found


def _functional(f: Map, features: Tensor, back: Tensor, readout: Readout, points: list[tuple[float, float]]) -> Tensor:
    with torch.no_grad():
        end = readout(f(features @ back))
    found = features.new_zeros(end.shape[-1], features.shape[-1])
    for alpha, weight in points:
        z = (alpha * features).detach().requires_grad_()
        gaps = (end - readout(f(z @ back))).pow(2).flatten(0, -2).sum(0)
        for i, gap in enumerate(gaps):
            (gradient,) = torch.autograd.grad(gap, z, retain_graph=True)
            found[i] -= weight * (gradient * features).flatten(0, -2).sum(0)
    return found


@dataclass(frozen=True, eq=False)
class AblationCurve:
    """Scores with the ``kept[i]`` most important features (or edges), the constant kept beside them."""

    kept: Int[np.ndarray, " point"]
    scores: Float[np.ndarray, " point"]

    @property
    def area(self) -> float:
        """Area under the curve over 0 to the largest number kept, as a mean score."""
        if len(self.kept) < 2:
            return float(self.scores[-1])
        return float(np.trapezoid(self.scores, self.kept) / (self.kept[-1] - self.kept[0]))


def schedule(most: int, every: int = 10, base: float = 1.05) -> list[int]:
    """Numbers kept: 0, then from ``most`` downwards each of the first ``every`` and then steps that grow as powers of ``base``."""
    kept = list(range(most, max(most - every, 0) - 1, -1))
    power = 0
    while kept[-1] > 0:
        kept.append(max(0, int(kept[-1] - base**power)))
        power += 1
    return sorted(kept)


def keep_features(
    basis: InteractionBasis, layer: int, n_kept: int | None = None, chosen: Sequence[int] | None = None
) -> Float[Tensor, "unit unit"]:
    """The projection ``C[:, kept] C^+[kept]`` on the most important features (or on ``chosen`` ones, counted without the
    isolated ones), on homogeneous rows ``[x, 1]``; isolated features stay."""
    n = basis.n_isolated[layer]
    order = torch.argsort(basis.importance[layer][n:], descending=True, stable=True)
    picked = order[:n_kept] if chosen is None else torch.as_tensor(list(chosen), dtype=torch.long)
    indices = torch.cat([torch.arange(n), picked.cpu() + n])
    return basis.C[layer][:, indices] @ basis.C_pinv[layer][indices]


def project(
    basis: InteractionBasis, layer: int, x: Tensor, projection: Float[Tensor, "unit unit"]
) -> Float[Tensor, "*rows unit"]:
    """Activations after a projection of their homogeneous rows."""
    if basis.folded:
        return x @ projection
    return x @ projection[:-1, :-1] + projection[-1, :-1]


def ablate_nodes(
    basis: InteractionBasis,
    layer: int,
    x: Any,
    rest: Callable[[Tensor], Tensor],
    score: Score,
    *,
    counts: Sequence[int] | None = None,
    reverse: bool = False,
) -> AblationCurve:
    """Scores of the network when only the m most important features of a layer are kept: ``x -> x C[:, :m] C^+[:m]``.

    Args:
        x: activations ``(sample, [position,] unit)``, held out. rest: from there to the network's output. score: of
            outputs, larger is better. counts: the m's; default :func:`schedule`. reverse: keep the least important.

    Cost: one pass of the rest of the network for each m. Raises InputError for shapes and counts that do not fit.
    """
    values, function = _given(basis, layer, x), as_map(rest, basis.C[layer].dtype)
    most = basis.n_features[layer]
    chosen = sorted(set(schedule(most) if counts is None else counts))
    if not chosen or chosen[0] < 0 or chosen[-1] > most:
        raise InputError(f"counts are {chosen[:3]} to {chosen[-1:]}, expected numbers from 0 to {most} features")
    order = torch.argsort(basis.importance[layer][basis.n_isolated[layer] :], descending=not reverse, stable=True)
    scores = []
    with torch.no_grad():
        for m in chosen:
            projection = keep_features(basis, layer, chosen=order[:m].tolist())
            scores.append(float(score(function(project(basis, layer, values, projection)))))
    return AblationCurve(np.array(chosen), np.array(scores))


def edge_mask(
    basis: InteractionBasis, layer: int, edges: Float[Tensor, "feature_out feature_in"], n_kept: int
) -> Bool[Tensor, "feature_out feature_in"]:
    """Which edges stay: the ``n_kept`` largest (with ties), and all that start at the constant."""
    free = basis.n_constant[layer]
    rest = edges[:, free:]
    if n_kept < 0:
        raise InputError(f"n_kept is {n_kept}, at least 0 edges are needed")
    mask = torch.ones_like(edges, dtype=torch.bool)
    if n_kept < rest.numel():
        least = torch.topk(rest.flatten(), n_kept).values[-1] if n_kept else torch.inf
        mask[:, free:] = rest >= least
    return mask


def ablate_edges(
    basis: InteractionBasis,
    layer: int,
    x: Any,
    f: Callable[[Tensor], Tensor],
    mask: Bool[Tensor, "feature_out feature_in"],
) -> Float[Tensor, "sample *position unit"]:
    """Activations of the next layer when only the edges of ``mask`` act.

    Output features that keep the same inputs are computed together: ``x`` is rebuilt from these features alone, ``f`` run,
    the output features taken, and all mapped back by ``C^+``. Cost: one pass of ``f`` for each different row of the mask.
    """
    values, function = _given(basis, layer, x), as_map(f, basis.C[layer].dtype)
    if tuple(mask.shape) != (basis.C[layer + 1].shape[1], basis.C[layer].shape[1]):
        raise InputError(f"the mask has shape {tuple(mask.shape)}, expected (feature of layer {layer + 1}, of {layer})")
    back, readout = basis.back(layer), basis.readout(layer + 1)
    kept, group = mask.unique(dim=0, return_inverse=True)
    step = max(1, MOST // max(values.numel(), 1))
    with torch.no_grad():
        features = basis.encode(layer, values)
        made = values.new_zeros(*values.shape[:-1], len(mask))
        for start in range(0, len(kept), step):
            rows = kept[start : start + step]
            shape = (len(rows), *[1] * (values.ndim - 1), len(back))
            inputs = (features * rows.reshape(shape)).flatten(0, 1) @ back
            outputs = function(inputs).unflatten(0, (len(rows), len(values)))
            for i, output in enumerate(outputs, start):
                targets = group == i
                made[..., targets] = output @ readout.matrix[:, targets] + readout.offset[targets]
    return basis.decode(layer + 1, made)


def edges_needed(
    basis: InteractionBasis,
    layer: int,
    x: Any,
    f: Callable[[Tensor], Tensor],
    edges: Float[Tensor, "feature_out feature_in"],
    rest: Callable[[Tensor], Tensor],
    score: Score,
    *,
    tolerance: float = 1e-3,
    most: int | None = None,
) -> int:
    """The fewest edges with which the score stays within ``tolerance`` of the whole network's, by bisection.

    ``rest`` goes from the next layer to the output. Edges that start at the constant are free. A curve that is not
    monotone has several answers, of which bisection finds one; ``most`` is where it starts, by default all edges. Cost: about
    ``log2(edges)`` times :func:`ablate_edges`.
    """
    values = _given(basis, layer, x)
    function, after = as_map(f, values.dtype), as_map(rest, values.dtype)
    if tuple(edges.shape) != (basis.C[layer + 1].shape[1], basis.C[layer].shape[1]):
        raise InputError(f"edges have shape {tuple(edges.shape)}, expected (feature of layer {layer + 1}, of {layer})")
    with torch.no_grad():
        wanted = float(score(after(function(values)))) - tolerance
    total = edges[:, basis.n_constant[layer] :].numel() if most is None else most
    enough, few = total, 0  # ``few`` edges removed are surely allowed, ``enough`` too many
    while enough - few > 1:
        removed = (enough + few) // 2
        mask = edge_mask(basis, layer, edges, total - removed)
        with torch.no_grad():
            found = float(score(after(ablate_edges(basis, layer, values, function, mask))))
        few, enough = (removed, enough) if found >= wanted else (few, removed)
    return total - few


def _given(basis: InteractionBasis, layer: int, x: Any) -> Tensor:
    if not 0 <= layer < len(basis.C) - 1:
        raise InputError(f"layer is {layer}, edges and ablations start at layers 0 to {len(basis.C) - 2}")
    values = as_rows(x).array().detach().to(basis.C[layer])
    if values.shape[-1] != len(basis.readout(layer).matrix):
        raise InputError(
            f"activations have {values.shape[-1]} units, layer {layer} has {len(basis.readout(layer).matrix)}"
        )
    return values
