"""The contract of naming: proposals in, a name with a score on samples that the proposals never saw out.

A name is a hypothesis about when a feature is active. Whoever proposes it - a captioner, a list of phrases, a person, a language
model - sees one half of the samples; a judge, which says how well a phrase fits a sample and never sees the feature, scores it on
the other half: how often an active sample fits the name better than a quiet one. A sentence without that number is no name here.

Source: the split into explaining and scoring follows Bills et al., "Language models can explain neurons in language models" (2023);
proposing by information about exemplars arXiv 2201.11114; the score is the area under the receiver operating characteristic with
the interval of Newcombe, Statistics in Medicine 25 (2006), method 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.splits import holdout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_HELD_OUT = 3  # active and quiet samples, each, below which a score says nothing


class UnnameableError(InputError):
    """The feature, not the call, is at fault: too few active samples, a constant, or nothing was proposed."""


class Evidence(NamedTuple):
    """What a proposer may look at: ``samples`` the feature is most active on, best first, their ``strengths``, random ``others``."""

    samples: Sequence[Any]
    strengths: Float[np.ndarray, " sample"]
    others: Sequence[Any]


class Proposal(NamedTuple):
    """A phrase, and how much its proposer believes in it; NaN where it has no opinion."""

    text: str
    score: float = float("nan")


Proposer = Callable[[Evidence], Sequence[Proposal]]
Judge = Callable[
    [str, Sequence[Any]], Float[np.ndarray, " sample"]
]  # how well each sample fits the phrase; larger is better


@dataclass(frozen=True)
class Name:
    """A phrase and what it is worth: ``score``, the held-out area under the curve, with its 95 % interval ``low`` to ``high``.

    ``score`` is the probability that an active held-out sample fits the phrase better than a quiet one; 1 is perfect, .5 chance.
    ``n_active``, ``n_quiet``: held-out samples. ``threshold``: a sample is active above it. ``fitted``: the same score on the
    samples that the proposals were made from. ``tried``: all proposals, best first.
    """

    text: str
    score: float
    low: float
    high: float
    n_active: int
    n_quiet: int
    threshold: float
    fitted: float
    tried: tuple[Proposal, ...]

    def __str__(self) -> str:
        return f"{self.text} ({self.score:.2f}, {self.low:.2f} to {self.high:.2f})"


def auc(fits: Float[np.ndarray, " sample"], active: Any) -> float:
    """Probability that an active sample has the larger value than a quiet one, ties counted half. O(n log n)."""
    wanted = np.asarray(active, dtype=bool)
    n_active, n_quiet = int(wanted.sum()), int((~wanted).sum())
    if not n_active or not n_quiet:
        raise InputError(f"{n_active} samples are active and {n_quiet} quiet; an area needs at least one of each")
    ranks = rankdata(fits)
    return float((ranks[wanted].sum() - n_active * (n_active + 1) / 2) / (n_active * n_quiet))


def auc_interval(area: float, n_active: int, n_quiet: int, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's score interval of an area under the curve; of positive width at 0 and 1 too.

    The areas ``t`` with ``|area - t| <= z sqrt(V(t))``, ``V(t) = t (1-t) [1 + (N-1) ((1-t)/(2-t) + t/(1+t))] / (n_active n_quiet)``,
    ``N`` the mean of the two counts.
    """
    z = float(norm.ppf(0.5 + level / 2))
    larger = (n_active + n_quiet) / 2 - 1

    def off(t: float) -> float:
        spread = t * (1 - t) * (1 + larger * ((1 - t) / (2 - t) + t / (1 + t))) / (n_active * n_quiet)
        return (area - t) ** 2 - z**2 * spread

    inside = min(max(area, 1e-12), 1 - 1e-12)  # at 0 and 1 the area itself is one of the two ends
    low = 0.0 if area <= 0 else float(brentq(off, 0.0, inside))  # pyright: ignore[reportArgumentType]
    high = 1.0 if area >= 1 else float(brentq(off, inside, 1.0))  # pyright: ignore[reportArgumentType]
    return low, high


