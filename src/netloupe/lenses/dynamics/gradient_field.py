"""Where gradient descent carries the weights of hidden units: the expected field, and where units have ended up.

Source: Alleman, Lindsey and Fusi, arXiv 2401.13558. Early in training the output is about 1/2 whatever the input, so that the
expected update of a unit depends on its own weights alone. A rectifier is pulled by the few conditions that it already sees
and ends near one of them; a saturating unit is pulled by all and ends on the axis between the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import roots_legendre
from torch import Tensor, nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Context, Finding
from netloupe.nn.activations import WithDerivative, activation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACH = 8.0  # standard deviations of the noise that are integrated over
NODES = 48


@dataclass(frozen=True, eq=False)
class WeightAxes:
    """Orthonormal directions in input space: ``inter`` ``(unit,)`` between the class means, ``intra`` ``(direction, unit)`` inside the
    classes (orthogonal to ``inter``, the widest first)."""

    inter: Float[np.ndarray, " unit"]
    intra: Float[np.ndarray, "direction unit"]

    @property
    def plane(self) -> Float[np.ndarray, "2 unit"]:
        """The inter-class axis and the widest intra-class axis."""
        return np.stack([self.inter, self.intra[0]])


def weight_axes(means: Any, labels: Any) -> WeightAxes:
    """Axes between and inside the classes of a binary target.

    Args:
        means: ``(condition, unit)``. labels: ``(condition,)``, the side of each: above its mean, or not.

    Raises InputError where class means coincide, or where no two conditions of a class differ.
    """
    mu, side = _task(means, labels)
    inter = mu[side].mean(0) - mu[~side].mean(0)
    scale = float(np.abs(mu - mu.mean(0)).max())
    if not np.linalg.norm(inter) > 1e-10 * max(scale, 1e-300):
        raise InputError("the means of the two classes coincide, so there is no axis between them; an XOR has none")
    inter = inter / np.linalg.norm(inter)
    inside = np.concatenate([mu[part] - mu[part].mean(0) for part in (side, ~side)])
    inside = inside - np.outer(inside @ inter, inter)
    _, spread, directions = np.linalg.svd(inside, full_matrices=False)
    kept = spread > 1e-10 * max(scale, 1e-300)
    if not kept.any():
        raise InputError("conditions of one class do not differ, so there is no axis inside the classes")
    return WeightAxes(inter, directions[kept])


def expected_gradient_field(
    means: Any,
    labels: Any,
    activation: str | nn.Module,
    output_weight: float,
    grid: Float[np.ndarray, "point 2"] | Any,
    noise: float = 0.0,
    bias: float = 0.0,
    axes: Float[np.ndarray, "2 unit"] | None = None,
) -> Float[np.ndarray, "point 2"]:
    """Expected descent direction of a hidden unit's weights, ``E_c[J (y - 1/2) f'(w . x + b) x]``, in a plane of input space.

    Conditions are equally likely, ``x = mu_c + noise * eps``; the weight is ``grid[0] a_0 + grid[1] a_1`` on the plane's axes, and the
    field is returned in the same coordinates. Over noise it is ``E[f'(u)] mu_c + noise E[f'(u) z] w / |w|`` with ``u = w . mu_c + b +
    noise |w| z`` and a normal z: one integral, split where f' jumps.

    Args:
        means: ``(condition, unit)``. labels: ``(condition,)``, the side of each. output_weight: J of the unit.
        activation: a name of :data:`netloupe.nn.activations.SHAPES` or a module with a ``deriv`` (else autograd gives it).
        grid: ``(point, 2)``. noise: standard deviation. axes: two orthonormal directions; by default those of :func:`weight_axes`.

    Cost O(G P d), and some hundred evaluations of f' for each point and condition where there is noise. Raises InputError for
    shapes that do not fit or negative noise.
    """
    mu, side = _task(means, labels)
    plane = weight_axes(mu, side).plane if axes is None else np.asarray(axes, dtype=np.float64)
    points = np.asarray(grid, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or plane.shape != (2, mu.shape[1]) or not noise >= 0:
        raise InputError(
            f"grid has shape {points.shape}, axes {plane.shape} and noise is {noise}; (point, 2), (2, {mu.shape[1]}) and at "
            "least 0 are needed"
        )
    if not np.allclose(plane @ plane.T, np.eye(2), atol=1e-8):
        raise InputError("axes are not orthonormal; give two directions of length 1 at right angles")
    slope = _Slope(activation)
    inside = mu @ plane.T  # (condition, 2)
    drive = points @ inside.T + bias
    pull = output_weight * np.where(side, 0.5, -0.5) / len(mu)
    if noise == 0:
        return (slope(drive) * pull) @ inside
    length = np.linalg.norm(points, axis=1)
    mean, along = slope.averaged(drive, noise * length)
    unit = np.divide(points, length[:, None], out=np.zeros_like(points), where=length[:, None] > 0)
    return (mean * pull) @ inside + noise * (along @ pull)[:, None] * unit


class _Slope:
    """``f'`` on arrays, and its averages over normal noise."""

    def __init__(self, given: str | nn.Module) -> None:
        module = activation(given) if isinstance(given, str) else given
        if not isinstance(module, WithDerivative):
            module = WithDerivative(module, kinks=(0.0,) if isinstance(module, (nn.ReLU, nn.LeakyReLU)) else ())
        self.module = module

    def __call__(self, u: np.ndarray) -> np.ndarray:
        return self.module.deriv(torch.from_numpy(np.ascontiguousarray(u))).double().detach().numpy()

    def averaged(self, u: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``E[f'(u + spread z)]`` and ``E[f'(u + spread z) z]`` for ``u`` ``(point, condition)`` and ``spread`` ``(point,)``."""
        width = np.maximum(spread[:, None], 1e-12)
        # a narrow feature of f' at the origin must not fall between nodes: the middle is a piece of its own
        cuts = [np.full_like(u, -REACH), np.full_like(u, REACH)]
        cuts += [np.clip((place - u) / width, -REACH, REACH) for place in (*self.module.kinks, -6.0, 0.0, 6.0)]
        edges = np.sort(np.stack(cuts), axis=0)
        nodes, weights = roots_legendre(NODES)
        mean, along = np.zeros_like(u), np.zeros_like(u)
        for low, high in pairwise(edges):
            half = (high - low) / 2
            z = (high + low)[..., None] / 2 + half[..., None] * nodes
            value = self(u[..., None] + width[..., None] * z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
            mean += half * (value @ weights)
            along += half * ((value * z) @ weights)
        return mean, along


@dataclass(frozen=True, eq=False)
class Specialisation(Finding):
    """Where the weights of hidden units lie: ``coordinates`` float64 ``(unit, 2)`` along the axis between the classes, and (length)
    inside them; ``cosine`` ``(unit,)``; ``selectivity`` ``(unit,)``, NaN for units that respond to all conditions alike."""

    coordinates: Float[np.ndarray, "unit 2"]
    cosine: Float[np.ndarray, " unit"]
    selectivity: Float[np.ndarray, " unit"]
    n_conditions: int

    meanings: ClassVar[dict[str, str]] = {
        "mean_cosine": "how near weights lie to the axis between the classes, 1 on it and 0 inside a class",
        "standard_error": "its standard error over units",
        "selectivity": "highest response above the mean response, in standard deviations over conditions",
        "most_possible": "selectivity of a unit that responds to one condition alone",
        "unresponsive": "share of units that respond to all conditions alike",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        known = self.selectivity[np.isfinite(self.selectivity)]
        found = {
            "mean_cosine": float(self.cosine.mean()),
            "standard_error": float(self.cosine.std(ddof=1) / np.sqrt(len(self.cosine)))
            if len(self.cosine) > 1
            else 0.0,
            "most_possible": float(np.sqrt(self.n_conditions - 1)),
            "unresponsive": float(1 - len(known) / len(self.selectivity)),
        }
        return found | ({"selectivity": float(known.mean())} if len(known) else {})

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        text = (
            f"The weights of {len(self.cosine)} units lie at a mean cosine of {found['mean_cosine']:.3f} (standard error "
            f"{found['standard_error']:.2g} over units) to the axis between the classes, within the space of the conditions."
        )
        if "selectivity" not in found:
            return text
        return (
            f"{text} Their highest response is {found['selectivity']:.2f} standard deviations above the mean over conditions; a unit "
            f"for one condition alone has {found['most_possible']:.2f}."
        )

    def plot(self, axes: Axes) -> None:
        """Weights in the plane of the two axes."""
        axes.scatter(*self.coordinates.T, s=10, c=self.cosine, cmap="coolwarm", vmin=0, vmax=1)
        axes.axhline(0, color="0.7", linewidth=1)
        axes.set(xlabel="along the axis between the classes", ylabel="inside the classes")


def specialisation(
    weight: Float[Tensor, "unit unit_in"] | Any,
    means: Any,
    labels: Any,
    bias: Any = None,
    activation: str | nn.Module = "identity",
) -> Specialisation:
    """How near each unit's weights lie to the axis between the classes, and how selective its responses are.

    The cosine is ``|w . a| / sqrt((w . a)^2 + |P w|^2)`` with the axis a between the class means and the projection P on all directions
    inside the classes at right angles to it: what lies outside the conditions' space does not count. Selectivity is ``(max_c z_c -
    mean_c z_c) / std_c z_c`` of the responses ``z = f(w . mu_c + b)``; ``sqrt(P - 1)`` for a unit with one condition of its own.

    Args:
        weight: ``(unit, unit_in)``, the hidden layer's. means, labels: as in :func:`weight_axes`. bias: ``(unit,)``. activation: a
            name or a module; by default the drive itself is looked at.

    Cost O(N P d). Raises InputError for shapes that do not fit or weights at right angles to all conditions.
    """
    mu, side = _task(means, labels)
    w = _array(weight)
    b = np.zeros(len(w)) if bias is None else _array(bias)
    if w.ndim != 2 or w.shape[1] != mu.shape[1] or b.shape != (len(w),):
        raise InputError(
            f"weight has shape {w.shape} and bias {b.shape}; (unit, {mu.shape[1]}) and one bias a unit are needed"
        )
    found = weight_axes(mu, side)
    along, inside = w @ found.inter, w @ found.intra.T
    across = np.linalg.norm(inside, axis=1)
    length = np.hypot(along, across)
    if not (length > 0).all():
        raise InputError(
            "a unit's weights are at right angles to all conditions, so that they lie at no angle to the axis"
        )
    with torch.no_grad():
        module = _Slope(activation).module
        z = module(torch.from_numpy(w @ mu.T + b[:, None])).numpy()
    spread = z.std(1)
    flat = spread <= 1e-9 * np.abs(z).max(1)
    selectivity = np.where(flat, np.nan, (z.max(1) - z.mean(1)) / np.where(flat, 1, spread))
    place = np.stack([along, inside[:, 0] if inside.shape[1] == 1 else across], axis=1)
    return Specialisation(place, np.abs(along) / length, selectivity, len(mu), context=Context())


@dataclass(frozen=True, eq=False)
class GradientField(Finding):
    """An expected field on a grid with units' paths over it: ``grid``, ``field`` ``(point, 2)``, ``paths`` ``(step, unit, 2)``,
    ``conditions`` ``(condition, 2)`` the means in the plane, ``sides`` bool ``(condition,)``."""

    grid: Float[np.ndarray, "point 2"]
    field: Float[np.ndarray, "point 2"]
    paths: Float[np.ndarray, "step unit 2"]
    conditions: Float[np.ndarray, "condition 2"]
    sides: np.ndarray

    meanings: ClassVar[dict[str, str]] = {
        "towards_axis": "share of the field's length that points along the axis between the classes, averaged over the grid",
        "strength": "mean length of the field",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        length = np.linalg.norm(self.field, axis=1)
        share = np.abs(self.field[length > 0, 0]) / length[length > 0]
        return {"towards_axis": float(share.mean()) if len(share) else 0.0, "strength": float(length.mean())}

    def plot(self, axes: Axes) -> None:
        """Arrows, the conditions' means, and the paths with their ends marked."""
        axes.quiver(*self.grid.T, *self.field.T, color="0.6", angles="xy")
        largest = float(np.abs(self.grid).max()) / max(float(np.abs(self.conditions).max()), 1e-300)
        for side, colour in ((True, "C3"), (False, "C0")):
            axes.scatter(
                *(0.9 * largest * self.conditions[self.sides == side]).T, color=colour, marker="*", s=60, zorder=3
            )
        if len(self.paths):
            axes.plot(self.paths[:, :, 0], self.paths[:, :, 1], color="C2", linewidth=0.5, alpha=0.6)
            axes.scatter(*self.paths[-1].T, color="k", s=6, zorder=4)
        axes.set(xlabel="along the axis between the classes", ylabel="inside the classes")


