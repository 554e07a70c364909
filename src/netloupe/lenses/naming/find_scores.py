"""Grading of explanations: code against the function, intervals against the truth, descriptions by unit tests.

Formulas and thresholds of arXiv 2309.03886. A unit test shows a judge three samples, one of which the function gave: the judges are those
of :mod:`netloupe.lenses.naming.naming`, which say how well samples fit a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

from netloupe.core.errors import InputError
from netloupe.data.find import Function, grading_points
from netloupe.lenses.naming.find import Answer, Interval
from netloupe.lenses.naming.naming import Judge

CHANCE = 1 / 3
MAX_NMSE = 0.1
MIN_R2 = 0.9


class NumericScore(NamedTuple):
    """``nmse``: squared error over the function's power; ``r2``: 1 less squared error over its variance (NaN for a constant).

    ``success``: nmse below 0.1, as published. ``success_above_constant``: r2 above 0.9, which no constant reaches. ``n_points``:
    inputs with
    a finite true value; ``n_masked``: the others.
    """

    nmse: float
    r2: float
    success: bool
    success_above_constant: bool
    n_points: int
    n_masked: int


_FAILED = NumericScore(float("nan"), float("nan"), False, False, 0, 0)


def score_numeric(
    f: Function | Callable[[Any], Any] | Float[np.ndarray, " input"],
    g: Answer | str | Callable[[Any], Any] | Float[np.ndarray, " input"],
    points: Float[np.ndarray, " input"] | None = None,
) -> NumericScore:
    """How well ``g`` replaces the curve ``f``, without noise, on ``i + 1/2`` for ``i = -128 .. 127``.

    ``nmse = sum (f - g)^2 / sum f^2`` over inputs where ``f`` is finite. Code that fails, or has no finite value where ``f`` has one,
    scores no success. Raises InputError where ``f`` is finite nowhere and where ``g`` gives another number of values.
    """
    x = grading_points() if points is None else np.asarray(points, dtype=np.float64)
    true = f.expected(x) if isinstance(f, Function) else np.asarray(f(x) if callable(f) else f, dtype=np.float64)
    finite = np.isfinite(true)
    if true.shape != x.shape or not finite.any():
        raise InputError(
            f"the function gives {true.shape} values, {finite.sum()} of them finite, for {x.shape} inputs; nothing to compare"
        )
    try:
        found = np.asarray(_values(g, x), dtype=np.float64)
    except (ArithmeticError, ValueError, TypeError, IndexError, AttributeError, KeyError):
        return _FAILED._replace(n_points=int(finite.sum()), n_masked=int((~finite).sum()))
    if found.shape != x.shape and found.size != 1:
        raise InputError(f"the explanation gives {found.shape} values for {x.shape} inputs; one each is expected")
    true, found = true[finite], np.broadcast_to(found, x.shape)[finite]
    with np.errstate(all="ignore"):
        error, power = float(((true - found) ** 2).sum()), float((true**2).sum())
        about = float(((true - true.mean()) ** 2).sum())
        nmse = error / power if power > 0 else float("nan")
        r2 = 1 - error / about if about > 1e-24 * power else float("nan")
    return NumericScore(nmse, r2, bool(nmse < MAX_NMSE), bool(r2 > MIN_R2), int(finite.sum()), int((~finite).sum()))


def _values(g: Any, x: Float[np.ndarray, " input"]) -> Any:
    if isinstance(g, (Answer, str)):
        g = (Answer("", g) if isinstance(g, str) else g).function()
    with np.errstate(all="ignore"):
        return g(x) if callable(g) else g


def constant_succeeds(values: Float[np.ndarray, " input"]) -> bool:
    """Whether the best constant has nmse below 0.1: ``(mean f)^2 > .9 mean f^2`` over finite values."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.mean() ** 2 > (1 - MAX_NMSE) * np.mean(finite**2))


class StringScore(NamedTuple):
    """``share`` of test inputs answered exactly; ``all_right``: all of them."""

    share: float
    all_right: bool


