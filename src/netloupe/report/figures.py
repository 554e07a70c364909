"""Figures of the report page as inline SVG that takes its colours from the page, so that light and dark both fit.

Shapes carry classes (``bar``, ``line``, ``zero`` ...) that the page's style sheet colours; nothing refers to a file or
to the network. A finding's own ``plot`` is drawn by matplotlib and its colours are exchanged for the page's.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

from netloupe.core.finding import Finding
from netloupe.lenses.activity.sparsity import Sparsity
from netloupe.report.words import number, percent, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from netloupe.core.statistics import QuantilesResult

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 14, 40
N_BINS = 44
TAIL = 0.0005  # share of values that the histogram may leave out on either side
CURVE_POINTS = 240
MARGIN = 4.0  # pixels around a drawn figure
NUMBERED_CELLS = 12  # a heat map of at most so many sites has its numbers written in
INK, ACCENT, SECOND = "#000000", "#010203", "#040506"  # stand-ins that matplotlib draws with; exchanged afterwards
_IDS = re.compile(r'(\bid="|\burl\(#|href="#)')


@dataclasses.dataclass(frozen=True)
class Frame:
    """A plotting area and its scales."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = LEFT

    def across(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - RIGHT - self.left)

    def up(self, value: float) -> float:
        """Vertical place of a value."""
        return HEIGHT - BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - BOTTOM - TOP)

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[str]:
        """Grid, tick labels and axis labels."""
        floor = HEIGHT - BOTTOM
        parts = [f'<line class="axis" x1="{self.left:.1f}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>']
        for tick in y_ticks:
            place = self.up(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
            parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{place + 3.5:.1f}">{number(tick)}</text>')
        for tick in x_ticks:
            parts.append(f'<text class="tick mid" x="{self.across(tick):.1f}" y="{floor + 14}">{number(tick)}</text>')
        middle = (self.left + WIDTH - RIGHT) / 2
        parts.append(f'<text class="label mid" x="{middle:.1f}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
        high = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<text class="label mid" transform="translate(11 {high}) rotate(-90)">{escape(y_label)}</text>')
        return parts


def words_at(kind: str, x: float, y: float, words: str) -> str:
    """Text at a place of a figure."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def picture(
    parts: Sequence[str], title: str, width: float = WIDTH, height: float = HEIGHT, kind: str = "plot"
) -> Markup:
    """An SVG element that is read out as one image with ``title`` as its text."""
    size = f'width="{width:.0f}" height="{height:.0f}" ' if kind == "heat" else ""  # a map scrolls, it never shrinks
    return Markup(
        f'<svg class="{kind}" {size}viewBox="0 0 {width:.1f} {height:.1f}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def zero_share(found: QuantilesResult) -> float:
    """The share of values that are exactly zero."""
    return float(found.counts[found.values == 0].sum() / found.count)


def histogram(found: QuantilesResult) -> Markup:
    """How a site's values are distributed: bars between the far quantiles, exact zeros as a bar of their own.

    A bar's height is its share of all values. Where the values are all zero there is only the zero bar.
    """
    at_zero = found.values == 0
    zero = zero_share(found)
    rest = dataclasses.replace(
        found, values=found.values[~at_zero], lower=found.lower[~at_zero], upper=found.upper[~at_zero],
        counts=found.counts[~at_zero], count=int(found.counts[~at_zero].sum()),
    )  # fmt: skip
    if rest.count == 0:
        return _zero_only(zero)
    low, high = _range(rest)
    edges = np.linspace(low, high, N_BINS + 1)
    shares = rest.histogram(edges) / found.count
    frame = Frame((low, high), (0.0, float(shares.max()) * 1.06), LEFT + (46 if zero else 0))
    parts = frame.axes("activation", "share of values", ticks(low, high, 5), ticks(0.0, frame.y[1], 3))
    step = frame.across(edges[1]) - frame.across(edges[0])
    for start, share in zip(edges, shares, strict=False):
        if share > 0:
            top = min(frame.up(share), HEIGHT - BOTTOM - 0.6)
            said = f"{number(start)} to {number(start + edges[1] - edges[0])}: {percent(share)}"
            parts.append(
                f'<rect class="bar" x="{frame.across(start) + 0.4:.1f}" y="{top:.1f}" width="{step - 0.8:.1f}" '
                f'height="{HEIGHT - BOTTOM - top:.1f}"><title>{said}</title></rect>'
            )
    if zero:
        parts += _zero_bar(zero)
    left_out = 1 - zero - float(shares.sum())
    title = f"histogram of the values, {percent(zero)} of them exactly zero, from {number(low)} to {number(high)}"
    return picture(parts, title + (f"; {percent(left_out)} lie outside" if left_out > 1e-6 else ""))


def _range(rest: QuantilesResult) -> tuple[float, float]:
    """From the lowest to the highest value, without far tails; never empty."""
    low, high = (float(value) for value in rest.quantile(np.array([TAIL, 1 - TAIL])))
    if low > 0 and low < 0.2 * high:
        low = 0.0
    if high < 0 and high > 0.2 * low:
        high = 0.0
    if not high > low:
        reach = max(abs(high) * 0.5, 1e-6)
        return low - reach, high + reach
    if low != 0:
        low -= 1e-9 * (high - low)
    return low, high + (high - low) * 1e-9


def _zero_bar(share: float) -> list[str]:
    """The share of exact zeros on a scale of its own, from nothing to all."""
    floor = HEIGHT - BOTTOM
    tall = (floor - TOP) * share
    return [
        f'<rect class="well" x="{LEFT + 8}" y="{TOP}" width="20" height="{floor - TOP}"/>',
        f'<rect class="zero" x="{LEFT + 8}" y="{floor - tall:.1f}" width="20" height="{tall:.1f}">'
        f"<title>exactly zero: {percent(share)}</title></rect>",
        f'<text class="tick mid" x="{LEFT + 18}" y="{floor + 14}">0</text>',
        words_at("tick mid strong", LEFT + 18, max(floor - tall - 4, TOP + 9), percent(share)),
    ]


def _zero_only(share: float) -> Markup:
    parts = _zero_bar(share)
    parts.append(f'<text class="label" x="{LEFT + 48}" y="{HEIGHT / 2:g}">every value is exactly zero</text>')
    return picture(parts, "every value is exactly zero")


def frequency_curve(finding: Sparsity) -> Markup:
    """In what share of the rows each unit fires, busiest first; long curves are thinned to what a screen can show."""
    ordered = np.sort(finding.frequency)[::-1]
    n_units = len(ordered)
    chosen = np.unique(np.linspace(0, n_units - 1, min(n_units, CURVE_POINTS)).round().astype(int))
    frame = Frame((0.0, float(n_units)), (0.0, 1.05))
    places = [(frame.across(index), frame.across(index + 1), frame.up(float(ordered[index]))) for index in chosen]
    floor = frame.up(0)
    top = "".join(f"L{start:.1f} {place:.1f}" for start, _, place in places) + f"H{places[-1][1]:.1f}"
    if n_units <= CURVE_POINTS // 2:  # few units: each is a step
        top = "".join(f"L{start:.1f} {place:.1f}H{stop:.1f}" for start, stop, place in places)
    mean = frame.up(finding.active_fraction)
    parts = frame.axes("unit, busiest first", "share of rows it fires in", _unit_ticks(n_units), [0, 0.5, 1])
    parts += [
        f'<path class="area" d="M{frame.across(0):.1f} {floor:.1f}{top}V{floor:.1f}Z"/>',
        f'<path class="line" d="M{top[1:]}"/>',
        f'<line class="mean" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{mean:.1f}" y2="{mean:.1f}"/>',
        words_at("tick end second", WIDTH - RIGHT, mean - 4, f"mean {number(finding.active_fraction)}"),
    ]
    return picture(parts, f"firing frequency of {n_units} units, on average {number(finding.active_fraction)}")


def _unit_ticks(n_units: int) -> list[float]:
    return [tick for tick in ticks(0.0, float(n_units), 4) if float(tick).is_integer()]


def heat_map(
    values: Float[np.ndarray, "site site_other"],
    names: Sequence[str],
    others: Sequence[str] | None = None,
    notes: Sequence[Sequence[str]] | None = None,
) -> Markup:
    """Similarity of sites (rows) with sites (columns, the same ones by default): full colour is 1, none is 0 or below.

    Each cell tells its number, and its note where there are ``notes[row][column]``.
    """
    columns = names if others is None else others
    size = max(len(names), len(columns))
    cell = 34 if size <= NUMBERED_CELLS else 20
    margin = 8 + 6.3 * max(len(short(name)) for name in names)
    under = 6.3 * 0.72 * max(len(short(name)) for name in columns)
    floor = len(names) * cell
    parts: list[str] = []
    for row, name in enumerate(names):
        parts.append(words_at("name end", margin - 6, row * cell + cell / 2 + 3.5, short(name)))
        for column, other in enumerate(columns):
            note = "" if notes is None else notes[row][column]
            place = margin + column * cell, row * cell
            parts.append(_cell(values[row, column], f"{name} and {other}", note, *place, cell, size))
    for column, other in enumerate(columns):
        place = f"translate({margin + column * cell + cell / 2 + 3:.1f} {floor + 9}) rotate(-45)"
        parts.append(f'<text class="name end" transform="{place}">{escape(short(other))}</text>')
    same = f"{len(names)} sites, each with each" if others is None else f"{len(names)} sites with {len(columns)} sites"
    return picture(parts, f"similarity of {same}", margin + len(columns) * cell + 8, floor + under + 22, "heat")


def _cell(value: float, pair: str, note: str, x: float, y: float, side: float, size: int) -> str:
    known = bool(np.isfinite(value))
    said = f"{value:.3f}" if known else "not defined"
    text = f"{escape(pair)}: {said}{escape(note)}"
    strength = float(np.clip(value, 0, 1)) if known else 0.0
    look = f'class="cell" fill-opacity="{strength:.3f}"' if known else 'class="cell unknown"'
    shape = (
        f'<rect {look} x="{x:.1f}" y="{y:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}" rx="2">'
        f"<title>{text}</title></rect>"
    )
    if size > NUMBERED_CELLS or not known:
        return shape
    shade = "in on" if strength > 0.55 else "in"
    written = "1" if value > 0.995 else f"{value:.2f}".replace("0.", ".").replace("-", "\u2212")
    return (
        shape + f'<text class="{shade} mid" x="{x + side / 2 - 0.5:.1f}" y="{y + side / 2 + 3.5:.1f}">{written}</text>'
    )


def short(name: str, most: int = 32) -> str:
    """A site's name; of a long one the end, which tells more, cut at a dot where one is near."""
    if len(name) <= most:
        return name
    end = name[-(most - 1) :]
    dot = end.find(".")
    return "\u2026" + (end[dot + 1 :] if 0 <= dot < most // 2 else end)


def finding_figure(finding: Finding, key: str) -> Markup | None:
    """The figure of any finding; None where its class does not draw. ``key`` makes the figure's ids its own."""
    if isinstance(finding, Sparsity):
        return frequency_curve(finding)
    if type(finding).plot is Finding.plot:
        return None
    return drawn(finding, key)


def drawn(finding: Finding, key: str) -> Markup:
    """``finding.plot`` by matplotlib as SVG: transparent, text as text, ink and first two colours those of the page."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: dict[str, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": key, "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "axes.prop_cycle": cycler(color=[ACCENT, SECOND, "#7f8c8d", "#b0792a", "#7a5ea8"]),
    }  # fmt: skip
    with rc_context(settings):  # pyright: ignore[reportArgumentType]  # its keys are a closed list of strings
        figure = Figure(figsize=(4.8, 3.0))
        axes = figure.add_subplot()
        finding.plot(axes)
        _plain_ticks(axes)
        _fit(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(written.getvalue(), key, f"figure of {type(finding).__name__}")


def _fit(figure: Figure) -> None:
    """Moves the axes so that their labels fit: measured once, where matplotlib's own layout takes most of a figure's time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    size = figure.bbox.size
    boxes = [box for each in figure.axes if (box := each.get_tightbbox(renderer)) is not None]
    held = Bbox.union([each.get_position() for each in figure.axes])
    used = Bbox.union(boxes).transformed(figure.transFigure.inverted())
    pad = MARGIN / np.asarray(size)
    low = pad + np.subtract(held.min, used.min)
    high = 1 - pad - np.subtract(used.max, held.max)
    if not (high > low + 0.1).all():
        return  # labels that leave no room stay as they are
    scale = (high - low) / held.size
    for each in figure.axes:
        place = each.get_position()
        corner, extent = low + np.subtract(place.min, held.min) * scale, place.size * scale
        each.set_position((corner[0], corner[1], extent[0], extent[1]))


def _plain_ticks(axes: Axes) -> None:
    """Powers of ten as plain numbers, no small marks between: setting them as formulas takes most of a figure's time."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())


def themed(svg: str, key: str, title: str) -> Markup:
    """A matplotlib SVG fit for a page: no prologue, no namespaces, ids prefixed, colours left to the style sheet."""
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", inner, flags=re.DOTALL)
    inner = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", inner).replace("xlink:href", "href")
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", key)
    inner = _IDS.sub(lambda found: f"{found[1]}{prefix}-", inner)
    for given, wanted in ((INK, "currentColor"), (ACCENT, "var(--accent)"), (SECOND, "var(--second)")):
        inner = inner.replace(given, wanted)
    inner = re.sub(r"<text style=\"", '<text style="fill: currentColor; ', inner)
    inner = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", inner)
    return Markup(f'<svg class="drawn" viewBox="{box[1]}" role="img" aria-label="{escape(title)}">{inner}</svg>')