def name_feature(
    activations: Float[np.ndarray, " sample"] | Any,
    samples: Sequence[Any],
    proposer: Proposer,
    judge: Judge,
    *,
    n_top: int = 15,
    share: float = 0.05,
    judge_chooses: bool = False,
    random_state: int = 0,
) -> Name:
    """The best proposal for one feature and its score on held-out samples.

    Half of the samples, drawn at random with equally many active ones, are for proposing: the ``n_top`` most active with as many
    random others go to the proposer; the other half scores. A sample is active if its activation is above the ``1 - share``
    quantile of all samples', or equal to it where ties leave too few above.

    Args:
        activations: ``(sample,)``, one number a sample (the largest over its positions, say).
        samples: what proposer and judge read: texts, images, region features; as many.
        proposer, judge: see :data:`Proposer` and :data:`Judge`.
        judge_chooses: the judge's score on the proposing half picks among the proposals even where the proposer has scores;
            where it has none, it always does.

    Cost: one call of the proposer, one of the judge for each proposal it is asked to choose from and two more. Everything is held
    in memory. Raises UnnameableError for a constant, too few active samples to score anything and a proposer that proposes nothing;
    InputError for lengths that differ and a judge that answers with another shape; NonFiniteError for NaN.
    """
    values, threshold = _activity(activations, len(samples), share)
    on = values > threshold
    if on.sum() < 2 * MIN_HELD_OUT or (~on).sum() < 2 * MIN_HELD_OUT:
        raise UnnameableError(
            f"the feature is active on {int(on.sum())} and quiet on {int((~on).sum())} of {len(on)} samples; a name can be scored "
            f"with {2 * MIN_HELD_OUT} of each: give more samples or a larger share"
        )
    fitted, judged = (part.numpy() for part in holdout(len(on), 0.5, labels=on, random_state=random_state))
    proposals = _proposals(proposer, evidence(values, samples, fitted, n_top, random_state))
    ranked = _ranked(proposals, samples, fitted, on, judge, judge_chooses)
    text = ranked[0].text
    before = auc(_fits(judge, text, samples, fitted), on[fitted])
    area = auc(_fits(judge, text, samples, judged), on[judged])
    n_active, n_quiet = int(on[judged].sum()), int((~on[judged]).sum())
    low, high = auc_interval(area, n_active, n_quiet)
    return Name(text, area, low, high, n_active, n_quiet, threshold, before, tuple(ranked))


def evidence(
    values: Float[np.ndarray, " sample"],
    samples: Sequence[Any],
    among: Int[np.ndarray, " chosen"],
    n_top: int,
    random_state: int = 0,
) -> Evidence:
    """The ``n_top`` most active of the samples ``among``, and as many random others of these."""
    order = among[np.argsort(-values[among], kind="stable")]
    top, rest = order[:n_top], order[n_top:]
    drawn = np.random.default_rng(random_state).permutation(rest)[:n_top]
    return Evidence([samples[i] for i in top], values[top], [samples[i] for i in drawn])


def _array(given: Any) -> np.ndarray:
    return np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float64)


def _activity(activations: Any, n_samples: int, share: float) -> tuple[Float[np.ndarray, " sample"], float]:
    values = _array(activations)
    if values.shape != (n_samples,):
        raise InputError(f"activations have shape {values.shape}, expected one number for each of {n_samples} samples")
    if not np.isfinite(values).all():
        raise NonFiniteError("activations hold NaN or infinity; look for an overflow in the network")
    if not 0 < share < 1:
        raise InputError(f"share is {share:g}, expected a share of samples between 0 and 1")
    if n_samples == 0 or values.min() == values.max():
        raise UnnameableError("the feature has the same value on all samples; a constant has no name")
    threshold = float(np.quantile(values, 1 - share, method="lower"))
    if (values > threshold).sum() < 2 * MIN_HELD_OUT and threshold > values.min():
        threshold = float(values[values < threshold].max())  # equal values at the quantile: all of them are active
    return values, threshold


def _proposals(proposer: Proposer, shown: Evidence) -> list[Proposal]:
    found = [p if isinstance(p, Proposal) else Proposal(str(p)) for p in proposer(shown)]
    found = [p for p in found if p.text.strip()]
    if not found:
        raise UnnameableError("the proposer proposed nothing; a name needs at least one phrase to score")
    return found


def _ranked(
    proposals: list[Proposal], samples: Sequence[Any], fitted: Any, on: Any, judge: Judge, judge_chooses: bool
) -> list[Proposal]:
    if judge_chooses or any(np.isnan(p.score) for p in proposals):
        proposals = [p._replace(score=auc(_fits(judge, p.text, samples, fitted), on[fitted])) for p in proposals]
    return sorted(proposals, key=lambda p: -p.score)


def _fits(judge: Judge, text: str, samples: Sequence[Any], chosen: Any) -> Float[np.ndarray, " sample"]:
    found = np.asarray(judge(text, [samples[i] for i in chosen]), dtype=np.float64)
    if found.shape != (len(chosen),) or not np.isfinite(found).all():
        raise InputError(
            f"the judge gave {found.shape} values for {len(chosen)} samples, expected one finite number each"
        )
    return found


