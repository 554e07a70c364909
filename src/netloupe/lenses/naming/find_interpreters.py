"""Interpreters that know what kinds of functions there are: curves by their family, programs by search.

They bound what an explainer without such knowledge can be expected to reach. Source of the task: arXiv 2309.03886; the extended
information criterion: Chen and Chen, Biometrika 95 (2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import least_squares

from netloupe.core.errors import InputError
from netloupe.lenses.naming.find import Answer, Interval, Session

Intervals = Literal["joint", "residuals", "none"]
_TURN = 2 * np.pi
FITTED = ("constant", "linear", "polynomial", "absolute", "root", "logarithm", "step", "relu", "tanh", "sin", "reciprocal", "gaussian",
          "rational", "rectangle", "square_wave")  # fmt: skip
_TENTHS = np.round(np.arange(1, 64) / 10, 1)
_SHAPES: dict[str, list[tuple[float, ...]]] = {
    "polynomial": [(2,), (3,), (4,), (5,)],
    "tanh": [(p, s) for p in _TENTHS for s in _TENTHS],
    "sin": [(p,) for p in _TENTHS],
    "gaussian": [(m, s) for m in np.arange(-50.0, 51.0) for s in np.arange(1.0, 11.0)],
    "rectangle": [(w,) for w in np.arange(1.0, 10.5, 0.5)],
    "square_wave": [(p, s) for p in np.arange(1.0, 10.05, 0.1) for s in np.arange(-5.0, 5.0, 0.1) if s < -5 + p],
}
_BOUNDS = {"gaussian": ([-60.0, 0.5], [60.0, 20.0]), "sin": ([0.05], [7.0]), "tanh": ([0.05, -1.0], [7.0, 8.0])}
_ORDERS = ((0, 1), (0, 2), (1, 2))  # of rationals
_KEPT = 2  # shapes of a family that are tried with points left out
_PER_FLOOR = 1e-9  # residuals below this share of the data's size are rounding


def _columns(family: str, shape: Any, x: Float[np.ndarray, " input"]) -> Float[np.ndarray, "input parameter"]:
    """What a family's curve is linear in, given its shape."""
    one = np.ones_like(x)
    with np.errstate(all="ignore"):
        match family:
            case "constant":
                parts = [one]
            case "linear":
                parts = [x, one]
            case "polynomial":
                parts = [(x / 100) ** power for power in range(int(shape[0]), -1, -1)]
            case "absolute":
                parts = [np.abs(x), one]
            case "root":
                parts = [np.sqrt(x), one]
            case "logarithm":
                parts = [np.log(x), one]
            case "step":
                parts = [np.heaviside(x, 0.5), one]
            case "relu":
                parts = [np.maximum(x, 0), np.minimum(x, 0), one]
            case "tanh":
                parts = [np.tanh(_TURN / shape[0] * (x - shape[1])), one]
            case "sin":
                parts = [np.sin(_TURN / shape[0] * x), np.cos(_TURN / shape[0] * x), one]
            case "reciprocal":
                parts = [1 / x, one]
            case "gaussian":
                parts = [np.exp(-0.5 * ((x - shape[0]) / shape[1]) ** 2), one]
            case "rectangle":
                parts = [(np.abs(x) <= shape[0] / 2).astype(float), one]
            case "square_wave":
                parts = [np.where(np.sin((x - shape[1]) * (_TURN / shape[0])) > 0, 1.0, -1.0), one]
            case "rational":
                top, bottom = shape
                parts = [np.polynomial.polynomial.polyval(x, top) / np.polynomial.polynomial.polyval(x, bottom)]
            case _:
                raise InputError(f"there is no family '{family}'; give some of {', '.join(FITTED)}")
    return np.stack(parts, axis=-1)


