"""Curves with known formulas: sixteen families, sums and products of two, and the nuisances of real units.

Families, ranges and shares are those of the published set (arXiv 2309.03886): parameters have one decimal; 85 % are of one family;
of a set, 48.3 % are clean, 19.1 % corrupted in an interval, 17.6 % noisy and 15 % approximated by a small network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from netloupe.core.errors import InputError
from netloupe.data.find import Function, Truth

ATOMIC = (
    "linear", "polynomial", "absolute", "root", "logarithm", "step", "relu", "tanh", "constant", "sin", "cos", "reciprocal",
    "gaussian", "rational", "rectangle", "square_wave",
)  # fmt: skip
COMPOSED = ("linear", "polynomial", "step", "relu", "constant", "ceil", "floor", "rectangle", "square_wave")
JOINED = ("multiply_two", "sum_two")
NOISES = {"normal": 0.33, "uniform": 0.67 * 0.66, "poisson": 0.67 * 0.34}
CORRUPTIONS = {"smaller": 0.25, "larger": 0.25, "inside": 0.5}
SHARES = {"corrupt": 0.191, "noise": 0.176, "approximate": 0.15}
_TURN = 2 * np.pi
Values = Float[np.ndarray, " input"]


def _gaussian(x: Values, mean: float, sd: float, a: float | None = None, b: float = 0.0) -> Values:
    height = 1 / (sd * np.sqrt(_TURN)) if a is None else a
    return height * np.exp(-0.5 * ((x - mean) / sd) ** 2) + b


def _rational(x: Values, top: Sequence[float], bottom: Sequence[float]) -> Values:
    return np.polynomial.polynomial.polyval(x, top) / np.polynomial.polynomial.polyval(x, bottom)


# Parameters in the published order. Where the published family has neither scale nor bias, both can be given at the end.
FAMILIES: dict[str, Callable[..., Any]] = {
    "linear": lambda x, a, b: a * x + b,
    "polynomial": lambda x, *highest_first: np.polyval(highest_first, x),
    "absolute": lambda x, a, b: a * np.abs(x) + b,
    "root": lambda x, a, b, n: a * x ** (1.0 / n) + b,
    "logarithm": lambda x, a, b, base: a * (np.log(x) / np.log(base)) + b,
    "step": lambda x, a, b, at_zero: a * np.heaviside(x, at_zero) + b,
    "relu": lambda x, a, b, leak: a * np.where(x > 0, x, leak * x) + b,
    "tanh": lambda x, a, period, shift, b: a * np.tanh(_TURN / period * (x - shift)) + b,
    "constant": lambda x, a: a * np.ones_like(x),
    "sin": lambda x, a, period, shift, b: a * np.sin(_TURN / period * (x - shift)) + b,
    "cos": lambda x, a, period, shift, b: a * np.cos(_TURN / period * (x - shift)) + b,
    "reciprocal": lambda x, a, b=0.0: 1 / (a * x) + b,
    "gaussian": _gaussian,
    "rational": _rational,
    "rectangle": lambda x, width, a=1.0, b=0.0: a * (np.abs(x) <= width / 2) + b,
    "square_wave": lambda x, period, shift, a=1.0, b=0.0: (
        a * np.where(np.sin((x - shift) * (_TURN / period)) > 0, 1.0, -1.0) + b
    ),
    "ceil": np.ceil,
    "floor": np.floor,
}


def evaluate(family: str, params: Any, x: Values | float) -> Any:
    """A curve from its family and parameters, in float64; NaN or infinity where the formula has no value.

    Composed families are ``first;second;sum_two`` or ``first;second;multiply_two`` with the parameters of both. Raises InputError for
    an unknown family or parameters that do not fit it.
    """
    points = np.asarray(x, dtype=np.float64)
    first, *rest = family.split(";")
    try:
        with np.errstate(all="ignore"):
            if not rest:
                return FAMILIES[first](points, *(params if isinstance(params, (tuple, list)) else (params,)))
            second, joined = rest
            parts = [
                evaluate(name, () if one is None else one, points)
                for name, one in zip((first, second), params, strict=True)
            ]
            return {"sum_two": np.add, "multiply_two": np.multiply}[joined](*parts)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"family '{family}' with parameters {params} is no curve of this set ({error}); see FAMILIES"
        ) from error


def domain_of(family: str) -> tuple[float, float]:
    """Where inputs are asked for: logarithms from 1, roots from 0."""
    return (1.0, 100.0) if "log" in family else (0.0, 100.0) if "root" in family else (-100.0, 100.0)


def draw_params(family: str, rng: np.random.Generator, scaled: bool = False) -> Any:
    """Parameters of one family from the published ranges, one decimal each.

    ``scaled``: families that have neither scale nor bias there get both, from the same ranges as the others.
    """

    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 1)

    a, b = between(-30, 30), between(-30, 30)
    wave = (between(-10, 10), between(0.1, _TURN), between(0.1, _TURN), b)
    extra = (a, b) if scaled else ()
    match family:
        case "linear":
            return between(-10, 10), between(-10, 10)
        case "polynomial":
            return tuple(between(-5, 5) for _ in range(int(rng.integers(2, 6)) + 1))
        case "rational":
            order = int(rng.integers(0, 5))
            bottom = int(rng.integers(order + 1, 6))
            return tuple(between(-10, 10) for _ in range(order + 1)), tuple(between(-10, 10) for _ in range(bottom + 1))
        case "reciprocal":
            return (between(-10, 10), *extra[1:])
        case "root":
            return a, b, int(rng.integers(1, 3))
        case "gaussian":
            return (between(-50, 50), between(1, 10), *extra)
        case "logarithm":
            return a, b, between(1, 10)
        case "step":
            return a, b, between(-100, 100)
        case "relu":
            return a, b, between(0, 1)
        case "absolute":
            return a, b
        case "tanh" | "sin" | "cos":
            return wave
        case "constant":
            return (int(rng.integers(-100, 100)),)
        case "rectangle":
            return (between(1, 10), *extra)
        case "square_wave":
            return (between(1, 10), between(-5, 5), *extra)
    return ()


def make_numeric(
    n: int,
    seed: int = 0,
    families: Sequence[str] | None = None,
    compose: float = 0.15,
    noise: float | str | None = None,
    corrupt: float | str | None = None,
    approximate: float = 0.15,
    scaled: bool = False,
    fit: tuple[int, int] = (10_000, 10_000),
) -> list[Function]:
    """``n`` curves with at most one nuisance each.

    Args:
        families: of atomic curves; None: all sixteen. compose: share of sums and products of two.
        noise, corrupt: share of functions with it, or the kind that all get (``normal``, ``inside``, ...); None: the published share,
            or 0 where the other one is given as a kind. Corrupted intervals of kind ``inside`` are 5 to 25 wide.
        approximate: share that a network 1-64-1 stands in for. It is fitted at the first call, which takes a minute at the published
            ``fit`` (epochs, points).
        scaled: see :func:`draw_params`.

    Functions that are finite nowhere are drawn again. Raises InputError for unknown names and shares that exceed 1.
    Cost: microseconds a function.
    """
    chosen = tuple(families or ATOMIC)
    unknown = set(chosen) - set(FAMILIES)
    if n < 1 or unknown or not 0 <= compose <= 1:
        raise InputError(
            f"n is {n}, compose {compose:g}, unknown families {sorted(unknown)}; see FAMILIES and give n >= 1"
        )
    kinds = [one for one in (noise, corrupt) if isinstance(one, str)]
    if len(kinds) > 1 or any(kind not in (*NOISES, *CORRUPTIONS) for kind in kinds):
        raise InputError(
            f"noise '{noise}' and corrupt '{corrupt}': give one kind at most, of {', '.join((*NOISES, *CORRUPTIONS))}"
        )
    shares = [
        approximate if not kinds else 0.0,
        *(1.0 if isinstance(one, str) else 0.0 if kinds else SHARES[name] if one is None else one
          for name, one in (("corrupt", corrupt), ("noise", noise))),
    ]  # fmt: skip
    if sum(shares) > 1 + 1e-9 or min(shares) < 0:
        raise InputError(f"shares of nuisances are {shares}; they may not exceed 1 together")
    return [
        _one(np.random.default_rng([seed, at]), chosen, compose, shares, kinds, scaled, 1_000_003 * seed + at, fit)
        for at in range(n)
    ]


def _one(
    rng: np.random.Generator, chosen: Sequence[str], compose: float, shares: Sequence[float], kinds: Sequence[str], scaled: bool,
    seed: int, fit: tuple[int, int],
) -> Function:  # fmt: skip
    truth = Truth("numeric", "constant", (0,))
    composed = bool(rng.random() < compose)
    family = str(rng.choice(chosen))
    pair = ";".join((*rng.choice(COMPOSED, 2), str(rng.choice(JOINED))))
    for _ in range(100):
        if composed:
            params: Any = tuple(draw_params(one, rng, scaled) for one in pair.split(";")[:2])
            truth = Truth("numeric", pair, params, domain=domain_of(pair), seed=seed)
        else:
            truth = Truth("numeric", family, draw_params(family, rng, scaled), domain=domain_of(family), seed=seed)
        if np.isfinite(evaluate(truth.family, truth.params, np.linspace(*truth.domain, 100))).any():
            break
    return curve(_with_nuisance(truth, rng, shares, kinds), fit)


def _with_nuisance(truth: Truth, rng: np.random.Generator, shares: Sequence[float], kinds: Sequence[str]) -> Truth:
    which = int(np.searchsorted(np.cumsum(shares), rng.random(), side="right"))
    if which == 0:
        return replace(truth, nuisance="approximated")
    if which == 3:
        return truth
    names = CORRUPTIONS if which == 1 else NOISES
    kind = str(rng.choice(list(names), p=list(names.values())))
    kind = kinds[0] if kinds and kinds[0] in names else kind
    return corrupted(truth, kind, rng) if which == 1 else replace(truth, nuisance=kind)


def corrupted(truth: Truth, kind: str, rng: np.random.Generator) -> Truth:
    """With an interval in which the output is noise about the curve's mean over its domain (100 points, finite ones)."""
    at = round(float(rng.uniform(max(truth.domain[0], -100), 100)), 1)
    end = float(rng.uniform(at + 5, at + 25))
    interval = {"smaller": (-np.inf, at), "larger": (at, np.inf), "inside": (at, end)}[kind]
    values = evaluate(truth.family, truth.params, np.linspace(*truth.domain, 100))
    return replace(truth, nuisance=kind, interval=interval, level=float(np.mean(values[np.isfinite(values)])))


