"""A comparison as one self-contained HTML file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from netloupe.core.sites import SiteInfo
from netloupe.lenses.similarity.site_map import NAMES, SiteMap
from netloupe.report import words
from netloupe.report.comparison import ALONE, Comparison, SitePair
from netloupe.report.examples import Gallery, UnitExamples
from netloupe.report.figures import heat_map
from netloupe.report.html import Answer, answer, environment, fill, safe, save_page, shape_of
from netloupe.report.parties import Party

SHOWN_PAIRS, SHOWN_ALONE, SHOWN_SAMPLES = 4, 3, 4
MEANINGS = {
    "cka": "Linear centred kernel alignment, debiased: the same arrangement of samples up to rotation, scale and shift.",
    "svcca": "Mean canonical correlation of the directions with 99 % of the variance: the same up to any linear map.",
    "procrustes": "Agreement after the best rotation and scale.",
    "rsa": "Rank correlation of the distances between samples.",
    "trsa": "The same with distances squashed between their 20 % and 80 % quantiles: who is near whom, rather than how near.",
}


@dataclass(frozen=True)
class MapView:
    """One measure's map."""

    key: str
    name: str
    meaning: str
    figure: Markup


@dataclass(frozen=True)
class MeasureRow:
    """One measure of one pair of sites, as shown."""

    name: str
    value: str
    interval: str
    ceiling: str
    chance: str


@dataclass(frozen=True)
class MatchView:
    """Two units side by side."""

    correlation: float
    one: UnitExamples
    two: UnitExamples


@dataclass(frozen=True)
class AloneView:
    """Units of one network without a counterpart: how many, of how many, and the loneliest with their largest correlation."""

    party: str
    site: str
    count: int
    of: int
    units: list[tuple[float, UnitExamples]]


