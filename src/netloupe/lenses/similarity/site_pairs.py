"""Sites compared by their distances between samples: RSA and its topological form, with a bootstrap over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from netloupe.core.dissimilarity import average_ranks, dissimilarity
from netloupe.core.errors import NetloupeError
from netloupe.core.geotopology import geo_topological
from netloupe.core.threads import side_by_side
from netloupe.lenses.similarity.site_moments import Side, drawn

LOWER, UPPER = 0.2, 0.8  # quantiles of distance below and above which the topological form sees no difference
PAIR_MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of the ranks of distances
    "rsa": lambda ranks: ranks,
    "trsa": lambda ranks: geo_topological(ranks, LOWER, UPPER, normalise="minmax"),
}


class PairTables(NamedTuple):
    """Correlations of all pairs of sites, their 95 % bootstrap interval, and those of two halves of a site's units."""

    values: Float[np.ndarray, "site_a site_b"]
    low: Float[np.ndarray, "site_a site_b"]
    high: Float[np.ndarray, "site_a site_b"]
    ceilings_a: Float[np.ndarray, " site_a"]
    ceilings_b: Float[np.ndarray, " site_b"]


class _Profiles(NamedTuple):
    """One site: for every measure what is correlated, and the correlation of the halves; why there is none, if so."""

    of: dict[str, Float[np.ndarray, " pair"]]
    ceilings: dict[str, float]
    refusal: str


def pair_tables(
    sides_a: Sequence[Side],
    sides_b: Sequence[Side],
    measures: Sequence[str],
    n_samples: int,
    n_draws: int,
    random_state: int,
) -> tuple[dict[str, PairTables], dict[str, str]]:
    """Measures out of ``PAIR_MEASURES`` for every pair of sites, on ``n_samples`` samples drawn once; sites without an answer
    and why."""
    if not measures:
        return {}, {}
    both = [*sides_a, *sides_b]
    chosen = drawn(both[0].n, n_samples, random_state)
    made = list(side_by_side(lambda side: _profiles(side.at(chosen), side.middle, measures), both))
    times, split = _times(len(chosen), n_draws, random_state), len(sides_a)
    found = {}
    for name in measures:
        one, two = (np.stack([each.of[name] for each in part]) for part in (made[:split], made[split:]))
        single = one.astype(np.float32), two.astype(np.float32)  # an interval needs no more, and half the time
        draws = np.stack(list(side_by_side(partial(_resampled, *single), times)))
        low, high = np.quantile(draws, (0.025, 0.975), axis=0)
        ceilings = np.array([each.ceilings[name] for each in made])
        found[name] = PairTables(np.clip(one @ two.T, -1, 1), low, high, ceilings[:split], ceilings[split:])
    return found, {side.name: each.refusal for side, each in zip(both, made, strict=True) if each.refusal}


def _profiles(x: Float[np.ndarray, "drawn axis"], middle: int, measures: Sequence[str]) -> _Profiles:
    """Distances and their ranks once for all measures."""
    ranks: list[np.ndarray] = []
    refusal = ""
    for place, part in enumerate((x, x[:, :middle], x[:, middle:])):
        try:
            ranks.append(average_ranks(dissimilarity(part)) if part.shape[1] else np.empty(0))
        except NetloupeError as error:
            ranks.append(np.empty(0))
            refusal = str(error) if place == 0 else refusal
    of, ceilings = {}, {}
    for name in measures:
        whole, one, two = (_profile(each, name, len(x)) for each in ranks)
        of[name], ceilings[name] = whole, float((one * two).sum())
    return _Profiles(of, ceilings, refusal)


def _profile(ranks: Float[np.ndarray, " pair"], measure: str, n: int) -> Float[np.ndarray, " pair"]:
    """What is correlated: centred and of unit length, NaN for a site without an order of pairs."""
    if not len(ranks):
        return np.full(n * (n - 1) // 2, np.nan)
    found = PAIR_MEASURES[measure](ranks)
    found = found - found.mean()
    return found / np.linalg.norm(found)


def _times(n: int, n_draws: int, random_state: int) -> list[Float32[np.ndarray, " sample"]]:
    """How often each sample is drawn, with replacement, in every draw."""
    generator = np.random.default_rng(random_state)
    found: list[np.ndarray] = []
    while len(found) < n_draws:
        times = np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float32)
        if np.count_nonzero(times) >= 3:  # of two samples there is one pair, which has no spread
            found.append(times)
    return found


def _resampled(one: np.ndarray, two: np.ndarray, times: np.ndarray) -> Float[np.ndarray, "site_a site_b"]:
    """Correlations of one draw. A pair counts as often as it was drawn; pairs of a sample with itself are no pairs."""
    first, second = np.triu_indices(len(times), 1)
    weight = times[first] * times[second]
    weight /= weight.sum()
    deviations = []
    for profiles in (one, two):
        mean = profiles @ weight
        square = (profiles * profiles) @ weight - mean**2
        deviations.append((mean, np.sqrt(np.maximum(square, 1e-30))))
    (mean_a, std_a), (mean_b, std_b) = deviations
    joint = (one * weight) @ two.T - np.outer(mean_a, mean_b)
    return np.clip(joint / np.outer(std_a, std_b), -1, 1)
