"""Numbers over training: a lens at every checkpoint gives a table, a curve fitted to it gives an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.training import checkpoints

Curve = Callable[..., Any]


@dataclass(frozen=True)
class Fit:
    """A fitted curve: ``parameters``, residual sum of squares, and the AIC that models are chosen by."""

    name: str
    parameters: tuple[float, ...]
    rss: float
    aic: float
    n: int

    def __call__(self, curve: Curve, steps: Float[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
        """The fitted values."""
        return np.asarray(curve(steps, *self.parameters))


def over_checkpoints(
    model: nn.Module, folder: str | Path, measure: Callable[[nn.Module], Mapping[str, float]]
) -> list[dict[str, float]]:
    """``measure(model)`` with the weights of every checkpoint that ``train`` left; one row a step, under ``"step"``.

    The network's own weights are put back afterwards.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = []
    try:
        for step, weights in checkpoints(folder):
            model.load_state_dict(weights)
            rows.append({"step": float(step), **{name: float(value) for name, value in measure(model).items()}})
    finally:
        model.load_state_dict(before)
    if not rows:
        raise InputError(
            f"the folder '{folder}' holds no checkpoints (step-*.safetensors); train with checkpoint_every"
        )
    return rows


def monotonicity(values: Sequence[float]) -> float:
    """Spearman correlation of a number with time: 1 always rising, -1 always falling, 0 for a constant."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2 or not np.isfinite(array).all():
        raise InputError(
            f"{len(array)} values, {int((~np.isfinite(array)).sum())} of them not finite; two finite ones are needed"
        )
    if np.ptp(array) == 0:
        return 0.0
    return float(np.corrcoef(np.arange(len(array)), stats.rankdata(array))[0, 1])


def fit_curve(
    curve: Curve, steps: Sequence[float], values: Sequence[float], starts: Sequence[Sequence[float]], name: str = "",
    bounds: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Fit:  # fmt: skip
    """Least squares from several starts; the best end wins.

    ``AIC = n log(RSS / n) + 2 p``. Raises InputError when there are no more points than parameters or no start converges.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    n_parameters = len(starts[0])
    if len(x) <= n_parameters or x.shape != y.shape or not np.isfinite(y).all():
        raise InputError(
            f"{len(x)} steps and {len(y)} values for {n_parameters} parameters; more finite points than parameters are needed"
        )
    best: tuple[float, np.ndarray] | None = None
    for start in starts:
        try:
            found = optimize.least_squares(
                lambda p: curve(x, *p) - y, start, bounds=bounds or (-np.inf, np.inf), max_nfev=4000
            )
        except ValueError:
            continue  # a start outside the curve's domain
        rss = float(2 * found.cost)
        if np.isfinite(rss) and (best is None or rss < best[0]):
            best = rss, found.x
    if best is None:
        raise InputError(f"the curve '{name}' could not be fitted from any of {len(starts)} starts")
    rss, parameters = best
    aic = len(x) * np.log(max(rss, 1e-300) / len(x)) + 2 * n_parameters
    return Fit(name, tuple(float(value) for value in parameters), rss, float(aic), len(x))


def best_of(fits: Sequence[Fit]) -> Fit:
    """The fit with the lowest AIC."""
    if not fits:
        raise InputError("no fits were given to choose from")
    return min(fits, key=lambda fit: fit.aic)
