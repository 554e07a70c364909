"""Switching off units that were chosen by what they are called: how a network does without them.

A unit is switched off by holding its whole feature map at zero (or its mean); units go cumulatively, in a given order.
Source: Hernandez et al., "Natural Language Descriptions of Deep Visual Features", arXiv 2201.11114.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.edits import Edit, ablate
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.intervene import intervene
from netloupe.lenses.verification.audit import find_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Unit = tuple[str, int]
"""a site and a unit there"""
Evaluate = Callable[[nn.Module], float]
SHARES = tuple(round(0.02 * step, 2) for step in range(11))
"""0 to 20 % in steps of 2 %, as published"""


@dataclass(frozen=True, eq=False)
class AblationCurve(Finding):
    """A network's score with the first units of an order off.

    ``counts`` int64 and ``values`` float64 ``(step,)``: units off, and the score. ``random`` float64 ``(order, step)``: random orders.
    """

    counts: Int[np.ndarray, " step"]
    values: Float[np.ndarray, " step"]
    random: Float[np.ndarray, "order step"]

    meanings: ClassVar[dict[str, str]] = {
        "lost": "score lost at the last step, from the first",
        "lost_random": "the same with units in random order, mean over orders",
        "units_off": "units off at the last step",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; NaN without random orders."""
        chance = float((self.random[:, 0] - self.random[:, -1]).mean()) if len(self.random) else float("nan")
        return dict(
            zip(self.meanings, (float(self.values[0] - self.values[-1]), chance, float(self.counts[-1])), strict=True)
        )

    def plot(self, axes: Axes) -> None:
        """The score against the number of units off."""
        for row in self.random:
            axes.plot(self.counts, row, color="0.7", lw=0.8)
        axes.plot(self.counts, self.values, "o-", label="in the given order")
        axes.plot([], [], color="0.7", label="random orders")
        axes.set(xlabel="units off", ylabel="score")
        axes.legend(frameon=False, fontsize="small")


def without(
    units: Sequence[Unit], to: Literal["zero", "mean"] = "zero", reference: Mapping[str, Tensor] | None = None
) -> list[Edit]:
    """Edits that hold these units at zero, or at the mean of ``reference[site]`` ``(unit,)`` (without one, the batch's mean)."""
    if to not in ("zero", "mean"):
        raise InputError(f"to is {to!r}, expected zero or mean")
    sites = dict.fromkeys(site for site, _ in units)
    return [
        ablate(
            site,
            to,
            None if reference is None else reference.get(site),
            units=sorted({unit for at, unit in units if at == site}),
        )
        for site in sites
    ]


def ablation_curve(
    model: nn.Module,
    order: Sequence[Unit],
    evaluate: Evaluate,
    steps: Sequence[float] = SHARES,
    random: int = 5,
    *,
    among: Sequence[Unit] | None = None,
    to: Literal["zero", "mean"] = "zero",
    reference: Mapping[str, Tensor] | None = None,
    random_state: int = 0,
) -> AblationCurve:
    """The score as more and more units of an order are off.

    Args:
        order: units, the first to go first, such as the order of :func:`netloupe.lenses.verification.audit.sort_units`.
        evaluate: from the network, as it is at the moment, to a number: accuracy on a validation set.
        steps: shares of ``among`` in [0, 1), or, as whole numbers from 1, units; 0 is the network untouched, exactly.
        random: random orders of ``among`` for comparison. among: all units that could go; by default those of ``order``.
        to, reference: see :func:`without`.

    Cost: ``(1 + random) * steps`` evaluations. Raises InputError for an empty order, units named twice, and steps beyond the order; the
    errors of :func:`netloupe.core.intervene.intervene` for sites and units that do not exist.
    """
    pool = list(order if among is None else among)
    counts = _counts(steps, len(pool))
    if not order or len(set(order)) < len(order) or len(set(pool)) < len(pool):
        raise InputError(
            f"the order holds {len(order)} units, {len(set(order))} different; expected at least one, each once"
        )
    if counts.max() > min(len(order), len(pool)):
        raise InputError(
            f"{counts.max()} units were to go, but there are {min(len(order), len(pool))}; take smaller steps"
        )
    rng = np.random.default_rng(random_state)
    clean = float(evaluate(model))

    def along(units: Sequence[Unit]) -> list[float]:
        return [clean if n == 0 else _with_off(model, units[:n], evaluate, to, reference) for n in counts]

    chance = [along([pool[i] for i in rng.permutation(len(pool))]) for _ in range(random)]
    return AblationCurve(counts, np.array(along(list(order))), np.array(chance).reshape(random, len(counts)))


