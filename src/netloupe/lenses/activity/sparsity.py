"""How few units fire: the share of non-zero activations, per unit, sample and position.

Source: Li et al., "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers", arXiv 2210.06313.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.capture import Sites, observe
from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.finding import Context, Finding
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import Counts, Statistic
from netloupe.nn.topk import TopK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAZY = 0.1  # a unit that fires for less than this share of rows is lazy (the paper's line)
RECTIFIERS = (nn.ReLU, nn.ReLU6, TopK)
ActivityStats = Counts


@dataclass(frozen=True, eq=False)
class Sparsity(Finding):
    """How often each of ``d`` units is active in ``n_rows`` rows (samples, or samples x positions).

    ``frequency`` float64 ``(unit,)``: share of rows in which the unit exceeds the threshold. ``active_per_row`` int64
    ``(unit + 1,)``: in how many rows exactly so many units are active.
    """

    frequency: np.ndarray
    active_per_row: np.ndarray
    zero_fraction: float
    n_rows: int
    threshold: float

    meanings: ClassVar[dict[str, str]] = {
        "active_fraction": "share of activations above the threshold",
        "active_units": "units active at once, on average",
        "zero_fraction": "share of activations that are exactly zero",
        "dead_fraction": "share of units that never fire",
        "lazy_fraction": "share of units that fire for fewer than a tenth of the rows",
        "highest_frequency": "how often the busiest unit fires",
        "lowest_frequency": "how often the quietest unit fires",
        "standard_error": "standard error of the active fraction over rows",
    }

    @property
    def active_fraction(self) -> float:
        """Mean over units of the firing frequency: the paper's percentage of non-zeros, as a fraction."""
        return float(self.frequency.mean())

    @property
    def dead(self) -> np.ndarray:
        """``(unit,)`` bool: units that fired in no row."""
        return self.frequency == 0

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        return {
            "active_fraction": self.active_fraction,
            "active_units": self.active_fraction * len(self.frequency),
            "zero_fraction": self.zero_fraction,
            "dead_fraction": float(self.dead.mean()),
            "lazy_fraction": float((self.frequency < LAZY).mean()),
            "highest_frequency": float(self.frequency.max()),
            "lowest_frequency": float(self.frequency.min()),
            "standard_error": self.standard_error(),
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        found, width = self.summary(), len(self.frequency)
        dead = round(found["dead_fraction"] * width)
        return (
            f"{100 * self.active_fraction:.1f} % (standard error {100 * found['standard_error']:.2g} %) of the activations are "
            f"above {self.threshold:g}: {found['active_units']:.3g} of {width} units at once. "
            f"{100 * self.zero_fraction:.1f} % are exactly zero. "
            + (f"{dead} units never fire in these {self.n_rows} rows." if dead else "Every unit fires at least once.")
        )

    def standard_error(self) -> float:
        """Standard error of the active fraction, rows taken as independent; 0 for one row."""
        width = len(self.frequency)
        values = np.arange(width + 1) / width
        mean = float(self.active_per_row @ values) / self.n_rows
        spread = float(self.active_per_row @ (values - mean) ** 2) / self.n_rows
        return float(np.sqrt(spread / self.n_rows))

    def plot(self, axes: Axes) -> None:
        """Firing frequency of every unit, busiest first."""
        ordered = np.sort(self.frequency)[::-1]
        axes.fill_between(np.arange(len(ordered)), ordered, step="mid", alpha=0.25, color="C0")
        axes.step(np.arange(len(ordered)), ordered, where="mid", color="C0")
        axes.axhline(self.active_fraction, color="C1", linestyle="--", label=f"mean {self.active_fraction:.3f}")
        axes.set(
            xlabel="unit, busiest first",
            ylabel="share of rows it fires in",
            ylim=(0, 1.02),
            xlim=(-0.5, len(ordered) - 0.5),
        )
        axes.legend(frameon=False)


def _conclude(statistics: Mapping[str, Statistic]) -> Sparsity:
    counts = statistics["counts"]
    assert isinstance(counts, Counts)
    return from_counts(counts)


def from_counts(counts: Counts) -> Sparsity:
    """The finding from counts gathered in one pass (``observe``, a cluster, a training history)."""
    found = counts.result()
    return Sparsity(
        found.frequency,
        found.rows_with_active,
        float(found.zero.sum() / (found.count * found.n_units)),
        found.count,
        counts.threshold,
    )


@lens(
    question="How sparse is it: how few units fire at once, and which never do?",
    optional=("mask",),
    invariances=("unit permutation", "sample permutation", "scale"),
    statistics={"counts": Counts},
    conclude=_conclude,
)
def sparsity(
    features: Float[Tensor, "sample unit"] | Float[Tensor, "sample position unit"] | Any,
    mask: Any = None,
    *,
    threshold: float = 0.0,
    absolute: bool = False,
) -> Sparsity:
    """The share of units that fire (``a > threshold``, strictly), per unit and per row.

    ``active_fraction = (1/n) sum_rows #{i : a_i > threshold} / d`` (arXiv 2210.06313). Measure it after the activation
    function and before dropout. A smooth activation (GELU, SiLU) has no exact zeros: there, choose a threshold, and
    read ``zero_fraction`` to see whether the site has zeros at all.

    Args:
        features: ``(sample, unit)`` or ``(sample, position, unit)``: tensor, array or stored site.
        mask: bool ``(sample, position)``; padding is left out.
        threshold: in the activations' own unit; the default counts positive values.
        absolute: compare ``|a|``, so that negative values count as active too.

    Cost: one pass, O(n d) time, O(d) memory; streams. Raises InputError for other shapes and no samples,
    NonFiniteError for NaN (which would pass for a silent unit).
    """
    counts = Counts(threshold, absolute)
    for batch in as_rows(features, mask=mask):
        counts.update(batch.values, mask=batch.mask, samples=batch.samples)
    return from_counts(counts)


def nonzero_fraction(a: Float[Tensor, "..."], threshold: float = 0.0, dim: int | None = -1) -> Float[Tensor, "..."]:
    """Share of entries above ``threshold`` (strictly) along ``dim``; None for all of them.

    ``dim=-1`` gives one number a row (sample, or sample and position), ``dim=0`` of ``(sample, unit)`` one a unit.
    Raises NonFiniteError for NaN: NaN > 0 is False and would look sparse.
    """
    values = torch.as_tensor(a)
    if values.numel() == 0:
        raise InputError(f"activations have shape {tuple(values.shape)}; at least one value is needed")
    if values.is_floating_point() and bool(values.isnan().any()):
        raise NonFiniteError("activations hold NaN, which would count as silent; repair the network or drop the sample")
    active = (values > threshold).to(torch.float64)
    return active.mean() if dim is None else active.mean(dim)


def top_k_share(a: Float[Tensor, "row unit"], k: int) -> Float[Tensor, " row"]:
    """Share of each row's absolute activation that its ``k`` largest units carry: sparsity where nothing is exactly
    zero.

    1 for a row with at most ``k`` non-zeros, ``k / d`` when all are equal; a row of zeros has 1. Cost O(n d log k).
    """
    values = torch.as_tensor(a).abs().double()
    if not 1 <= k <= values.shape[-1]:
        raise InputError(f"k is {k}, expected 1 to {values.shape[-1]} units")
    total = values.sum(-1)
    return torch.where(total > 0, values.topk(k, -1).values.sum(-1) / total.clamp_min(1e-300), torch.ones_like(total))


def nonzero_per_position(features: Any, mask: Any = None, threshold: float = 0.0) -> Float[np.ndarray, " position"]:
    """Mean share of active units at each position, ``(position,)``; NaN where every sample is padding. Streams."""
    total: np.ndarray | float = 0.0
    count: np.ndarray | float = 0.0
    for batch in as_rows(features, mask=mask, ndim=(3,)):
        share = nonzero_fraction(
            batch.values.nan_to_num() if batch.mask is not None else batch.values, threshold
        ).numpy()
        real = np.ones(share.shape) if batch.mask is None else batch.mask.numpy().astype(float)
        total, count = total + (share * real).sum(0), count + real.sum(0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total) / np.asarray(count)


@dataclass(frozen=True, eq=False)
class ActivityReport(Finding):
    """Sparsity of several sites of one network over the same rows of data; ``report[site]`` is one site's finding.

    ``sites`` in the order in which they fire; ``n_units`` and ``n_rows`` int64 ``(site,)``; ``zero_fraction``
    float64 ``(site,)``. ``frequency`` and ``active_per_row`` are those of :class:`Sparsity`, site after site.
    """

    sites: tuple[str, ...]
    n_units: np.ndarray
    n_rows: np.ndarray
    zero_fraction: np.ndarray
    frequency: np.ndarray
    active_per_row: np.ndarray
    threshold: float

    meanings: ClassVar[dict[str, str]] = {
        "mean_active_fraction": "share of activations above the threshold, averaged over sites",
        "sparsest_site": "the same at the site where it is smallest",
        "densest_site": "the same at the site where it is largest",
        "dead_fraction": "share of all units that never fire",
        "lazy_fraction": "share of all units that fire for fewer than a tenth of the rows",
    }

    def __getitem__(self, site: str) -> Sparsity:
        if site not in self.sites:
            raise SiteError(f"site '{site}' is not in this report; there are {', '.join(self.sites)}")
        index = self.sites.index(site)
        start, width = int(self.n_units[:index].sum()), int(self.n_units[index])
        n_rows = int(self.n_rows[index])
        return Sparsity(
            self.frequency[start : start + width],
            self.active_per_row[start + index : start + index + width + 1],
            float(self.zero_fraction[index]),
            n_rows,
            self.threshold,
            context=replace(self.context, site=site),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def active_fraction(self) -> np.ndarray:
        """``(site,)``: share of activations above the threshold."""
        return np.array([self[site].active_fraction for site in self.sites])

    @property
    def dead_fraction(self) -> np.ndarray:
        """``(site,)``: share of units that never fire."""
        return np.array([float(self[site].dead.mean()) for site in self.sites])

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; an average hides the layers, so look at each site too."""
        fractions = self.active_fraction
        return {
            "mean_active_fraction": float(fractions.mean()),
            "sparsest_site": float(fractions.min()),
            "densest_site": float(fractions.max()),
            "dead_fraction": float((self.frequency == 0).mean()),
            "lazy_fraction": float((self.frequency < LAZY).mean()),
        }

    def plot(self, axes: Axes) -> None:
        """Active and dead share by depth, on a logarithmic axis; a share of 0 has no mark."""
        depth = np.arange(len(self.sites))
        for values, label, style in ((self.active_fraction, "active", "o-"), (self.dead_fraction, "dead units", "x:")):
            axes.plot(depth, np.where(values > 0, values, np.nan), style, label=label)
        axes.set(yscale="log", ylabel="share", ylim=(None, 1.1))
        axes.set_xticks(depth, self.sites, rotation=30, ha="right")
        axes.legend(frameon=False)


def activity_report(
    model: nn.Module,
    data: Any,
    sites: Sites = None,
    threshold: float = 0.0,
    *,
    absolute: bool = False,
    **options: Any,
) -> ActivityReport:
    """Sparsity at several sites of a network, layer by layer, in one pass over the data.

    Args:
        model, data: as in :func:`netloupe.capture`; padding that an attention mask declares is left out.
        sites: names or globs, for example ``"*mlp.act"``; None takes the output of every ReLU and top-k module.
        threshold, absolute: as in :func:`sparsity`.
        options: those of ``capture`` and ``engine`` of ``observe``.

    Raises InputError where ``threshold`` is 0 and a site is not rectified, that is, it holds no exact zero or more
    negative values than zeros (GELU, SiLU, a linear map): it needs a threshold of its own.
    """
    sites = _rectified(model) if sites is None else sites
    observation = observe(model, data, {"counts": lambda: Counts(threshold, absolute)}, sites, **options)
    found: list[Sparsity] = []
    for site, named in observation.statistics.items():
        counts = named["counts"]
        assert isinstance(counts, Counts)
        if threshold == 0 and not absolute:
            _require_rectified(site, counts)
        found.append(from_counts(counts))
    return ActivityReport(
        tuple(observation.statistics),
        np.array([len(each.frequency) for each in found]),
        np.array([each.n_rows for each in found]),
        np.array([each.zero_fraction for each in found]),
        np.concatenate([each.frequency for each in found]),
        np.concatenate([each.active_per_row for each in found]),
        float(threshold),
        context=Context(n_samples=observation.n_samples, options={"threshold": threshold, "absolute": absolute}),
    )


def _rectified(model: nn.Module) -> list[str]:
    names = [name for name, module in model.named_modules() if name and isinstance(module, RECTIFIERS)]
    if not names:
        raise InputError(
            "the network has no ReLU module to read; name the sites that hold its activations, and for a smooth "
            "activation give a threshold above 0"
        )
    return names


def _require_rectified(site: str, counts: Counts) -> None:
    """A smooth activation has few exact zeros (a far negative input underflows to one) beside many negative values."""
    found = counts.result()
    if found.zero.sum() == 0 or found.negative.sum() > found.zero.sum():
        raise InputError(
            f"site '{site}' is not rectified: {int(found.zero.sum())} of its values are exactly zero and "
            f"{int(found.negative.sum())} negative, as after GELU or SiLU; give a threshold above 0 or the site behind "
            "a ReLU"
        )


class MlpFlops(NamedTuple):
    """Floating-point operations for one token through an MLP block (a multiply-add counts as two)."""

    dense: float
    first: float
    second: float
    saved: float
    """Share of the second product that the zeros save: ``1 - active / d_ff``, exactly and for free."""


def mlp_flops(d_model: int, d_ff: int, active: float) -> MlpFlops:
    """Cost of ``V relu(K' x)`` with ``active`` non-zero of ``d_ff`` units.

    Both products dense take ``4 d_model d_ff``, the second over non-zeros alone ``2 d_model active``.
    """
    if d_model < 1 or d_ff < 1 or not 0 <= active <= d_ff:
        raise InputError(
            f"d_model={d_model}, d_ff={d_ff}, active={active}; positive sizes and 0 <= active <= d_ff are needed"
        )
    return MlpFlops(4.0 * d_model * d_ff, 2.0 * d_model * d_ff, 2.0 * d_model * active, 1 - active / d_ff)