def score_strings(
    f: Function | Callable[[str], str], g: Answer | Callable[[str], str], inputs: Sequence[str], official: bool = False
) -> StringScore:
    """Exact match on test strings. Code that fails on an input is wrong there.

    ``official``: as the published script counts: it stops at the first input on which the code fails, and the share is over those before
    it and that one. Raises InputError without inputs.
    """
    if not len(inputs):
        raise InputError("there are no test inputs; give at least one")
    clean = f.clean if isinstance(f, Function) else f
    right: list[bool] = []
    for text in inputs:
        try:
            code = g.function() if isinstance(g, Answer) else g
            right.append(code(text) == clean(text))
        except Exception:  # whatever a candidate's code raises, it is wrong here
            right.append(False)
            if official:
                break
    return StringScore(float(np.mean(right)), all(right) and len(right) == len(inputs))


def interval_iou(true: Interval | None, found: Interval | None, domain: Interval = (-100.0, 100.0)) -> float:
    """Length in both over length in either, after clipping to the domain; 1 where there is none and "
    "none was named, else 0 without overlap."""
    if true is None or found is None:
        return float(true is None and found is None)
    (a, b), (c, d) = (np.clip(np.array(one, dtype=np.float64), *domain) for one in (true, found))
    both, either = max(min(b, d) - max(a, c), 0.0), (b - a) + (d - c)
    union = either - both
    return float(both / union) if union > 0 else float(a == c and b == d)


class Triplet(NamedTuple):
    """Three samples, and which one the function gave."""

    samples: tuple[Any, Any, Any]
    correct: int


@dataclass(frozen=True)
class UnitTest:
    """``accuracy`` of a judge that reads the description, with its 95 % interval; ``n``: triplets. Chance is 1/3."""

    accuracy: float
    low: float
    high: float
    n: int

    @property
    def above_chance(self) -> float:
        """Accuracy less chance."""
        return self.accuracy - CHANCE


def unit_test(description: str, triplets: Sequence[Triplet], judge: Judge) -> UnitTest:
    """How often the judge finds, by the description, the sample that the function gave.

    The judge picks the sample that fits best; of several equally good ones each counts in part, so a judge without an opinion scores 1/3.
    Raises InputError without triplets or for a judge that does not give three numbers.
    """
    return _counted([_credit(description, one, judge) for one in triplets])


def _credit(description: str, triplet: Triplet, judge: Judge) -> float:
    fits = np.asarray(judge(description, triplet.samples), dtype=np.float64)
    if fits.shape != (3,) or np.isnan(fits).any():
        raise InputError(f"the judge gave {fits.shape} values for three samples; one number each is expected")
    best = fits >= fits.max() - 1e-12
    return float(best[triplet.correct]) / best.sum()


def _counted(credits: Sequence[float]) -> UnitTest:
    if not len(credits):
        raise InputError("there are no triplets; give at least one")
    mean = float(np.mean(credits))
    bounds = binomtest(round(mean * len(credits)), len(credits)).proportion_ci(method="wilson")
    return UnitTest(mean, float(bounds.low), float(bounds.high), len(credits))


@dataclass(frozen=True)
class UnitTests:
    """Several functions: ``own`` descriptions, ``shuffled`` ones (each function tested with another's), and ``each`` one's accuracy."""

    own: UnitTest
    shuffled: UnitTest
    each: tuple[float, ...]
    chance: float = CHANCE


