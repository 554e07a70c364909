"""Two networks compared site by site: every pair under several measures at once, with intervals, ceilings and chance.

Source: CKA arXiv 1905.00414, SVCCA arXiv 1706.05806, Procrustes arXiv 2110.14739, representational similarity doi
10.3389/neuro.06.004.2008 and its topological form arXiv 2309.11028.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from netloupe.core.errors import InputError, NetloupeError
from netloupe.core.finding import Context, Finding
from netloupe.core.progress import track
from netloupe.core.threads import side_by_side
from netloupe.lenses.similarity.site_moments import Measured, Side, aligned_sides, between, halves
from netloupe.lenses.similarity.site_pairs import PAIR_MEASURES, pair_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = ("cka", "svcca", "procrustes", *PAIR_MEASURES)
NAMES = {"cka": "CKA", "svcca": "SVCCA", "procrustes": "Procrustes", "rsa": "RSA", "trsa": "tRSA"}


@dataclass(frozen=True, eq=False)
class SiteMap(Finding):
    """Similarity of every site of one network with every site of another.

    ``values``, ``low``, ``high`` and ``chance`` are ``(measure, site_a, site_b)``: the similarity, its 95 % interval over
    samples, and what unrelated sites of these sizes give. ``ceilings_a`` and ``ceilings_b`` ``(measure, site)`` are the similarity
    of two random halves of a site's own units. NaN where something is not defined, with the reason in ``refusals``.
    """

    sites_a: tuple[str, ...]
    sites_b: tuple[str, ...]
    measures: tuple[str, ...]
    values: Float[np.ndarray, "measure site_a site_b"]
    low: Float[np.ndarray, "measure site_a site_b"]
    high: Float[np.ndarray, "measure site_a site_b"]
    chance: Float[np.ndarray, "measure site_a site_b"]
    ceilings_a: Float[np.ndarray, "measure site_a"]
    ceilings_b: Float[np.ndarray, "measure site_b"]
    refusals: tuple[str, ...]
    n_samples: int

    meanings: ClassVar[dict[str, str]] = {
        name: f"mean over the first network's sites of the largest {NAMES[name]} with any site of the second"
        for name in MEASURES
    }

    def of(self, measure: str) -> Float[np.ndarray, "site_a site_b"]:
        """One measure's table."""
        if measure not in self.measures:
            raise InputError(f"'{measure}' was not measured; there are {', '.join(self.measures)}")
        return self.values[self.measures.index(measure)]

    def ceiling(self, measure: str) -> Float[np.ndarray, "site_a site_b"]:
        """Geometric mean of two sites' ceilings: what a pair can be expected to reach at most."""
        at = self.measures.index(measure)
        product = np.maximum(self.ceilings_a[at], 0)[:, None] * np.maximum(self.ceilings_b[at], 0)[None, :]
        return np.sqrt(product)

    def best(self, measure: str = "cka") -> list[tuple[str, str, float]]:
        """For every site of the first network the most similar one of the second, and how similar; sites without any are
        left out."""
        table = self.of(measure)
        rows = [(a, row) for a, row in zip(self.sites_a, table, strict=True) if not np.isnan(row).all()]
        return [(a, self.sites_b[int(np.nanargmax(row))], float(np.nanmax(row))) for a, row in rows]

    def summary(self) -> dict[str, float]:
        """For every measure the mean over sites of the best match."""
        means = {name: [value for _, _, value in self.best(name)] for name in self.measures}
        return {name: float(np.mean(values)) for name, values in means.items() if values}

    def paragraph(self) -> str:
        """The answer in plain words."""
        said = ", ".join(f"{NAMES[name]} {value:.2f}" for name, value in self.summary().items())
        return f"A site of the first network and the most similar one of the second agree, on average over sites, with {said}."

    def plot(self, axes: Axes) -> None:
        """The first measure's table."""
        shown = axes.imshow(self.values[0], vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(self.sites_b)), self.sites_b, rotation=90, fontsize=6)
        axes.set_yticks(range(len(self.sites_a)), self.sites_a, fontsize=6)
        axes.set(xlabel="second network", ylabel="first network")
        axes.figure.colorbar(shown, ax=axes, label=NAMES[self.measures[0]])