def _size(family: str, shape: Any) -> int:
    """Numbers that a curve of the family has free."""
    if family == "rational":
        return len(shape[0]) + len(shape[1]) - 1
    linear = {"constant": 1, "polynomial": int(shape[0]) + 1 if family == "polynomial" else 0, "relu": 3, "sin": 3}.get(
        family, 2
    )
    return linear + (len(shape) if family not in ("polynomial",) else 0)


@dataclass(frozen=True)
class Fit:
    """A curve of a family: ``shape`` (what it is not linear in), ``coefficients``, and the sd of its residuals.

    ``interval``: where the data say otherwise, and ``level`` what they say there; None where they agree everywhere.
    """

    family: str
    shape: Any
    coefficients: tuple[float, ...]
    sd: float
    score: float
    interval: Interval | None = None
    level: float = 0.0

    def outside(self, x: Any) -> Float[np.ndarray, " input"]:
        """The curve as if there were no interval."""
        return _columns(self.family, self.shape, np.asarray(x, dtype=np.float64)) @ np.array(self.coefficients)

    def __call__(self, x: Any) -> Float[np.ndarray, " input"]:
        found = self.outside(x)
        if self.interval is None:
            return found
        points = np.asarray(x, dtype=np.float64)
        return np.where((points > self.interval[0]) & (points < self.interval[1]), self.level, found)

    def __str__(self) -> str:
        numbers = ", ".join(f"{one:.4g}" for one in self.coefficients)
        where = (
            ""
            if self.interval is None
            else f"; between {self.interval[0]:.4g} and {self.interval[1]:.4g} about {self.level:.4g}"
        )
        return f"{self.family} with coefficients {numbers}{where}"


@lru_cache(maxsize=256)
def _bank(points: bytes, family: str) -> list[tuple[list[Any], Any, Any]]:
    """Shapes, designs and their orthonormal bases at these inputs: made once for all functions asked alike."""
    x, found = np.frombuffer(points), []
    for shapes in [[one] for one in _SHAPES[family]] if family == "polynomial" else [_SHAPES.get(family, [()])]:
        designs = np.stack([_columns(family, shape, x) for shape in shapes])
        good = np.asarray(np.isfinite(designs).all(axis=(1, 2)))
        q, r = np.linalg.qr(designs[good])
        full = np.abs(np.diagonal(r, axis1=1, axis2=2)).min(1) > 1e-9
        kept = [shape for shape, ok in zip(shapes, good, strict=True) if ok]
        if full.any():
            found.append(
                (
                    [one for one, ok in zip(kept, full, strict=True) if ok],
                    designs[good][full],
                    np.ascontiguousarray(q[full]),
                )
            )
    return found


def _rational(x: Float[np.ndarray, " input"], y: Float[np.ndarray, " input"], top: int, bottom: int) -> Any:
    """Numerator and denominator by the iteration of Sanathanan and Koerner, lowest power first; the denominator begins with its largest."""
    scale = max(float(np.abs(x).max()), 1e-300)
    t, weight, found = x / scale, np.ones_like(x), None
    for _ in range(6):
        left = np.stack([t**power for power in range(top + 1)], -1)
        right = -y[:, None] * np.stack([t**power for power in range(bottom)], -1)
        design = np.concatenate([left, right], -1) * weight[:, None]
        found = np.linalg.lstsq(design, weight * y * t**bottom, rcond=None)[0]
        below = np.polynomial.polynomial.polyval(t, np.append(found[top + 1 :], 1.0))
        weight = 1 / np.maximum(np.abs(below), 1e-9)
    if found is None or not np.isfinite(found).all():
        return None
    powers = scale ** -np.arange(bottom + 1.0)
    return tuple(found[: top + 1] * powers[: top + 1]), tuple(np.append(found[top + 1 :], 1.0) * powers)


