"""How few activations change from one sample to the next, and what a device that computes changes alone would skip.

Source: "Training for temporal sparsity in deep neural networks, application in video processing", arXiv 2107.07305.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import Statistic
from netloupe.lenses.activity.temporal_counts import Changes
from netloupe.nn.delta import OverFrames, clip_length
from netloupe.nn.tracing import LINEAR, fan_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class TemporalChange(Finding):
    """Changes between consecutive samples at one site.

    ``changed`` and ``nonzero`` float64 ``(unit,)``: share of comparisons in which the unit changed, share of values that
    are not zero. ``density_per_step`` float64 ``(step,)``: share of units that changed after sample ``step_samples``.
    """

    changed: np.ndarray
    nonzero: np.ndarray
    density_per_step: np.ndarray
    step_samples: np.ndarray
    relative_change: float
    tol: float

    meanings: ClassVar[dict[str, str]] = {
        "temporal_density": "share of activations that change between consecutive samples",
        "spatial_density": "share of activations that are not zero",
        "relative_change": "size of the changes as a share of the size of the activations",
        "still_units": "share of units that never change",
        "standard_error": "standard error of the temporal density, following samples taken as related",
    }

    @property
    def temporal_density(self) -> float:
        """Mean over units of the share of comparisons in which they changed."""
        return float(self.changed.mean())

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        return {
            "temporal_density": self.temporal_density,
            "spatial_density": float(self.nonzero.mean()),
            "relative_change": self.relative_change,
            "still_units": float((self.changed == 0).mean()),
            "standard_error": self.standard_error(),
        }

    def standard_error(self) -> float:
        """Of the temporal density, with Newey and West's weights for steps that follow each other; 0 for one step."""
        n, values = len(self.density_per_step), self.density_per_step - self.density_per_step.mean()
        lags = min(n - 1, int(4 * (n / 100) ** (2 / 9)))
        total = float(values @ values) + sum(
            2 * (1 - lag / (lags + 1)) * float(values[lag:] @ values[:-lag]) for lag in range(1, lags + 1)
        )
        return float(np.sqrt(max(total, 0.0)) / n)

    def paragraph(self) -> str:
        """In plain words."""
        numbers = self.summary()
        return (
            f"{100 * numbers['temporal_density']:.1f} ± {100 * numbers['standard_error']:.1f} % of the activations change from "
            f"one sample to the next, beside {100 * numbers['spatial_density']:.1f} % that are not zero; the changes have "
            f"{100 * self.relative_change:.1f} % of the activations' size, and {100 * numbers['still_units']:.1f} % of the "
            "units never change."
        )

    def plot(self, axes: Axes) -> None:
        """The share of units that change, over time."""
        axes.plot(self.step_samples, self.density_per_step, ".-", color="C0", linewidth=1, markersize=3, label="change")
        axes.axhline(float(self.nonzero.mean()), color="C1", linestyle="--", label="not zero")
        axes.set(xlabel="sample", ylabel="share of units", ylim=(-0.02, 1.02))
        axes.legend(frameon=False)


def _conclude(statistics: Mapping[str, Statistic]) -> TemporalChange:
    counts = statistics["changes"]
    assert isinstance(counts, Changes)
    return from_changes(counts)


def from_changes(counts: Changes) -> TemporalChange:
    """The finding from counts gathered in one pass."""
    found = counts.result()
    compared = found.steps[found.steps[:, 2] > 0]
    per_unit = compared[:, 2].sum() / len(found.changed)
    return TemporalChange(
        found.changed / per_unit, found.nonzero / found.n_rows, compared[:, 1] / compared[:, 2], compared[:, 0],
        found.relative_change, counts.tol,
    )  # fmt: skip


@lens(
    question="How few activations change from one sample to the next?",
    optional=("mask",),
    min_samples=2,
    invariances=("unit permutation", "scale"),
    statistics={"changes": Changes},
    conclude=_conclude,
    sequence=True,
)
def temporal_change(
    features: Float[Tensor, "sample unit"] | Float[Tensor, "sample position unit"] | Any,
    mask: Any = None,
    *,
    tol: float = 0.0,
) -> TemporalChange:
    """The share of activations with ``|a_{t+1} - a_t| > tol`` (arXiv 2107.07305), beside the share that is not zero.

    Samples must follow each other in time, as frames of one video do; a cut counts as one step in which much changes.
    ``relative_change = sum|a_{t+1} - a_t| / sum (|a_t| + |a_{t+1}|) / 2``, 0 where everything is zero. The standard error
    takes the steps of one recording as a stationary series; it says nothing about other videos.

    Args:
        features: ``(sample, unit)`` or ``(sample, position, unit)``: tensor, array or stored site.
        mask: bool ``(sample, position)``; a position counts where both samples have it.
        tol: in the activations' own unit; with 0 sensor noise makes nearly everything change.

    Cost: one pass, O(n d) time, O(d + n) memory; streams. Raises InputError for fewer than two samples and other shapes,
    NonFiniteError for NaN.
    """
    rows = as_rows(features, mask=mask, min_samples=2)
    counts = Changes(tol)
    for batch in rows:
        counts.update(batch.values, mask=batch.mask, samples=batch.samples)
    return from_changes(counts)