def gradient_field(
    means: Any,
    labels: Any,
    activation: str | nn.Module,
    extent: float,
    output_weight: float = 1.0,
    noise: float = 0.0,
    n_points: int = 15,
    paths: Float[np.ndarray, "step unit unit_in"] | Any = None,
) -> GradientField:
    """:func:`expected_gradient_field` on a square grid up to ``extent``, with units' weights over training as paths in the plane.

    Args:
        paths: ``(step, unit, unit_in)``, weights at several times.

    Errors as :func:`expected_gradient_field`; InputError for an extent or a number of points that makes no grid.
    """
    if not extent > 0 or n_points < 2:
        raise InputError(
            f"extent is {extent} with {n_points} points a side; a positive number and at least 2 are needed"
        )
    mu, side = _task(means, labels)
    plane = weight_axes(mu, side).plane
    line = np.linspace(-extent, extent, n_points)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    field = expected_gradient_field(mu, side, activation, output_weight, grid, noise, axes=plane)
    walked = np.zeros((0, 0, 2)) if paths is None else _array(paths) @ plane.T
    return GradientField(grid, field, walked, (mu - mu.mean(0)) @ plane.T, side, context=Context())


def _array(values: Any) -> np.ndarray:
    found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise NonFiniteError("NaN or infinity was given where finite numbers are needed; look for a diverged training")
    return found


def _task(means: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    mu, values = _array(means), _array(labels)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if mu.ndim != 2 or values.shape != (len(mu),):
        raise InputError(
            f"means have shape {mu.shape} and labels {values.shape}; (condition, unit) and one label a condition are needed"
        )
    side = values > values.mean()
    if not side.any():
        raise InputError("all conditions have one label, so there are no two classes")
    return mu, side
