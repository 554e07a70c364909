"""A bottleneck that lets only codes pass: each vector is replaced by a few rows of a learned table.

Source: Tamkin, Taufeeque and Goodman, "Codebook Features: Sparse and Discrete Interpretability for Neural Networks", arXiv
2310.17230. :mod:`netloupe.nn.codebook_model` puts such layers into a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.dictionary import NORM_EPS, Dictionary
from netloupe.core.errors import InputError, NonFiniteError

Similarity = Literal["cosine", "l2"]
Reduce = Literal["mean", "sum"]
Backward = Literal["aeloss", "base", "full", "vqvae"]
Replacing = Literal["random", "error"]
Forced = int | Tensor | list[int] | Callable[[Tensor], Tensor]
_FEW = 8  # codes a vector up to which they are searched for one by one
_BLOCK_SCORES = 1 << 24  # similarities held at a time: 64 MB of float32


@dataclass(frozen=True)
class _Rules:
    """What the backward pass has to know."""

    reduce: Reduce
    backward: Backward
    beta: float
    official: bool
    some_absent: bool  # whether there may be ids of -1


class _Snap(torch.autograd.Function):
    """Rows of the table in place of vectors; the gradients of the four variants."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, ids: Tensor, rules: _Rules) -> Tensor:
        out = _combined(table, ids, rules)
        ctx.save_for_backward(rows, ids, out)
        ctx.shape, ctx.rules = table.shape, rules
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Straight through to the input; task and reconstruction gradients to the rows that were chosen."""
        rows, ids, out = ctx.saved_tensors
        rules, gradient = ctx.rules, grads[0]
        to_rows, to_table = gradient, gradient
        if rules.backward != "base":
            pull = (out - rows) * (2 / len(rows))  # of mean_N |y - x|^2 with respect to y
            to_table = pull if rules.backward == "vqvae" else gradient + pull
            if rules.backward in ("full", "vqvae"):
                to_rows = gradient - rules.beta * (pull * len(rows) if rules.official else pull)
        if not ctx.needs_input_grad[1]:
            return to_rows, None, None, None
        n_groups, n_codes, width = ctx.shape
        each = to_table / ids.shape[-1] if rules.reduce == "mean" else to_table
        each = each[..., None, :].expand(*ids.shape, width)
        if rules.some_absent:
            each = each * (ids >= 0)[..., None]
        table = torch.zeros(n_groups * n_codes, width, dtype=each.dtype, device=each.device)
        table.index_add_(0, _places(ids, n_codes).reshape(-1), each.reshape(-1, width))
        return to_rows, table.view(ctx.shape), None, None


def _places(ids: Int[Tensor, "row group k"], n_codes: int) -> Int[Tensor, "row group k"]:
    """Rows of the stacked tables; 0 of its group where there is no code (-1)."""
    if ids.shape[1] == 1:
        return ids.clamp_min(0)
    return ids.clamp_min(0) + torch.arange(ids.shape[1], device=ids.device)[:, None] * n_codes


def _combined(table: Tensor, ids: Tensor, rules: _Rules) -> Float[Tensor, "row group width"]:
    """Mean or sum of the chosen rows of each group's table; no code (-1) adds nothing, and the mean still divides by k."""
    places, flat = _places(ids, table.shape[1]), table.reshape(-1, table.shape[-1])
    if not rules.some_absent:
        return F.embedding_bag(places.reshape(-1, ids.shape[-1]), flat, mode=rules.reduce).view(*ids.shape[:2], -1)
    total = (F.embedding(places, flat) * (ids >= 0)[..., None]).sum(-2)
    return total / ids.shape[-1] if rules.reduce == "mean" else total


