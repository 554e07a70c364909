"""What a direction of the residual stream says in tokens: its projection on the vocabulary.

Source: arXiv 2506.10920, after Geva et al., arXiv 2203.14680.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.errors import InputError, NonFiniteError


class VocabProjection(NamedTuple):
    """Logits of a direction, and the tokens it raises and lowers most (largest size first); with several directions a row each."""

    logits: Float[Tensor, "*direction token"]
    top: Int[Tensor, "*direction rank"]
    bottom: Int[Tensor, "*direction rank"]


def vocab_projection(
    direction: Float[Tensor, "*direction unit"],
    unembed: nn.Module | Float[Tensor, "token unit"],
    norm: Callable[[Tensor], Tensor] | None = None,
    n_tokens: int = 50,
) -> VocabProjection:
    """``unembed(norm(direction))``.

    Args:
        direction: of the residual stream (neurons first through the output projection, ``residual_directions``).
        unembed: the network's head, or its weight ``(token, unit)``. norm: the network's final norm, which sets the scale.
        n_tokens: how many tokens at either end; at most the vocabulary.

    A norm that subtracts or has a bias gives logits to a direction of no content as well: compare two directions. Cost: O(d V).
    Raises InputError for a width that does not fit, NonFiniteError for NaN.
    """
    x = torch.as_tensor(direction)
    if x.ndim not in (1, 2) or n_tokens < 1:
        raise InputError(
            f"direction has shape {tuple(x.shape)} and n_tokens is {n_tokens}; expected (unit,) or (direction, unit)"
        )
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("the direction holds NaN or infinity; give a finite one")
    head = unembed.weight if isinstance(unembed, nn.Linear) else unembed
    if isinstance(head, Tensor) and head.shape[-1] != x.shape[-1]:
        raise InputError(f"the direction has {x.shape[-1]} units, the head takes {head.shape[-1]}")
    with torch.no_grad():
        if isinstance(head, Tensor):
            x = x.to(head)
        x = x if norm is None else norm(x)
        logits = unembed(x) if isinstance(unembed, nn.Module) else x @ unembed.T
    n = min(n_tokens, logits.shape[-1])
    return VocabProjection(logits, logits.topk(n, -1).indices, (-logits).topk(n, -1).indices)
