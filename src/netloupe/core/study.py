"""One paper, measured: claims held against a bar and a control, and the verdict as it came out.

A module ``netloupe.studies.<slug>`` defines ``run(preset, seed)``, a generator of :class:`Claim`. The claim and its
control are measured in the same function; nothing is compared with a threshold that was chosen after seeing the
number.
"""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import json
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from netloupe.core.errors import InputError
from netloupe.core.finding import plain
from netloupe.core.isolation import pinned_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Preset = Literal["smoke", "small", "full"]
PRESETS: tuple[Preset, ...] = ("smoke", "small", "full")
Verdict = Literal["reproduced", "not reproduced", "not distinguishable", "not tested"]
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "==": operator.eq,
}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """What a measured number must satisfy, for example ``Bar("<=", 0.05)``."""

    relation: Literal[">=", ">", "<=", "<", "=="]
    value: float

    def holds(self, measured: float) -> bool:
        """Whether ``measured`` passes; NaN never does."""
        return not math.isnan(measured) and _COMPARE[self.relation](measured, self.value)

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"


@dataclass(frozen=True)
class Claim:
    """A paper's statement in our words, measured.

    name : short and stable. statement : what the paper says, as it is tested here.
    measured : the number (over several seeds their mean). None: not tested, ``note`` says why.
    bar : what it must satisfy. values : one number for each seed or repetition.
    control : the same number where the effect must be absent; it must fail ``control_bar`` (default: the same bar).
    control_statement : what the control is. note : what a reader has to know (a likely cause when it fails).
    plot : draws the claim's figure on an axes.
    """

    name: str
    statement: str
    measured: float | None
    bar: Bar
    control: float | None
    control_statement: str
    values: tuple[float, ...] = ()
    control_bar: Bar | None = None
    note: str = ""
    plot: Callable[[Axes], None] | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t-interval over ``values``, where there are at least two."""
        if len(self.values) < 2:
            return None
        half = stats.sem(self.values) * stats.t.ppf(0.975, len(self.values) - 1)
        return float(np.mean(self.values) - half), float(np.mean(self.values) + half)

    @property
    def control_is_negative(self) -> bool:
        """Whether the control fails the bar, as it must."""
        return (
            self.control is not None
            and not math.isnan(self.control)
            and not (self.control_bar or self.bar).holds(self.control)
        )

    @property
    def verdict(self) -> Verdict:
        """``reproduced`` only when the claim passes its bar and the control does not."""
        if self.measured is None or self.control is None or math.isnan(self.control):
            return "not tested"
        if not self.bar.holds(self.measured):
            return "not reproduced"
        return "reproduced" if self.control_is_negative else "not distinguishable"

    def document(self) -> dict[str, Any]:
        """As JSON: claim, measured, interval, bar, control, verdict, note."""
        return plain({
            "name": self.name,
            "claim": self.statement,
            "measured": self.measured,
            "interval": self.interval,
            "bar": str(self.bar),
            "control": self.control,
            "control_claim": self.control_statement,
            "control_bar": str(self.control_bar or self.bar),
            "verdict": self.verdict,
            "note": self.note,
        })  # fmt: skip


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Keyword arguments ``measured`` and ``values`` of a claim from one number for each seed."""
    return {"measured": float(np.mean(values)), "values": tuple(float(value) for value in values)}


@dataclass(frozen=True)
class Paper:
    """A row of the list of papers; ``implemented`` is whether its study exists."""

    slug: str
    title: str
    year: int
    area: str
    question: str
    arxiv: str = ""

    @property
    def module(self) -> str:
        """The study's module."""
        return f"netloupe.studies.{self.slug.replace('-', '_')}"

    @property
    def implemented(self) -> bool:
        """Whether the study is part of this version."""
        return importlib.util.find_spec(self.module) is not None


@dataclass(frozen=True)
class StudyResult:
    """The claims of one run; ``seconds`` is process time."""

    slug: str
    preset: Preset
    seed: int
    seconds: float
    claims: tuple[Claim, ...]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "slug": self.slug, "preset": self.preset, "seed": self.seed, "seconds": round(self.seconds, 1),
            "claims": [claim.document() for claim in self.claims],
        }  # fmt: skip


@cache
def papers() -> dict[str, Paper]:
    """All papers by slug."""
    text = importlib.resources.files("netloupe.studies").joinpath("papers.json").read_text(encoding="utf-8")
    return {row["slug"]: Paper(**row) for row in json.loads(text)}


def get_run(slug: str) -> Callable[..., Iterator[Claim]]:
    """The ``run`` function of a study."""
    listed = papers()
    if slug not in listed:
        close = [known for known in listed if slug in known or known in slug] or list(listed)[:5]
        raise InputError(
            f"there is no study '{slug}'; for example there are {', '.join(close)} (see: netloupe studies)"
        )
    if not listed[slug].implemented:
        raise InputError(f"the study '{slug}' is not part of this version; 'netloupe studies' lists those that are")
    return importlib.import_module(listed[slug].module).run


def run_study(
    slug: str,
    preset: Preset = "small",
    seed: int = 0,
    n_threads: int = 1,
    on_claim: Callable[[Claim], None] | None = None,
) -> StudyResult:
    """Runs a study with a pinned thread count and restores the count afterwards."""
    if preset not in PRESETS:
        raise InputError(f"preset is '{preset}', expected one of {', '.join(PRESETS)}")
    run, started, claims = get_run(slug), time.process_time(), []
    with pinned_threads(n_threads):
        for claim in run(preset, seed):
            claims.append(claim)
            if on_claim is not None:
                on_claim(claim)
    return StudyResult(slug, preset, seed, time.process_time() - started, tuple(claims))