class Codebook(nn.Module):
    """Each vector becomes the mean of the ``k`` rows of a learned table that are nearest to it; nothing else passes.

    ``xn = LayerNorm(x)``; ``ids`` are the top k of ``xn . E_c / |E_c|`` (``cosine``: the order is the cosine's) or of
    ``-|xn - E_c|`` (``l2``); ``y = mean_k E_ids``. With ``groups`` the vector is cut in as many parts, each with a table and a
    normalisation of its own: one a head, where the input is what the heads say.

    Gradients: the input gets ``dL/dy``, straight through. The table gets, with ``aeloss`` (default), the task's gradient and that of
    the mean over vectors of ``|y - xn|^2`` with respect to the chosen rows alone; with ``base`` the task's only; with ``vqvae`` the
    reconstruction's only. ``vqvae`` and ``full`` (else as ``aeloss``) add the gradient of ``beta mean |xn - y|^2`` to the input.

    Args:
        dim: width ``d``. n_codes: rows ``C`` of a table. k: codes a vector. groups: parts ``g``, which divide the width evenly.
        similarity, reduce, backward, beta: see above; ``sum`` is how the paper writes it, ``mean`` what its code does.
        layernorm: whether to normalise first.
        official: the authors' code does not divide the commitment gradient of ``full`` and ``vqvae`` by the number of vectors.
        replace_after_steps: after so many training passes codes that never fired since are put where inputs of the current pass
            lie, plus noise of ``replace_rho`` times their length; 0 never. ``replace_by``: inputs drawn at ``random`` (as
            the authors do) or those of largest ``error``.
        random_state: of the rows, normal with variance 1, and of replacements.

    ``ids`` int64 ``(*rows, group, k)`` are those of the last call; ``usage`` int64 ``(group, code)`` counts vectors since
    :meth:`reset_usage`. With ``enabled = False`` the input passes as it is. Cost: ``N C d`` multiplications a pass; blocks of
    the table bound the memory. Raises InputError for sizes that do not fit, another width and ids that do not exist.
    """

    usage: Tensor
    _since: Tensor

    def __init__(
        self,
        dim: int,
        n_codes: int,
        k: int = 1,
        groups: int = 1,
        similarity: Similarity = "cosine",
        reduce: Reduce = "mean",
        layernorm: bool = True,
        backward: Backward = "aeloss",
        beta: float = 0.25,
        *,
        official: bool = False,
        replace_after_steps: int = 0,
        replace_rho: float = 1e-4,
        replace_by: Replacing = "random",
        random_state: int = 0,
    ) -> None:
        super().__init__()
        if dim < 1 or n_codes < 1 or groups < 1 or dim % groups:
            raise InputError(
                f"dim is {dim}, n_codes {n_codes} and groups {groups}, expected positive sizes and groups that divide dim"
            )
        for name, given, known in (
            ("similarity", similarity, Similarity), ("reduce", reduce, Reduce), ("backward", backward, Backward),
            ("replace_by", replace_by, Replacing),
        ):  # fmt: skip
            if given not in get_args(known):
                raise InputError(f"{name} is '{given}', expected one of {', '.join(get_args(known))}")
        if beta < 0 or replace_after_steps < 0 or replace_rho < 0:
            raise InputError(f"beta is {beta}, replace_after_steps {replace_after_steps} and replace_rho {replace_rho}; "
                             "none of them may be negative")  # fmt: skip
        self.dim, self.n_codes, self.groups = dim, n_codes, groups
        self.k = k
        self.similarity: Similarity = similarity
        self.reduce: Reduce = reduce
        self.backward: Backward = backward
        self.beta, self.official = beta, official
        self.replace_after_steps, self.replace_rho, self.replace_by = replace_after_steps, replace_rho, replace_by
        self.random_state = random_state
        self.enabled, self.ids = True, None
        self._forced: Forced | None = None
        width = dim // groups
        draw = torch.Generator().manual_seed(random_state)
        self.table = nn.Parameter(torch.randn(groups, n_codes, width, generator=draw))
        self.norm_weight = nn.Parameter(torch.ones(groups, width)) if layernorm else None
        self.norm_bias = nn.Parameter(torch.zeros(groups, width)) if layernorm else None
        self.register_buffer("usage", torch.zeros(groups, n_codes, dtype=torch.int64))
        self.register_buffer("_since", torch.zeros(groups, n_codes, dtype=torch.int64), persistent=False)
        self._steps = 0

    ids: Int[Tensor, "*rows group k"] | None

    @property
    def k(self) -> int:
        """Codes a vector; it may be changed while training (:func:`k_schedule`)."""
        return self._k

    @k.setter
    def k(self, value: int) -> None:
        if not 1 <= value <= self.n_codes:
            raise InputError(f"k is {value}, expected 1 to {self.n_codes}, the number of codes")
        self._k = int(value)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"dim={self.dim}, n_codes={self.n_codes}, k={self.k}, groups={self.groups}, backward={self.backward}"

    def normalised(self, x: Float[Tensor, "*rows unit"]) -> Float[Tensor, "row group width"]:
        """What the tables are compared with: the parts of each vector, normalised."""
        parts = x.reshape(-1, self.groups, self.dim // self.groups)
        if self.norm_weight is None:
            return parts
        assert self.norm_bias is not None
        if self.groups == 1:  # one call of the library, with its own backward
            return F.layer_norm(parts, parts.shape[-1:], self.norm_weight[0], self.norm_bias[0], NORM_EPS)
        return F.layer_norm(parts, parts.shape[-1:], eps=NORM_EPS) * self.norm_weight + self.norm_bias

    def forward(self, x: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows unit"]:
        """The quantised vectors."""
        if not self.enabled:
            return x
        if x.shape[-1] != self.dim:
            raise InputError(f"activations of shape {tuple(x.shape)} were given to a codebook of width {self.dim}")
        if x.device != self.table.device:
            raise InputError(f"activations lie on {x.device}, the codebook on {self.table.device}; move one of them")
        rows = self.normalised(x)
        ids = self._imposed(self.nearest(rows), x.shape[:-1])
        self.ids = ids.view(*x.shape[:-1], *ids.shape[1:])
        self._count(ids)
        rules = _Rules(self.reduce, self.backward, self.beta, self.official, self._forced is not None)
        y = _Snap.apply(rows, self.table.to(rows.dtype), ids, rules).reshape(x.shape)
        if self.training and self.replace_after_steps:
            self._replace(rows, y.detach().view_as(rows))
        return y

    @torch.no_grad()
    def nearest(self, rows: Float[Tensor, "row group width"]) -> Int[Tensor, "row group k"]:
        """Codes of normalised vectors, the nearest first; of equal ones any. The table is read in blocks."""
        table = self.table.detach().to(rows.dtype)
        bias = None
        if self.similarity == "cosine":
            table = table / table.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(table.dtype).tiny)
        else:  # |x - E|^2 = |x|^2 - 2 (x.E - |E|^2 / 2)
            bias = -table.pow(2).sum(-1) / 2
        step = max(self.k, _BLOCK_SCORES // max(1, rows.shape[0]))
        return torch.stack([
            _top(rows[:, g], table[g], None if bias is None else bias[g], self.k, step) for g in range(self.groups)
        ], 1)  # fmt: skip

    def _imposed(self, ids: Tensor, shape: torch.Size) -> Tensor:
        """The ids of this pass: those found, or what :meth:`force` says."""
        if self._forced is None:
            return ids
        found = ids.view(*shape, *ids.shape[1:])
        made = self._forced(found) if callable(self._forced) else self._forced
        wanted = torch.as_tensor(made, device=ids.device)
        try:
            wanted = wanted.expand(found.shape)
        except RuntimeError:
            raise InputError(
                f"codes of shape {tuple(wanted.shape)} were forced where {tuple(found.shape)} (*rows, group, k) are needed"
            ) from None
        if wanted.is_floating_point() or int(wanted.min()) < -1 or int(wanted.max()) >= self.n_codes:
            raise InputError(f"forced codes must be whole numbers from -1 (none) to {self.n_codes - 1}")
        return wanted.reshape(ids.shape).long()

    @contextmanager
    def force(self, ids: Forced) -> Iterator[None]:
        """Puts codes in place of those found, for a block.

        ``ids`` is one code, a tensor that broadcasts to ``(*rows, group, k)`` (-1: no code, which adds nothing), or a function of
        the ids found, ``(*rows, group, k)`` to the same.
        """
        before, self._forced = self._forced, ids
        try:
            yield
        finally:
            self._forced = before

    @torch.no_grad()
    def _count(self, ids: Tensor) -> None:
        chosen = _places(ids, self.n_codes)
        chosen = chosen.reshape(-1) if self._forced is None else chosen[ids >= 0]
        found = torch.bincount(chosen, minlength=self.usage.numel()).view_as(self.usage)
        self.usage += found
        if self.training:
            self._since += found

    def reset_usage(self) -> None:
        """Counts start at 0 again."""
        self.usage.zero_()

    @property
    def dead(self) -> Int[Tensor, "code 2"]:
        """Group and number of the codes that have not fired since :meth:`reset_usage`."""
        return (self.usage == 0).nonzero()

    def l1(self) -> Float[Tensor, ""]:
        """``sum |E_c|_1`` over the codes that fired in the last pass, to be added to a loss (the authors' weight: 0.01)."""
        if self.ids is None:
            raise InputError("no codes have fired yet; run the network first")
        ids = self.ids.reshape(-1, self.groups, self.ids.shape[-1])
        fired = _places(ids, self.n_codes)[ids >= 0].unique()
        return self.table.reshape(-1, self.table.shape[-1])[fired].abs().sum()

    @torch.no_grad()
    def _replace(self, rows: Tensor, out: Tensor) -> None:
        """Dead codes move to inputs of this pass, at every ``replace_after_steps``-th one."""
        self._steps += 1
        if self._steps % self.replace_after_steps:
            return
        draw = torch.Generator().manual_seed(self.random_state * 1_000_003 + self._steps)
        for g in range(self.groups):
            dead = (self._since[g] == 0).nonzero()[:, 0]
            order = torch.randperm(len(rows), generator=draw).to(rows.device)
            if self.replace_by == "error":
                order = (out[:, g] - rows[:, g]).pow(2).sum(1).argsort(descending=True, stable=True)
            taken = rows[order.repeat(len(dead) // len(rows) + 1)[: len(dead)], g]
            noise = torch.randn(taken.shape, generator=draw).to(taken)
            made = taken + self.replace_rho * taken.norm(dim=1, keepdim=True) * noise
            self.table.data[g, dead] = made.to(self.table.dtype)
        self._since.zero_()

    @torch.no_grad()
    def init_from(self, x: Float[Tensor, "*rows unit"]) -> None:
        """Rows become the centres that mini-batch k-means finds in activations, normalised as the layer does.

        Raises InputError for fewer vectors than codes, NonFiniteError for NaN.
        """
        from sklearn.cluster import MiniBatchKMeans

        if x.shape[-1] != self.dim or x.numel() // self.dim < self.n_codes:
            raise InputError(
                f"activations of shape {tuple(x.shape)} were given; expected {self.dim} units and at least {self.n_codes} vectors"
            )
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError("activations hold NaN or infinity; look for an overflow in the network")
        rows = self.normalised(x.to(self.table)).cpu().numpy()
        for g in range(self.groups):
            means = MiniBatchKMeans(self.n_codes, n_init="auto", random_state=self.random_state + g).fit(rows[:, g])
            self.table.data[g] = torch.from_numpy(np.asarray(means.cluster_centers_)).to(self.table)

    @torch.no_grad()
    def dictionary(self, site: str = "") -> Dictionary:
        """The layer as a dictionary: its codes are 1 where a code fires, and ``decode(encode(x))`` is the layer's output.

        Feature ``g C + c`` is row ``c`` of group ``g``, whose direction is 0 outside the group's units.
        """
        table = self.table.detach()
        size = table.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(table.dtype).tiny)
        weight, bias = (table / size, None) if self.similarity == "cosine" else (table, -table.pow(2).sum(-1) / 2)
        if self.norm_weight is not None:
            assert self.norm_bias is not None
            shift = torch.einsum("gcw,gw->gc", weight, self.norm_bias)
            bias, weight = shift if bias is None else bias + shift, weight * self.norm_weight[:, None]
        return Dictionary(
            _blocks(table), "nearest", site, "codebook", weight=_blocks(weight),
            bias=None if bias is None else bias.reshape(-1), k=self.k, groups=self.groups,
            scale=torch.full((self.groups * self.n_codes,), float(self.k)).to(table) if self.reduce == "mean" else None,
            normed=self.norm_weight is not None, options={"n_codes": self.n_codes, "similarity": self.similarity},
        )  # fmt: skip


def _blocks(table: Float[Tensor, "group code width"]) -> Float[Tensor, "feature unit"]:
    return torch.block_diag(*table) if len(table) > 1 else table[0].clone()


def _top(rows: Tensor, table: Tensor, bias: Tensor | None, k: int, step: int) -> Int[Tensor, "row k"]:
    """The k best rows of a table for each vector, over blocks of the table with a running choice."""
    best: tuple[Tensor, Tensor] | None = None
    for first in range(0, len(table), step):
        block = table[first : first + step]
        scores = rows @ block.T if bias is None else torch.addmm(bias[first : first + step], rows, block.T)
        values, ids = _largest(scores, min(k, len(block)))
        ids = ids + first
        if best is not None:
            values, ids = torch.cat([best[0], values], 1), torch.cat([best[1], ids], 1)
            values, order = values.topk(k, 1)
            ids = ids.gather(1, order)
        best = values, ids
    assert best is not None
    return best[1]


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``scores.topk(k, 1)``; the scores are used up. For few codes on a CPU numpy's argmax, taken k times, is several times faster."""
    if scores.device.type != "cpu" or k > _FEW or scores.dtype not in (torch.float32, torch.float64):
        return scores.topk(k, 1)
    grid, rows = scores.numpy(), np.arange(len(scores))
    ids, values = np.empty((len(grid), k), dtype=np.int64), np.empty((len(grid), k), dtype=grid.dtype)
    for place in range(k):
        ids[:, place] = grid.argmax(1)
        values[:, place] = grid[rows, ids[:, place]]
        grid[rows, ids[:, place]] = -np.inf
    return torch.from_numpy(values), torch.from_numpy(ids)


def k_schedule(step: int, k_max: int, k_min: int, steps: int, power: float = 1.0) -> int:
    """Codes a vector at a step of training: from ``k_max`` at the first to ``k_min`` at the last.

    ``k_max - (k_max - k_min) (step / (steps - 1))^(1 / power)``, rounded down. Raises InputError for ``k_min`` below 1 or above
    ``k_max`` and fewer than two steps.
    """
    if not 1 <= k_min <= k_max or steps < 2 or step < 0 or power <= 0:
        raise InputError(
            f"k goes from {k_max} to {k_min} in {steps} steps at step {step}; expected 1 <= k_min <= k_max, two steps or more"
        )
    return int(k_max - (k_max - k_min) * min(1.0, step / (steps - 1)) ** (1 / power))
