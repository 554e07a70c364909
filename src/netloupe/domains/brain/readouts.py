"""From feature maps to voxels: ridge, factorised, Gaussian, and receptive fields that move with the image.

Source: arXiv 2410.14031 (semantic spatial transformer); Klindt et al., arXiv 1711.02653 (space times features); Lurz et al.,
openreview Tp7kI90Htd (Gaussian positions). All take maps ``(sample, channel, height, width)`` and give ``(sample, voxel)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from netloupe.core.errors import InputError
from netloupe.domains.brain.warps import MODES, Mode, identity_outputs, n_outputs, theta_of, warp

Maps = Float[Tensor, "sample channel height width"]
Shape = tuple[int, int, int]


class Readout(nn.Module):
    """Base of all readouts: ``in_shape`` ``(channel, height, width)``, ``n_out`` voxels, a bias for each."""

    def __init__(self, in_shape: Sequence[int], n_out: int, bias: bool) -> None:
        super().__init__()
        shape = tuple(int(size) for size in in_shape)
        if len(shape) != 3 or min(shape) < 1 or n_out < 1:
            raise InputError(
                f"in_shape is {shape} and n_out {n_out}, expected (channel, height, width) and at least one voxel"
            )
        self.in_shape: Shape = (shape[0], shape[1], shape[2])
        self.n_out = n_out
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def check(self, x: Maps) -> None:
        """InputError where maps are of another shape than the readout was made for."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.in_shape:
            raise InputError(
                f"maps have shape {tuple(x.shape)}, the readout was made for (sample, {', '.join(map(str, self.in_shape))})"
            )

    def shifted(self, y: Float[Tensor, "sample voxel"]) -> Float[Tensor, "sample voxel"]:
        """With the bias, where there is one."""
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def constrain(self) -> None:
        """Puts parameters back where they may be; call it after every step of an optimiser."""


class RidgeReadout(Readout):
    """One weight for every voxel and every entry of the map. For the exact solution see ``lenses.similarity.encoding``.

    ``penalty(alpha)`` is ``alpha (|W|^2 + |b|^2)``, with ``squared=False`` the sum of the norms themselves, as published code has it.
    """

    def __init__(self, in_shape: Sequence[int], n_out: int, bias: bool = True, init: float = 1e-3) -> None:
        super().__init__(in_shape, n_out, bias)
        self.weight = nn.Parameter(init * torch.randn(n_out, *self.in_shape))

    def forward(self, x: Maps, img: Tensor | None = None) -> Float[Tensor, "sample voxel"]:
        """Voxels; ``img`` is not used."""
        self.check(x)
        return self.shifted(torch.einsum("nchw,vchw->nv", x, self.weight))

    def penalty(self, alpha: float, squared: bool = True) -> Tensor:
        """What a ridge fit adds to its loss."""
        sizes = [parameter.norm() for parameter in self.parameters()]
        return alpha * torch.stack([size**2 if squared else size for size in sizes]).sum()


class FactorizedReadout(Readout):
    """A mask over space times weights over channels: ``y_v = sum_c F_vc sum_hw S_vhw x_chw + b_v``.

    Args:
        positive: masks are kept from below 0 (by :meth:`constrain` after a step, and in use). normalise: masks are divided by
            their length over space. init: standard deviation of the start.

    Cost O(n v (c + h w) ) after the mask product O(n v c h w).
    """

    def __init__(
        self, in_shape: Sequence[int], n_out: int, positive: bool = True, normalise: bool = True, bias: bool = True,
        init: float = 1e-3,
    ) -> None:  # fmt: skip
        super().__init__(in_shape, n_out, bias)
        channels, height, width = self.in_shape
        self.positive, self.normalise = positive, normalise
        self.spatial = nn.Parameter(init * torch.randn(n_out, height, width))
        self.features = nn.Parameter(init * torch.randn(n_out, channels))

    def masks(self) -> Float[Tensor, "voxel height width"]:
        """Masks as they are used."""
        mask = self.spatial
        if self.positive:
            mask = mask.clamp_min(0)
        if self.normalise:
            mask = mask / (mask.flatten(1).norm(dim=1)[:, None, None] + 1e-6)
        return mask

    @torch.no_grad()
    def constrain(self) -> None:
        """Masks below 0 become 0."""
        if self.positive:
            self.spatial.clamp_min_(0)

    def forward(self, x: Maps, img: Tensor | None = None) -> Float[Tensor, "sample voxel"]:
        """Voxels; ``img`` is not used."""
        self.check(x)
        seen = torch.einsum("nchw,vhw->nvc", x, self.masks())
        return self.shifted(torch.einsum("nvc,vc->nv", seen, self.features))


