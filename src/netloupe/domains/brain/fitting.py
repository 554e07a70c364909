"""Fitting readouts to responses, some of them missing, and keeping the best by held-out correlation.

Source: arXiv 2410.14031 (squared error plus 1 less the concordance correlation of Lin 1989, doi 10.2307/2532051).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.training import History, train
from netloupe.domains.brain.readouts import Readout, RidgeReadout
from netloupe.lenses.similarity.scores import voxel_correlation

_CHUNK = 256


@dataclass(frozen=True)
class ReadoutFit:
    """``score``: best mean correlation on held-out samples, reached at ``step``; ``history`` of the losses and scores."""

    score: float
    step: int
    history: History


def masked_error(predicted: Float[Tensor, "sample voxel"], responses: Float[Tensor, "sample voxel"]) -> Tensor:
    """Mean squared error over the responses that are known (not NaN)."""
    known = ~torch.isnan(responses)
    return ((predicted - responses)[known] ** 2).mean()


def concordance(
    predicted: Float[Tensor, "sample voxel"], responses: Float[Tensor, "sample voxel"], per_voxel: bool = False
) -> Tensor:
    """Lin's concordance ``2 cov / (var_p + var_y + (mean_p - mean_y)^2)`` over the known responses.

    All voxels together as published, where differences between voxels' means raise it; or the mean of each voxel's own
    (``per_voxel``). As in the published code the covariance is the mean of products and variances divide by one less than their
    number.
    """
    if per_voxel:
        columns = zip(predicted.T, responses.T, strict=True)
        each = [concordance(p[:, None], y[:, None]) for p, y in columns if int((~torch.isnan(y)).sum()) > 1]
        if not each:
            raise InputError("no voxel has two responses in this batch; give larger batches")
        return torch.stack(each).mean()
    known = ~torch.isnan(responses)
    p, y = predicted[known], responses[known]
    if len(p) < 2:
        raise InputError(f"{len(p)} responses are known in this batch, at least two are needed")
    shared = ((p - p.mean()) * (y - y.mean())).mean()
    return 2 * shared / (p.var() + y.var() + (p.mean() - y.mean()) ** 2)


def readout_loss(
    predicted: Float[Tensor, "sample voxel"], responses: Float[Tensor, "sample voxel"], concord: float = 1.0,
    per_voxel: bool = False,
) -> Tensor:  # fmt: skip
    """:func:`masked_error` plus ``concord (1 - concordance)``."""
    error = masked_error(predicted, responses)
    return error + concord * (1 - concordance(predicted, responses, per_voxel)) if concord else error


def fit_readout(
    readout: Readout,
    maps: Float[np.ndarray, "sample channel height width"],
    responses: Float[np.ndarray, "sample voxel"],
    images: Any = None,
    *,
    steps: int = 1200,
    batch_size: int = 50,
    lr: float = 5e-3,
    concord: float = 1.0,
    per_voxel: bool = False,
    alpha: float = 0.0,
    squared: bool = True,
    held_out: float = 0.1,
    judge_every: int = 50,
    patience: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> ReadoutFit:
    """Trains a readout in place by Adam and leaves it at its best held-out correlation.

    Args:
        maps: ``(sample, channel, height, width)``. responses: ``(sample, voxel)``, NaN where missing. images: what a readout that
            moves with the image gets, one a sample.
        steps, batch_size, lr: at most so many steps. concord, per_voxel: weight and kind of the concordance in the loss.
        alpha, squared: penalty of a :class:`~netloupe.domains.brain.readouts.RidgeReadout`.
        held_out: share of the samples that only choose when to stop. judge_every, patience: every so many steps the mean
            correlation over voxels is taken there; after so many that do not improve it the run ends.

    Cost: ``steps`` passes of ``batch_size`` samples. Raises InputError for shapes that do not fit, a voxel without two responses in
    either part, or ``alpha`` with another readout; NonFiniteError for NaN or infinity in maps.
    """
    x, y = torch.as_tensor(maps).float(), torch.as_tensor(np.asarray(responses)).float()
    readout.check(x)
    if y.shape != (len(x), readout.n_out):
        raise InputError(f"responses have shape {tuple(y.shape)}, expected ({len(x)}, {readout.n_out})")
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("maps hold NaN or infinity, but finite numbers are needed; repair the network")
    if not 0 < held_out < 1 or steps < 1:
        raise InputError(
            f"held_out is {held_out} and steps {steps}; a share between 0 and 1 and at least one step are needed"
        )
    if alpha and not isinstance(readout, RidgeReadout):
        raise InputError(f"alpha is for a RidgeReadout, got a {type(readout).__name__}")
    image = None if images is None else torch.as_tensor(images).float()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    n_judged = max(2, round(held_out * len(x)))
    judged, fitted = order[:n_judged], order[n_judged:]
    for word, part in (("to fit", fitted), ("held out", judged)):
        short = (~torch.isnan(y[part])).sum(0) < 2
        if bool(short.any()):
            raise InputError(f"voxel {int(short.nonzero()[0])} has fewer than two responses {word}; leave it out")
    best = _Best(readout, partial(_score, readout, x[judged], y[judged], None if image is None else image[judged]))

    rows = fitted

    def feed(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal rows
        rows = fitted[torch.randint(len(fitted), (min(batch_size, len(fitted)),), generator=generator)]
        return {"x": x[rows]} if image is None else {"x": x[rows], "img": image[rows]}

    def loss(predicted: Tensor, batch: Any) -> Tensor:
        value = readout_loss(predicted, y[rows], concord, per_voxel)  # many responses a sample are no labels of a batch
        return value + readout.penalty(alpha, squared) if alpha and isinstance(readout, RidgeReadout) else value

    history = train(
        readout, feed, steps=steps, optimizer=lambda parameters: torch.optim.Adam(_thawed(parameters), lr=lr), loss=loss, seed=seed,
        watch=best, watch_every=judge_every, stop=lambda _: best.stale > patience, progress=progress, describe="fitting a readout",
    )  # fmt: skip
    best.restore()
    return ReadoutFit(best.score, best.step, history)


class _Best:
    """Watches held-out correlation, keeps the best parameters, and keeps parameters where they may be."""

    def __init__(self, readout: Readout, score: Any) -> None:
        self.readout, self.measure = readout, score
        self.score, self.step, self.stale = -math.inf, 0, 0
        self.state = copy.deepcopy(readout.state_dict())

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        self.readout.constrain()
        score = self.measure()
        self.stale += 1
        if score > self.score:
            self.score, self.step, self.stale = score, step, 0
            self.state = copy.deepcopy(self.readout.state_dict())
        return {"correlation": score}

    def restore(self) -> None:
        """Puts the best parameters back."""
        self.readout.load_state_dict(self.state)


def _score(readout: Readout, x: Tensor, y: Tensor, image: Tensor | None) -> float:
    found = voxel_correlation(predict(readout, x, image), y.double().numpy())
    return float(np.nanmean(found)) if not np.isnan(found).all() else -math.inf


def _thawed(parameters: Any) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def as_maps(
    features: Float[Tensor, "sample position unit"] | Any, height: int, width: int
) -> Float[np.ndarray, "sample unit height width"]:
    """A site with positions as the maps that readouts take: ``(sample, position, unit)`` to ``(sample, unit, height, width)``.

    Positions run along rows first, as capture and recordings have them (``list_sites`` tells ``position_shape``). Held in memory. Raises
    InputError for another shape or number of positions.
    """
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 3 or shape[1] != height * width:
        raise InputError(
            f"features have shape {shape}, expected (sample, {height} x {width} positions, unit); record without pooling"
        )
    values = torch.as_tensor(features[:]).float().numpy()
    return np.ascontiguousarray(values.transpose(0, 2, 1)).reshape(shape[0], shape[2], height, width)


@torch.no_grad()
def predict(readout: Readout, maps: Any, images: Any = None) -> Float[np.ndarray, "sample voxel"]:
    """Responses in evaluation mode, in pieces."""
    x = torch.as_tensor(maps).float()
    image = None if images is None else torch.as_tensor(images).float()
    was = readout.training
    readout.eval()
    try:
        parts = [
            readout(x[i : i + _CHUNK], None if image is None else image[i : i + _CHUNK])
            for i in range(0, len(x), _CHUNK)
        ]
    finally:
        readout.train(was)
    return torch.cat(parts).double().numpy()
