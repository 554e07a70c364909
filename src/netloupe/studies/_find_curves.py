"""Claims about curves: the generator, the measure of success, what is found of the whole and of a part, and what knowledge is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest

from netloupe.core.study import Bar, Claim
from netloupe.data.find import Function, Truth, from_truth, grading_points
from netloupe.data.find_numeric import ATOMIC, CORRUPTIONS, NOISES, SHARES, make_numeric
from netloupe.data.find_strings import OPERATIONS, make_strings
from netloupe.lenses.naming.find import Answer, GridInterpreter, Interpreter, Session
from netloupe.lenses.naming.find_interpreters import FITTED, FamilyFitter, Intervals
from netloupe.lenses.naming.find_scores import constant_succeeds, interval_iou, score_numeric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_GRID = 20
N_ACTIVE = 60  # calls in all where ends are looked for
PUBLISHED_CONSTANT = 0.25
# Families that contain a family's curves, or come as near as numbers can tell, and so are no list without the true one.
CONTAINING: dict[str, tuple[str, ...]] = {
    "linear": ("linear", "polynomial", "relu", "root"),
    "polynomial": ("polynomial",),
    "absolute": ("absolute", "relu"),
    "root": ("root", "linear", "polynomial", "relu"),
    "logarithm": ("logarithm",),
    "step": ("step", "tanh"),
    "relu": ("relu", "absolute"),
    "tanh": ("tanh", "step"),
    "sin": ("sin",),
    "cos": ("sin",),
    "reciprocal": ("reciprocal", "rational"),
    "rational": ("rational", "reciprocal"),
    "gaussian": ("gaussian",),
    "rectangle": ("rectangle",),
    "square_wave": ("square_wave",),
}


def generator_claims(n: int, seed: int) -> Iterator[Claim]:
    """The generator draws what it says, and a truth in text is the function."""
    honest, other = _p_values(n, seed, {}), _p_values(n, seed, {"compose": 0.3, "noise": 0.3})
    yield Claim(
        "true to the distribution",
        "families, operations, nuisances and halves of parameter ranges have the published shares (smallest two-sided binomial "
        "probability times the number of shares)",
        _adjusted(honest), Bar(">=", 0.01), _adjusted(other), "twice as many composed and noisy functions, same test",
        note=f"{len(honest)} shares over {n} curves and {n} programs; {np.mean(np.array(list(honest.values())) < 0.01):.1%} of them "
        "are outside their own 99 % interval.",
        plot=lambda axes: _p_plot(axes, honest),
    )  # fmt: skip
    curves, programs = make_numeric(n, seed, approximate=0), make_strings(n, seed)
    others = make_numeric(n, seed + 1, approximate=0) + make_strings(n, seed + 1)
    same = [_agrees(one, from_truth(Truth.loads(one.truth.dumps()))) for one in curves + programs]
    wrong = [_agrees(one.fresh(), two.fresh()) for one, two in zip(curves + programs, others, strict=True)]
    yield Claim(
        "truth is the function", "a function made from its truth in text gives the same bits, noise included (share of functions)",
        float(np.mean(same)), Bar("==", 1.0), float(np.mean(wrong)), "functions of another seed",
        plot=lambda axes: _bars(axes, {"its truth": float(np.mean(same)), "another seed": float(np.mean(wrong))}, "equal"),
    )  # fmt: skip


def _agrees(one: Function, other: Function) -> bool:
    if one.truth.kind == "string":
        return all(one(text) == other(text) for text in ("Hello World 42", "abcdefghijk", "Zoo"))
    points = np.linspace(*one.truth.domain, 16)
    return bool(np.array_equal(one.many(points.tolist()), other.many(points.tolist()), equal_nan=True))  # pyright: ignore[reportArgumentType]


def _p_values(n: int, seed: int, changes: dict[str, Any]) -> dict[str, float]:
    """Two-sided binomial probability of every count that the published numbers fix."""
    truths = [one.truth for one in make_numeric(n, seed, **changes)]
    programs = [one.truth for one in make_strings(n, seed)]
    atomic = [one for one in truths if ";" not in one.family]
    single = Counter(one.family for one in programs if ";" not in one.family)
    counts: dict[str, tuple[int, int, float]] = {
        "composed": (n - len(atomic), n, 0.15),
        "chained": (n - single.total(), n, 0.7),
    }
    families = Counter(one.family for one in atomic)
    counts |= {name: (families[name], len(atomic), 1 / len(ATOMIC)) for name in ATOMIC}
    counts |= {name: (single[name], single.total(), 1 / len(OPERATIONS)) for name in OPERATIONS}
    kinds = Counter(one.nuisance for one in truths)
    groups = {"noise": NOISES, "corrupt": CORRUPTIONS, "approximate": {"approximated": 1.0}}
    for group, names in groups.items():
        of = sum(kinds[name] for name in names)
        counts[f"all {group}"] = (of, n, SHARES[group])
        if len(names) > 1 and of:
            counts |= {name: (kinds[name], of, share / sum(names.values())) for name, share in names.items()}
    halves = {
        "linear": (0, 0.0),
        "absolute": (1, 0.0),
        "step": (2, 0.0),
        "gaussian": (0, 0.0),
        "square_wave": (1, 0.0),
        "sin": (3, 0.0),
    }
    for family, (place, middle) in halves.items():
        values = [one.params[place] for one in atomic if one.family == family and one.params[place] != middle]
        counts[f"{family} parameter"] = (sum(value > middle for value in values), max(len(values), 1), 0.5)
    return {name: float(binomtest(k, of, share).pvalue) for name, (k, of, share) in counts.items()}


def _adjusted(found: dict[str, float]) -> float:
    return float(min(1.0, min(found.values()) * len(found)))


def _p_plot(axes: Axes, found: dict[str, float]) -> None:
    axes.plot(np.linspace(0, 1, len(found)), np.sort(list(found.values())), ".")
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axes.set(xlabel="rank", ylabel="binomial probability of a share")


def _bars(axes: Axes, values: dict[str, float], label: str) -> None:
    axes.bar(list(values), list(values.values()))
    axes.set(ylabel=label)
    axes.tick_params(axis="x", labelsize=7)


def lenient_claim(n: int, seed: int) -> Claim:
    """How many curves a constant solves under the published measure."""
    functions = make_numeric(n, seed, compose=0, noise=0, corrupt=0, approximate=0)
    values = {one.truth.family: [] for one in functions}
    centred = []
    for one in functions:
        true = one.expected(grading_points())
        finite = true[np.isfinite(true)]
        values[one.truth.family].append(constant_succeeds(true))
        centred.append(
            score_numeric(finite, np.full(len(finite), finite.mean()), np.zeros(len(finite))).success_above_constant
        )
    rate, none = float(np.mean([v for row in values.values() for v in row])), float(np.mean(centred))
    interval = binomtest(round(rate * n), n).proportion_ci()
    return Claim(
        "a constant succeeds", "the best constant has nmse below 0.1 on a quarter of the curves (distance "
        "of the share from {PUBLISHED_CONSTANT})",
        abs(rate - PUBLISHED_CONSTANT), Bar("<=", 0.05), abs(none - PUBLISHED_CONSTANT),
        "the same with r2 above 0.9, which is nmse after centring",
        note=f"{rate:.1%} of {n} curves of one family ({interval.low:.1%} to {interval.high:.1%}), after centring {none:.1%}",
        plot=lambda axes: _shares(axes, {name: float(np.mean(row)) for name, row in values.items()}),
    )  # fmt: skip


def _shares(axes: Axes, shares: dict[str, float]) -> None:
    names = sorted(shares, key=lambda one: -shares[one])
    axes.barh(names[::-1], [shares[one] for one in names[::-1]])
    axes.tick_params(axis="y", labelsize=6)
    axes.set(xlabel="share that a constant solves")


def explained(functions: Sequence[Function], interpreter: Interpreter, max_calls: int = N_ACTIVE) -> list[Answer]:
    """Answers of one interpreter, each function in a session of its own."""
    return [interpreter(Session(one.fresh(), max_calls=max_calls)) for one in functions]


def solved(functions: Sequence[Function], answers: Sequence[Answer]) -> float:
    """Share with nmse below 0.1."""
    return float(np.mean([score_numeric(one, answer).success for one, answer in zip(functions, answers, strict=True)]))


def above_constant(functions: Sequence[Function], answers: Sequence[Answer]) -> float:
    """Share with r2 above 0.9."""
    return float(np.mean([score_numeric(f, a).success_above_constant for f, a in zip(functions, answers, strict=True)]))


def interval_claims(n: int, seed: int) -> Iterator[Claim]:
    """The whole is found, its corrupted part less; what active calls add."""
    bad = make_numeric(n, seed + 10, corrupt="inside")
    plain = make_numeric(n, seed + 20, noise=0, corrupt=0, approximate=0)

    def measured(functions: Sequence[Function], intervals: Intervals, active: bool) -> tuple[list[Answer], np.ndarray]:
        answers = explained(functions, FamilyFitter(N_GRID, intervals=intervals, active=active))
        pairs = zip(functions, answers, strict=True)
        return answers, np.array([interval_iou(f.truth.interval, a.interval, f.truth.domain) for f, a in pairs])

    passive, passive_iou = measured(bad, "residuals", False)
    active, active_iou = measured(bad, "residuals", True)
    joint, joint_iou = measured(bad, "joint", False)
    both, both_iou = measured(bad, "joint", True)
    finer = explained(bad, FamilyFitter(2 * N_GRID - 1, intervals="residuals"))
    finer_iou = np.array(
        [interval_iou(f.truth.interval, a.interval, f.truth.domain) for f, a in zip(bad, finer, strict=True)]
    )
    false = {
        "residuals": _named(measured(plain, "residuals", False)[0]),
        "active": _named(measured(plain, "residuals", True)[0]),
        "joint": _named(measured(plain, "joint", False)[0]),
    }
    share = {
        name: float(np.mean(row > 0.5))
        for name, row in (
            ("residuals", passive_iou),
            ("active", active_iou),
            ("finer grid", finer_iou),
            ("joint", joint_iou),
            ("both", both_iou),
        )
    }
    note = (
        f"{n} functions corrupted in an interval 5 to 25 wide, {N_GRID} calls. nmse < 0.1: residuals {solved(bad, passive):.1%}, joint "
        f"{solved(bad, joint):.1%}; r2 > 0.9: {above_constant(bad, passive):.1%} and {above_constant(bad, joint):.1%}. IoU > 0.5: "
        + ", ".join(f"{name} {value:.1%}" for name, value in share.items())
        + f"; calls {np.mean([a.calls for a in active]):.0f} (residuals, active) and "
        f"{np.mean([a.calls for a in both]):.0f} (joint, active); "
        f"{np.mean([a.share_inside == 0 for a in passive]):.1%} of the grids have no point inside. Intervals named where there are none: "
        + ", ".join(f"{name} {value:.1%}" for name, value in false.items())
    )

    def plot(axes: Axes) -> None:
        for name, row in (
            ("residuals", passive_iou),
            ("and bisection", active_iou),
            ("joint", joint_iou),
            ("joint, bisection", both_iou),
        ):
            axes.plot(np.sort(row)[::-1], np.linspace(0, 1, len(row)), label=name)
        axes.axvline(0.5, color="0.6", lw=0.8)
        axes.set(xlabel="IoU of the interval", ylabel="share of functions with at least this")
        axes.legend(frameon=False, fontsize=6)

    yield Claim(
        "global found", "fitting families to 20 points solves corrupted functions (share with nmse below 0.1)",
        solved(bad, passive), Bar(">=", 0.6), false["residuals"], "share of uncorrupted functions in which it names an interval",
        control_bar=Bar(">=", 0.05), note=note,
        plot=lambda axes: _bars(axes, {"nmse < 0.1": solved(bad, passive), "IoU > 0.5": share["residuals"]}, "share of functions"),
    )  # fmt: skip
    yield Claim(
        "local missed", "while the corrupted interval is missed (share with IoU above 0.5)",
        share["residuals"], Bar("<", 0.3), share["both"], "runs of points tried beside families, and ends found by bisection", plot=plot,
    )  # fmt: skip
    yield Claim(
        "refinement pays", "bisecting the ends finds at least twice as many intervals (ratio of shares)",
        _ratio(share["active"], share["residuals"]), Bar(">=", 2.0), _ratio(share["finer grid"], share["residuals"]),
        f"as many calls on an even grid ({2 * N_GRID - 1} points)",
        note=f"With runs of points tried beside families the ratio is {_ratio(share['both'], share['joint']):.2f}.",
        plot=lambda axes: _bars(axes, share, "share with IoU > 0.5"),
    )  # fmt: skip


def _named(answers: Sequence[Answer]) -> float:
    """Share of answers that name an interval."""
    return float(np.mean([one.interval is not None for one in answers]))


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else float("inf") if one > 0 else float("nan")


def family_claim(n: int, seed: int) -> Claim:
    """Fitting the right family against joining the points."""
    functions = make_numeric(n, seed + 30, compose=0, noise="normal")
    lines, fits = (
        explained(functions, GridInterpreter(N_GRID)),
        explained(functions, FamilyFitter(N_GRID, intervals="none")),
    )
    gain = solved(functions, fits) - solved(functions, lines)
    others = [one for one in functions if one.truth.family in CONTAINING]
    without = [
        explained(
            [one], FamilyFitter(N_GRID, [f for f in FITTED if f not in CONTAINING[one.truth.family]], intervals="none")
        )[0]
        for one in others
    ]
    line_of = {id(one): answer for one, answer in zip(functions, lines, strict=True)}
    base = solved(others, [line_of[id(one)] for one in others])
    rows = {
        name: (
            float(
                np.mean(
                    [
                        score_numeric(f, a).success
                        for f, a in zip(functions, lines, strict=True)
                        if f.truth.family == name
                    ]
                )
            ),
            float(
                np.mean(
                    [
                        score_numeric(f, a).success
                        for f, a in zip(functions, fits, strict=True)
                        if f.truth.family == name
                    ]
                )
            ),
        )
        for name in sorted({one.truth.family for one in functions})
    }

    def plot(axes: Axes) -> None:
        at = np.arange(len(rows))
        axes.barh(at - 0.2, [row[0] for row in rows.values()], 0.4, label="lines")
        axes.barh(at + 0.2, [row[1] for row in rows.values()], 0.4, label="families")
        axes.set_yticks(at, list(rows), fontsize=6)
        axes.set(xlabel="share with nmse < 0.1")
        axes.legend(frameon=False, fontsize=6)

    return Claim(
        "knowing the family", "on noisy curves 20 calls tell more to who knows the families than straight "
        "lines do (difference of shares solved)",
        gain, Bar(">=", 0.1), solved(others, without) - base,
        "lists without the true family and those that contain it, on curves that are no constants",
        note=f"solved: lines {solved(functions, lines):.1%}, families {solved(functions, fits):.1%}; r2 > 0.9: "
        f"{above_constant(functions, lines):.1%} and {above_constant(functions, fits):.1%}; on curves that "
        f"are no constants lines {base:.1%}, "
        f"lists without the true family {solved(others, without):.1%}",
        plot=plot,
    )  # fmt: skip