@dataclass(frozen=True, eq=False)
class Names(Finding):
    """Names of several features, with what other features' names would score for them.

    ``texts``: one a feature, empty where it cannot be named, with the reason in ``reasons``. ``scores``, ``lows``, ``highs`` float64
    ``(feature,)``: held-out area under the curve with its 95 % interval. ``n_active`` int64: active held-out samples. ``swapped``:
    mean score of the other features' names for this feature: a name that fits everything, or samples that all look alike, give it
    as high a value as its own. NaN where there is nothing to score.
    """

    texts: tuple[str, ...]
    reasons: tuple[str, ...]
    scores: Float[np.ndarray, " feature"]
    lows: Float[np.ndarray, " feature"]
    highs: Float[np.ndarray, " feature"]
    n_active: Int[np.ndarray, " feature"]
    swapped: Float[np.ndarray, " feature"]

    meanings: ClassVar[dict[str, str]] = {
        "score": "probability that an active held-out sample fits the feature's name better than a quiet one, mean over features",
        "swapped": "the same with the names of other features",
        "certain": "share of the features whose name is better than chance with 95 % confidence",
        "named": "share of the features that could be named",
    }

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; NaN without a single name."""
        certain = np.where(np.isfinite(self.lows), self.lows > 0.5, False)
        numbers = [
            _mean(self.scores),
            _mean(self.swapped),
            float(certain.mean()),
            float(np.isfinite(self.scores).mean()),
        ]
        return dict(zip(self.meanings, numbers, strict=True))

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        best = [i for i in np.argsort(-np.nan_to_num(self.scores, nan=-1)) if self.texts[i]][:3]
        said = ", ".join(f"'{self.texts[i]}' {self.scores[i]:.2f}" for i in best)
        return (
            f"{100 * found['named']:.0f} % of {len(self.texts)} features have a name; on held-out samples names score {found['score']:.2f} "
            f"on average (chance .5, other features' names {found['swapped']:.2f}), {100 * found['certain']:.0f} % of the features "
            f"certainly above chance{f': {said}' if said else ''}."
        )

    def plot(self, axes: Axes) -> None:
        """Each feature's score with its interval, best first, and what other names score."""
        order = [i for i in np.argsort(-np.nan_to_num(self.scores, nan=-1)) if self.texts[i]]
        at = np.arange(len(order))
        spread = np.abs(np.stack([self.lows, self.highs]) - self.scores)[:, order]
        axes.errorbar(at, self.scores[order], spread, fmt="o", label="its name")
        axes.plot(at, self.swapped[order], "x", color="0.5", label="other features' names")
        axes.axhline(0.5, color="0.7", lw=0.8)
        few = len(order) <= 12
        if few:
            axes.set_xticks(at, [self.texts[i][:24] for i in order], rotation=30, ha="right")
        axes.set(ylabel="held-out score", ylim=(0, 1.03), xlabel="" if few else "feature, best first")
        axes.legend(frameon=False, fontsize="small")


def _mean(values: Float[np.ndarray, " feature"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def name_features(
    activations: Float[np.ndarray, "sample feature"] | Any,
    samples: Sequence[Any],
    proposer: Proposer,
    judge: Judge,
    *,
    n_top: int = 15,
    share: float = 0.05,
    judge_chooses: bool = False,
    random_state: int = 0,
) -> Names:
    """:func:`name_feature` for each column; a feature that cannot be scored stays without a name, with the reason.

    Cost: as one feature, times features; every judged pair of name and sample is judged once. Raises InputError for another shape.
    """
    table = _array(activations)
    if table.ndim != 2 or len(table) != len(samples) or 0 in table.shape:
        raise InputError(f"activations have shape {table.shape}, expected ({len(samples)}, feature)")
    known: dict[str, Float[np.ndarray, " sample"]] = {}
    index = list(range(len(samples)))

    def judged(text: str, chosen: Sequence[Any]) -> Float[np.ndarray, " sample"]:
        if text not in known:
            known[text] = _fits(judge, text, samples, index)
        return known[text][np.asarray(chosen)]

    def shown(seen: Evidence) -> Sequence[Proposal]:
        return proposer(Evidence([samples[i] for i in seen.samples], seen.strengths, [samples[i] for i in seen.others]))

    names: list[Name | None] = []
    reasons: list[str] = []
    for column in table.T:
        try:
            names.append(
                name_feature(
                    column, index, shown, judged, n_top=n_top, share=share, judge_chooses=judge_chooses, random_state=random_state
                )
            )  # fmt: skip
            reasons.append("")
        except UnnameableError as error:
            names.append(None)
            reasons.append(str(error))
    scored = np.array([(n.score, n.low, n.high) if n else (np.nan, np.nan, np.nan) for n in names])
    return Names(
        tuple(n.text if n else "" for n in names), tuple(reasons), scored[:, 0], scored[:, 1], scored[:, 2],
        np.array([n.n_active if n else 0 for n in names]), _swapped(table, names, judged, random_state),
    )  # fmt: skip


def _swapped(
    table: Float[np.ndarray, "sample feature"], names: Sequence[Name | None], judge: Judge, random_state: int
) -> Float[np.ndarray, " feature"]:
    found = np.full(len(names), np.nan)
    for at, own in enumerate(names):
        if own is None:
            continue
        on = table[:, at] > own.threshold
        judged = holdout(len(on), 0.5, labels=on, random_state=random_state)[1].numpy()
        others = [auc(judge(text, judged), on[judged]) for text in {n.text for n in names if n} - {own.text}]  # pyright: ignore[reportArgumentType]
        found[at] = np.mean(others) if others else np.nan
    return found