class GaussianReadout(Readout):
    """Each voxel reads one point: ``z_v ~ N(mu_v, A_v A_v')`` in [-1, 1]^2 while training, ``mu_v`` in evaluation; then linear.

    Args:
        init_mu: ``mu`` is uniform in ``[-init_mu, init_mu]^2``. init_sigma: standard deviation of the start.
    """

    def __init__(
        self, in_shape: Sequence[int], n_out: int, init_mu: float = 0.5, init_sigma: float = 0.5, bias: bool = True
    ) -> None:
        super().__init__(in_shape, n_out, bias)
        self.mu = nn.Parameter(torch.empty(n_out, 2).uniform_(-init_mu, init_mu))
        self.scale = nn.Parameter(init_sigma * torch.eye(2).repeat(n_out, 1, 1))
        self.features = nn.Parameter(torch.full((n_out, self.in_shape[0]), 1.0 / self.in_shape[0]))

    @torch.no_grad()
    def constrain(self) -> None:
        """Positions stay on the map."""
        self.mu.clamp_(-1, 1)

    def forward(self, x: Maps, img: Tensor | None = None) -> Float[Tensor, "sample voxel"]:
        """Voxels; ``img`` is not used."""
        self.check(x)
        place = self.mu.clamp(-1, 1)[None].expand(len(x), -1, -1)
        if self.training:
            noise = torch.randn(len(x), self.n_out, 2, device=x.device, dtype=x.dtype)
            place = (place + torch.einsum("vij,nvj->nvi", self.scale, noise)).clamp(-1, 1)
        seen = F.grid_sample(x, place[:, :, None], align_corners=False)[..., 0]
        return self.shifted(torch.einsum("ncv,vc->nv", seen, self.features))


class GlobalReadout(Readout):
    """The mean over space of every channel, then linear: a voxel that does not know where."""

    def __init__(self, in_shape: Sequence[int], n_out: int, bias: bool = True, init: float = 1e-3) -> None:
        super().__init__(in_shape, n_out, bias)
        self.features = nn.Parameter(init * torch.randn(n_out, self.in_shape[0]))

    def forward(self, x: Maps, img: Tensor | None = None) -> Float[Tensor, "sample voxel"]:
        """Voxels; ``img`` is not used."""
        self.check(x)
        return self.shifted(x.mean((2, 3)) @ self.features.T)


