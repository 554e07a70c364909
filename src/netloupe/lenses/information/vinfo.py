"""How early in a network, or in training, a linear decoder can read a feature: V-information and complexity.

A decoder that is linear with Gaussian noise of fixed variance 1/2 gains ``Var(z) - min E (z - w f - b)^2`` of information
about a feature ``z`` by seeing a layer ``f``: for a standardised feature the share of its variance that is explained, R^2.
Averaged over the layers of a network and taken from 1 this is the feature's complexity. Source: Fel et al.,
"Understanding Visual Feature Reliance through the Lens of Complexity", arXiv 2407.06076.

Here R^2 is always that of samples held out from the fit: in-sample it rises with the width of a layer by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from scipy import linalg
from torch import Tensor

from netloupe.core.alignment import paired_rows
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.splits import holdout
from netloupe.core.statistics import Covariance, CrossCovariance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_TEST = 10
FITTED = 0.75
Masks = tuple[np.ndarray, np.ndarray]


class RidgeGram:
    """Ridge regressions of many features on one layer at once, from sums that merge.

    ``partial_fit`` adds samples, ``score`` gives the held-out share of variance explained, ``merge`` takes in what another
    has seen. Units are standardised by the fitted samples; with ``alpha`` on the sum of squared errors the weights are those
    of scikit-learn's ``Ridge(alpha)`` on standardised units, for all features from one Cholesky factor.

    Args:
        alpha: ridge penalty; 0 is least squares and needs more samples than units.
        center: whether there is a constant; without one units and features are taken as they are around 0, and the share
            is of their mean square.

    Cost O(n d (d + k)) to fit, O(d^3 + d^2 k) to solve, O(d (d + k)) memory. Raises InputError for an ``alpha`` below 0, for
    ``alpha=0`` with no more samples than units (every feature would be explained), and for shapes that do not fit.
    """

    def __init__(self, alpha: float = 1.0, center: bool = True) -> None:
        if not (np.isfinite(alpha) and alpha >= 0):
            raise InputError(f"alpha is {alpha}, expected 0 or a positive number")
        self.alpha, self.center = alpha, center
        self._own, self._cross = Covariance(), CrossCovariance()
        self._solved: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def n_samples(self) -> int:
        """How many were fitted."""
        return self._cross.n_rows

    def partial_fit(self, x: Float[Any, "sample unit"], z: Float[Any, "sample feature"]) -> Self:
        """Adds samples of a layer and of the features."""
        if len(x):
            self._own.update(x)
            self._cross.update(x, z)
            self._solved = None
        return self

    def merge(self, other: Self) -> Self:
        """Takes in what another has seen; it must have the same settings."""
        if (self.alpha, self.center) != (other.alpha, other.center):
            raise InputError("two ridge fits with different alpha or center cannot be merged")
        self._own.merge(other._own)
        self._cross.merge(other._cross)
        self._solved = None
        return self

    @property
    def weights(self) -> tuple[Float[np.ndarray, "unit feature"], Float[np.ndarray, " feature"]]:
        """``(weight, constant)``: the prediction is ``x @ weight + constant``, in the units given."""
        if self._solved is None:
            self._solved = self._solve()
        return self._solved

    def _solve(self) -> tuple[np.ndarray, np.ndarray]:
        own, cross = self._own.result(), self._cross.result()
        n, d = cross.count, len(cross.mean_a)
        if self.alpha == 0 and d >= n - int(self.center):
            raise InputError(
                f"alpha is 0 with {n} fitted samples and {d} units, so that every feature would be explained; give a positive "
                "alpha or more samples"
            )
        gram, right = own.scatter, cross.scatter
        if not self.center:
            gram = gram + n * np.outer(cross.mean_a, cross.mean_a)
            right = right + n * np.outer(cross.mean_a, cross.mean_b)
        scale = np.sqrt(np.diag(gram) / n)
        scale = np.where(
            scale > 1e-12 * (np.abs(cross.mean_a) + scale.max()), scale, np.inf
        )  # constant units say nothing
        gram, right = gram / np.outer(scale, scale), right / scale[:, None]
        gram[np.diag_indices(d)] += self.alpha + np.isinf(scale)
        try:
            solved = linalg.cho_solve(linalg.cho_factor(gram), right)
        except linalg.LinAlgError:
            solved = linalg.pinvh(gram) @ right
        weight = solved / scale[:, None]
        constant = cross.mean_b - cross.mean_a @ weight if self.center else np.zeros(len(cross.mean_b))
        return weight, constant

    def errors(
        self, x: Float[Any, "sample unit"], z: Float[Any, "sample feature"]
    ) -> tuple[Float[np.ndarray, " feature"], Float[np.ndarray, " feature"]]:
        """Sums of squared errors on other samples: of the regressions, and of the fitted mean alone."""
        weight, constant = self.weights
        x, z = _float64(x), _float64(z)
        if x.shape[1] != len(weight) or z.shape[1] != weight.shape[1]:
            raise InputError(
                f"{x.shape[1]} units and {z.shape[1]} features were given, the fit has {weight.shape[0]} and {weight.shape[1]}"
            )
        blind = self._cross.result().mean_b if self.center else 0.0
        return ((z - x @ weight - constant) ** 2).sum(0), ((z - blind) ** 2).sum(0)

    def score(self, x: Float[Any, "sample unit"], z: Float[Any, "sample feature"]) -> Float[np.ndarray, " feature"]:
        """Share of each feature's variance explained on these samples; NaN for a feature that does not vary."""
        return _share(*self.errors(x, z), self.constant_features)

    @property
    def constant_features(self) -> np.ndarray:
        """``(feature,)`` bool: features that were the same for every fitted sample."""
        found = self._cross.result()
        return found.squares_b <= (1e-12 * found.mean_b) ** 2 * found.count


