"""The local interaction basis: every layer in directions that matter downstream and talk to few directions of the next.

Source: Bushnaq et al., "The Local Interaction Basis: Identifying Computationally-Relevant and Sparsely Interacting Features
in Neural Networks", arXiv 2405.10928.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError
from netloupe.core.rows import as_rows
from netloupe.core.statistics import Covariance
from netloupe.lenses.dictionary.lib_metric import (
    Map,
    Readout,
    Rule,
    Sources,
    integrated_metric,
    integration_points,
    jacobian_metric,
)

__all__ = ["InteractionBasis", "Kind", "Rule", "as_map", "interaction_basis"]
Kind = Literal["jacobian", "ig_alpha", "ig_squared", "pca", "neuron", "flow"]
ROWS_CHECKED = 256
KINDS = ("jacobian", "ig_alpha", "ig_squared", "pca", "neuron", "flow")


@dataclass(frozen=True, eq=False)
class InteractionBasis:
    """Linear features of node layers 0 to L.

    Rows ``[x, 1]`` (the constant last) turn into features by ``C[l]`` ``(unit + 1, feature)`` and back by ``C_pinv[l]``
    ``(feature, unit + 1)``; features are sorted by ``importance[l]``, except the first ``n_isolated[l]``: the constant, then
    a LayerNorm's variance where there is one. Importances of two layers cannot be compared. ``mean[l]`` ``(unit,)``;
    ``rank[l]``: directions in which the layer varies, the constant counted. ``n_constant[l]`` is 1 where the first feature
    is the constant. ``folded``: activations bring their own constant.
    """

    C: tuple[Tensor, ...]
    C_pinv: tuple[Tensor, ...]
    importance: tuple[Tensor, ...]
    mean: tuple[Tensor, ...]
    rank: tuple[int, ...]
    kind: Kind
    n_isolated: tuple[int, ...]
    n_constant: tuple[int, ...]
    folded: bool = False

    @property
    def n_features(self) -> tuple[int, ...]:
        """Features of each layer, isolated ones not counted."""
        return tuple(len(kept) - n for kept, n in zip(self.importance, self.n_isolated))

    def readout(self, layer: int) -> Readout:
        """From activations of a layer, as its map gives them, to features."""
        matrix = self.C[layer]
        if self.folded:
            return Readout(matrix, matrix.new_zeros(matrix.shape[1]))
        return Readout(matrix[:-1], matrix[-1])

    def back(self, layer: int) -> Float[Tensor, "feature unit"]:
        """The linear map from features to activations as the next map takes them."""
        return self.C_pinv[layer] if self.folded else self.C_pinv[layer][:, :-1]

    def encode(self, layer: int, x: Any) -> Float[Tensor, "*rows feature"]:
        """Features of activations ``(..., unit)``. Raises InputError for another width or a layer there is not."""
        readout = self.readout(self._layer(layer))
        values = torch.as_tensor(x).to(readout.matrix)
        if values.ndim < 1 or values.shape[-1] != len(readout.matrix):
            raise InputError(
                f"activations have shape {tuple(values.shape)}, layer {layer} has {len(readout.matrix)} units"
            )
        return readout(values)

    def decode(self, layer: int, z: Any) -> Float[Tensor, "*rows unit"]:
        """Activations ``(..., unit)`` of features; their projection on the kept directions."""
        matrix = self.back(self._layer(layer))
        values = torch.as_tensor(z).to(matrix)
        if values.ndim < 1 or values.shape[-1] != len(matrix):
            raise InputError(
                f"features have shape {tuple(values.shape)}, layer {layer} has {len(matrix)} of them, the constant included"
            )
        return values @ matrix

    def dictionary(self, layer: int, site: str = "") -> Dictionary:
        """The layer's features, the constant left out, as a linear dictionary around the mean.

        Raises InputError for a layer there is not, or activations that bring their own constant (``official``).
        """
        if self.folded:
            raise InputError("a dictionary has no place for a constant unit; build the basis without official")
        C, C_pinv, n = self.C[self._layer(layer)], self.C_pinv[layer], self.n_constant[layer]
        options = {"kind": self.kind, "importance": self.importance[layer][n:].tolist()}
        return Dictionary(
            C_pinv[n:, :-1].contiguous(), "linear", site, "local interaction basis",
            offset=C[-1, 0] * C_pinv[0, :-1] if n else None, weight=C[:-1, n:].T.contiguous(), bias=C[-1, n:].clone(),
            centred=False, options=options,
        )  # fmt: skip

    def _layer(self, layer: int) -> int:
        if not -len(self.C) <= layer < len(self.C):
            raise InputError(f"layer is {layer}, there are {len(self.C)} node layers")
        return layer


def interaction_basis(
    acts: Sequence[Any],
    maps: Sequence[Callable[[Tensor], Tensor]],
    *,
    basis: Kind = "jacobian",
    center: bool = True,
    truncation: float = 1e-10,
    rule: Rule | None = None,
    n_intervals: int = 0,
    sources: Sources = None,
    rotate_final: bool = False,
    variance_layers: Collection[int] = (),
    official: bool = False,
    random_state: int = 0,
    dtype: torch.dtype = torch.float64,
) -> InteractionBasis:
    """Builds the basis from the last node layer backwards.

    Each layer is centred and whitened, ``x R``, and the metric ``M' = E[J^T J]`` of its Jacobian ``J`` to the next layer's
    features is read there: ``M = R^+ M' R^+T = V Lam V^T``. Then ``C = R V Lam^1/2`` and ``C^+ = Lam^-1/2 V^T R^+``, so that
    features are uncorrelated, their mean square is their importance ``Lam``, and ``C^+ M' C^+T = 1``. Directions without
    variance, and without effect, are dropped; the constant is kept out of both eigenproblems and stands first.

    Args:
        acts: activations of node layers 0 to L, each ``(sample, unit)`` or ``(sample, position, unit)``, same samples.
        maps: ``maps[l]`` gives layer l + 1 from layer l: modules (used as float64 copies in evaluation mode) or functions.
        basis: ``jacobian``; ``ig_alpha`` and ``ig_squared``, the two integrated-gradient bases; ``flow``, whose Jacobian
            goes to the last layer at once; ``pca`` (centred, not whitened); ``neuron``, the units themselves.
        center: isolate the constant. truncation: directions under this share of the layer's largest eigenvalue go.
        rule, n_intervals: of integrals; see :func:`~netloupe.lenses.dictionary.lib_metric.integration_points`. By default the
            gradient at each sample, and Gauss-Legendre for the integrated-gradient bases.
        sources: random sign vectors in place of the sum over features and positions (Hutchinson); a number, or a pair
            for (positions, features).
        rotate_final: principal directions for the last layer in place of its own coordinates.
        variance_layers: layers whose first unit is a LayerNorm's variance, to be kept as a feature of its own.
        official: as the published code does: activations carry a constant 1 as last unit (maps take and give it; only the
            last layer may lack it), ``truncation`` is absolute, and the constant feature is scaled by its own importance.

    Cost: one backward pass over all samples for each feature of the next layer, and ``n k d^2`` multiply-adds; streams over
    samples, the activations given are held. Raises InputError for shapes that do not fit, maps that do not give the next
    layer (a bypass, dropout), float32 with a truncation below 1e-6; NonFiniteError. Warns where samples are fewer than units.
    """
    if basis not in KINDS:
        raise InputError(f"basis is '{basis}', expected one of {', '.join(KINDS)}")
    if dtype not in (torch.float32, torch.float64) or (dtype == torch.float32 and truncation < 1e-6):
        raise InputError(
            f"dtype is {dtype} with truncation {truncation:g}: whitening needs float64, or float32 and 1e-6 or more"
        )
    if truncation < 0:
        raise InputError(f"truncation is {truncation:g}, a number of at least 0 is expected")
    values, functions = _layers(acts, dtype), [as_map(f, dtype) for f in maps]
    _require_maps(acts, values, functions)
    if basis == "ig_squared" and rule == "gradient":
        raise InputError(
            "the gradient of ig_squared is 0 at the sample itself; give the rule gauss-legendre or trapezoidal"
        )
    points = integration_points(rule or ("gauss-legendre" if basis.startswith("ig") else "gradient"), n_intervals)
    last = len(values) - 1
    built: list[_Layer] = []
    for index in range(last, -1, -1):
        own = _Whitened.of(values[index], index, center, truncation, official, index in variance_layers, index == last)
        if index == last:
            built.append(own.principal() if rotate_final else own.units(final=True))
            continue
        if basis == "pca" or basis == "neuron":
            built.append(own.principal() if basis == "pca" else own.units())
            continue
        f, after = functions[index], built[-1]
        if basis == "flow":
            f, after = _chain(functions[index:]), built[0]
        readout = after.readout(official)
        if basis in ("jacobian", "flow"):
            metric = jacobian_metric(
                f, values[index], readout, points=points, sources=sources, random_state=random_state + index
            )
            built.append(own.rotated(metric, None))
        else:
            found = integrated_metric(f, values[index], readout, points=points, squared=basis == "ig_squared")
            built.append(own.rotated(*found))
    built.reverse()
    return InteractionBasis(
        tuple(each.C for each in built), tuple(each.C_pinv for each in built), tuple(each.importance for each in built),
        tuple(each.mean for each in built), tuple(each.rank for each in built), basis,
        tuple(each.n_isolated for each in built), tuple(each.n_constant for each in built), official,
    )  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    C: Tensor
    C_pinv: Tensor
    importance: Tensor
    mean: Tensor
    rank: int
    n_isolated: int
    n_constant: int

    def readout(self, folded: bool) -> Readout:
        if folded:
            return Readout(self.C, self.C.new_zeros(self.C.shape[1]))
        return Readout(self.C[:-1], self.C[-1])


@dataclass(frozen=True)
class _Whitened:
    """A layer's rows ``[x, 1]`` in principal directions: ``W`` there, ``W_pinv`` back, second moments ``D``."""

    W: Tensor
    W_pinv: Tensor
    D: Tensor
    mean: Tensor
    variance: Tensor
    n_isolated: int
    truncation: float
    official: bool
    constant: bool  # whether the given units hold the constant already
    center: bool

    @staticmethod
    def of(
        x: Tensor, index: int, center: bool, truncation: float, official: bool, isolate: bool, is_last: bool
    ) -> _Whitened:
        constant = official and bool((x[..., -1] == 1).all())
        if official and not constant and not is_last:
            raise InputError(
                f"layer {index} does not end in a constant 1, which the official form expects; append it, or leave official out"
            )
        plain = x[..., :-1] if constant else x
        result = Covariance().update(plain).result()
        mean, covariance = (torch.as_tensor(each).to(x) for each in (result.mean, result.covariance()))
        d = len(mean)
        if result.count < d:
            warnings.warn(
                f"layer {index} has {result.count} rows for {d} units: directions that these do not span are lost",
                stacklevel=3,
            )
        whole = x.new_zeros(d + 1, d + 1)
        whole[:d, :d] = covariance
        if not center:
            homogeneous = torch.cat([mean, mean.new_ones(1)])
            whole += torch.outer(homogeneous, homogeneous)
        first = int(isolate)
        block = whole[first:, first:] if not center else whole[first:-1, first:-1]
        values, vectors = _sorted_eigen(block)
        kept = values > truncation * (1.0 if official or not len(values) else float(values[0]))
        values, vectors = values[kept], vectors[:, kept]
        lead = x.new_zeros(d + 1, first + int(center))
        if center:
            lead[-1, 0] = 1
        if isolate:
            lead[0, -1] = 1
        body = x.new_zeros(d + 1, len(values))
        body[first : first + len(vectors)] = vectors
        U = torch.cat([lead, body], 1)
        D = torch.cat([x.new_ones(int(center)), covariance[0, 0][None] if isolate else x.new_zeros(0), values])
        shift = torch.eye(d + 1, dtype=x.dtype, device=x.device)
        unshift = shift.clone()
        if center:
            shift[-1, :d], unshift[-1, :d] = -mean, mean
        return _Whitened(
            shift @ U, U.T @ unshift, D, mean, covariance.diagonal(), lead.shape[1], truncation, official, constant, center
        )  # fmt: skip

    def principal(self) -> _Layer:
        return _Layer(self.W, self.W_pinv, self.D, self.mean, len(self.D), self.n_isolated, int(self.center))

    def units(self, final: bool = False) -> _Layer:
        """Own coordinates in their order: of the last layer (and in the official form) alone, else behind the constant."""
        d, rank = len(self.mean), len(self.D)
        one = self.W.new_ones(1)
        if self.official:
            importance = torch.cat([self.variance, one]) if self.constant else self.variance
            eye = torch.eye(len(importance), dtype=self.W.dtype, device=self.W.device)
            return _Layer(eye, eye.clone(), importance, self.mean, rank, 0, 0)
        eye = torch.eye(d + 1, dtype=self.W.dtype, device=self.W.device)
        if final:
            return _Layer(eye[:, :d], eye[:d], self.variance, self.mean, rank, 0, 0)
        C = torch.cat([eye[:, d:], eye[:, :d]], 1)
        return _Layer(C, C.T.clone(), torch.cat([one, self.variance]), self.mean, rank, 1, 1)

    def rotated(self, metric: Tensor, cross: Tensor | None) -> _Layer:
        """Principal directions of the metric where activations are white, scaled by importance."""
        n = self.n_isolated
        root = self.D.sqrt()
        R, R_pinv = self.W / root, root[:, None] * self.W_pinv
        size = len(metric)  # of the units as maps take them: with the constant where it is folded in
        M = R_pinv[:, :size] @ metric @ R_pinv[:, :size].T
        found, vectors = _sorted_eigen(M[n:, n:])
        V = torch.block_diag(torch.eye(n, dtype=M.dtype, device=M.device), vectors)
        lam = torch.cat([M.diagonal()[:n], found])
        if cross is not None:
            lam = (V.T @ R_pinv[:, :size] @ cross @ R[:size] @ V).diagonal().abs()
        if not self.official and self.center:
            lam = torch.cat([lam.new_ones(1), lam[1:]])
        lam = torch.where((torch.arange(len(lam), device=lam.device) < n) & (lam <= 0), torch.ones_like(lam), lam)
        kept = self._kept(lam)
        scale = lam[kept].sqrt()
        C, C_pinv = (R @ V[:, kept]) * scale, (V[:, kept].T @ R_pinv) / scale[:, None]
        return _Layer(C, C_pinv, lam[kept], self.mean, len(self.D), n, int(self.center))

    def _kept(self, lam: Tensor) -> Tensor:
        """Indices by importance, isolated ones first; the least important that are under the truncation are dropped."""
        n = self.n_isolated
        order = torch.argsort(lam[n:], descending=True, stable=True) + n
        if not len(order):
            return torch.arange(n, device=lam.device)
        largest = float(lam[order[0]])
        small = (
            int((lam < self.truncation).sum()) if self.official else int((lam[n:] < self.truncation * largest).sum())
        )
        if largest <= 0:
            small = len(order)
        return torch.cat([torch.arange(n, device=lam.device), order[: len(order) - min(small, len(order))]])