def site_map(
    sites_a: Mapping[str, Any],
    sites_b: Mapping[str, Any],
    measures: Sequence[str] = MEASURES,
    *,
    n_draws: int = 100,
    pair_samples: int = 1000,
    random_state: int = 0,
    progress: bool = False,
) -> SiteMap:
    """Every pair of sites of two networks on the same samples under several measures.

    ``cka`` is debiased linear CKA, ``svcca`` and ``procrustes`` as in their lenses. ``rsa`` and ``trsa`` correlate ranked distances,
    and distances squashed between their 20 % and 80 % quantiles, of ``pair_samples`` samples drawn once.

    Intervals: ``rsa`` and ``trsa`` resample the drawn samples ``n_draws`` times (pairs of a sample with itself left out, ranks
    held fixed) and give percentiles. The other measures are smooth functions of covariances, where the bootstrap's spread is
    that of the influence of single samples, ``se^2 = sum_i (d value / d weight_i)^2``; they give the value plus and minus
    1.96 of it. Near 0 the influence vanishes and such an interval is too narrow: read it beside the chance level.

    Ceilings: the same measure between two random halves of a site's own units. Chance: 0 for debiased CKA, RSA and tRSA; for
    SVCCA and Procrustes that of a random normal matrix in place of the cross-covariance, which is what unrelated
    samples give.

    Args:
        sites_a, sites_b: name -> ``(sample, unit)`` of the same samples; tensors, arrays or stored sites of any widths.
        measures: names out of ``MEASURES``.

    Cost for p by q sites: O(p q (n d^2 + d^3)) and, for pairs, O((p + q) m^2 d + p q m^2 n_draws) with m ``pair_samples``; memory
    32 MiB a site, O(q d^2) and O((p + q) m^2); n may exceed memory. A pair that has no answer (a site that never varies, fewer samples
    than directions) is NaN and named in ``refusals``. Raises InputError for unknown measures, no sites, or different samples.
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise InputError(f"measures are {list(measures)}, expected some of {', '.join(MEASURES)}")
    if not sites_a or not sites_b:
        raise InputError("there are no sites to compare; name at least one in each network")
    sides_a, sides_b = aligned_sides(sites_a, sites_b, random_state)
    shape = (len(measures), len(sides_a), len(sides_b))
    values, low, high, chance = (np.full(shape, np.nan) for _ in range(4))
    ceilings = [np.full((len(measures), len(sides)), np.nan) for sides in (sides_a, sides_b)]
    refusals: dict[str, None] = {}
    smooth = [name for name in measures if name not in PAIR_MEASURES]
    at = {name: index for index, name in enumerate(measures)}
    both = [*sides_a, *sides_b]
    for place, own in enumerate(side_by_side(partial(_alone, smooth), both)):
        known, i = (ceilings[0], place) if place < len(sides_a) else (ceilings[1], place - len(sides_a))
        known[[at[name] for name in smooth], i] = own
    pairs = [(i, j) for i in range(len(sides_a)) for j in range(len(sides_b))]
    work = side_by_side(lambda pair: _together(smooth, sides_a[pair[0]], sides_b[pair[1]]), pairs)
    for (i, j), found in track(zip(pairs, work, strict=True), "comparing sites", len(pairs), progress):
        for name, one in found.items():
            if isinstance(one, str):
                refusals[one] = None
            else:
                place = (at[name], i, j)
                values[place], low[place], high[place], chance[place] = one
    paired = [name for name in measures if name in PAIR_MEASURES]
    tables, silent = pair_tables(sides_a, sides_b, paired, pair_samples, n_draws, random_state)
    refusals |= dict.fromkeys(f"{NAMES[name]} of {site}: {why}" for name in paired for site, why in silent.items())
    for name, found in tables.items():
        values[at[name]], low[at[name]], high[at[name]] = found.values, found.low, found.high
        ceilings[0][at[name]], ceilings[1][at[name]] = found.ceilings_a, found.ceilings_b
        chance[at[name]] = np.where(np.isnan(found.values), np.nan, 0.0)
    return SiteMap(
        tuple(sites_a), tuple(sites_b), tuple(measures), values, low, high, chance, ceilings[0], ceilings[1], tuple(refusals), sides_a[0].n,
        context=Context(n_samples=sides_a[0].n, seed=random_state, options={"n_draws": n_draws, "pair_samples": pair_samples}),
    )  # fmt: skip


def _alone(smooth: Sequence[str], side: Side) -> list[float]:
    """What one site has by itself: the similarity of two halves of its units; all that pairs need is computed on the way."""
    found = []
    for name in smooth:
        try:
            found.append(halves(side, name))
        except NetloupeError:
            found.append(np.nan)
    side.prepare("svcca" in smooth, "procrustes" in smooth)
    return found


def _together(smooth: Sequence[str], a: Side, b: Side) -> dict[str, Measured | str]:
    """Every measure of one pair, or the sentence why there is none."""
    found: dict[str, Measured | str] = {}
    cross = a.cross(b) if smooth else np.empty(0)
    for name in smooth:
        try:
            found[name] = between(a, b, name, cross)
        except NetloupeError as error:
            found[name] = f"{NAMES[name]} of {a.name} and {b.name}: {error}"
    return found
