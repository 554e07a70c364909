"""Two networks, or two recordings, on the same samples: site by site, unit by unit, and what each has alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from netloupe.core.alignment import joint_moments, paired_rows
from netloupe.core.asking import Asked, ask_network, ask_pair
from netloupe.core.errors import InputError, NetloupeError
from netloupe.core.finding import library_versions, plain
from netloupe.core.lens import find_lenses, get_lens
from netloupe.core.progress import track
from netloupe.core.threads import side_by_side
from netloupe.lenses.similarity.feature_complexity import distinct_features
from netloupe.lenses.similarity.matching import match_units
from netloupe.lenses.similarity.shared_groups import shared_groups
from netloupe.lenses.similarity.site_map import MEASURES, SiteMap, site_map
from netloupe.lenses.similarity.sparse_mapping import sparse_mapping
from netloupe.lenses.similarity.unit_matching import unit_matching
from netloupe.report.inspection import thinned
from netloupe.report.parties import Party, load_parties

STRENGTHS = (0.3, 0.1, 10**-1.5, 1e-2)  # of sparse maps: those that leave a handful of units; weaker ones take minutes
OF_UNITS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (unit_matching, {}), (sparse_mapping, {"alphas": STRENGTHS}), (shared_groups, {}),
)  # fmt: skip
ALONE = (
    0.2  # a unit whose largest correlation is below this has no counterpart (arXiv 1511.07543 reports the same share)
)


@dataclass(frozen=True)
class Counterparts:
    """Units of two sites: matched one to one ``(unit_a, unit_b, correlation)``, best first; and those that are alone,
    ``(unit, largest correlation)``, the loneliest first."""

    matched: tuple[tuple[int, int, float], ...]
    alone_a: tuple[tuple[int, float], ...]
    alone_b: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SitePair:
    """A site of the first network with the most similar one of the second, and what lenses say of their units."""

    site_a: str
    site_b: str
    answers: tuple[Asked, ...]
    units: Counterparts | None


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found. ``merging``: which features are one inside each network (not of recordings); ``more``: further
    lenses, asked of every pair of sites."""

    a: Party
    b: Party
    map: SiteMap
    pairs: tuple[SitePair, ...]
    merging: tuple[Asked, ...]
    more: tuple[Asked, ...]
    n_samples: int
    seconds: float
    date: str
    versions: dict[str, str] = field(default_factory=library_versions)

    def document(self) -> dict[str, Any]:
        """The comparison as JSON."""
        answers = [asked for pair in self.pairs for asked in pair.answers]
        return {
            "a": self.a.name, "b": self.b.name, "data": self.a.data.name, "n_samples": self.n_samples, "seconds": self.seconds,
            "sites_a": list(self.map.sites_a), "sites_b": list(self.map.sites_b), "summary": plain(self.map.summary()),
            "similarity": [self._row(i, j) for i in range(len(self.map.sites_a)) for j in range(len(self.map.sites_b))],
            "pairs": [
                {
                    "site_a": pair.site_a, "site_b": pair.site_b,
                    "matched": [] if pair.units is None else [list(one) for one in pair.units.matched],
                    "alone_a": [] if pair.units is None else [list(one) for one in pair.units.alone_a],
                    "alone_b": [] if pair.units is None else [list(one) for one in pair.units.alone_b],
                }
                for pair in self.pairs
            ],
            "merging": [
                {"network": party.name, "summary": plain(one.finding.summary()) if one.finding else None, "why": one.refusal}
                for party, one in zip(self.networks, self.merging, strict=True)
            ],
            "findings": [
                {"lens": one.lens.name, "site_a": one.site, "site_b": one.other, "summary": plain(one.finding.summary())}
                for one in (*answers, *self.more) if one.finding is not None
            ],
            "refused": [
                *({"lens": one.lens.name, "site_a": one.site, "site_b": one.other, "why": one.refusal}
                  for one in (*answers, *self.more) if one.refusal),
                *({"lens": "similarity.site_map", "why": sentence} for sentence in self.map.refusals),
            ],
        }  # fmt: skip

    @property
    def networks(self) -> list[Party]:
        """The sides that are networks, of which ``merging`` speaks."""
        return [party for party in (self.a, self.b) if party.model is not None]

    def _row(self, i: int, j: int) -> dict[str, Any]:
        found = self.map
        measured = {
            name: plain({
                "value": found.values[k, i, j], "low": found.low[k, i, j], "high": found.high[k, i, j],
                "chance": found.chance[k, i, j], "ceiling": found.ceiling(name)[i, j],
            })
            for k, name in enumerate(found.measures)
        }  # fmt: skip
        return {"site_a": found.sites_a[i], "site_b": found.sites_b[j], **measured}


