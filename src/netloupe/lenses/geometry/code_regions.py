"""How wide is the linear region of a sample: the stretch of a line on which no unit turns on or off.

Source: He et al., "Neural networks behave as hash encoders: An empirical study", arXiv 2101.05490.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.lenses.geometry.codes import activation_code
from netloupe.lenses.geometry.packed_codes import PackedCodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BISECTIONS = 60
_PROBES = 65_536  # inputs given to the network at a time


@dataclass(frozen=True, eq=False)
class RegionDiameter(Finding):
    """Width of the region of every sample along its line, in units of the inputs: ``diameters`` ``(sample,)``.

    ``censored`` ``(sample,)`` bool: the region goes on beyond ``reach`` on at least one side.
    """

    diameters: np.ndarray
    censored: np.ndarray
    step: float
    reach: float
    exact: bool

    meanings: ClassVar[dict[str, str]] = {
        "mean_diameter": "mean width of a sample's linear region along the line to the centre, in units of the inputs",
        "standard_error": "its standard error over samples",
        "median_diameter": "median width",
        "censored": "share of samples whose region goes on beyond the stretch looked at",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        n = len(self.diameters)
        return {
            "mean_diameter": float(self.diameters.mean()),
            "standard_error": float(self.diameters.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
            "median_diameter": float(np.median(self.diameters)),
            "censored": float(self.censored.mean()),
        }

    def plot(self, axes: Axes) -> None:
        """Histogram of the widths."""
        axes.hist(self.diameters, bins=min(30, max(5, len(self.diameters) // 5)), color="C0")
        axes.set(xlabel="width of the linear region along the line", ylabel="samples")


def region_diameter(
    fn: Callable[[Tensor], Any],
    x: Float[Tensor, "sample ..."] | Any,
    centre: Float[Tensor, "..."] | Any,
    step: float = 0.05,
    reach: float = 5.0,
    exact: bool = False,
) -> RegionDiameter:
    """Width of the stretch around ``x`` on which the code stays that of ``x``, on the line towards ``centre``.

    With ``u = (centre - x) / |centre - x|`` the published grid form probes ``x + a u`` for ``a`` in ``+-{step, ..., reach}``
    and takes ``step`` times the number of probes whose code equals that of ``x``. ``exact`` bisects for the two places where
    the code changes instead: the region of a code of all layers is convex, so the code changes once on either side. A code
    of some layers only need not have a convex region; there the grid form is the safe one.

    Args:
        fn: inputs ``(probe, ...)`` to activations of the two-piece units, as ``activation_code`` takes them, or to codes. In
            evaluation mode, float64 for exact answers.
        x: ``(sample, ...)`` inputs. centre: one input, or one for every sample; for example the mean of a class.
        step, reach: of the grid, in units of the inputs; ``exact`` uses ``reach`` alone.

    Cost: ``2 reach / step`` inputs a sample through ``fn``, or 122 where ``exact``. Raises InputError for other shapes, a
    centre that is the sample itself, or a step that is not between 0 and reach; NonFiniteError for NaN.
    """
    if not (0 < step <= reach and np.isfinite(reach)):
        raise InputError(f"step is {step} and reach {reach}; 0 < step <= reach is needed")
    x, u = _lines(x, centre)
    own = _codes(fn(x), len(x))
    if exact:
        sides = [_crossing(fn, x, u, sign, own, reach) for sign in (-1.0, 1.0)]
        return RegionDiameter(sides[0][0] + sides[1][0], sides[0][1] | sides[1][1], step, reach, True)
    n_steps = round(reach / step)
    ahead = step * np.arange(1, n_steps + 1)
    places = np.concatenate([-ahead[::-1], ahead])
    same = np.empty((len(x), len(places)), bool)
    rows = max(1, _PROBES // len(places))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        probes = (
            x[part, None]
            + torch.as_tensor(places, dtype=x.dtype)[(None, slice(None), *[None] * (x.ndim - 1))] * u[part, None]
        )
        found = _codes(fn(probes.flatten(0, 1)), probes.shape[0] * probes.shape[1]).words
        same[part] = (found.reshape(len(probes), len(places), -1) == own.words[part, None]).all(2)
    return RegionDiameter(step * same.sum(1).astype(float), same[:, 0] | same[:, -1], step, reach, False)


def _lines(x: Any, centre: Any) -> tuple[Tensor, Tensor]:
    x = torch.as_tensor(x).detach()
    x = x if x.is_floating_point() else x.double()
    if x.ndim < 2 or 0 in x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}, expected (sample, ...) with at least one sample")
    centre = torch.as_tensor(centre).detach().to(x)
    if centre.shape not in (x.shape, x.shape[1:]):
        raise InputError(
            f"the centre has shape {tuple(centre.shape)}, expected one input {tuple(x.shape[1:])} or one a sample"
        )
    if not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(centre).all())):
        raise NonFiniteError("x or the centre holds NaN or infinity; finite inputs are needed")
    towards = centre - x
    lengths = towards.flatten(1).norm(dim=1)
    if not bool((lengths > 0).all()):
        raise InputError(
            "the centre is one of the samples, so the line through both is not defined; leave that one out"
        )
    return x, towards / lengths.view(-1, *[1] * (x.ndim - 1))


def _codes(found: Any, n: int) -> PackedCodes:
    codes = found if isinstance(found, PackedCodes) else activation_code(found)
    if len(codes) != n:
        raise InputError(f"fn gave {len(codes)} codes for {n} inputs; one for each is needed")
    return codes


def _crossing(
    fn: Callable[[Tensor], Any], x: Tensor, u: Tensor, sign: float, own: PackedCodes, reach: float
) -> tuple[Float[np.ndarray, " sample"], Bool[np.ndarray, " sample"]]:
    """How far the code stays the same on one side, and whether it does so beyond ``reach``."""

    def same(places: np.ndarray) -> np.ndarray:
        shift = torch.as_tensor(sign * places, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))
        return (_codes(fn(x + shift * u), len(x)).words == own.words).all(1)

    inside, outside = np.zeros(len(x)), np.full(len(x), float(reach))
    beyond = same(outside)
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        stays = same(middle)
        inside, outside = np.where(stays, middle, inside), np.where(stays, outside, middle)
    return np.where(beyond, reach, (inside + outside) / 2), beyond
