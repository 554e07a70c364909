"""A classifier that reads how token features are distributed: their mean, and how groups of channels move together.

Source: Gao et al., "Tuning Pre-trained Model via Moment Probing", arXiv 2307.11342. A linear probe sees the mean (or a
class token) alone; this head adds a compact second-order statistic, the cross-moments of neighbouring groups of channels.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError

Pairs = Literal["near", "half", "one", "all"]
Center = Literal["none", "scalar", "token"]
Normalise = Literal["column", "none"]


def head_pairs(n_heads: int, pairs: Pairs = "near") -> tuple[tuple[int, int], ...]:
    """Which heads are multiplied: ``near`` (i, i+1), ``half`` (i, i+h/2), ``one`` (0, i), ``all`` (every two).

    The published code calls them near, n/2, one and cn2. Raises InputError for fewer than two heads, an odd number of
    heads with ``half``, and other words.
    """
    if n_heads < 2:
        raise InputError(f"n_heads is {n_heads}, expected at least 2: cross-moments are between two heads")
    if pairs == "near":
        return tuple((i, i + 1) for i in range(n_heads - 1))
    if pairs == "half" and n_heads % 2 == 0:
        return tuple((i, i + n_heads // 2) for i in range(n_heads // 2))
    if pairs == "one":
        return tuple((0, i) for i in range(1, n_heads))
    if pairs == "all":
        return tuple((i, j) for i in range(n_heads) for j in range(i + 1, n_heads))
    raise InputError(
        f"pairs is '{pairs}' for {n_heads} heads, expected one of {', '.join(get_args(Pairs))}, and an even number for half"
    )


class CrossMoments(nn.Module):
    """Cross-moments of groups of channels ("heads") over positions: ``C_ij = (1/L) Z_i' Z_j``.

    Args:
        n_heads: the channels are cut into so many contiguous heads of ``m`` channels.
        pairs: which heads are multiplied, see :func:`head_pairs`.
        center: ``scalar`` takes off one number for each sample and head, its mean over positions and channels, as the
            published code does: after a layer norm that number is about 0, so these are uncentred moments, to which
            the means contribute. ``token`` takes off each channel's mean over positions: the true covariance, to which
            they do not (in :class:`MomentHead` they still do, through its layer norm). ``none`` takes off nothing.
        normalise: ``column`` brings every column of a map to length 1 (over the first head's channels), which hides the
            scale of the second head's channels; ``none`` leaves it.

    Cost: ``n_pairs L m^2`` multiply-adds a sample. Raises InputError for input without positions, fewer than two
    positions, and channels that the heads do not divide.
    """

    def __init__(
        self, n_heads: int, pairs: Pairs = "near", center: Center = "scalar", normalise: Normalise = "column"
    ) -> None:
        super().__init__()
        self.pairs = head_pairs(n_heads, pairs)
        if center not in get_args(Center) or normalise not in get_args(Normalise):
            raise InputError(
                f"center is '{center}' and normalise '{normalise}', expected none, scalar or token and column or none"
            )
        self.n_heads, self.center, self.normalise = n_heads, center, normalise

    def forward(self, tokens: Float[Tensor, "sample position channel"]) -> Float[Tensor, "sample map m m"]:
        """One ``m x m`` map for every pair of heads."""
        require_tokens(tokens)
        if tokens.shape[-1] % self.n_heads:
            raise InputError(
                f"the tokens have {tokens.shape[-1]} channels, which {self.n_heads} heads do not divide; project them first"
            )
        heads = tokens.unflatten(-1, (self.n_heads, -1)).movedim(-2, 1)  # (sample, head, position, m)
        if self.center == "scalar":
            heads = heads - heads.mean((-2, -1), keepdim=True)
        elif self.center == "token":
            heads = heads - heads.mean(-2, keepdim=True)
        one, other = (heads[:, list(side)] for side in zip(*self.pairs))
        maps = one.transpose(-2, -1) @ other / tokens.shape[1]
        return F.normalize(maps, dim=-2) if self.normalise == "column" else maps

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"pairs={self.pairs}, center='{self.center}', normalise='{self.normalise}'"


class MomentHead(nn.Module):
    """Logits from the first and second moments of tokens: ``(W1 f + b1 + W2 g + b2) / 2``.

    ``f`` is the class token or the mean over tokens. ``g`` is what two 3 x 3 convolutions of stride 2, with GELU
    between, leave of the cross-moments of the projected tokens; each head passes one shared layer norm first.

    Args:
        dim: units of a token.
        n_classes: logits.
        hidden: channels of the projection, 512 as published; a multiple of ``n_heads``, at least 7 a head.
        n_heads, pairs, center, normalise: as in :class:`CrossMoments`.
        first: ``cls`` reads a class token: ``forward``'s ``cls``, or the first token, which then takes no part in
            the second moments. ``mean`` reads the mean over tokens, as the published head for convolutional networks.
        combine: ``mean`` of the two logits as published, or their ``sum``, which doubles each part's learning rate.
        norm: a layer norm before the first-order classifier, as the published head for convolutional networks has.

    With 768 units, 1,000 classes and the defaults it has 4,047,146 parameters, of which ``first_order`` and
    ``second_order`` have 3,653,000. Cost a sample: ``L dim hidden`` for the projection and ``(h - 1) L m^2`` for the
    moments. Raises InputError for sizes that do not fit and for input without positions.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        hidden: int = 512,
        n_heads: int = 4,
        pairs: Pairs = "near",
        first: Literal["cls", "mean"] = "cls",
        combine: Literal["mean", "sum"] = "mean",
        *,
        center: Center = "scalar",
        normalise: Normalise = "column",
        norm: bool = False,
    ) -> None:
        super().__init__()
        if min(dim, n_classes, hidden) < 1 or first not in ("cls", "mean") or combine not in ("mean", "sum"):
            raise InputError(
                f"dim is {dim}, n_classes {n_classes}, hidden {hidden}, first '{first}' and combine '{combine}', "
                "expected positive sizes, cls or mean, and mean or sum"
            )
        self.moments = CrossMoments(n_heads, pairs, center, normalise)
        if hidden % n_heads or hidden // n_heads < 7:
            raise InputError(
                f"hidden is {hidden} for {n_heads} heads, expected a multiple of the heads with at least 7 channels each"
            )
        width, n_maps = hidden // n_heads, len(self.moments.pairs)
        left = after_convolutions(width)
        self.first, self.combine = first, combine
        self.projection = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Sequential(
            nn.Conv2d(n_maps, n_maps, 3, 2, bias=False), nn.GELU(), nn.Conv2d(n_maps, n_maps, 3, 2, bias=False)
        )
        self.first_norm = nn.LayerNorm(dim, eps=1e-6) if norm else nn.Identity()
        self.first_order = nn.Linear(dim, n_classes)
        self.second_order = nn.Linear(n_maps * left * left, n_classes)

    def forward(
        self, tokens: Float[Tensor, "sample position unit"], cls: Float[Tensor, "sample unit"] | None = None
    ) -> Float[Tensor, "sample class"]:
        """Logits; with ``cls`` given the tokens are patches alone."""
        require_tokens(tokens)
        if tokens.shape[-1] != self.projection.in_features:
            raise InputError(
                f"tokens have {tokens.shape[-1]} units, the head was built for {self.projection.in_features}"
            )
        if self.first == "cls" and cls is None:
            cls, tokens = tokens[:, 0], tokens[:, 1:]
            require_tokens(tokens)
        one = self.first_order(self.first_norm(tokens.mean(1) if self.first == "mean" or cls is None else cls))
        two = self.second_order(self.second_features(tokens))
        return (one + two) / 2 if self.combine == "mean" else one + two

    def second_features(self, tokens: Float[Tensor, "sample position unit"]) -> Float[Tensor, "sample feature"]:
        """What the second-order classifier reads."""
        projected = self.projection(tokens)
        heads = self.norm(projected.unflatten(-1, (self.moments.n_heads, -1))).flatten(-2)
        return self.reduce(self.moments(heads)).flatten(1)

    def from_map(self, maps: Float[Tensor, "sample channel height width"]) -> Float[Tensor, "sample class"]:
        """Logits from a feature map, whose places are the tokens; for ``first="mean"``."""
        if maps.ndim != 4 or self.first != "mean":
            raise InputError(
                f"a map of shape {tuple(maps.shape)} was given to a head with first='{self.first}', expected "
                "(sample, channel, height, width) and first='mean'"
            )
        return self(maps.flatten(2).transpose(1, 2))


def after_convolutions(width: int) -> int:
    """Side of a ``width x width`` map after two 3 x 3 convolutions of stride 2 without padding."""
    return ((width - 3) // 2 + 1 - 3) // 2 + 1


def require_tokens(tokens: Tensor) -> None:
    """InputError unless there are samples, at least two positions, and units."""
    if tokens.ndim != 3 or tokens.shape[1] < 2:
        raise InputError(
            f"tokens have shape {tuple(tokens.shape)}, expected (sample, position, unit) with at least 2 positions; "
            "record the site without pooling"
        )
