"""What a backbone sees in a region of an image: its features, averaged over the region at several depths.

Source: Hernandez et al., "Natural Language Descriptions of Deep Visual Features", arXiv 2201.11114.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from netloupe.core.capture import CaptureOptions, capture
from netloupe.core.errors import InputError

Masks = Float[Tensor, "region height width"] | Callable[[Int[np.ndarray, " region"]], Tensor]


def mask_pooling(
    features: Float[Tensor, "region channel h w"], masks: Float[Tensor, "region height width"]
) -> Float[Tensor, "region channel"]:
    """``sum_p m_p f_p`` with the mask resized bilinearly to the features' grid and scaled to sum 1; zero where nothing of it is left.

    A mask of ones gives the mean over positions. Resizing samples single points, as published: a mask of a few pixels can vanish.
    """
    weights = _weights(masks, (features.shape[-2], features.shape[-1])).to(features.dtype)
    return torch.einsum("rchw,rhw->rc", features, weights)


def _weights(masks: Tensor, shape: tuple[int, int]) -> Float[Tensor, "region h w"]:
    small = interpolate(masks[:, None].float(), size=shape, mode="bilinear", align_corners=False)[:, 0]
    total = small.sum((-1, -2), keepdim=True)
    return torch.where(total > 1e-6, small / total.clamp_min(1e-6), torch.zeros_like(small))


def region_features(
    backbone: nn.Module,
    images: Any,
    sites: Sequence[str],
    indices: Int[np.ndarray, " region"] | Sequence[int],
    masks: Masks,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Unpack[CaptureOptions],
) -> Float[Tensor, "region feature"]:
    """Features of regions: the whole image goes through the backbone, the mask weighs what comes out.

    Args:
        backbone: any network; ``sites`` its layers with positions, from early to late, concatenated in the order in which they fire.
            Published: conv1
            and the four stages of a ResNet trained on ImageNet (3904 numbers for ResNet-50 and -101, 1024 for ResNet-18).
        images: an array ``(image, channel, height, width)``, or anything that gives an image array for an index.
        indices: the image of each region. masks: ``(region, height, width)``, or a function from numbers of regions to these.
        mean, std: a channel's mean and standard deviation that the backbone's inputs are normalised by.

    Cost: one forward pass for each distinct image. Raises InputError for images that do not exist, a site without a grid of
    positions, or masks of another number.
    """
    rows = np.asarray(indices, dtype=np.int64)
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 0 or rows.max() >= len(images):
        raise InputError(f"indices of shape {rows.shape} must name at least one of {len(images)} images")
    given = masks
    if not callable(given) and len(given) != len(rows):
        raise InputError(f"there are {len(given)} masks for {len(rows)} regions; one each is needed")
    distinct, inverse = np.unique(rows, return_inverse=True)
    by_image = np.argsort(inverse, kind="stable")
    ends = np.searchsorted(inverse[by_image], np.arange(len(distinct) + 1))
    size = options.get("batch_size", 64)
    found: Tensor | None = None
    for start in range(0, len(distinct), size):
        chosen = distinct[start : start + size]
        batch = _normalised(_images(images, chosen), mean, std)
        wanted = by_image[ends[start] : ends[start + len(chosen)]]
        here = torch.from_numpy(inverse[wanted] - start)
        mask = torch.as_tensor(given(wanted) if callable(given) else given[torch.from_numpy(wanted)])
        parts = []
        for captured in capture(backbone, batch, list(sites), **{**options, "batch_size": size}):
            for site, values in captured.activations.items():
                shape = captured.infos[site].position_shape
                if values.ndim != 3 or len(shape) != 2:
                    raise InputError(
                        f"site '{site}' of the backbone has no height and width; choose a convolution's output"
                    )
                weights = _weights(mask, (shape[0], shape[1])).flatten(1).to(values)
                parts.append(torch.bmm(weights[:, None], values[here.to(values.device)])[:, 0].float().cpu())
        joined = torch.cat(parts, -1)
        found = torch.zeros(len(rows), joined.shape[1]) if found is None else found
        found[torch.from_numpy(wanted)] = joined
    assert found is not None
    return found


def _images(images: Any, rows: np.ndarray) -> Float[Tensor, "image channel height width"]:
    if isinstance(images, (Tensor, np.ndarray)):
        return torch.as_tensor(images[rows])
    single = [images[int(row)] for row in rows]
    return torch.stack([torch.as_tensor(one[0] if isinstance(one, (tuple, list)) else one) for one in single])


def _normalised(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    if mean is None and std is None:
        return images
    shift, scale = (
        torch.tensor(value or default, dtype=torch.float32)[:, None, None]
        for value, default in ((mean, [0.0]), (std, [1.0]))
    )
    return (images.float() - shift) / scale
