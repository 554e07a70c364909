"""Curves, surfaces and clouds with known topology, and subjects that see them with a geometry of their own.

Source: the shapes are those of Lin and Kriegeskorte, arXiv 2309.11028, as closed forms. Points along curves are in order and evenly
spaced in the parameter, so that point i of one subject answers to point i of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.errors import InputError

Coordinates = tuple[np.ndarray | float, ...]


def _around(n: int) -> np.ndarray:
    return 2 * np.pi * np.arange(n) / n


def _columns(n: int, *coordinates: np.ndarray | float) -> np.ndarray:
    return np.column_stack([np.broadcast_to(each, (n,)) for each in coordinates])


def _two(n: int, first: Callable[[np.ndarray], Coordinates], second: Callable[[np.ndarray], Coordinates]) -> np.ndarray:
    half = n // 2
    return np.concatenate([_columns(half, *first(_around(half))), _columns(n - half, *second(_around(n - half)))])


def _curve(coordinates: Callable[[np.ndarray], Coordinates]) -> Callable[[int, np.random.Generator], np.ndarray]:
    return lambda n, _: _columns(n, *coordinates(_around(n)))


def _eight(height: Callable[[np.ndarray], np.ndarray | float]) -> Callable[[int, np.random.Generator], np.ndarray]:
    return _curve(lambda t: (np.cos(t), np.sin(2 * t), height(t)))


def arc(n_points: int, share: float = 5 / 6) -> Float[np.ndarray, "point 3"]:
    """An open curve: ``share`` of a circle, ends included. The nearer to 1, the more its distances are those of a ring.

    Raises InputError for a share outside (0, 1) or fewer than four points.
    """
    if n_points < 4 or not 0 < share < 1:
        raise InputError(
            f"{n_points} points on {share} of a circle were asked for; at least 4 and a share between 0 and 1 are needed"
        )
    t = 2 * np.pi * share * np.arange(n_points) / (n_points - 1)
    return _columns(n_points, np.cos(t), np.sin(t), 0.0)


def _torus(n: int, rng: np.random.Generator) -> np.ndarray:
    turn, tube = 2 * np.pi * rng.random((2, n))
    radius = 10 + 4 * np.cos(tube)
    return _columns(n, radius * np.cos(turn), radius * np.sin(turn), 4 * np.sin(tube))


def _sphere(n: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.standard_normal((n, 3))
    return 10 * points / np.linalg.norm(points, axis=1, keepdims=True)


def _swiss_roll(n: int, rng: np.random.Generator) -> np.ndarray:
    turn = 1.5 * np.pi * (1 + 2 * np.sort(rng.random(n)))
    return _columns(n, turn * np.cos(turn), 10 * rng.random(n), turn * np.sin(turn))


def _s_curve(n: int, rng: np.random.Generator) -> np.ndarray:
    t = 3 * np.pi * (np.sort(rng.random(n)) - 0.5)
    return _columns(n, np.sin(t), 2 * rng.random(n), np.sign(t) * (np.cos(t) - 1))


def _blobs(n: int, rng: np.random.Generator) -> np.ndarray:
    centres = np.array([[5.0, 0, 0], [-5, 0, 0], [0, 5, 0]])
    return centres[np.arange(n) * 3 // n] + rng.standard_normal((n, 3))


MANIFOLDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "line": lambda n, _: np.repeat(np.arange(n)[:, None] / n, 3, axis=1),
    "arc": lambda n, _: arc(n),
    "ring": _curve(lambda t: (np.cos(t), np.sin(t), 0.0)),
    "twisted_ring": _curve(lambda t: (np.cos(t), np.sin(t), np.sin(2 * t))),
    "double_twisted_ring": _curve(lambda t: (np.cos(t), np.sin(t), np.cos(4 * t))),
    "two_rings": lambda n, _: _two(
        n, lambda t: (np.cos(t), np.sin(t), 0.0), lambda t: (0.5 * np.cos(t), 0.5 * np.sin(t), 0.0)
    ),
    "mixed_rings": lambda n, _: _two(n, lambda t: (np.sin(t), np.cos(t), 0.0), lambda t: (0.0, np.sin(t), np.cos(t))),
    "locked_rings": lambda n, _: _two(
        n, lambda t: (np.sin(t), 1 + np.cos(t), 0.0), lambda t: (0.0, np.sin(t), np.cos(t))
    ),
    "figure_8": _eight(lambda t: 0.0),
    "twisted_8": _eight(lambda t: 2 * np.cos(2 * t)),
    "untouched_8": _eight(lambda t: np.sin(t) / 3),
    "untouched_twisted_8": _eight(lambda t: 2 * np.cos(2 * t) * (np.sin(t) / 3 + 1)),
    "broken_8": _eight(lambda t: np.cos(t / 2)),
    "double_twisted_8": _eight(lambda t: np.cos(4 * t)),
    "triple_twisted_8": _eight(lambda t: np.cos(8 * t)),
    "torus": _torus,
    "sphere": _sphere,
    "swiss_roll": _swiss_roll,
    "s_curve": _s_curve,
    "blobs": _blobs,
}
"""By name. Of the figures of eight the flat one crosses itself; ``untouched`` ones pass over and under, ``broken`` is cut open."""


def manifold(name: str, n_points: int = 60, seed: int = 0) -> Float[np.ndarray, "point 3"]:
    """Points of a shape (a name of ``MANIFOLDS``); ``seed`` matters for surfaces and clouds, which are drawn at random.

    Raises InputError for an unknown name or fewer than four points.
    """
    if name not in MANIFOLDS or n_points < 4:
        raise InputError(
            f"{n_points} points of '{name}' were asked for; at least 4 points of one of {', '.join(MANIFOLDS)} are needed"
        )
    return MANIFOLDS[name](n_points, np.random.default_rng(seed))


@dataclass(frozen=True, eq=False)
class Subjects:
    """What subjects see: ``features`` ``(response, point, unit)``, and of each response its ``subject`` and ``shape`` ``(response,)``,
    an index into ``names``."""

    features: Float[np.ndarray, "response point unit"]
    subject: Int[np.ndarray, " response"]
    shape: Int[np.ndarray, " response"]
    names: tuple[str, ...]


def distorted_subjects(
    shapes: Sequence[str | Float[np.ndarray, "point 3"]] = ("ring", "arc", "two_rings"),
    n_subjects: int = 16,
    n_points: int = 60,
    stretch: float = 0.5,
    noise: float = 0.1,
    n_units: int = 3,
    seed: int = 0,
) -> Subjects:
    """Every subject sees every shape, its axes stretched by ``exp(stretch g)`` with normal g of the subject's own, and noise.

    Neighbourhoods along a curve survive a stretch, distances do not: geometry is individual, topology shared.

    Args:
        shapes: names of ``MANIFOLDS``, or points of your own ``(point, 3)``, as many as ``n_points``.
        stretch: standard deviation of the log of each axis' factor. noise: standard deviation of what is added to every coordinate.
        n_units: beyond 3 the coordinates are turned at random into so many units (with the noise there).

    Shapes that are drawn at random have the same points for all subjects. Raises InputError for unknown shapes, fewer than one
    subject, fewer than 3 units, or negative spreads.
    """
    if n_subjects < 1 or n_units < 3 or not shapes or not (stretch >= 0 and noise >= 0):
        raise InputError(
            f"{n_subjects} subjects, {n_units} units, {len(shapes)} shapes, stretch {stretch} and noise {noise} were asked for; at "
            "least 1, 3, 1, 0 and 0 are needed"
        )
    points = [
        manifold(each, n_points, seed) if isinstance(each, str) else np.asarray(each, dtype=float) for each in shapes
    ]
    if any(each.shape != (n_points, 3) for each in points):
        raise InputError(
            f"points of shape {[each.shape for each in points]} were given, expected ({n_points}, 3) of each"
        )
    rng = np.random.default_rng((seed, 1))
    found = []
    for _ in range(n_subjects):
        for each in points:
            seen = (each - each.mean(0)) * np.exp(stretch * rng.standard_normal(3))
            if n_units > 3:
                seen = seen @ np.linalg.qr(rng.standard_normal((n_units, 3)))[0].T
            found.append(seen + noise * rng.standard_normal((n_points, n_units)))
    subject, shape = np.divmod(np.arange(len(found)), len(shapes))
    names = tuple(each if isinstance(each, str) else f"shape {index}" for index, each in enumerate(shapes))
    return Subjects(np.stack(found), subject, shape, names)
