"""The on/off pattern of a network's units as a binary code: how unique is it, and what does it say of the class?

Units that are linear on either side of a threshold (ReLU and its like) cut the inputs into linear regions; which units are
on names the region. Source: He et al., "Neural networks behave as hash encoders: An empirical study", arXiv 2101.05490.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln
from torch import Tensor, nn

from netloupe.core.capture import Sites, capture
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.lenses.geometry.code_neighbours import classes_of, knn_votes
from netloupe.lenses.geometry.distinct_codes import DistinctCodes
from netloupe.lenses.geometry.packed_codes import PackedCodes, as_codes, drop_constant, hamming, pack
from netloupe.nn.topk import TopK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "DistinctCodes",
    "NeuralCode",
    "PackedCodes",
    "activation_code",
    "drop_constant",
    "hamming",
    "network_codes",
    "neural_code",
    "redundancy_ratio",
]

Spatial = Literal["all", "any", "sum"]
PIECEWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.Threshold, TopK)
SMOOTH = (nn.GELU, nn.SiLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Hardswish)
K = 9  # neighbours, as published
MOST_JUDGED = 2048  # samples whose neighbours the lens looks up
_SILU_LOW = -0.27847  # smallest value of SiLU; that of GELU is -0.17


def activation_code(
    acts: Any, *, threshold: float = 0.0, spatial: Spatial = "all", drop_constant: bool = False
) -> PackedCodes:
    """One bit for each unit: is its activation above ``threshold``, strictly?

    Strictly, because a rectified unit that is off is exactly 0. Read networks with batch norm in evaluation mode, else the
    code of a sample depends on its batch. Of LeakyReLU and PReLU the output has the sign of the input while their slope is
    positive.

    Args:
        acts: activations of one layer, or a sequence or dictionary of layers of the same samples, each ``(sample, unit)``,
            ``(sample, position, unit)`` or ``(sample, channel, height, width)``.
        threshold: 0 for rectified units.
        spatial: what becomes of positions: ``all``, each is a bit of its own; ``any``, one bit a channel that is on
            anywhere; ``sum``, one bit a channel whose sum over positions is above the threshold.
        drop_constant: leave out bits that are constant over these samples. Codes that are to be compared with other
            samples must be reduced together: :func:`netloupe.lenses.geometry.packed_codes.drop_constant`.

    Cost: one pass; the codes take n U / 8 bytes. Warns where the values look like those of a smooth activation (small
    negative values and none below SiLU's minimum): then the threshold is a choice and there is no linear region. Raises
    InputError for another shape or different numbers of samples, NonFiniteError for NaN or infinity.
    """
    if spatial not in ("all", "any", "sum"):
        raise InputError(f"spatial is '{spatial}', expected all, any or sum")
    named = _named(acts)
    bits, layers, start = [], {}, 0
    for name, values in named.items():
        found = _layer_bits(name, values, threshold, spatial)
        if bits and len(found) != len(bits[0]):
            raise InputError(
                f"layer '{name}' has {len(found)} samples and the first layer {len(bits[0])}; the same samples are needed"
            )
        bits.append(found)
        layers[name] = slice(start, start + found.shape[1])
        start += found.shape[1]
    joined = bits[0] if len(bits) == 1 else np.concatenate(bits, 1)
    codes = PackedCodes(pack(joined), start, layers)
    return _drop(codes) if drop_constant else codes


def _drop(codes: PackedCodes) -> PackedCodes:
    return drop_constant(codes)[0]


def _named(acts: Any) -> dict[str, Any]:
    if isinstance(acts, Mapping):
        named = {str(name): values for name, values in acts.items()}
    elif isinstance(acts, Sequence) and not isinstance(acts, str):
        named = {str(index): values for index, values in enumerate(acts)}
    else:
        named = {"0": acts}
    if not named:
        raise InputError("no activations were given; at least one layer is needed")
    return named


def _layer_bits(name: str, values: Any, threshold: float, spatial: Spatial) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    array = np.asarray(values)
    if array.ndim not in (2, 3, 4) or array.dtype.kind not in "fiub" or 0 in array.shape:
        raise InputError(
            f"layer '{name}' has shape {array.shape} and dtype {array.dtype}, expected numbers (sample, unit), (sample, position, "
            "unit) or (sample, channel, height, width)"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array.sum()) and not np.isfinite(array).all():
            raise NonFiniteError(
                f"layer '{name}' holds NaN or infinity, but finite numbers are needed; repair the network"
            )
        _warn_smooth(name, array)
    if array.ndim > 2 and spatial != "all":
        axes = (1,) if array.ndim == 3 else (2, 3)
        return np.asarray(array.sum(axes) > threshold if spatial == "sum" else (array > threshold).any(axes))
    return (array > threshold).reshape(len(array), -1)


def looks_smooth(low: float, high: float) -> bool:
    """Whether a range is that of GELU or SiLU: a little below 0, never below their minimum, and well above it."""
    return _SILU_LOW <= low < 0 and high > 1


def _warn_smooth(name: str, array: np.ndarray) -> None:
    if looks_smooth(float(array.min()), float(array.max())):
        warnings.warn(
            f"layer '{name}' looks like a smooth activation (GELU, SiLU): its threshold is a choice and its code names no "
            "linear region",
            stacklevel=4,
        )


def network_codes(
    model: nn.Module,
    data: Any,
    sites: Sites = None,
    *,
    threshold: float = 0.0,
    spatial: Spatial = "all",
    batch_size: int = 256,
) -> PackedCodes:
    """Codes of a whole network: the outputs of its two-piece activation modules (or of ``sites``), batch by batch.

    Args:
        model: any network; it is read in evaluation mode and left as it was.
        data: arrays, ``(inputs, labels)`` or batches, as :func:`netloupe.capture` takes them.
        sites: names or globs; None takes every module of ``PIECEWISE``. Name them where activations are functions.
        threshold, spatial: as in :func:`activation_code`.

    Cost: one pass; n U / 8 bytes are kept. Warns of smooth activations among the sites. Raises InputError where the network has
    no such module, and the errors of :func:`netloupe.capture`.
    """
    if sites is None:
        sites = [name for name, module in model.named_modules() if isinstance(module, PIECEWISE)]
        if not sites:
            raise InputError("the network has no ReLU-like module whose output could be a code; name the sites")
    smooth = [name for name, module in model.named_modules() if isinstance(module, SMOOTH) and name in sites]
    if smooth:
        warnings.warn(
            f"'{smooth[0]}' is smooth: its threshold is a choice and its code names no linear region", stacklevel=2
        )
    batches = capture(model, data, sites, batch_size=batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch's range says less than the modules' types
        return PackedCodes.concat(
            activation_code(batch.activations, threshold=threshold, spatial=spatial) for batch in batches
        )


def redundancy_ratio(codes: Any) -> float:
    """``R = (n - number of different codes) / n``: 0 if every sample has a code of its own, at most ``(n - 1) / n``.

    It rises with n by itself: compare equal numbers of samples. Counted exactly (equal hashes are compared word by word).

    Args:
        codes: packed codes, or bits ``(sample, unit)``.

    Cost: one read of n U / 8 bytes. Warns for codes without any bit, whose samples are all alike. Raises InputError for
    activations in place of bits.
    """
    packed = as_codes(codes)
    if not packed.n_bits:
        warnings.warn("the codes have no bits, so that all samples share one code", stacklevel=2)
    return (len(packed) - (int(packed.groups().max()) + 1)) / len(packed)


@dataclass(frozen=True, eq=False)
class NeuralCode(Finding):
    """How unique the codes of a site are, and how often neighbours in Hamming distance share a class.

    ``sizes`` int64 ``(group,)``: samples that share each code, largest first. ``knn`` and ``largest_class`` are None without
    labels. ``smooth``: whether the values look like those of GELU or SiLU.
    """

    sizes: np.ndarray
    n_bits: int
    n_varying: int
    threshold: float
    smooth: bool
    knn: float | None
    knn_error: float | None
    largest_class: float | None
    k: int

    meanings: ClassVar[dict[str, str]] = {
        "redundancy": "share of samples whose on/off pattern another sample has already (0: every one is unique)",
        "standard_error": "its standard error over samples (jackknife)",
        "alone": "share of samples that are alone with their pattern",
        "distinct_codes": "different patterns",
        "varying_bits": "units that are on for some samples and off for others",
        "knn": "how often the nearest patterns of other samples name a sample's class",
        "knn_error": "its standard error",
        "largest_class": "share of the largest class, which needs no pattern",
    }

    @property
    def n_samples(self) -> int:
        """How many samples."""
        return int(self.sizes.sum())

    @property
    def redundancy(self) -> float:
        """``(n - different codes) / n``."""
        return (self.n_samples - len(self.sizes)) / self.n_samples

    @property
    def alone(self) -> float:
        """Share of samples with a code of their own."""
        return float((self.sizes == 1).sum() / self.n_samples)

    @property
    def standard_error(self) -> float:
        """Jackknife over samples: taking one out loses a code only where it was alone, so it is closed form."""
        return float(np.sqrt(self.alone * (1 - self.alone) / (self.n_samples - 1)))

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        found = {
            "redundancy": self.redundancy,
            "standard_error": self.standard_error,
            "alone": self.alone,
            "distinct_codes": float(len(self.sizes)),
            "varying_bits": float(self.n_varying),
        }
        if self.knn is not None and self.knn_error is not None and self.largest_class is not None:
            found |= {"knn": self.knn, "knn_error": self.knn_error, "largest_class": self.largest_class}
        return found

    def paragraph(self) -> str:
        """The answer in plain words."""
        n = self.n_samples
        text = (
            f"{100 * self.redundancy:.3g} % (standard error {100 * self.standard_error:.2g} %) of {n} samples repeat the on/off "
            f"pattern of another: there are {len(self.sizes)} patterns of {self.n_varying} units that vary. "
        )
        if self.knn is not None and self.knn_error is not None:
            text += (
                f"The {self.k} nearest patterns name the class of {100 * self.knn:.3g} % (standard error "
                f"{100 * self.knn_error:.2g} %); the largest class has {100 * (self.largest_class or 0):.3g} %. "
            )
        if self.smooth:
            text += f"The values look like a smooth activation's: {self.threshold:g} is a choice, not the edge of a region. "
        return text + "Both numbers are high in wide networks without any training, and redundancy grows with samples."

    def rarefied(self, sizes: Sequence[int] | np.ndarray) -> Float[np.ndarray, " size"]:
        """Redundancy that so many of these samples, drawn without replacement, are expected to have. Exact."""
        n, counts, repeats = self.n_samples, *np.unique(self.sizes, return_counts=True)
        found = []
        for m in sizes:
            left = np.maximum(n - counts - m, -1)
            log_missed = (
                gammaln(n - counts + 1) - gammaln(left + 1.0 + (left < 0)) + gammaln(n - m + 1) - gammaln(n + 1)
            )
            missed = np.where(left < 0, 0.0, np.exp(log_missed))
            found.append(1 - float(repeats @ (1 - missed)) / m)
        return np.array(found)

    def plot(self, axes: Axes) -> None:
        """Expected redundancy of fewer samples."""
        sizes = np.unique(np.geomspace(2, self.n_samples, 40).astype(int))
        axes.plot(sizes, self.rarefied(sizes), color="C0")
        axes.plot(self.n_samples, self.redundancy, "o", color="C0")
        axes.set(xscale="log", ylim=(-0.02, 1), xlabel="samples", ylabel="share that repeats a code")
        if self.knn is not None:
            axes.axhline(
                self.knn, color="C1", linestyle="--", label=f"{self.k} nearest codes name the class: {self.knn:.3f}"
            )
            axes.legend(frameon=False, fontsize="small")


@lens(
    question="How unique is each sample's on/off pattern, and do similar patterns share a class?",
    optional=("labels",),
    pooled=True,
    min_samples=2,
    invariances=("unit permutation", "sample permutation", "scale"),
)
def neural_code(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Any = None,
    *,
    threshold: float = 0.0,
    k: int = K,
) -> NeuralCode:
    """Redundancy of the codes ``features > threshold`` and, with labels, leave-one-out K-NN in Hamming distance.

    ``R = (n - different codes) / n`` (arXiv 2101.05490). Positions that were averaged after a rectifier leave one bit a
    channel: on if it is on anywhere. Samples tied for the last places among the k nearest share these places, and of
    classes with equal votes the smallest number wins, so the answer does not depend on the order of samples.

    Args:
        features: ``(sample, unit)`` after a two-piece activation (before or after, for LeakyReLU); tensor, array or store.
        labels: ``(sample,)`` whole numbers; K-NN is left out without two classes, a bit that varies, or more than ``k`` samples.
        threshold: a unit is on strictly above it. k: neighbours, 9 as published.

    Cost: one pass, n U / 8 bytes kept; O(n U / 64) for the redundancy, and O(min(n, 2048) n U / 64) for K-NN (above 2,048
    samples, evenly spaced ones are judged by all others). Raises InputError for another shape or fewer than two samples,
    NonFiniteError for NaN.
    """
    if k < 1:
        raise InputError(f"k is {k}, at least one neighbour is needed")
    rows = as_rows(features, labels, ndim=(2,), min_samples=2)
    low, high, parts = np.inf, -np.inf, []
    for batch in rows:
        values = batch.values.detach()
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        bits = (values > threshold).cpu().numpy()
        parts.append(PackedCodes(pack(bits), rows.n_units, {"0": slice(0, rows.n_units)}))
    codes = PackedCodes.concat(parts)
    sizes = np.sort(np.bincount(codes.groups()))[::-1].astype(np.int64)
    knn = error = largest = None
    classes, y = (np.zeros(0), None) if rows.labels is None else classes_of(rows.labels)
    n_varying = int((~codes.constant()).sum())
    if y is not None and n_varying and len(classes) > 1 and len(y) > k:
        judged = np.unique(np.linspace(0, len(y) - 1, min(len(y), MOST_JUDGED)).astype(np.int64))
        votes = knn_votes(codes, y, len(classes), codes[judged], k, own=judged)
        knn = float((votes.argmax(1) == y[judged]).mean())
        error = float(np.sqrt(knn * (1 - knn) / len(judged)))
        largest = float(np.bincount(y).max() / len(y))
    return NeuralCode(sizes, rows.n_units, n_varying, threshold, looks_smooth(low, high), knn, error, largest, k)