def _counts(steps: Sequence[float], n: int) -> Int[np.ndarray, " step"]:
    given = np.asarray(steps, dtype=np.float64)
    if given.ndim != 1 or not len(given) or given.min() < 0 or not np.isfinite(given).all():
        raise InputError("steps must be a row of shares below 1, or of whole numbers of units")
    return np.unique(np.where(given < 1, np.round(given * n), given).astype(np.int64))


def _with_off(
    model: nn.Module, units: Sequence[Unit], evaluate: Evaluate, to: Literal["zero", "mean"] = "zero",
    reference: Mapping[str, Tensor] | None = None,
) -> float:  # fmt: skip
    with intervene(model, *without(units, to, reference)):
        return float(evaluate(model))


@dataclass(frozen=True, eq=False)
class DescribedEdit(Finding):
    """A network before and after the units that a word names were switched off.

    ``candidates`` int64 ``(candidate,)``: numbers of the units found, in the order they were switched off; ``alone`` float64: the
    validation score with each alone off. ``validation`` and ``test`` float64 ``(step,)``: scores with the first 0, 1, 2, ... of them
    off; ``random`` float64 ``(order, step)``: the test score with as many random units off.
    """

    candidates: Int[np.ndarray, " candidate"]
    alone: Float[np.ndarray, " candidate"]
    validation: Float[np.ndarray, " step"]
    test: Float[np.ndarray, " step"]
    random: Float[np.ndarray, "order step"]

    meanings: ClassVar[dict[str, str]] = {
        "gain": "test score won with the last unit off",
        "gain_random": "the same with as many random units off, mean over draws",
        "lost": "validation score lost with the last unit off",
        "units_off": "units off at the end",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; all zero where no unit has the word."""
        chance = float((self.random[:, -1] - self.test[0]).mean()) if len(self.random) else float("nan")
        numbers = (self.test[-1] - self.test[0], chance, self.validation[0] - self.validation[-1], len(self.test) - 1)
        return {name: float(value) for name, value in zip(self.meanings, numbers, strict=True)}

    def plot(self, axes: Axes) -> None:
        """Scores against the number of units off."""
        at = np.arange(len(self.test))
        for row in self.random:
            axes.plot(at, row, color="0.7", lw=0.8)
        axes.plot(at, self.test, "o-", label="test")
        axes.plot(at, self.validation, "s--", label="validation")
        axes.plot([], [], color="0.7", label="test, random units")
        axes.set(xlabel="units off", ylabel="score")
        axes.legend(frameon=False, fontsize="small")


def edit_by_description(
    model: nn.Module,
    units: Sequence[Unit],
    descriptions: Sequence[str],
    words: str | Sequence[str],
    validate: Evaluate,
    test: Evaluate,
    *,
    max_units: int = 50,
    among: Literal["found", "all"] = "found",
    random: int = 5,
    random_state: int = 0,
) -> DescribedEdit:
    """Switches off the units whose description holds any of ``words``, those first that validation misses least.

    Args:
        units, descriptions: site and unit of each description. words: see :func:`netloupe.lenses.verification.audit.find_units`.
        validate: orders the units, alone; ``test`` is never looked at before the order stands. Decide on a number of units by
            ``validate`` too.
        max_units: most units to go. among: ``all`` sorts all units and takes as many as words were found in: the published control that
            looks at no description.
        random: draws of as many units from all.

    Cost: one validation for each unit that is sorted, then ``(2 + random)`` evaluations a unit off. Raises InputError where units and
    descriptions do not match in number.
    """
    if len(units) != len(descriptions) or not units or max_units < 0 or among not in ("found", "all"):
        raise InputError(
            f"there are {len(units)} units with {len(descriptions)} descriptions; equal numbers, at least one, are needed"
        )
    found = find_units(descriptions, words)
    n = min(len(found), max_units)
    pool = found if among == "found" else np.arange(len(units))
    alone = np.array([_with_off(model, [units[i]], validate) for i in pool.tolist()]) if n else np.zeros(0)
    by = np.argsort(-alone, kind="stable")[:n]
    chosen, alone = pool[by] if n else pool[:0], alone[by] if n else alone
    rng = np.random.default_rng(random_state)
    orders = [chosen.tolist(), *(rng.permutation(len(units))[:n].tolist() for _ in range(random))]
    curves = []
    for order in orders:
        off = [units[i] for i in order]
        curves.append([test(model), *(_with_off(model, off[:k], test) for k in range(1, n + 1))])
    off = [units[i] for i in chosen.tolist()]
    validation = [validate(model), *(_with_off(model, off[:k], validate) for k in range(1, n + 1))]
    return DescribedEdit(
        chosen,
        alone,
        np.array(validation, float),
        np.array(curves[0], float),
        np.array(curves[1:], float).reshape(random, n + 1),
    )
