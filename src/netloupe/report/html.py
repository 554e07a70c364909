"""An inspection as one self-contained HTML file: nothing in it refers to another file or to the network."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from netloupe.core.errors import StoreError
from netloupe.core.finding import Finding
from netloupe.core.sites import SiteInfo
from netloupe.report import words
from netloupe.report.examples import Example, Gallery, UnitExamples
from netloupe.report.figures import finding_figure, heat_map, histogram, zero_share
from netloupe.report.inspection import NETWORK, Asked, Inspection

PLACES = 4  # activations shown with an answer
OPEN_SITES = 3  # the sections of a network of at most so many sites are open from the start
BASIC = {
    "mean": "mean of all activations of the site",
    "std": "standard deviation of all activations of the site",
    "min": "smallest activation",
    "max": "largest activation",
}


@dataclass(frozen=True)
class Column:
    """One sortable column: ``cells`` as shown, ``values`` to sort by (None where the site has no such number)."""

    name: str
    title: str
    lens: str
    cells: list[str]
    values: list[float | None]


@dataclass(frozen=True)
class Answer:
    """One lens's answer at one site: in plain words, as ``rows`` of name, value and meaning; or why there is none.

    ``places``: units and samples of the activations that it rests on.
    """

    lens: str
    question: str
    paragraph: str
    rows: list[tuple[str, str, str]]
    figure: Markup | None
    refusal: str
    places: list[tuple[int, Example]]


@dataclass(frozen=True)
class SiteView:
    """All that one site's section shows."""

    id: str
    info: SiteInfo
    shape: str
    basics: list[tuple[str, str, str]]
    active: float | None
    zero: float
    histogram: Markup
    answers: list[Answer]
    units: list[UnitExamples]


def write_report(inspection: Inspection, folder: Path) -> Path:
    """Writes ``folder/<subject>-<data>.html`` and returns its path.

    The page holds its style, its script, its figures and its pictures. It is written beside and renamed, so that a
    report is there whole or not at all. Raises StoreError where the folder cannot be written or the disk is full.
    """
    return save_page(
        render(inspection), Path(folder) / f"{safe(inspection.subject.name)}-{safe(inspection.data.name)}.html"
    )


def save_page(page: str, path: Path) -> Path:
    """Writes a page beside its place and renames it; StoreError where the folder cannot be written or the disk is full."""
    partial = path.with_name(f".{path.name}.partial{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(page, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"the report could not be written to '{path}' ({error.strerror or error}); "
            "choose another folder or free space"
        ) from error
    return path


def safe(name: str) -> str:
    """A name, or the last part of a path, as part of a file name: letters, digits, ``. - _``, at most 80."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", re.split(r"[/\\]", name.rstrip("/\\"))[-1]).strip("-.")[:80] or "unnamed"


def render(inspection: Inspection) -> str:
    """The report as HTML text."""
    gallery = Gallery(inspection)
    sites = [_site(inspection, gallery, index) for index in range(len(inspection.sites))]
    columns = _columns(inspection)
    return fill(
        environment().get_template("page.html"),
        inspection=inspection, sites=sites, whole=_whole(inspection), groups=grouped(sites), columns=columns, spans=_spans(columns),
        headlines=words.headlines(inspection), plural=words.plural, pictures=gallery.pictures, ratio=gallery.ratio,
        basic=BASIC, n_units=sum(site.n_units for site in inspection.sites), open_sites=len(sites) <= OPEN_SITES,
        map=heat_map(inspection.similarity(), inspection.compared) if len(inspection.compared) > 1 else None,
        meanings=_meanings(inspection), asked=_asked(inspection), provenance=_provenance(inspection),
        command=command(inspection), versions=inspection.versions,
    )  # fmt: skip


def environment() -> Environment:
    """Where page templates come from, and how numbers and names are written in them."""
    made = Environment(
        loader=PackageLoader("netloupe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "number": words.number,
        "percent": words.percent,
        "readable": words.readable,
        "path": words.breakable,
    }
    return made


def fill(template: Template, **values: Any) -> str:
    """A page with the style and the script that all pages share, and the script's digest for its security policy."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return template.render(style=Markup(_asset("style.css")), script=Markup(script), script_hash=digest, **values)


