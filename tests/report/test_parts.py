"""Figures, words, examples and batches, each against what they must say."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from netloupe.core.sites import Layout, SiteInfo
from netloupe.core.statistics import Moments, Quantiles
from netloupe.lenses.activity.sparsity import sparsity
from netloupe.lenses.geometry.neural_collapse import neural_collapse
from netloupe.report import figures, words
from netloupe.report.batches import within_memory
from netloupe.report.examples import box, choose_units, excerpt, thumbnail, where

FINITE = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-9)


def as_float(text: str) -> float:
    return float(text.replace(words.MINUS, "-").replace(words.NARROW, ""))


@given(FINITE)
def test_number_reads_back(value: float) -> None:
    assert as_float(words.number(value)) == pytest.approx(value, rel=6e-3)


@given(st.lists(st.one_of(st.none(), FINITE), min_size=1, max_size=8))
def test_column_reads_back(values: list[float | None]) -> None:
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    for value, cell in zip(values, words.column(values), strict=True):
        if value is None:
            assert cell == "\u2013"
        else:
            assert as_float(cell) == pytest.approx(value, abs=0.006 * largest, rel=0.06)
            assert (as_float(cell) == 0) == (value == 0)


@given(st.floats(0, 1))
def test_percent_never_rounds_something_to_nothing(share: float) -> None:
    assert (words.percent(share) == f"0.0{words.NARROW}%") == (share == 0)
    assert (words.percent(share) == f"100{words.NARROW}%") == (share == 1)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 6))
def test_ticks_are_even_and_inside(low: float, width: float, wanted: int) -> None:
    found = np.array(words.ticks(low, low + width, wanted))
    assert len(found) <= wanted + 1
    slack = 1e-6 * max(width, abs(low))
    assert np.all((found >= low - slack) & (found <= low + width + slack))
    if len(found) > 2:
        assert np.allclose(np.diff(found), found[1] - found[0], rtol=1e-3)


def test_breakable_keeps_the_name_and_escapes_it() -> None:
    assert str(words.breakable("a.b_c")) == "a.<wbr>b_<wbr>c"
    assert str(words.breakable("<b>.x")) == "&lt;b&gt;.<wbr>x"


def bars(svg: str, kind: str) -> list[tuple[float, float]]:
    """Width and height of the rectangles of one class."""
    found = re.findall(rf'class="{kind}" x="[\d.]+" y="[\d.]+" width="([\d.]+)" height="([\d.]+)"', svg)
    return [(float(width), float(height)) for width, height in found]


def histogram_of(values: np.ndarray) -> str:
    return str(figures.histogram(Quantiles().update(values.astype(np.float32)).result()))


def test_histogram_shows_zeros_apart() -> None:
    values = np.linspace(1, 2, 1000)[:, None]
    svg = histogram_of(np.concatenate([values, np.zeros((500, 1))]))
    (_, well), (_, zero) = bars(svg, "well")[0], bars(svg, "zero")[0]
    assert zero / well == pytest.approx(1 / 3, abs=0.002)
    heights = np.array([height for _, height in bars(svg, "bar")])
    assert len(heights) == figures.N_BINS
    assert heights.std() / heights.mean() < 0.1  # evenly spread values make a level histogram


def test_histogram_bars_are_shares() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20000, 1))
    heights = np.array([height for _, height in bars(histogram_of(values), "bar")])
    assert not bars(histogram_of(values), "zero")
    middle = len(heights) // 2
    near_zero = heights[middle - 3 : middle + 3].sum() / heights.sum()
    low, high = np.quantile(values, [figures.TAIL, 1 - figures.TAIL])
    width = (high - low) / figures.N_BINS
    centre = (low + high) / 2
    wanted = np.mean((values > centre - 3 * width) & (values < centre + 3 * width))
    assert near_zero == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-5, 1e20, -1e-30])
def test_histogram_of_one_value(value: float) -> None:
    svg = histogram_of(np.full((10, 2), value))
    assert ("every value is exactly zero" in svg) == (value == 0)
    assert "nan" not in svg
    assert len(bars(svg, "zero")) == (value == 0)


def test_frequency_curve_is_thinned() -> None:
    svg = str(figures.frequency_curve(sparsity(torch.randn(50, 5000))))
    assert len(svg) < 8000
    assert "5000 units" in svg


def test_heat_map_leaves_out_what_is_not_defined() -> None:
    svg = str(figures.heat_map(np.array([[1, np.nan], [np.nan, 1]]), ["a", "<b>"]))
    assert svg.count("unknown") == 2
    assert "<b>" not in svg
    assert "not defined" in svg


def test_drawn_figures_share_no_id_and_take_the_pages_colours() -> None:
    labels = torch.arange(60) % 3
    finding = neural_collapse(torch.randn(60, 8) + 3 * nn.functional.one_hot(labels, 8), labels)
    one, two = (str(figures.drawn(finding, key)) for key in ("s0-1", "s1-1"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= own
        assert "xmlns" not in svg
        assert "http" not in svg
        assert figures.INK not in svg
        assert "currentColor" in svg


def test_short_names_keep_their_end() -> None:
    assert figures.short("encoder.layer.0") == "encoder.layer.0"
    assert figures.short("model.encoder.layer.11.attention.output") == "\u2026layer.11.attention.output"
    assert figures.short("x" * 100) == "\u2026" + "x" * 31


def test_units_that_stand_out_come_first_and_dead_ones_never() -> None:
    values = torch.rand(200, 6)
    values[:, 2] = 0
    values[17, 4] = 50
    chosen, contrast = choose_units(Moments().update(values).result(), 6)
    assert chosen[0] == 4
    assert 2 not in chosen
    assert contrast[4] == pytest.approx(float((50 - values[:, 4].mean()) / values[:, 4].std(unbiased=False)), rel=1e-5)
    assert choose_units(Moments().update(torch.zeros(5, 3)).result(), 6) == ([], {})


@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=60), st.data())
def test_excerpt_holds_the_strong_token(tokens: list[str], data: st.DataObject) -> None:
    strong = data.draw(st.integers(0, len(tokens) - 1))
    shown, before, after = excerpt(tokens, strong)
    assert [token.strong for token in shown].count(True) == 1
    assert len(shown) <= 15
    assert (before or after) == (len(shown) < len(tokens))


def info(position_shape: tuple[int, ...]) -> SiteInfo:
    n = int(np.prod(position_shape)) if position_shape else 1
    return SiteInfo("x", "Conv2d", (n, 3) if n > 1 else (3,), position_shape, "float32", Layout(0, 1))


def test_positions_of_a_map() -> None:
    assert where(info((2, 4)), 6) == "row 1, column 2"
    assert box(info((2, 4)), 6) == (50, 50, 25, 50)
    assert box(info((8,)), 3) is None
    assert where(info((8,)), 3) == "position 3"
    assert where(info(()), 0) == ""


def test_small_pictures_are_kept_exactly() -> None:
    from PIL import Image

    for shape in [(8, 8), (8, 6, 3)]:
        pixels = np.random.default_rng(0).integers(0, 256, shape) / 255
        kind, _, coded = thumbnail(pixels).partition(",")
        assert kind == "data:image/png;base64"
        read = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))))
        assert np.array_equal(read, (pixels * 255).round())
    large = thumbnail(np.random.default_rng(0).random((300, 200, 3)))
    assert large.startswith("data:image/jpeg;base64,")
    assert max(Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))).size) == 56


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 2000), st.sampled_from(["tensor", "pair", "mapping"]))
def test_cut_batches_are_the_same_samples(n: int, batch: int, held: int, form: str) -> None:
    inputs, labels = torch.randn(n, 5), torch.arange(n)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
    parts = [slice(start, start + batch) for start in range(0, n, batch)]
    assume(parts)
    raw = {
        "tensor": [inputs[rows] for rows in parts],
        "pair": [(inputs[rows], labels[rows]) for rows in parts],
        "mapping": [{"input": inputs[rows], "labels": labels[rows]} for rows in parts],
    }[form]
    cut = within_memory(raw, model, None, held)
    for _ in range(2):  # it can be read again
        found = list(cut)
        read = [one["input"] if form == "mapping" else one[0] if form == "pair" else one for one in found]
        assert torch.equal(torch.cat(read), inputs)
        assert max(map(len, read)) <= max(2, held // (14 * 4))
        if form != "tensor":
            names = [one["labels"] if form == "mapping" else one[1] for one in found]
            assert torch.equal(torch.cat(names), labels)


def test_characters_stand_together_and_words_apart() -> None:
    sentence = "the quick brown fox jumps over the lazy dog and goes home"
    letters, before, after = excerpt(list(sentence), 31)
    assert "".join(token.text for token in letters) == sentence[9 : 31 + 23]
    assert (before, after) == (True, True)
    assert not any(token.space for token in letters)
    assert [token.text for token in letters if token.strong] == ["t"]
    words, _, _ = excerpt(["the", "quick", "fox"], 1)
    assert all(token.space for token in words)