@dataclass(frozen=True)
class PairView:
    """All that one pair of sites shows."""

    id: str
    site_a: str
    site_b: str
    shape_a: str
    shape_b: str
    similarity: float
    measures: list[MeasureRow]
    answers: list[Answer]
    matches: list[MatchView]
    alone: list[AloneView]


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Writes ``folder/<a>-and-<b>.html`` whole or not at all and returns its path; StoreError where it cannot be written."""
    path = Path(folder) / f"{safe(found.a.name)}-and-{safe(found.b.name)}.html"
    return save_page(render(found), path)


def render(found: Comparison) -> str:
    """The comparison as HTML text."""
    galleries = Gallery(found.a), Gallery(found.b)
    pairs = [_pair(found, pair, galleries, index) for index, pair in enumerate(found.pairs)]
    pictures = galleries[0].pictures | galleries[1].pictures
    held = {name: gallery for gallery in galleries[::-1] for name in gallery.pictures}
    return fill(
        environment().get_template("compare.html"),
        found=found, maps=[_map(found.map, name) for name in found.map.measures], pairs=pairs, headlines=headlines(found),
        merging=[
            (party.name, answer(asked, f"m{number}"))
            for number, (party, asked) in enumerate(zip(found.networks, found.merging, strict=True))
        ],
        more=[(asked, None if asked.finding is None else asked.finding.summary()) for asked in found.more],
        pictures=pictures, ratio=lambda name: held[name].ratio(name), plural=words.plural, alone=ALONE,
        provenance=_provenance(found), command=command(found), versions=found.versions,
    )  # fmt: skip


def headlines(found: Comparison) -> list[str]:
    """The most telling sentences."""
    said = [found.map.paragraph()]
    name = found.map.measures[0]
    best = found.map.best(name)
    if best:
        a, b, value = max(best, key=lambda one: one[2])
        low, high = (
            table[0, found.map.sites_a.index(a), found.map.sites_b.index(b)]
            for table in (found.map.low, found.map.high)
        )
        said.append(f"Most alike are {a} and {b}: {NAMES[name]} {value:.2f} (95 % interval {low:.2f} to {high:.2f}).")
        a, b, value = min(best, key=lambda one: one[2])
        if len(best) > 1:
            said.append(f"Least alike is {a}: its best counterpart, {b}, has {NAMES[name]} {value:.2f}.")
    known = [pair for pair in found.pairs if pair.units is not None and pair.units.matched]
    if known:
        top = max(known, key=lambda pair: np.mean([score for *_, score in pair.units.matched]) if pair.units else 0.0)
        assert top.units is not None
        strong = sum(score > 0.5 for *_, score in top.units.matched)
        said.append(
            f"Unit by unit, {strong} of {len(top.units.matched)} pairs of {top.site_a} and {top.site_b} correlate above 0.5, matched "
            "one to one."
        )
    return said


def _map(found: SiteMap, measure: str) -> MapView:
    at = found.measures.index(measure)
    ceiling = found.ceiling(measure)

    def note(i: int, j: int) -> str:
        low, high, most, chance = found.low[at, i, j], found.high[at, i, j], ceiling[i, j], found.chance[at, i, j]
        if not np.isfinite(found.values[at, i, j]):
            return ""
        said = [words.number(value, 2) for value in (low, high, most, chance)]
        return f" ({said[0]} to {said[1]}; halves of units {said[2]}, chance {said[3]})"

    notes = [[note(i, j) for j in range(len(found.sites_b))] for i in range(len(found.sites_a))]
    return MapView(
        measure, NAMES[measure], MEANINGS[measure], heat_map(found.values[at], found.sites_a, found.sites_b, notes)
    )


def _pair(found: Comparison, pair: SitePair, galleries: tuple[Gallery, Gallery], index: int) -> PairView:
    info_a, info_b = _info(found.a, pair.site_a), _info(found.b, pair.site_b)
    i, j = found.map.sites_a.index(pair.site_a), found.map.sites_b.index(pair.site_b)
    answers = [answer(asked, f"p{index}-{number}") for number, asked in enumerate(pair.answers)]
    matches, alone = [], []
    if pair.units is not None:
        for one, two, score in pair.units.matched[:SHOWN_PAIRS]:
            sides = (
                galleries[0].unit(info_a, one, most=SHOWN_SAMPLES),
                galleries[1].unit(info_b, two, most=SHOWN_SAMPLES),
            )
            matches.append(MatchView(score, *sides))
        for party, info, gallery, units in (
            (found.a, info_a, galleries[0], pair.units.alone_a), (found.b, info_b, galleries[1], pair.units.alone_b),
        ):  # fmt: skip
            shown = [(largest, gallery.unit(info, unit, most=SHOWN_SAMPLES)) for unit, largest in units[:SHOWN_ALONE]]
            alone.append(AloneView(party.name, info.name, len(units), info.n_units, shown))
    return PairView(
        f"pair-{index}", pair.site_a, pair.site_b, shape_of(info_a), shape_of(info_b), float(found.map.values[0, i, j]),
        [_row(found.map, name, i, j) for name in found.map.measures], answers, matches, alone,
    )  # fmt: skip


def _row(found: SiteMap, measure: str, i: int, j: int) -> MeasureRow:
    at = found.measures.index(measure)
    low, high = found.low[at, i, j], found.high[at, i, j]
    interval = f"{words.number(low)} to {words.number(high)}" if np.isfinite(low) else "\u2013"
    return MeasureRow(
        NAMES[measure], words.number(found.values[at, i, j]), interval, words.number(found.ceiling(measure)[i, j]),
        words.number(found.chance[at, i, j]),
    )  # fmt: skip


def _info(party: Party, site: str) -> SiteInfo:
    return next(info for info in party.sites if info.name == site)


def _provenance(found: Comparison) -> list[tuple[str, str]]:
    rows = []
    for word, party in (("first", found.a), ("second", found.b)):
        rows += [(f"{word} network", party.name)]
        rows += [(f"{word} {key}", str(value)) for key, value in party.subject.identity.items() if key != "name"]
    rows += [
        ("data", found.a.data.name),
        *((f"data {key}", str(value)) for key, value in found.a.data.identity.items()),
    ]
    rows += [
        ("samples", str(found.n_samples)),
        ("seed", "0"),
        ("date", found.date),
        ("seconds", words.number(found.seconds)),
    ]
    return [*rows, ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items()))]


def command(found: Comparison) -> str:
    """The command line that makes this page again."""
    given = ["netloupe", "compare", found.a.name, found.b.name]
    if found.a.model is not None or found.b.model is not None:
        given += [
            found.a.data.name if found.a.model is not None else found.b.data.name,
            "--samples",
            str(found.n_samples),
        ]
    return shlex.join(given)
