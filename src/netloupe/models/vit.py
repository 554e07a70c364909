"""A small plain transformer: on image patches (ViT) or on tokens (a causal language model).

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929, with pre-norm blocks and a selectable
activation; ReLU is what Li et al., arXiv 2210.06313, use to count active units.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.isolation import random_state as seeded


class Attention(nn.Module):
    """Multi-head self-attention on ``(sample, position, unit)``; ``causal`` lets a position see only earlier ones."""

    def __init__(self, d_model: int, n_heads: int, causal: bool = False) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise InputError(f"d_model is {d_model} and n_heads {n_heads}, expected heads that divide the width evenly")
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "sample position unit"]:
        """What each position gathers from the others."""
        n, length, width = x.shape
        query, key, value = self.qkv(x).view(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    """Pre-norm: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``, with sites ``norm1, attn, norm2, mlp.fc1, mlp.act,
    mlp.fc2``."""

    def __init__(
        self, d_model: int, d_ff: int, n_heads: int, activation: Callable[[], nn.Module], causal: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_heads, causal)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(d_model, d_ff), act=activation(), fc2=nn.Linear(d_ff, d_model))
        )

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "sample position unit"]:
        """The residual stream after this block."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer for small images, with sites ``patch, blocks.<i>..., norm, features, head``.

    Args:
        image_size, patch_size: side of the square image and of a patch, which must divide it.
        n_classes: outputs.
        channels: of the image.
        d_model, d_ff, n_layers, n_heads: width of the residual stream and of the MLPs, number of blocks and heads.
        activation: of the MLPs, ReLU by default.
        pool: what the classifier reads: the class token (``cls``) or the mean over patches (``mean``).
        random_state: seed of the initial weights, which leaves the global random state alone; None draws from it.

    Raises InputError for sizes that do not divide, sizes below 1 and an unknown ``pool``.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        n_classes: int,
        *,
        channels: int = 1,
        d_model: int = 64,
        d_ff: int = 256,
        n_layers: int = 3,
        n_heads: int = 4,
        activation: Callable[[], nn.Module] = nn.ReLU,
        pool: Literal["cls", "mean"] = "cls",
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        if min(image_size, patch_size, n_classes, channels, d_model, d_ff, n_layers) < 1 or image_size % patch_size:
            raise InputError(
                f"image_size is {image_size} and patch_size {patch_size}, expected a patch that divides the image and "
                "positive sizes throughout"
            )
        if pool not in ("cls", "mean"):
            raise InputError(f"pool is '{pool}', expected cls or mean")
        self.pool = pool
        n_tokens = (image_size // patch_size) ** 2 + (pool == "cls")
        with seeded(random_state):
            self.patch = nn.Conv2d(channels, d_model, patch_size, patch_size)
            self.cls = nn.Parameter(0.02 * torch.randn(1, 1, d_model)) if pool == "cls" else None
            self.positions = nn.Parameter(0.02 * torch.randn(1, n_tokens, d_model))
            self.blocks = nn.Sequential(*(Block(d_model, d_ff, n_heads, activation) for _ in range(n_layers)))
            self.norm = nn.LayerNorm(d_model)
            self.features = nn.Identity()
            self.head = nn.Linear(d_model, n_classes)

    def forward(self, images: Float[Tensor, "sample channel height width"]) -> Float[Tensor, "sample class"]:
        """Logits."""
        x = self.patch(images).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.positions))
        return self.head(self.features(x.mean(1) if self.cls is None else x[:, 0]))


class TokenTransformer(nn.Module):
    """A causal language model of the same blocks on ``(sample, position)`` tokens, with sites ``tokens, blocks.<i>...,
    norm, head``.

    Args:
        n_tokens, length: size of the vocabulary and longest sequence.
        d_model, d_ff, n_layers, n_heads, activation, random_state: as in :class:`ViT`.

    Raises InputError for sizes below 1 and, when run, for a sequence longer than ``length``.
    """

    def __init__(
        self,
        n_tokens: int,
        length: int,
        *,
        d_model: int = 64,
        d_ff: int = 256,
        n_layers: int = 3,
        n_heads: int = 4,
        activation: Callable[[], nn.Module] = nn.ReLU,
        random_state: int | None = None,
    ) -> None:
        super().__init__()
        if min(n_tokens, length, d_model, d_ff, n_layers) < 1:
            raise InputError(f"n_tokens is {n_tokens} and length {length}, expected positive sizes throughout")
        with seeded(random_state):
            self.tokens = nn.Embedding(n_tokens, d_model)
            self.positions = nn.Parameter(0.02 * torch.randn(1, length, d_model))
            self.blocks = nn.Sequential(*(Block(d_model, d_ff, n_heads, activation, True) for _ in range(n_layers)))
            self.norm = nn.LayerNorm(d_model)
            self.head = nn.Linear(d_model, n_tokens)

    def forward(self, ids: Int[Tensor, "sample position"]) -> Float[Tensor, "sample position token"]:
        """Logits of the next token at each position."""
        if ids.shape[1] > self.positions.shape[1]:
            raise InputError(f"the sequence has {ids.shape[1]} tokens, expected at most {self.positions.shape[1]}")
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions[:, : ids.shape[1]])))