def _sorted_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    order = torch.argsort(values.abs(), descending=True, stable=True)
    return values.abs()[order], vectors[:, order]


def as_map(f: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> Map:
    """A map as the basis calls it: a module becomes a copy in evaluation mode, of ``dtype`` and without gradients."""
    if isinstance(f, nn.Module):
        return copy.deepcopy(f).to(dtype).eval().requires_grad_(False)
    if not callable(f):
        raise InputError(f"a map is a {type(f).__name__}, expected a module or a function from tensor to tensor")
    return f


def _chain(functions: Sequence[Map]) -> Map:
    def whole(x: Tensor) -> Tensor:
        for f in functions:
            x = f(x)
        return x

    return whole


def _layers(acts: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    if isinstance(acts, (Tensor, np.ndarray)) or not isinstance(acts, Sequence) or len(acts) < 2:
        raise InputError("activations of at least two node layers are needed, as a list from first to last")
    values = [as_rows(each, min_samples=2).array().detach().to(dtype) for each in acts]
    if len({len(each) for each in values}) > 1:
        raise InputError(
            f"node layers have {[len(each) for each in values]} samples, the same samples are needed at each"
        )
    return values


def _require_maps(acts: Sequence[Any], values: list[Tensor], functions: Sequence[Map]) -> None:
    if len(functions) != len(values) - 1:
        raise InputError(
            f"there are {len(functions)} maps for {len(values)} node layers, expected one between each two"
        )
    for index, f in enumerate(functions):
        rows, target = values[index][:ROWS_CHECKED], values[index + 1][:ROWS_CHECKED]
        with torch.no_grad():
            made = f(rows)
            if not isinstance(made, Tensor) or made.shape != target.shape:
                shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
                raise InputError(
                    f"map {index} gives {shape} for activations of {tuple(target.shape)} at the next layer"
                )
            exact = torch.as_tensor(acts[index + 1]).dtype == torch.float64 and values[index].dtype == torch.float64
            off = float((made - target).abs().max() / target.abs().max().clamp_min(1e-300))
            if not off <= (1e-8 if exact else 1e-3):
                raise InputError(
                    f"map {index} does not give the activations of layer {index + 1} (off by {off:.2g}); is there a "
                    "bypass around the site, or dropout?"
                )
