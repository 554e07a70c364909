"""Sites compared by their distances between samples: RSA and its topological form, with a bootstrap over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from netloupe.core.dissimilarity import average_ranks, dissimilarity
from netloupe.core.errors import NetloupeError
from netloupe.core.geotopology import geo_topological
from netloupe.core.threads import side_by_side
from netloupe.lenses.similarity.site_moments import Side, drawn

LOWER, UPPER = 0.2, 0.8  # quantiles of distance below and above which the topological form sees no difference
PAIR_MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rsa": average_ranks,
    "trsa": lambda distances: geo_topological(distances, LOWER, UPPER),
}


class PairTables(NamedTuple):
    """Correlations of all pairs of sites, their 95 % bootstrap interval, and those of two halves of a site's units."""

    values: Float[np.ndarray, "site_a site_b"]
    low: Float[np.ndarray, "site_a site_b"]
    high: Float[np.ndarray, "site_a site_b"]
    ceilings_a: Float[np.ndarray, " site_a"]
    ceilings_b: Float[np.ndarray, " site_b"]


def pair_tables(
    sides_a: Sequence[Side], sides_b: Sequence[Side], measure: str, n_samples: int, n_draws: int, random_state: int
) -> PairTables:
    """One measure of ``PAIR_MEASURES`` for every pair of sites, on ``n_samples`` samples drawn once."""
    chosen = drawn(sides_a[0].n, n_samples, random_state)
    made = list(side_by_side(lambda side: _profiles(side.at(chosen), side.middle, measure), [*sides_a, *sides_b]))
    profiles, ceilings = [profile for profile, _ in made], [ceiling for _, ceiling in made]
    split = len(sides_a)
    one, two = np.stack(profiles[:split]), np.stack(profiles[split:])
    values = np.clip(one @ two.T, -1, 1)
    single = one.astype(np.float32), two.astype(np.float32)  # an interval needs no more, and half the time
    times = _times(len(chosen), n_draws, random_state)
    draws = np.stack(list(side_by_side(lambda drawn: _resampled(*single, drawn), times)))
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    known = np.array(ceilings)
    return PairTables(values, low, high, known[:split], known[split:])


def _profiles(x: Float[np.ndarray, "drawn axis"], middle: int, measure: str) -> tuple[np.ndarray, float]:
    """A site's profile, and the correlation of those of the two halves of its units."""
    one, two = _profile(x[:, :middle], measure), _profile(x[:, middle:], measure)
    return _profile(x, measure), float((one * two).sum())


def _profile(x: Float[np.ndarray, "drawn axis"], measure: str) -> Float[np.ndarray, " pair"]:
    """What is correlated: centred and of unit length, NaN for a site without an order of pairs."""
    n_pairs = len(x) * (len(x) - 1) // 2
    try:
        found = PAIR_MEASURES[measure](dissimilarity(x)) if x.shape[1] else np.full(n_pairs, np.nan)
    except NetloupeError:
        found = np.full(n_pairs, np.nan)
    found = found - found.mean()
    with np.errstate(invalid="ignore"):
        return found / np.linalg.norm(found)


def _times(n: int, n_draws: int, random_state: int) -> list[Float32[np.ndarray, " sample"]]:
    """How often each sample is drawn, with replacement, in every draw."""
    generator = np.random.default_rng(random_state)
    return [np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float32) for _ in range(n_draws)]


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