def _share(errors: np.ndarray, blind: np.ndarray, constant: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant | (blind <= 0), np.nan, 1 - errors / blind)


def _float64(values: Any) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy()


def v_information(
    x: Float[Tensor, "sample unit"] | Any,
    z: Float[Tensor, "sample feature"] | Any,
    *,
    alpha: float = 1.0,
    split: float | Masks = FITTED,
    center: bool = True,
    clip: bool = True,
    random_state: int = 0,
) -> Float[np.ndarray, " feature"]:
    """What a linear decoder can read of each feature from a layer: held-out R^2, the information in units of its variance.

    Args:
        x: the layer, ``(sample, unit)``: tensor, array or stored site. Pool or project feature maps first.
        z: the features, ``(sample, feature)``, or ``(sample,)`` for one. They are standardised by the fitted samples alone,
            so their scale does not matter and nothing of the judged samples is used.
        alpha, center: as in :class:`RidgeGram`.
        split: share of samples to fit, or two bool arrays ``(sample,)``: fitted, judged.
        clip: bring numbers into [0, 1]; held-out R^2 falls below 0 where the fit misleads.
        random_state: of the split.

    Returns:
        ``(feature,)``; NaN for a feature that does not vary.

    Cost: two passes, O(n d (d + k) + d^3); streams. Raises InputError for shapes that do not fit, fewer than ten judged
    samples, masks that overlap, and as :class:`RidgeGram`; NonFiniteError for NaN.
    """
    found = held_out_share(x, z, alpha, split_masks(split, _length(x), random_state), center)
    return np.clip(found, 0, 1) if clip else found


def _length(x: Any) -> int:
    return int(x.shape[0]) if getattr(x, "shape", ()) else 0


def split_masks(split: float | Masks, n_samples: int, random_state: int) -> Masks:
    """Fitted and judged samples; at least ten are judged."""
    if isinstance(split, (tuple, list)):
        fitted, judged = (np.asarray(side) for side in split)
        if fitted.dtype != bool or fitted.shape != (n_samples,) or judged.dtype != bool or judged.shape != (n_samples,):
            raise InputError(f"the split's masks must be two bool arrays of {n_samples} samples: fitted, judged")
        if (fitted & judged).any():
            raise InputError(f"{int((fitted & judged).sum())} samples are both fitted and judged; keep the two apart")
    else:
        if not 0 < split < 1 or n_samples < 2:
            raise InputError(
                f"split is {split} of {n_samples} samples; a share between 0 and 1 of at least 2 is needed"
            )
        fitted, judged = np.zeros(n_samples, bool), np.zeros(n_samples, bool)
        one, other = holdout(n_samples, 1 - split, random_state=random_state)
        fitted[one.numpy()], judged[other.numpy()] = True, True
    if judged.sum() < MIN_TEST or fitted.sum() < 2:
        raise InputError(
            f"{int(fitted.sum())} samples would be fitted and {int(judged.sum())} judged, at least 2 and {MIN_TEST} are "
            "needed; give more samples"
        )
    return fitted, judged


def held_out_share(x: Any, z: Any, alpha: float, masks: Masks, center: bool = True) -> Float[np.ndarray, " feature"]:
    """Unclipped held-out R^2: one pass for the Gram matrices of fitted rows, one for the errors on judged rows."""
    rows_x, rows_z = paired_rows(x, z, min_samples=2)
    fitted, judged = (torch.from_numpy(side) for side in masks)
    gram = RidgeGram(alpha, center)
    for one, other in zip(rows_x, rows_z, strict=True):
        part = fitted[one.samples]
        gram.partial_fit(one.values[part], other.values[part])
    errors, blind = np.zeros(rows_z.n_units), np.zeros(rows_z.n_units)
    for one, other in zip(rows_x, rows_z, strict=True):
        part = judged[one.samples]
        if bool(part.any()):
            found = gram.errors(one.values[part], other.values[part])
            errors, blind = errors + found[0], blind + found[1]
    return _share(errors, blind, gram.constant_features)


