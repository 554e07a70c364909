"""Through which path a feature travels, how spread out it is over units, and how noise shakes it.

Source: Fel et al., "Understanding Visual Feature Reliance through the Lens of Complexity", arXiv 2407.06076.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from netloupe.core.alignment import paired_rows, vector_cka
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.statistics import Covariance, CrossCovariance
from netloupe.lenses.information.vinfo import v_information

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Flow(Finding):
    """How strongly each feature is present in the skip connection and in the branch of each block.

    ``skip`` and ``branch`` float64 ``(block, feature)``: linear CKA, or held-out R^2. ``simple`` and ``complex`` hold the
    indices of the quarter of features of lowest and of highest complexity.
    """

    skip: Float[np.ndarray, "block feature"]
    branch: Float[np.ndarray, "block feature"]
    simple: np.ndarray
    complex: np.ndarray
    blocks: tuple[str, ...]
    measure: str

    meanings: ClassVar[dict[str, str]] = {
        "simple_skip_first": "presence of the simplest features in the first block's skip input, over that in the last's",
        "simple_skip": "presence of the simplest quarter in the skip inputs, mean over blocks",
        "simple_branch": "their presence in the branch outputs",
        "complex_skip": "presence of the most complex quarter in the skip inputs, mean over blocks",
        "complex_branch": "their presence in the branch outputs",
    }

    def curves(self) -> dict[str, Float[np.ndarray, " block"]]:
        """Means over the simplest and the most complex quarter: ``simple skip``, ``simple branch``, ..."""
        paths = {"skip": self.skip, "branch": self.branch}
        groups = {"simple": self.simple, "complex": self.complex}
        return {f"{g} {p}": np.nanmean(table[:, of], 1) for g, of in groups.items() for p, table in paths.items()}

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        curves = self.curves()
        first = {"simple_skip_first": float(curves["simple skip"][0] / curves["simple skip"][-1])}
        return first | {name.replace(" ", "_"): float(curve.mean()) for name, curve in curves.items()}

    def plot(self, axes: Axes) -> None:
        """The four curves over blocks."""
        for name, curve in self.curves().items():
            group, path = name.split()
            axes.plot(
                range(len(curve)),
                curve,
                "o-" if path == "skip" else "s:",
                color="C0" if group == "simple" else "C1",
                label=name,
            )
        axes.set_xticks(range(len(self.blocks)), list(self.blocks), fontsize="small", rotation=30, ha="right")
        axes.set(
            xlabel="block",
            ylabel="linear CKA" if self.measure == "cka" else "share of variance explained",
            ylim=(0, None),
        )
        axes.legend(frameon=False, fontsize="small")


def flow(
    skips: Mapping[str, Float[Tensor, "sample unit"] | Any],
    branches: Mapping[str, Float[Tensor, "sample unit"] | Any],
    z: Float[Tensor, "sample feature"] | Any,
    complexity: Float[np.ndarray, " feature"],
    *,
    measure: Literal["cka", "v_information"] = "cka",
) -> Flow:
    """Presence of features in the skip input and the branch output of each residual block.

    Args:
        skips, branches: block -> ``(sample, unit)``, in order and with the same blocks: what the block is added to, and
            what it adds. Pool feature maps first.
        z: ``(sample, feature)``. complexity: ``(feature,)``, which sorts features into quarters; NaN are left out.
        measure: linear CKA of the layer with the single feature, or held-out R^2 of a linear reader. CKA is small where
            a layer holds much else beside the feature; R^2 does not mind.

    Cost: 2 n d (d + k) a block. Raises InputError for other blocks on the two sides, fewer than four features with a
    complexity, and shapes that do not fit.
    """
    if not skips or list(skips) != list(branches):
        raise InputError(
            f"skips are of {list(skips)} and branches of {list(branches)}; the same blocks are needed in both"
        )
    if measure not in ("cka", "v_information"):
        raise InputError(f"measure is '{measure}', expected cka or v_information")
    ranked = np.asarray(complexity, dtype=float)
    known = np.flatnonzero(np.isfinite(ranked))
    if len(known) < 4:
        raise InputError(f"{len(known)} features have a complexity, at least 4 are needed to compare quarters")
    order, quarter = known[np.argsort(ranked[known], kind="stable")], len(known) // 4
    read = vector_cka if measure == "cka" else v_information
    tables = [np.stack([read(layer, z) for layer in side.values()]) for side in (skips, branches)]
    if tables[0].shape[1] != len(ranked):
        raise InputError(f"complexity has {len(ranked)} entries for {tables[0].shape[1]} features; give one for each")
    return Flow(tables[0], tables[1], order[:quarter], order[-quarter:], tuple(str(name) for name in skips), measure)


def redundancy(
    features: Float[Tensor, "sample unit"] | Any,
    z: Float[Tensor, "sample feature"] | Any,
    *,
    share: float = 0.1,
    n_masks: int = 50,
    random_state: int = 0,
) -> Float[np.ndarray, " feature"]:
    """``E_m[CKA(F m, z) / CKA(F, z)]`` over random sets of units ``m``: 1 for a feature that is written on all of them.

    A feature on a single unit gives 0 where that unit is left out and at least 1 where it is kept, since what surrounds it
    is thinned too; the mean can exceed 1.

    Args:
        features: the layer, ``(sample, unit)``. z: ``(sample, feature)``.
        share: of units that a mask keeps, at least one unit. The paper's share is not known to us.
        n_masks: sets drawn.

    Returns:
        ``(feature,)``; NaN for features that do not vary or that the layer says nothing of.

    Cost: one pass and O(n_masks (share d)(share d + k)): masks are taken from the Gram matrix. Raises InputError for a share
    outside (0, 1], no masks, and shapes that do not fit.
    """
    if not 0 < share <= 1 or n_masks < 1:
        raise InputError(f"share is {share} and n_masks {n_masks}, expected a share up to 1 and at least 1 mask")
    x, codes = paired_rows(features, z, min_samples=2)
    own, cross = Covariance(), CrossCovariance()
    for one, other in zip(x, codes, strict=True):
        own.update(one.values)
        cross.update(one.values, other.values)
    gram, found = own.result().scatter, cross.result()
    right = found.scatter**2
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = right.sum(0) / np.linalg.norm(gram)  # the feature's own length cancels in the ratio
        total, draw = np.zeros(len(whole)), np.random.default_rng(random_state)
        for _ in range(n_masks):
            kept = draw.choice(x.n_units, max(1, round(share * x.n_units)), replace=False)
            size = np.linalg.norm(gram[np.ix_(kept, kept)])
            total += right[kept].sum(0) / size if size > 0 else 0.0
        ratio = total / n_masks / whole
    ratio[(found.squares_b <= 0) | ~np.isfinite(ratio)] = np.nan
    return ratio


def sensitivity(
    codes: Callable[[Tensor], Any],
    inputs: Float[Tensor, "sample ..."],
    scales: Sequence[float] = (0.01, 0.1, 0.5),
    *,
    n_draws: int = 100,
    spread: Literal["variance", "range"] = "variance",
    random_state: int = 0,
) -> Float[np.ndarray, "scale feature"]:
    """How much each feature moves when Gaussian noise is added to the inputs: variance over draws, mean over samples.

    Args:
        codes: from inputs to features ``(sample, feature)``, deterministic; run the network in evaluation mode inside.
        inputs: ``(sample, ...)``. The paper takes 2,000 images.
        scales: standard deviations of the noise, in units of the inputs.
        n_draws: noises for each sample. spread: variance over them, or largest less smallest.

    Returns:
        ``(scale, feature)`` in squared units of the features (or their units, for the range). Features of large variance
        move more: standardise them to compare.

    Cost: ``len(scales) n_draws`` passes over the inputs; O(n k) memory. Raises InputError for fewer than two draws, a scale
    below 0, no samples, or codes that are no ``(sample, feature)``.
    """
    if n_draws < 2 or not scales or min(scales) < 0 or spread not in ("variance", "range"):
        raise InputError(
            f"scales are {tuple(scales)}, n_draws {n_draws} and spread '{spread}', expected scales from 0, at least 2 draws, "
            "and variance or range"
        )
    inputs = torch.as_tensor(inputs)
    if inputs.ndim < 2 or len(inputs) == 0:
        raise InputError(f"inputs have shape {tuple(inputs.shape)}, expected (sample, ...) with at least one sample")
    generator = torch.Generator().manual_seed(random_state)
    rows = []
    for scale in scales:
        seen = _Spread()
        for _ in range(n_draws):
            noise = torch.randn(
                inputs.shape, generator=generator, dtype=inputs.dtype if inputs.is_floating_point() else None
            )
            found = torch.as_tensor(codes(inputs + scale * noise.to(inputs.device))).detach().cpu().double().numpy()
            if found.ndim != 2 or len(found) != len(inputs):
                raise InputError(
                    f"codes gave shape {found.shape} for {len(inputs)} samples, expected (sample, feature)"
                )
            seen.add(found)
        rows.append(seen.result(spread))
    return np.stack(rows)


class _Spread:
    """Running variance and range over draws (Welford)."""

    def __init__(self) -> None:
        self.n, self.mean, self.square = 0, np.zeros(0), np.zeros(0)
        self.low, self.high = np.zeros(0), np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        if self.n == 0:
            self.mean, self.square = np.zeros_like(values), np.zeros_like(values)
            self.low, self.high = values, values
        self.n += 1
        delta = values - self.mean
        self.mean = self.mean + delta / self.n
        self.square = self.square + delta * (values - self.mean)
        self.low, self.high = np.minimum(self.low, values), np.maximum(self.high, values)

    def result(self, spread: str) -> np.ndarray:
        return (self.square / (self.n - 1) if spread == "variance" else self.high - self.low).mean(0)
