"""Numbers and sentences of the report page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    from netloupe.report.inspection import Inspection

MINUS = "\u2212"
NARROW = "\u202f"


def number(value: float, digits: int = 3) -> str:
    """A number to read: so many significant digits, thousands apart, a real minus sign."""
    value = float(value)
    if not math.isfinite(value):
        return "\u2013"
    if value == 0:
        return "0"
    size = abs(value)
    if (size >= 1e6 and not value.is_integer()) or size >= 1e15 or size < 1e-3:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"
    elif value.is_integer():
        text = f"{int(value):,}".replace(",", NARROW)
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{value:,.{decimals}f}".replace(",", NARROW)
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", MINUS)


def percent(share: float) -> str:
    """A share as a percentage; what is not nothing never reads as 0 %."""
    if 0 < share < 0.0005:
        return f"<0.1{NARROW}%"
    if 0.9995 <= share < 1:
        return f">99.9{NARROW}%"
    return f"{100 * share:.3g}{NARROW}%" if share >= 0.0995 else f"{100 * share:.1f}{NARROW}%"


def column(values: Sequence[float | None]) -> list[str]:
    """A column of numbers with one number of decimals, so that they stand below each other; missing is a dash."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    largest = max((abs(value) for value in known), default=0.0)
    if largest >= 1e7 or 0 < largest < 1e-3:
        return ["\u2013" if value is None else number(value) for value in values]
    if largest >= 1000 or all(float(value).is_integer() for value in known):
        decimals = 0
    else:
        decimals = 1 if largest >= 10 else 2 if largest >= 1 else min(3 - math.floor(math.log10(largest)), 5)
    return [_aligned(value, decimals) for value in values]


def _aligned(value: float | None, decimals: int) -> str:
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value == 0:
        return "0"
    if abs(value) < 0.5 * 10**-decimals:
        return number(value, 2)
    return f"{value:,.{decimals}f}".replace(",", NARROW).replace("-", MINUS)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers between ``low`` and ``high``, about so many."""
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [float(f"{(first + index) * step:.12g}") for index in range(count)]


def readable(name: str) -> str:
    """``active_fraction`` as ``active fraction``."""
    return name.replace("_", " ")


def plural(count: int, word: str) -> str:
    """``1 site``, ``11 sites``, thousands apart."""
    return f"{number(count)} {word}" + ("" if count == 1 else "s")


def headlines(inspection: Inspection) -> list[Markup]:
    """What a reader should know first: per lens where its leading number is lowest and highest, dead units, change."""
    return [*_spans(inspection), *_dead(inspection), *_change(inspection)]


def breakable(name: str) -> Markup:
    """A path that may be broken after its dots and underscores, where a line is too short for it."""
    return Markup("<wbr>").join(re.findall(r"[^._]*[._]?", name)[:-1])


def _code(name: str) -> Markup:
    return Markup("<code>{}</code>").format(breakable(name))


def _spans(inspection: Inspection) -> list[Markup]:
    leading: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for asked in inspection.answers:
        if asked.finding is None or asked.other is not None:
            continue
        summary = asked.finding.summary()
        name = next(iter(asked.finding.meanings), None)
        if name in summary and math.isfinite(summary[name]):
            leading.setdefault((name, asked.finding.meanings[name]), []).append((summary[name], asked.site))
    said = []
    for (name, meaning), values in leading.items():
        (low, here), (high, there) = min(values), max(values)
        start = Markup("<b>{}</b> ({})").format(meaning[:1].upper() + meaning[1:], _code(name))
        if low == high:
            said.append(Markup("{}: {}{}.").format(start, number(low), _everywhere(values)))
        else:
            sentence = "{}: from {} at {} to {} at {}."
            said.append(Markup(sentence).format(start, number(low), _code(here), number(high), _code(there)))
    return said


def _everywhere(values: Sequence[tuple[float, str]]) -> Markup:
    return Markup(" at {}").format(_code(values[0][1])) if len(values) == 1 else Markup(" at every site")


def _dead(inspection: Inspection) -> list[Markup]:
    counted = []
    for asked in inspection.answers:
        known = asked.site in inspection.observation.infos
        if asked.finding is not None and asked.other is None and known and "dead_fraction" in asked.finding.meanings:
            width = inspection.observation.infos[asked.site].n_units
            counted.append((round(asked.finding.summary()["dead_fraction"] * width), asked.site, width))
    found = sorted((row for row in counted if row[0]), reverse=True)
    if not counted:
        return []
    if not found:
        return [Markup("<b>No dead units</b>: every unit of every site fires at least once in these samples.")]
    listed = Markup(", ").join(
        Markup("{} of {} at {}").format(number(n), number(of), _code(s)) for n, s, of in found[:4]
    )
    more = f" and at {plural(len(found) - 4, 'more site')}" if len(found) > 4 else ""
    return [Markup("<b>Units that never fire</b> in these samples: {}{}.").format(listed, more)]


def _change(inspection: Inspection) -> list[Markup]:
    names, table = inspection.compared, inspection.similarity()
    steps = np.diagonal(table, 1)
    if not np.isfinite(steps).any():
        return []
    at = int(np.nanargmin(steps))
    sentence = "<b>Largest step</b>: the arrangement of samples changes most from {} to {} (similarity {})."
    return [Markup(sentence).format(_code(names[at]), _code(names[at + 1]), number(float(steps[at])))]
