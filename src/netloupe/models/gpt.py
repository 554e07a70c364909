"""A small byte-level language model: the plain decoder of today's large ones, of a size that trains in a minute.

Pre-norm with RMSNorm, rotary positions (Su et al., arXiv 2104.09864) and gated feed-forward blocks (Shazeer, arXiv
2002.05202), each exchangeable for its older form. The activation is chosen by name: with ReLU and SiLU two networks that
differ in nothing else can be compared, as arXiv 2411.02335 does.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.isolation import random_state as seeded
from netloupe.nn.ffn import Activation, FeedForward, GatedFeedForward

Positions = Literal["rotary", "learned"]
STD = 0.02  # of the initial embeddings and head: an untrained network predicts all bytes alike; other layers start as torch makes them


class Rotary(nn.Module):
    """Turns each pair of a head's units by an angle that grows with the position, the axis before the last."""

    cos: Tensor
    sin: Tensor

    def __init__(self, d_head: int, context: int, base: float = 10_000.0) -> None:
        super().__init__()
        if d_head % 2:
            raise InputError(f"heads have {d_head} units, expected an even number for rotary positions")
        rates = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angles = torch.arange(context, dtype=torch.float64)[:, None] * rates
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Float[Tensor, "... position unit"]) -> Float[Tensor, "... position unit"]:
        """``x`` turned; inner products of two positions then depend on their distance alone."""
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        one, two = x.chunk(2, -1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what came before; sites ``qkv, out``."""

    def __init__(self, d_model: int, n_heads: int, context: int, rotary: bool) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise InputError(f"d_model is {d_model} and n_heads {n_heads}, expected heads that divide the width evenly")
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.rotary = Rotary(d_model // n_heads, context) if rotary else nn.Identity()
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "sample position unit"]:
        """What each position gathers from the earlier ones."""
        n, length, width = x.shape
        parts = self.qkv(x).view(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        query, key = self.rotary(parts[:2])
        mixed = F.scaled_dot_product_attention(query, key, parts[2], is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class DecoderBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + ffn(norm2(x))``; its output is the residual stream after both sums."""

    def __init__(
        self, d_model: int, d_ff: int, n_heads: int, context: int, activation: Activation, gated: bool, rotary: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(d_model, eps=1e-6)
        self.attn = CausalAttention(d_model, n_heads, context, rotary)
        self.norm2 = nn.RMSNorm(d_model, eps=1e-6)
        self.ffn = (GatedFeedForward if gated else FeedForward)(d_model, d_ff, activation)

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "sample position unit"]:
        """The residual stream after this block."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class ByteGPT(nn.Module):
    """A causal language model on bytes.

    Sites: ``tokens`` (embedding), ``blocks.<i>`` (the residual stream after block i), inside it ``attn, ffn`` and their
    parts (``ffn.act``; ``ffn.down:in`` is the tensor that the output projection reads), ``norm``, ``head``.

    Args:
        d_model, n_layers, n_heads, d_ff: width of the residual stream, number of blocks and of heads, width of the
            feed-forward blocks.
        context: longest sequence.
        activation: of the feed-forward blocks: ``relu``, ``silu`` or ``gelu``.
        gated: whether the activation gates a second projection (``act(gate x) * up x``) or stands alone (``act(up x)``).
        positions: ``rotary`` or ``learned``.
        vocab: number of token values, 256 for bytes.
        embedding_std: of the initial embeddings; 1 lets them outweigh what untrained blocks add to the residual stream.
        random_state: seed of the initial weights, which leaves the global random state alone; None draws from it.

    Raises InputError for sizes below 1, heads that do not divide the width and, when run, a sequence longer than
    ``context`` or tokens that are no whole numbers ``(sample, position)``.
    """

    def __init__(
        self,
        d_model: int = 96,
        n_layers: int = 4,
        n_heads: int = 4,
        d_ff: int = 256,
        context: int = 64,
        *,
        activation: Activation = "relu",
        gated: bool = True,
        positions: Positions = "rotary",
        vocab: int = 256,
        embedding_std: float = STD,
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        if min(d_model, n_layers, n_heads, d_ff, context, vocab) < 1:
            raise InputError(
                f"d_model is {d_model}, n_layers {n_layers}, n_heads {n_heads}, d_ff {d_ff}, context {context} and vocab "
                f"{vocab}, expected positive sizes throughout"
            )
        if positions not in ("rotary", "learned"):
            raise InputError(f"positions is '{positions}', expected rotary or learned")
        self.context = context
        self.config: dict[str, Any] = {
            "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_ff": d_ff, "context": context,
            "activation": activation, "gated": gated, "positions": positions, "vocab": vocab,
        }  # fmt: skip
        with seeded(random_state):
            self.tokens = nn.Embedding(vocab, d_model)
            nn.init.normal_(self.tokens.weight, std=embedding_std)
            learned = STD * torch.randn(context, d_model) if positions == "learned" else None
            self.positions = None if learned is None else nn.Parameter(learned)
            self.blocks = nn.Sequential(
                *(
                    DecoderBlock(d_model, d_ff, n_heads, context, activation, gated, positions == "rotary")
                    for _ in range(n_layers)
                )
            )
            self.norm = nn.RMSNorm(d_model, eps=1e-6)
            self.head = nn.Linear(d_model, vocab, bias=False)
            nn.init.normal_(self.head.weight, std=STD)

    def forward(self, tokens: Int[Tensor, "sample position"]) -> Float[Tensor, "sample position vocab"]:
        """Logits of the next token at each position."""
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] > self.context:
            raise InputError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, expected whole numbers (sample, position) "
                f"with at most {self.context} positions"
            )
        x = self.tokens(tokens.long())
        if self.positions is not None:
            x = x + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))