def unit_tests(
    descriptions: Sequence[str], triplets: Sequence[Sequence[Triplet]], judge: Judge, random_state: int = 0
) -> UnitTests:
    """:func:`unit_test` over functions, beside descriptions given to other functions, which must score 1/3.

    Raises InputError for fewer than two functions or lists of different length.
    """
    if len(descriptions) != len(triplets) or len(descriptions) < 2:
        raise InputError(
            f"{len(descriptions)} descriptions and {len(triplets)} sets of triplets; two or more of each are needed"
        )
    order = np.random.default_rng(random_state).permutation(len(descriptions))
    other = {int(one): int(two) for one, two in zip(order, np.roll(order, 1), strict=True)}  # nobody keeps its own
    own = [[_credit(text, one, judge) for one in mine] for text, mine in zip(descriptions, triplets, strict=True)]
    wrong = [_credit(descriptions[other[at]], one, judge) for at, mine in enumerate(triplets) for one in mine]
    return UnitTests(
        _counted([c for row in own for c in row]), _counted(wrong), tuple(float(np.mean(row)) for row in own)
    )


def entity_triplets(
    responses: Float[np.ndarray, "function word"], words: Sequence[str], n: int = 10, without: Sequence[Sequence[str]] | None = None,
    random_state: int = 0,
) -> list[list[Triplet]]:  # fmt: skip
    """For each unit ``n`` triplets: a word it responds to, and two to which it does not but another unit does (response above .5).

    ``without``: words that the interpreter has seen, for each unit; positive words are others. Raises InputError for a unit that
    has none left.
    """
    table = np.asarray(responses, dtype=np.float64)
    on, found = table > 0.5, []
    for at in range(len(table)):
        rng = np.random.default_rng([random_state, at])
        seen = set() if without is None else set(without[at])
        mine = np.array([i for i in np.flatnonzero(on[at]).tolist() if words[i] not in seen], dtype=int)
        others = np.flatnonzero(on.any(0) & ~on[at])
        if not len(mine) or len(others) < 2:
            raise InputError(
                f"unit {at} responds to {len(mine)} unseen words, {len(others)} belong to others alone; triplets need 1 and 2"
            )
        rows = []
        for _ in range(n):
            place = int(rng.integers(3))
            samples = [words[int(i)] for i in rng.choice(others, 2, replace=False)]
            samples.insert(place, words[int(rng.choice(mine))])
            rows.append(Triplet((samples[0], samples[1], samples[2]), place))
        found.append(rows)
    return found


def string_triplets(
    functions: Sequence[Function], inputs: Sequence[str], n: int = 10, random_state: int = 0
) -> list[list[Triplet]]:
    """For each program ``n`` triplets of ``(input, output)``: the same input for all three, its own output and two of other programs.

    Outputs of others equal to its own are drawn again; inputs on which too few differ are passed over, and a program may get
    fewer than ``n``.
    """
    outputs = [[one.clean(text) for text in inputs] for one in functions]
    found = []
    for at in range(len(functions)):
        rng, rows = np.random.default_rng([random_state, at]), []
        for i in rng.permutation(len(inputs)):
            wrong = sorted({outputs[k][i] for k in range(len(functions))} - {outputs[at][i]})
            if len(wrong) >= 2 and len(rows) < n:
                place = int(rng.integers(3))
                picked = [wrong[k] for k in rng.choice(len(wrong), 2, replace=False)]
                picked.insert(place, outputs[at][i])
                rows.append(Triplet(tuple((inputs[i], one) for one in picked), place))  # pyright: ignore[reportArgumentType]
        found.append(rows)
    return found


def model_judge(generate: Callable[[str], str], to_text: Callable[[Any], str] = str) -> Judge:
    """A language model as judge: any callable from a prompt to a reply that names the number of the best sample.

    The sample it names gets 1, the others 0; a reply without a number gives all the same.
    """

    def judge(text: str, samples: Sequence[Any]) -> Float[np.ndarray, " sample"]:
        listed = "\n".join(f"{at + 1}: {to_text(one)}" for at, one in enumerate(samples))
        reply = generate(
            f"A function is described as follows:\n{text}\n\nOne of these samples comes from it:\n{listed}\n\n"
            "Which one? Answer with its number alone."
        )
        said = re.search(r"\d+", reply)
        chosen = int(said[0]) - 1 if said else -1
        return np.array([float(at == chosen) for at in range(len(samples))])

    return judge