class AttentionReadout(Readout):
    """One map of attention for all voxels, a softmax over space of a convolution of the input; then linear."""

    def __init__(
        self, in_shape: Sequence[int], n_out: int, bias: bool = True, init: float = 1e-3, kernel: int = 3
    ) -> None:
        super().__init__(in_shape, n_out, bias)
        self.attention = nn.Conv2d(self.in_shape[0], 1, kernel, padding=kernel // 2)
        self.features = nn.Parameter(init * torch.randn(n_out, self.in_shape[0]))

    def forward(self, x: Maps, img: Tensor | None = None) -> Float[Tensor, "sample voxel"]:
        """Voxels; ``img`` is not used."""
        self.check(x)
        weight = self.attention(x).flatten(1).softmax(1).view(len(x), *self.in_shape[1:])
        return self.shifted(torch.einsum("nchw,nhw->nc", x, weight) @ self.features.T)


class SemanticSpatialTransformer(FactorizedReadout):
    """A factorised readout whose masks and maps are moved by transforms that the image's content chooses.

    ``semantic(img)`` gives a map, a 1 x 1 convolution takes it to ``code_channels``, and two perceptrons of ``hidden`` units give an
    affine transform for each voxel's mask and for each channel's map. At the start all transforms are the identity, so that it
    equals :class:`FactorizedReadout` with the same parameters. Where an affine transform moves a mask by ``t``, the mask itself goes
    the other way: transforms take places of the result to places of the source.

    Args:
        semantic: any network from images to a map ``(sample, code, height, width)``; it is frozen and read in evaluation mode.
        code_shape: ``(code, height, width)`` of that map.
        mode: what masks may do: ``affine``, ``translation``, ``rotation``, ``scale``, ``shear`` or products of the first three joined
            by ``_``; maps are always moved by affine transforms.
        warp_features: False moves masks alone.
        official: as the published code: other modes than ``affine`` start from the numbers (1, 0, 0, 0, 1, 0) and a rotation's sines are
            not scaled.

    Cost O(n (v + c) h w) for the warps; memory of as many numbers.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        n_out: int,
        semantic: nn.Module,
        code_shape: Sequence[int],
        *,
        code_channels: int = 4,
        hidden: int = 32,
        mode: Mode = "affine",
        warp_features: bool = True,
        positive: bool = True,
        normalise: bool = True,
        bias: bool = True,
        init: float = 1e-3,
        official: bool = False,
    ) -> None:
        super().__init__(in_shape, n_out, positive, normalise, bias, init)
        if mode not in MODES:
            raise InputError(f"mode is '{mode}', expected one of {', '.join(MODES)}")
        if len(code_shape) != 3:
            raise InputError(
                f"code_shape is {tuple(code_shape)}, expected (code, height, width) of the semantic network's map"
            )
        self.semantic, self.code_shape = semantic.requires_grad_(False), tuple(code_shape)
        self.mode: Mode = mode
        self.warp_features, self.official = warp_features, official
        code = code_channels * self.code_shape[1] * self.code_shape[2]
        self.encode = nn.Conv2d(self.code_shape[0], code_channels, 1)
        per_voxel = 6 if official else n_outputs(mode)
        self.move_masks = _head(code, hidden, identity_outputs("affine" if official else mode).repeat(n_out))
        self.per_voxel = per_voxel
        self.move_maps = (
            _head(code, hidden, identity_outputs("affine").repeat(self.in_shape[0])) if warp_features else None
        )

    def train(self, mode: bool = True) -> SemanticSpatialTransformer:
        """Training mode for all but the semantic network."""
        super().train(mode)
        self.semantic.eval()
        return self

    def transforms(
        self, img: Tensor
    ) -> tuple[Float[Tensor, "sample voxel 2 3"], Float[Tensor, "sample channel 2 3"] | None]:
        """The transform of each mask and of each map for each image."""
        with torch.no_grad():
            found = self.semantic(img)
        if tuple(found.shape[1:]) != self.code_shape:
            raise InputError(
                f"the semantic network gave {tuple(found.shape)}, code_shape says (sample, {', '.join(map(str, self.code_shape))})"
            )
        code = self.encode(found).flatten(1)
        masks = theta_of(self.move_masks(code).view(len(img), self.n_out, self.per_voxel), self.mode, self.official)
        if self.move_maps is None:
            return masks, None
        return masks, self.move_maps(code).view(len(img), self.in_shape[0], 2, 3)

    def moved_masks(self, img: Tensor) -> Float[Tensor, "sample voxel height width"]:
        """Every voxel's mask for each image."""
        masks = self.masks()[None].expand(len(img), -1, -1, -1)
        return warp(masks, self.transforms(img)[0])

    def forward(self, x: Maps, img: Tensor | None = None) -> Float[Tensor, "sample voxel"]:
        """Voxels. InputError without images."""
        self.check(x)
        if img is None:
            raise InputError("this readout moves with the image; give it the images as well as the maps")
        if len(img) != len(x):
            raise InputError(f"there are {len(x)} maps and {len(img)} images; the same samples are needed")
        of_masks, of_maps = self.transforms(img)
        masks = warp(self.masks()[None].expand(len(x), -1, -1, -1), of_masks)
        if of_maps is not None:
            x = warp(x, of_maps)
        seen = torch.einsum("nchw,nvhw->nvc", x, masks)
        return self.shifted(torch.einsum("nvc,vc->nv", seen, self.features))


def _head(n_in: int, hidden: int, start: Tensor) -> nn.Sequential:
    """A perceptron that gives ``start`` whatever comes in, until it is trained."""
    last = nn.Linear(hidden, len(start))
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(start)
    return nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), last)


READOUTS: dict[str, type[Readout]] = {
    "ridge": RidgeReadout, "factorized": FactorizedReadout, "gaussian": GaussianReadout, "global": GlobalReadout,
    "attention": AttentionReadout,
}  # fmt: skip
