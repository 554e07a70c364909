"""One set of scores for every dictionary: reconstruction, sparsity, recovery, concept detection, stability, who shares what.

Source: arXiv 2506.10920 for concept detection and core and exclusive neurons; mean max cosine similarity as in arXiv 2309.08600.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.rows import as_rows


class Scores(NamedTuple):
    """``explained``: share of variance reconstructed. ``relative_error``: squared error over the sum of squares. ``l0``: active features
    a sample. ``dead``: features that never fire. ``support``: mean share of units that hold 90 % of a direction's square.
    ``recovery``: :func:`mmcs` to the true directions, NaN without. ``stability``: mean over the other dictionaries of the two-way
    mean of :func:`mmcs`, NaN without."""

    explained: float
    relative_error: float
    l0: float
    dead: float
    support: float
    recovery: float
    stability: float


def score(
    dictionary: Dictionary,
    features: Float[Tensor, "sample unit"] | Any,
    true: Float[np.ndarray, "feature unit"] | Any = None,
    others: Sequence[Dictionary] = (),
) -> Scores:
    """All scores that activations can give; streams, one pass of encoding and one for the mean.

    ``others``: dictionaries of other seeds. What a network is needed for: :meth:`Dictionary.loss_recovered`; what labelled inputs:
    :func:`concept_detection`. Compare at equal ``l0`` and size only.
    """
    rows = as_rows(features, ndim=(2,), min_samples=2)
    total, squares, left, fired, active = torch.zeros(rows.n_units, dtype=torch.float64), 0.0, 0.0, 0.0, 0
    seen = torch.zeros(len(dictionary), dtype=torch.bool)
    for batch in rows:
        x = batch.values.double()
        codes = dictionary.encode(batch.values)
        # a multiplicative step never reaches exactly 0: what adds less than a millionth of the sample's length is off
        on = codes.double().abs() * dictionary.directions.double().norm(dim=1) > 1e-6 * x.norm(dim=1, keepdim=True)
        total += x.sum(0)
        squares += float(x.pow(2).sum())
        left += float((x - dictionary.decode(codes).double()).pow(2).sum())
        active += int(on.sum())
        seen |= on.any(0)
    fired = float((~seen).double().mean())
    spread = squares - float(total.pow(2).sum()) / rows.n_samples
    stability = [0.5 * (mmcs(dictionary, o) + mmcs(o, dictionary)) for o in others]
    return Scores(
        1 - left / spread if spread > 0 else float("nan"),
        left / squares if squares > 0 else float("nan"),
        active / rows.n_samples,
        fired,
        float(np.mean(neurons_for(dictionary.directions) / dictionary.n_units)),
        float("nan") if true is None else mmcs(true, dictionary),
        float(np.mean(stability)) if stability else float("nan"),
    )


def mmcs(true: Any, found: Any, signed: bool = False) -> float:
    """Mean over the true directions of the largest cosine (its size, unless ``signed``) with a found one; 1 is perfect.

    Both ``(feature, unit)`` arrays or dictionaries. Not symmetric: many found directions find more. A direction of length 0 has
    cosine 0.
    """
    a, b = _rows(true), _rows(found)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"directions have {a.shape[1]} and {b.shape[1]} units, expected equal numbers")
    cosines = _unit(a) @ _unit(b).T
    return float((cosines if signed else np.abs(cosines)).max(1).mean())


def neurons_for(directions: Any, share: float = 0.9) -> Int[np.ndarray, " feature"]:
    """Fewest units that hold ``share`` of each direction's squared length; 0 for a direction of zeros."""
    if not 0 < share <= 1:
        raise InputError(f"share is {share:g}, expected more than 0 and at most 1")
    squares = -np.sort(-(_rows(directions) ** 2), axis=1)
    sums = squares.cumsum(1)
    # the last sum is the largest: a tolerance of rounding, so that share=1 does not count units of nothing
    counts = (sums < share * sums[:, -1:] * (1 - 1e-12)).sum(1) + 1
    return np.where(sums[:, -1] > 0, counts, 0)


