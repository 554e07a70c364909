"""Keeping the ``k`` largest activations of each row and silencing the rest.

Source: Li et al., "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers", arXiv 2210.06313,
which trains transformers whose MLPs are ``V Top_k(relu(K' x + b))``.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.nn.replace import Matcher, Replacement, replace


class TopK(nn.Module):
    """Keeps the ``k`` largest entries along ``dim`` as they are and sets the others to 0.

    Gradient flows through the survivors only. NaN counts as largest and survives, so that it is not hidden.
    Output: shape and dtype of the input.

    Args:
        k: how many entries survive, 1 to the size of ``dim``; with ``k`` equal to that size the input is returned.
        dim: the axis of units.
        exact: True keeps exactly ``k``, of equal values at the border those of lowest index (which zeros count as kept
            is left open: it changes no value). False ranks fewer candidates, for machines on which ranking is slow (a
            CPU gains nothing): units are dealt to ``L = (k - 1) / (2 (1 - recall))`` interleaved blocks, only the
            largest of each block is a candidate, and the ``k`` largest candidates survive. The largest always does.
        recall: for ``exact=False``, the share of the true ``k`` largest that survives on average when their
            places are random. The layer is exact where ``L`` exceeds half the number of units.

    Cost for ``d`` units: O(d) a row on average, nearly all of it ``torch.topk``, and 2 bytes a unit beside the output.
    Raises InputError for ``k < 1``, for ``k`` larger than the number of units (when run) and for ``recall`` outside
    (0, 1).
    """

    def __init__(self, k: int, dim: int = -1, exact: bool = True, *, recall: float = 0.95) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k is {k}, expected a whole number of units, at least 1; change k")
        if not 0 < recall < 1:
            raise InputError(f"recall is {recall}, expected a number between 0 and 1; for all of them set exact=True")
        self.k, self.dim, self.exact, self.recall = k, dim, exact, recall

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``x`` with all but ``k`` entries of each row set to 0."""
        size = x.shape[self.dim]
        if self.k > size:
            raise InputError(f"k is {self.k}, but axis {self.dim} has {size} units; choose k from 1 to {size}")
        if self.k == size:
            return x
        rows = x.movedim(self.dim, -1)
        n_blocks = size if self.exact else self.n_blocks(size)
        keep = _exact_mask(rows, self.k) if n_blocks == size else _block_mask(rows, self.k, n_blocks)
        return torch.where(keep.movedim(-1, self.dim), x, torch.zeros((), dtype=x.dtype, device=x.device))

    def n_blocks(self, size: int) -> int:
        """Number of blocks that ``exact=False`` deals ``size`` units to; ``size`` where that finds them all."""
        wanted = max(self.k, math.ceil((self.k - 1) / (2 * (1 - self.recall))))
        return size if 2 * wanted > size else wanted

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"k={self.k}, dim={self.dim}, exact={self.exact}" + ("" if self.exact else f", recall={self.recall}")


def _exact_mask(rows: Tensor, k: int) -> Tensor:
    """True at exactly ``k`` entries of each row, of equal ones at the border (zeros apart) the first."""
    if k == rows.shape[-1]:
        return torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
    values, places = rows.detach().topk(k + 1, -1)  # one more than asked tells whether the border is contested
    mask = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device).scatter_(-1, places[..., :k], True)
    border = values[..., k - 1 : k]
    contested = (border == values[..., k:]) & (border != 0)
    if rows.device.type == "cpu" and not bool(contested.any()):  # elsewhere asking costs more than doing
        return mask
    above, level = ~(rows <= border), rows == border  # NaN is above
    room = k - above.sum(-1, keepdim=True)
    return torch.where(contested, above | (level & (level.cumsum(-1, dtype=torch.int32) <= room)), mask)


def _block_mask(rows: Tensor, k: int, n_blocks: int) -> Tensor:
    """True at the ``k`` largest of the blocks' maxima; unit ``i`` is in block ``i mod n_blocks``."""
    size = rows.shape[-1]
    depth = math.ceil(size / n_blocks)
    padded = nn.functional.pad(rows.detach(), (0, depth * n_blocks - size), value=-math.inf)
    best, place = padded.unflatten(-1, (depth, n_blocks)).max(-2)
    chosen = _exact_mask(best, k)
    units = place * n_blocks + torch.arange(n_blocks, device=rows.device)
    mask = torch.zeros(padded.shape, dtype=torch.bool, device=rows.device)
    return mask.scatter_(-1, units, chosen)[..., :size]


class TopKMLP(nn.Module):
    """The two-layer block ``down(Top_k(act(up(x))))`` on ``(..., d_model)``, with sites ``up, act, topk, down``.

    With ``k = d_ff`` it is the ordinary block, bit for bit.

    Args:
        d_model, d_ff: width of input and output, and of the hidden layer.
        k: how many hidden units survive for each row (token).
        act: what comes before the selection, ReLU by default.
        bias: whether ``down`` has a bias; ``up`` has one, as in the paper.
        exact: as in :class:`TopK`.

    Raises InputError for ``k`` outside 1 to ``d_ff``.
    """

    def __init__(
        self, d_model: int, d_ff: int, k: int, act: nn.Module | None = None, *, bias: bool = True, exact: bool = True
    ) -> None:
        super().__init__()
        if min(d_model, d_ff) < 1 or not 1 <= k <= d_ff:
            raise InputError(
                f"d_model is {d_model}, d_ff is {d_ff} and k is {k}, expected positive widths and k from 1 to d_ff"
            )
        self.up = nn.Linear(d_model, d_ff)
        self.act = nn.ReLU() if act is None else act
        self.topk = TopK(k, exact=exact)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The block's output."""
        return self.down(self.topk(self.act(self.up(x))))


def swap_topk(
    model: nn.Module, k: int, matcher: Matcher = nn.ReLU, *, dim: int = -1, exact: bool = True
) -> Replacement:
    """Puts a :class:`TopK` behind every activation of ``model``, in place, and says which ones.

    A swapped module becomes ``Sequential(act, topk)`` under its old name, so that a site named after it reads what
    the next layer gets.

    Args:
        model: any network; weights stay as they are.
        k: survivors in each row.
        matcher: which modules, all ReLU by default; a glob such as ``"blocks.*.mlp.act"`` takes only those.
        dim: the axis of units: -1 for MLPs and transformers, 1 for convolutions.
        exact: as in :class:`TopK`.

    Raises InputError when nothing matches and for a ``k`` below 1; a ``k`` that is too large shows when the network
    runs.
    """
    TopK(k)  # refuses a bad k before the network is touched
    return replace(model, matcher, lambda act: nn.Sequential(OrderedDict(act=act, topk=TopK(k, dim, exact))))