def compare(
    one: str,
    two: str,
    data: str | None = None,
    *,
    sites: tuple[str, ...] = (),
    measures: Sequence[str] = MEASURES,
    lenses: Sequence[str] = (),
    n_samples: int | None = None,
    batch_size: int = 64,
    download: bool = False,
    cache: Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Compares two networks or recordings of the same samples.

    Args:
        one, two: what ``netloupe inspect`` takes as a network, or the folder of a recording, in any mix; any architectures.
        data: what networks are run on; by default the first network's own data.
        sites: names or globs, in both; all by default. More than 24 sites of a network are thinned evenly over its depth.
        measures: of the site-by-site map. lenses: further comparing lenses, asked of every pair of sites.

    Positions are averaged. Units are matched between every site of the first network and the site of the second that is most
    similar to it by the first measure. Raises InputError where samples differ or a lens looks at one site only.
    """
    started = time.perf_counter()
    asked = [get_lens(name) for name in lenses]
    wrong = [lens.name for lens in asked if not lens.compares]
    if wrong:
        known = ", ".join(lens.name for lens in find_lenses().values() if lens.compares)
        raise InputError(f"{', '.join(wrong)} looks at one site; comparing lenses are {known}")
    a, b = load_parties(one, two, data, sites, n_samples, batch_size, download, (), True, cache, progress)
    features_a, features_b = _thin(a), _thin(b)
    found = site_map(features_a, features_b, measures, progress=progress)
    best = found.best(found.measures[0])
    work = side_by_side(lambda one: _pair(one[0], features_a[one[0]], one[1], features_b[one[1]]), best)
    pairs = tuple(track(work, "matching units", len(best), progress))
    more = tuple(
        ask_pair(lens, (site_a, x), (site_b, y))
        for lens in asked for site_a, x in features_a.items() for site_b, y in features_b.items()
    )  # fmt: skip
    merging = tuple(
        ask_network(distinct_features.lens, party.model, party.data.batches)  # type: ignore[attr-defined]
        for party in (a, b) if party.model is not None
    )  # fmt: skip
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Comparison(a, b, found, pairs, merging, more, len(a.store), time.perf_counter() - started, date)


def _thin(party: Party) -> dict[str, Any]:
    features = party.features()
    if not features:
        raise InputError(f"no site of '{party.name}' varies over these samples, so there is nothing to compare")
    return {name: features[name] for name in thinned(list(features))}


def _pair(site_a: str, x: Any, site_b: str, y: Any) -> SitePair:
    answers = tuple(ask_pair(function.lens, (site_a, x), (site_b, y), **options) for function, options in OF_UNITS)
    try:
        return SitePair(site_a, site_b, answers, counterparts(x, y))
    except NetloupeError:
        return SitePair(site_a, site_b, answers, None)  # the matching lens says why


def counterparts(features: Any, other: Any) -> Counterparts:
    """Matched units, and units of either site whose largest correlation with any of the other is below 0.2."""
    moments = joint_moments(*paired_rows(features, other, min_samples=4))
    table = moments.between
    full = match_units(table)
    matched = tuple(
        (int(pair[0]), int(pair[1]), float(score)) for pair, score in zip(full.pairs, full.scores, strict=True)
    )
    alone = []
    for largest, dead in ((np.abs(table).max(1), moments.dead_a), (np.abs(table).max(0), moments.dead_b)):
        order = [int(unit) for unit in np.argsort(largest, kind="stable") if not dead[unit] and largest[unit] < ALONE]
        alone.append(tuple((unit, float(largest[unit])) for unit in order))
    return Counterparts(matched, alone[0], alone[1])