def feature_support(directions: Any) -> Bool[np.ndarray, "feature unit"]:
    """Which units a direction has at all: its entries that are not 0."""
    return _rows(directions) != 0


def overlap(directions: Any) -> Int[np.ndarray, "feature feature"]:
    """How many units each two features share; on the diagonal how many each has."""
    support = feature_support(directions).astype(np.int64)
    return support @ support.T


class CoreExclusive(NamedTuple):
    """For each group: ``core`` units that all its members have, and ``exclusive``, for each member those that no other member has."""

    core: tuple[Int[np.ndarray, " unit"], ...]
    exclusive: tuple[tuple[Int[np.ndarray, " unit"], ...], ...]


def core_exclusive(directions: Any, groups: Sequence[Sequence[int]]) -> CoreExclusive:
    """Shared and own units of families of features, such as the weekdays.

    Raises InputError for a group of fewer than two features or features that do not exist.
    """
    support = feature_support(directions)
    core, exclusive = [], []
    for group in groups:
        members = list(group)
        if len(set(members)) < 2 or min(members) < 0 or max(members) >= len(support):
            raise InputError(
                f"a group is {members}, expected at least two different features of 0 to {len(support) - 1}"
            )
        counts = support[members].sum(0)
        core.append(np.flatnonzero(counts == len(members)))
        exclusive.append(tuple(np.flatnonzero(support[m] & (counts == 1)) for m in members))
    return CoreExclusive(tuple(core), tuple(exclusive))


Measure = Literal["cosine", "r2", "correlation", "mse"]


def agreement(
    positions: Float[np.ndarray, "position unit"] | Any,
    direction: Float[np.ndarray, " unit"] | Any,
    by: Measure = "cosine",
) -> Float[np.ndarray, " position"]:
    """How well each position's activations fit a direction: ``cosine``, its square (``r2``), ``correlation`` over units, or minus
    the mean squared difference (``mse``)."""
    x, f = _rows(positions), _rows(direction)[0]
    if x.shape[1] != len(f) or not np.linalg.norm(f):
        raise InputError(
            f"positions have {x.shape[1]} units, the direction {len(f)}; equal numbers and a length are needed"
        )
    if by == "mse":
        return -((x - f / np.linalg.norm(f)) ** 2).mean(1)
    if by == "correlation":
        x, f = x - x.mean(1, keepdims=True), f - f.mean()
    cosine = _unit(x) @ _unit(f[None])[0]
    return cosine**2 if by == "r2" else cosine


def concept_detection(
    positive: Sequence[Any], neutral: Sequence[Any], direction: Float[np.ndarray, " unit"] | Any, by: Measure = "cosine"
) -> float:
    """``log(mean a(positive) / mean a(neutral))`` with ``a`` a text's largest :func:`agreement`; positive says it detects the concept.

    ``positive`` and ``neutral`` hold one ``(position, unit)`` array a text. NaN where a mean is not positive (the logarithm of the
    ratio does not exist, as with ``mse``). Raises InputError for an empty side.
    """
    if not len(positive) or not len(neutral):
        raise InputError("both positive and neutral texts are needed, at least one each")
    means = [float(np.mean([agreement(x, direction, by).max() for x in side])) for side in (positive, neutral)]
    return float(np.log(means[0] / means[1])) if min(means) > 0 else float("nan")


def _rows(given: Any) -> Float[np.ndarray, "row unit"]:
    value = given.directions if isinstance(given, Dictionary) else given
    found = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
    found = np.atleast_2d(found)
    if found.ndim != 2 or 0 in found.shape:
        raise InputError(f"vectors have shape {found.shape}, expected (row, unit) with at least one of each")
    if not np.isfinite(found).all():
        raise NonFiniteError("vectors hold NaN or infinity; remove them")
    return found


def _unit(rows: Float[np.ndarray, "row unit"]) -> Float[np.ndarray, "row unit"]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