def curve(truth: Truth, fit: tuple[int, int] = (10_000, 10_000)) -> Function:
    """The function that a truth of kind ``numeric`` describes."""
    function = Function(truth, lambda x: evaluate(truth.family, truth.params, x))
    if truth.nuisance == "approximated":
        function.clean = lambda x: _network(_fitted(function, *fit), x)
    return function


def _fitted(function: Function, epochs: int, points: int) -> tuple[tuple[float, ...], ...]:
    if function.truth.network is None:
        function.truth = replace(function.truth, network=fit_network(function.truth, epochs, points))
    return function.truth.network or ()


def _network(weights: tuple[tuple[float, ...], ...], x: Values) -> Values:
    w1, b1, w2, b2 = (np.array(one) for one in weights)
    return np.maximum(np.asarray(x)[..., None] * w1 + b1, 0) @ w2 + b2[0]


def fit_network(
    truth: Truth, epochs: int = 10_000, points: int = 10_000, width: int = 64
) -> tuple[tuple[float, ...], ...]:
    """Weights ``(w1, b1, w2, b2)`` of a ReLU network of one hidden layer, fitted to a curve by Adam at 0.01 on all points at once.

    Points where the curve has no finite value are left out. Cost: ``epochs * points * width`` multiplications.
    """
    x = np.linspace(*truth.domain, points)
    y = evaluate(truth.family, truth.params, x)
    kept = np.isfinite(y)
    inputs, wanted = (torch.as_tensor(one[kept][:, None], dtype=torch.float32) for one in (x, y))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(truth.seed)
        model = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), wanted).backward()
        optimizer.step()
    return tuple(tuple(one.detach().double().flatten().tolist()) for one in model.parameters())