def _asset(name: str) -> str:
    return files("netloupe.report").joinpath("templates", name).read_text(encoding="utf-8")


def _site(inspection: Inspection, gallery: Gallery, index: int) -> SiteView:
    info = inspection.sites[index]
    asked = inspection.at(info.name)
    fractions = [a.finding.summary().get("active_fraction") for a in asked if a.finding is not None]
    values = _basics(inspection, info.name)
    quantiles = inspection.observation.result(info.name, "quantiles")
    return SiteView(
        f"site-{index}",
        info,
        shape_of(info),
        [(name, words.number(values[name]), meaning) for name, meaning in BASIC.items()],
        next((value for value in fractions if value is not None), None),
        zero_share(quantiles),
        histogram(quantiles),
        [answer(one, f"s{index}-{number}", gallery, info) for number, one in enumerate(asked)],
        gallery.at(info),
    )


def _whole(inspection: Inspection) -> list[Answer]:
    """What lenses said that ask the network itself; refusals stand with the lenses."""
    asked = [one for one in inspection.at(NETWORK) if one.finding is not None]
    return [answer(one, f"n{number}") for number, one in enumerate(asked)]


def shape_of(info: SiteInfo) -> str:
    """``8\u00d78 \u00b7 16`` for a map of sixteen channels, ``64`` for a vector: positions, then units."""
    places = "\u00d7".join(map(str, info.position_shape)) if info.n_positions > 1 else ""
    return f"{places} \u00b7 {info.n_units}" if places else str(info.n_units)


def _basics(inspection: Inspection, site: str) -> dict[str, float]:
    found = inspection.observation.result(site, "moments")
    return {
        "mean": float(found.mean.mean()),
        "std": float(np.sqrt(found.variance.mean() + found.mean.var())),
        "min": float(found.minimum.min()),
        "max": float(found.maximum.max()),
    }


def answer(asked: Asked, key: str, gallery: Gallery | None = None, info: SiteInfo | None = None) -> Answer:
    """What one lens said, as a page shows it; ``key`` makes its figure's ids its own."""
    if asked.finding is None:
        return Answer(asked.lens.name, asked.lens.question, "", [], None, asked.refusal, [])
    rows = [
        (words.readable(name), words.number(value), asked.finding.meanings.get(name, ""))
        for name, value in asked.finding.summary().items()
    ]
    own_words = type(asked.finding).paragraph is not Finding.paragraph  # else it would only repeat the rows
    paragraph = asked.finding.paragraph() if own_words else ""
    places = []
    if gallery is not None and info is not None:
        places = [
            (p.unit, gallery.example(info, p.value, p.sample, p.position)) for p in asked.finding.places()[:PLACES]
        ]
    figure = finding_figure(asked.finding, key)
    return Answer(asked.lens.name, asked.lens.question, paragraph, rows, figure, "", places)


def _columns(inspection: Inspection) -> list[Column]:
    """What every site has, then every number of every lens that looks at one site."""
    names = [site.name for site in inspection.sites]
    basics = [_basics(inspection, name) for name in names]
    table: dict[tuple[str, str], list[float | None]] = {
        ("values", name): [found[name] for found in basics] for name in BASIC
    }
    titles = {("values", name): meaning for name, meaning in BASIC.items()}
    place = {name: index for index, name in enumerate(names)}
    for asked in inspection.answers:
        if asked.finding is None or asked.other is not None or asked.site not in place:
            continue
        for name, value in asked.finding.summary().items():
            key = (asked.lens.name, name)
            titles[key] = asked.finding.meanings.get(name, "")
            cells = table.setdefault(key, [None] * len(names))
            cells[place[asked.site]] = float(value) if np.isfinite(value) else None
    return [Column(name, titles[lens, name], lens, words.column(v), v) for (lens, name), v in table.items()]