def _windows(n: int, longest: int) -> Bool[np.ndarray, "window input"]:
    """Points that count, for every run that may be left out: none first, then inner runs, then runs from either end."""
    kept = [np.ones(n, dtype=bool)]
    runs = [(at, at + length) for length in range(1, longest + 1) for at in range(n - length + 1)]
    runs += [(0, length) for length in range(longest + 1, 2 * n // 3)] + [
        (n - length, n) for length in range(longest + 1, 2 * n // 3)
    ]
    for low, high in runs:
        one = kept[0].copy()
        one[low:high] = False
        kept.append(one)
    return np.stack(kept)


def fit_families(
    x: Float[np.ndarray, " input"],
    y: Float[np.ndarray, " input"],
    families: Sequence[str] = FITTED,
    intervals: Intervals = "joint",
) -> Fit:
    """The family that explains points best, and a run of points that it leaves out if that pays.

    Every family is fitted by least squares over its shapes; the score is ``n log(rss / n) + p log n + 2 log(shapes tried)``.

    Args:
        intervals: ``residuals``: fit all points, then the run of points that differ from the curve by more than 4 robust sd (the run of the
            largest residual) is the interval, and the curve is fitted again to the others. ``joint``: every run of consecutive points is
            tried beside every family as noise about a level of its own, for ``3 log n + 2 log(runs tried)``; its points must differ as
            above. ``none``: no interval. Ends lie half-way to the next point.

    Points without a finite value are left out. Raises InputError for fewer than 6 points.
    """
    kept = np.isfinite(y) & np.isfinite(x)
    order = np.argsort(x[kept], kind="stable")
    x, y = np.ascontiguousarray(x[kept][order], dtype=np.float64), np.asarray(y[kept][order], dtype=np.float64)
    if len(x) < 6:
        raise InputError(f"{len(x)} points have a finite value; at least 6 are needed to tell families apart")
    floor = (_PER_FLOOR * max(float(np.sqrt(np.mean(y**2))), 1e-100)) ** 2
    candidates = _candidates(x, y, tuple(families), floor)
    masks = _windows(len(x), max(3, len(x) // 7)) if intervals == "joint" else np.ones((1, len(x)), dtype=bool)
    best = min(
        (_scored(family, shape, design, penalty, x, y, masks, floor) for family, shape, design, penalty in candidates),
        key=lambda one: one[0],
    )
    if intervals == "residuals":
        fit = _finish(best, x, y, masks, floor)
        run = _far_run(np.abs(y - fit.outside(x)), 4 * fit.sd)
        masks = np.stack([masks[0], ~run])
        if run.any() and (~run).sum() >= max(6, len(x) // 2):
            return _finish((*best[:-1], 1), x, y, masks, floor)
        return fit
    return _finish(best, x, y, masks, floor)


def _far_run(off: Any, limit: float) -> Bool[np.ndarray, " input"]:
    """Consecutive points above the limit, about the largest."""
    found, at = np.zeros(len(off), dtype=bool), int(np.argmax(off))
    if off[at] > limit:
        low = at - int(np.argmin(np.append(off[: at + 1][::-1] > limit, False))) + 1
        high = at + int(np.argmin(np.append(off[at:] > limit, False)))
        found[low:high] = True
    return found


def _candidates(x: Any, y: Any, families: tuple[str, ...], floor: float) -> list[tuple[str, Any, Any, float]]:
    n, found = len(x), []
    banks = [(family, *one) for family in families if family != "rational" for one in _bank(x.tobytes(), family)]
    for family, shapes, designs, q in banks:
        explained = (np.matmul(y, q) ** 2).sum(1)
        near = np.argsort(-explained, kind="stable")[
            : 8 * _KEPT
        ]  # what is left of these is then counted without cancellation
        rest = y - np.einsum("cnk,ck->cn", q[near], np.matmul(y, q[near]))
        order = near[np.argsort((rest**2).sum(1), kind="stable")[:_KEPT]]
        half = 0.5 * float(((y - y.mean()) ** 2).sum())
        if family == "gaussian" and (rest**2).sum(1).min() < half:
            # its grid is coarse, and a curve that is nearly right leaves runs of points over
            shape = _refined(family, shapes[order[0]], x, y)
            penalty = _size(family, shape) * np.log(n) + 2 * np.log(len(shapes))
            found.append((family, shape, _columns(family, shape, x), float(penalty)))
        for at in order:
            penalty = _size(family, shapes[at]) * np.log(n) + 2 * np.log(len(shapes))
            found.append((family, shapes[at], designs[at], float(penalty)))
    for top, bottom in _ORDERS if "rational" in families else ():
        shape = _rational(x, y, top, bottom)
        if shape is not None:
            design = _columns("rational", shape, x)
            if np.isfinite(design).all() and np.abs(design).max() > 0:
                found.append(("rational", shape, design, float((top + bottom + 1) * np.log(n))))
    if not found:
        raise InputError(f"none of the families {', '.join(families)} has a value at the points asked; give others")
    return found


def _scored(family: str, shape: Any, design: Any, penalty: float, x: Any, y: Any, masks: Any, floor: float) -> Any:
    """The best way of leaving points out for one curve: score, and which."""
    n = len(x)
    q, r = np.linalg.qr(design * masks[:, :, None])
    full = np.abs(np.diagonal(r, axis1=1, axis2=2)).min(1) > 1e-9
    inside = masks * y
    rest = inside - np.einsum("wnk,wk->wn", q, np.einsum("wnk,wn->wk", q, inside))
    count = masks.sum(1)
    fitted = np.maximum((rest**2).sum(1) / count, floor)
    out = n - count
    mean = ((~masks) * y).sum(1) / np.maximum(out, 1)
    spread = np.maximum(((~masks) * (y - mean[:, None]) ** 2).sum(1) / np.maximum(out, 1), 0.01)
    score = (
        count * np.log(fitted)
        + penalty
        + np.where(out > 0, out * np.log(spread) + 3 * np.log(n) + 2 * np.log(len(masks)), 0.0)
    )
    score = np.where(full & (count > design.shape[1] + 1), score, np.inf)
    at = int(np.argmin(score))
    return float(score[at]), family, shape, design, at


def _finish(best: Any, x: Any, y: Any, masks: Any, floor: float) -> Fit:
    score, family, shape, _, at = best
    inside = masks[at]
    fit = _least_squares(family, shape, x[inside], y[inside], score, floor)
    if inside.all():
        return fit
    far = np.abs(y - fit.outside(x)) > 4 * fit.sd
    if not far[~inside].all():
        return _least_squares(family, shape, x, y, score, floor)
    low, high = np.flatnonzero(~inside)[[0, -1]]
    start = -np.inf if low == 0 else (x[low - 1] + x[low]) / 2
    end = np.inf if high == len(x) - 1 else (x[high] + x[high + 1]) / 2
    return replace(fit, interval=(float(start), float(end)), level=float(y[~inside].mean()))


def _refined(family: str, shape: Any, x: Any, y: Any) -> tuple[float, ...]:
    """A shape near this one that leaves less, if there is one."""

    def rest(theta: Any) -> Any:
        design = _columns(family, theta, x)
        return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]

    low, high = _BOUNDS[family]
    size = max(float(np.abs(y).max()), 1e-300)  # least_squares stops by absolute numbers too
    found = least_squares(
        lambda theta: rest(theta) / size,
        np.clip(np.array(shape, dtype=float), low, high),
        bounds=(low, high),
        max_nfev=30,
    )
    better = np.isfinite(found.cost) and 2 * found.cost * size**2 < (rest(shape) ** 2).sum()
    return tuple(float(one) for one in (found.x if better else shape))


def _least_squares(family: str, shape: Any, x: Any, y: Any, score: float, floor: float) -> Fit:
    """Coefficients and, where the shape is a smooth matter, the shape too."""
    if family in _BOUNDS and len(x) > len(shape) + 4:
        shape = _refined(family, shape, x, y)
    design = _columns(family, shape, x)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    off = y - design @ coefficients
    robust = 1.4826 * float(np.median(np.abs(off - np.median(off))))
    return Fit(family, shape, tuple(float(one) for one in coefficients), max(robust, float(np.sqrt(floor))), score)


def spread_grid(domain: Interval, n: int) -> Float[np.ndarray, " input"]:
    """One input in each of ``n`` equal cells, at places that do not repeat: an even grid cannot tell one short wave from another."""
    cells = np.linspace(domain[0] + 0.5, domain[1] - 0.5, n + 1)
    place = 0.1 + 0.8 * ((np.arange(n) * 0.6180339887498949) % 1)
    return cells[:-1] + place * np.diff(cells)


class FamilyFitter:
    """Asks a grid, fits every family, and says where the curve does not hold.

    Args:
        n: points of the grid. families: those it knows. intervals: see :func:`fit_families`. active: whether the calls that are
        left look for an interval where none was found
            (half-way between all points) and find its ends by bisection. bisections: calls an end, where the budget allows.

    Falls back to straight lines between points where fewer than six are finite.
    """

    def __init__(
        self, n: int = 20, families: Sequence[str] = FITTED, intervals: Intervals = "joint", active: bool = False, bisections: int = 8
    ) -> None:  # fmt: skip
        if n < 6 or not families:
            raise InputError(f"n is {n} with {len(families)} families; at least 6 points and one family are needed")
        self.intervals: Intervals = intervals
        self.n, self.families, self.active, self.bisections = n, tuple(families), active, bisections

    def __call__(self, session: Session) -> Answer:
        x = spread_grid(session.domain, self.n)
        y = np.asarray(session.ask(x.tolist()), dtype=np.float64)
        if np.isfinite(y).sum() < 6:
            return session.finish("hardly a finite value", lambda at: np.interp(at, x, np.nan_to_num(y)))
        fit = fit_families(x, y, self.families, self.intervals)
        if self.active:
            if fit.interval is None and session.calls_left >= len(x) - 1 + 4 and session.rounds < session.max_rounds:
                between = (x[1:] + x[:-1]) / 2
                x, y = np.append(x, between), np.append(y, session.ask(between.tolist()))
                fit = fit_families(x, y, self.families, self.intervals)
            if fit.interval is not None:
                fit = self._bisected(session, fit, x, y)
        return session.finish(str(fit), fit, fit.interval)

    def _bisected(self, session: Session, fit: Fit, x: Any, y: Any) -> Fit:
        """Both ends by bisection, then the family fitted again to everything outside."""
        assert fit.interval is not None
        ends = list(fit.interval)
        inner = (x > ends[0]) & (x < ends[1])
        brackets = []
        for side, end in enumerate(ends):
            if np.isfinite(end):
                near = x[inner].min() if side == 0 else x[inner].max()
                far = x[x < near].max() if side == 0 else x[x > near].min()
                brackets.append([side, float(far), float(near)])
        for _ in range(self.bisections):
            if session.calls_left < len(brackets) or session.rounds >= session.max_rounds or not brackets:
                break
            middle = [(far + near) / 2 for _, far, near in brackets]
            values = session.ask(middle)
            x, y = np.append(x, middle), np.append(y, values)
            for one, at, value in zip(brackets, middle, values, strict=True):
                one[2 if abs(value - float(fit.outside(np.array(at)))) > 4 * fit.sd else 1] = at
        for side, far, near in brackets:
            ends[side] = (far + near) / 2
        outside = ((x <= ends[0]) | (x >= ends[1])) & np.isfinite(y)
        if outside.sum() < 6:
            return replace(fit, interval=(ends[0], ends[1]))
        floor = (_PER_FLOOR * max(float(np.sqrt(np.mean(y[outside] ** 2))), 1e-100)) ** 2
        again = _least_squares(fit.family, fit.shape, x[outside], y[outside], fit.score, floor)
        return replace(
            again, interval=(float(ends[0]), float(ends[1])), level=float(np.mean(y[~outside & np.isfinite(y)]))
        )