def temporal_density(a: Float[Tensor, "..."], dim: int = 1, tol: float = 0.0) -> float:
    """Share of entries with ``|a_{t+1} - a_t| > tol``, time along ``dim``: for clips ``(sample, time, channel, ...)``.

    The first frame is not counted. Raises InputError for fewer than two frames, NonFiniteError for NaN.
    """
    values = torch.as_tensor(a)
    if values.ndim == 0 or not -values.ndim <= dim < values.ndim or values.shape[dim] < 2 or values.numel() == 0:
        raise InputError(f"clips have shape {tuple(values.shape)}; at least two frames along axis {dim} are needed")
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise NonFiniteError("clips hold NaN or infinity, whose change is no number; repair them first")
    if not values.is_floating_point():
        values = values.double()
    steps = values.shape[dim] - 1
    changed = (values.narrow(dim, 1, steps) - values.narrow(dim, 0, steps)).abs() > tol
    return float(torch.count_nonzero(changed)) / changed.numel()


@dataclass(frozen=True, eq=False)
class ChangeReport(Finding):
    """What changes before every linear layer of a network; ``a.merge(b)`` adds the counts of other clips.

    All ``(site,)``: ``changed``, ``compared``, ``nonzero``, ``n_values`` and ``first`` (values of first frames) int64;
    ``fan_out`` float64, multiply-adds that one unit causes.
    """

    sites: tuple[str, ...]
    changed: np.ndarray
    compared: np.ndarray
    nonzero: np.ndarray
    n_values: np.ndarray
    first: np.ndarray
    fan_out: np.ndarray
    tol: float

    meanings: ClassVar[dict[str, str]] = {
        "operation_density": "share of multiply-adds that changes cause, the first frame left out",
        "with_first_frame": "the same with the first frame of every clip counted as dense",
        "spatial_operation_density": "share of multiply-adds on values that are not zero",
        "unit_density": "share of units that change, each counted alike",
    }

    @property
    def density(self) -> np.ndarray:
        """``(site,)``: share of values that change."""
        return self.changed / self.compared

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        dense = float(self.fan_out @ self.n_values)
        return {
            "operation_density": operation_density(self),
            "with_first_frame": float(self.fan_out @ (self.changed + self.first)) / dense,
            "spatial_operation_density": float(self.fan_out @ self.nonzero) / dense,
            "unit_density": float(self.changed.sum() / self.compared.sum()),
        }

    def merge(self, other: ChangeReport) -> ChangeReport:
        """Both together; InputError where sites, fan-outs or tolerances differ."""
        if self.sites != other.sites or not np.array_equal(self.fan_out, other.fan_out) or self.tol != other.tol:
            raise InputError("the reports are of other sites, fan-outs or tolerances; merge reports of one network")
        names = ("changed", "compared", "nonzero", "n_values", "first")
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        return ChangeReport(self.sites, **counts, fan_out=self.fan_out, tol=self.tol, context=self.context)

    def plot(self, axes: Axes) -> None:
        """Share that changes and share that is not zero before each linear layer."""
        depth = np.arange(len(self.sites))
        axes.plot(depth, self.density, "o-", label="changes")
        axes.plot(depth, self.nonzero / self.n_values, "s:", label="not zero")
        axes.set(ylabel="share of units", ylim=(-0.02, 1.02))
        axes.set_xticks(depth, self.sites, rotation=30, ha="right")
        axes.legend(frameon=False)


def operation_density(report: ChangeReport) -> float:
    """``sum_site fan_out changed / sum_site fan_out compared``: the share of multiply-adds that changes cause."""
    return float(report.fan_out @ report.changed) / float(report.fan_out @ report.compared)


def change_report(
    model: nn.Module, clips: Float[Tensor, "sample time ..."] | Iterable[Tensor], tol: float = 0.0, stride: bool = True
) -> ChangeReport:
    """Counts changes at the input of every convolution and linear layer of a network of single frames.

    Args:
        model: takes frames ``(sample, channel, ...)``, or :class:`~netloupe.nn.delta.OverFrames` of such a network; it may
            hold delta layers that emit values.
        clips: ``(sample, time, channel, ...)``, or batches of such; a batch is held in memory at a time.
        tol: in the activations' unit. stride: as in :func:`~netloupe.nn.tracing.fan_out`.

    Streams over batches of clips. Raises InputError for fewer than two frames or a network without linear layers.
    """
    network = model.network if isinstance(model, OverFrames) else model
    layers = {name: module for name, module in network.named_modules() if type(module) in LINEAR}
    if not layers:
        raise InputError("the network has no convolution or linear layer, before which changes are counted")
    found: ChangeReport | None = None
    for batch in clips.split(64) if isinstance(clips, Tensor) else clips:
        if batch.ndim < 3 or batch.shape[1] < 2 or len(batch) == 0:
            raise InputError(
                f"clips have shape {tuple(batch.shape)}, expected (sample, time, ...) with two frames or more"
            )
        counts: dict[str, list[int]] = {}
        with clip_length(network, batch.shape[1]):
            for seen in capture(network, [batch.flatten(0, 1)], [f"{name}:in" for name in layers]):
                for site, values in seen.activations.items():
                    counts[site] = _counts(values.unflatten(0, batch.shape[:2]), tol)
        sites = tuple(counts)
        table = np.array([counts[site] for site in sites], np.int64).T
        fans = np.array([fan_out(layers[site.rpartition(":in")[0]], stride) for site in sites])
        report = ChangeReport(sites, *table, fan_out=fans, tol=tol, context=Context(options={"tol": tol}))
        found = report if found is None else found.merge(report)
    if found is None:
        raise InputError("no clips were given; at least one is needed")
    return found


def _counts(values: Tensor, tol: float) -> list[int]:
    changed = (values[:, 1:] - values[:, :-1]).abs() > tol
    kept = int(torch.count_nonzero(values))
    return [int(torch.count_nonzero(changed)), changed.numel(), kept, values.numel(), values[:, 0].numel()]