@dataclass(frozen=True, eq=False)
class FeatureComplexity(Finding):
    """How late each feature becomes linearly readable along a series of layers, or of checkpoints.

    ``complexity`` float64 ``(feature,)`` is ``1 - mean over the series of R^2``, with R^2 clipped to [0, 1]: 0 where it can
    be read everywhere, 1 where nowhere; NaN for features that do not vary. ``without_last`` leaves out the last of the
    series, where a layer reads its own features by construction. ``per_layer`` ``(layer, feature)`` holds R^2 unclipped.
    """

    complexity: Float[np.ndarray, " feature"]
    without_last: Float[np.ndarray, " feature"]
    per_layer: Float[np.ndarray, "layer feature"]
    layers: tuple[str, ...]
    n_constant: int

    meanings: ClassVar[dict[str, str]] = {
        "median_complexity": "share of the series at which the median feature cannot be read linearly",
        "lowest_complexity": "the same for the simplest feature",
        "highest_complexity": "the same for the most complex feature",
        "median_without_last": "the median with the last of the series left out",
        "constant_features": "features that do not vary and have no complexity",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        return {
            "median_complexity": float(np.nanmedian(self.complexity)),
            "lowest_complexity": float(np.nanmin(self.complexity)),
            "highest_complexity": float(np.nanmax(self.complexity)),
            "median_without_last": float(np.nanmedian(self.without_last)),
            "constant_features": float(self.n_constant),
        }

    def paragraph(self) -> str:
        """The answer in plain words, with how many features have none."""
        found = self.summary()
        left_out = f" {self.n_constant} features do not vary and have no complexity." if self.n_constant else ""
        return (
            f"From {self.layers[0]} to {self.layers[-1]} the complexity of {len(self.complexity) - self.n_constant} features "
            f"runs from {found['lowest_complexity']:.2f} to {found['highest_complexity']:.2f}, with the median at "
            f"{found['median_complexity']:.2f}.{left_out}"
        )

    def plot(self, axes: Axes) -> None:
        """Share of variance readable at each place of the series, features in order of complexity."""
        kept = np.flatnonzero(np.isfinite(self.complexity))
        order = kept[np.argsort(self.complexity[kept])]
        image = axes.imshow(
            np.clip(self.per_layer[:, order], 0, 1),
            aspect="auto",
            vmin=0,
            vmax=1,
            cmap="viridis",
            interpolation="nearest",
        )
        axes.figure.colorbar(image, ax=axes, label="share of variance a linear reader explains")
        axes.set_yticks(range(len(self.layers)), list(self.layers), fontsize="small")
        axes.set(xlabel="feature, simplest first")


def feature_complexity(
    layers: Mapping[str, Float[Tensor, "sample unit"] | Any],
    z: Float[Tensor, "sample feature"] | Any,
    *,
    alpha: float = 1.0,
    split: float | Masks = FITTED,
    random_state: int = 0,
) -> FeatureComplexity:
    """``K(z) = 1 - (1/n) sum_l R^2(f_l -> z)`` for each feature, over the layers in the order given (arXiv 2407.06076).

    Args:
        layers: name -> ``(sample, unit)``, first layer first; read one after the other, so stored sites of any size will
            do. Pool feature maps alike (spatial mean, or a random projection).
        z, alpha, split, random_state: as in :func:`v_information`; the same samples are judged at every layer.

    Cost: that of :func:`v_information` for each layer. Complexities are comparable between networks only over the same
    layers. Raises InputError for no layers, no feature that varies, and as :func:`v_information`.
    """
    if not layers:
        raise InputError("no layers were given; complexity is measured along a series of them")
    masks = split_masks(split, _length(z), random_state)
    table = np.stack([held_out_share(layer, z, alpha, masks) for layer in layers.values()])
    return _complexity(table, tuple(str(name) for name in layers))


def temporal_score(
    checkpoints: Mapping[Any, Float[Tensor, "sample unit"] | Any],
    z: Float[Tensor, "sample feature"] | Any,
    *,
    alpha: float = 1.0,
    split: float | Masks = FITTED,
    random_state: int = 0,
) -> FeatureComplexity:
    """``A(z) = 1 - (1/E) sum_e R^2(f^(e) -> z)``: how late in training each of the final features becomes readable.

    Args:
        checkpoints: step or epoch -> the last layer's features at that time, ``(sample, unit)``, in order.
        z: features of the final network.

    The answer's ``complexity`` is the score: low where the feature was there early. Everything else as in
    :func:`feature_complexity`.
    """
    named = {str(step): features for step, features in checkpoints.items()}
    return feature_complexity(named, z, alpha=alpha, split=split, random_state=random_state)


def _complexity(table: np.ndarray, names: tuple[str, ...]) -> FeatureComplexity:
    constant = np.isnan(table).any(0)
    if constant.all():
        raise InputError("no feature varies over the samples, so none has a complexity")
    clipped = np.clip(table, 0, 1)
    without = 1 - clipped[:-1].mean(0) if len(table) > 1 else np.full(table.shape[1], np.nan)
    whole = 1 - clipped.mean(0)
    return FeatureComplexity(whole, whole if len(table) == 1 else without, table, names, int(constant.sum()))