def _spans(columns: list[Column]) -> list[tuple[str, int]]:
    """Over how many columns each lens reaches."""
    return [(lens, len(list(members))) for lens, members in groupby(columns, key=lambda column: column.lens)]


def grouped(sites: list[SiteView]) -> list[tuple[str, list[tuple[str, SiteView]]]]:
    """Consecutive sites of one block together: the block's path, then what is left of each name."""
    names = [site.info.name for site in sites]
    rows: list[tuple[str, list[tuple[str, SiteView]]]] = []
    for site in sites:
        block = _block(site.info.name, names)
        rest = site.info.name[len(block) :].lstrip(".") if block else site.info.name
        if not rows or rows[-1][0] != block:
            rows.append((block, []))
        rows[-1][1].append((rest or "output", site))
    return rows


def _block(name: str, names: list[str]) -> str:
    """The path up to the first numbered part that holds others, else the first part where it holds others."""
    parts = re.split(r"[:#]", name, maxsplit=1)[0].split(".")
    numbered = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    for length in ([] if numbered is None else [numbered + 1]) + [1]:
        path = ".".join(parts[:length])
        if any(other.startswith(f"{path}.") for other in names):
            return path
    return ""


def _meanings(inspection: Inspection) -> dict[str, dict[str, str]]:
    """Every number of every lens that answered, with what it means; those common to all sites first."""
    found: dict[str, dict[str, str]] = {"every site": BASIC}
    for asked in inspection.answers:
        if asked.finding is not None:
            found.setdefault(asked.lens.name, asked.finding.meanings)
    return {lens: {words.readable(name): text for name, text in said.items()} for lens, said in found.items()}


@dataclass(frozen=True)
class AskedLens:
    """What became of one lens: how often it answered, and its refusals with the sites of each."""

    name: str
    question: str
    answered: int
    refusals: dict[str, list[str]]


def _asked(inspection: Inspection) -> list[AskedLens]:
    found: dict[str, AskedLens] = {}
    for asked in inspection.answers:
        one = found.get(asked.lens.name, AskedLens(asked.lens.name, asked.lens.question, 0, {}))
        if asked.finding is not None:
            one = AskedLens(one.name, one.question, one.answered + 1, one.refusals)
        else:
            place = asked.site if asked.other is None else f"{asked.site} and {asked.other}"
            one.refusals.setdefault(asked.refusal, []).append(place)
        found[asked.lens.name] = one
    return list(found.values())


def _provenance(inspection: Inspection) -> list[tuple[str, str]]:
    """What was measured on what, with which versions: everything one needs to measure it again."""
    model, data = inspection.subject.identity, inspection.data.identity
    rows = [("network", inspection.subject.name)]
    rows += [(f"network {key}", _said(value)) for key, value in model.items() if key != "name"]
    rows += [("data", inspection.data.name)]
    rows += [(f"data {key}", _said(value)) for key, value in data.items() if key != "name"]
    rows += [("samples read", _said(inspection.n_samples)), ("seed", "0"), ("date", inspection.date)]
    rows += [("seconds", words.number(inspection.seconds))]
    rows += [("versions", ", ".join(f"{name} {version}" for name, version in inspection.versions.items()))]
    return rows


def _said(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}".replace(",", words.NARROW)
    return "\u00d7".join(map(str, value)) if isinstance(value, list) and all(isinstance(v, int) for v in value) else (
        ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    )  # fmt: skip


def command(inspection: Inspection) -> str:
    """The command line that makes this report again."""
    given = ["netloupe", "inspect", inspection.subject.name, inspection.data.name]
    return shlex.join([*given, "--samples", str(inspection.n_samples)])
