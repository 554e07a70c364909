"""The report as a file: complete, safe, self-contained, and there for every odd network."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from report_subjects import HOSTILE, SECTIONS, Page, array_inspection, rendered, subject_of
from torch import nn

from netloupe.core.errors import StoreError
from netloupe.core.store import Store
from netloupe.lenses.similarity.cka import cka
from netloupe.report.examples import Gallery
from netloupe.report.html import PLACES, _site, command, grouped, render, safe, write_report
from netloupe.report.inspection import NETWORK, Inspection, inspect
from netloupe.subjects import Data, Shown


class Silent(nn.Module):
    """A site whose every value is zero, between two that vary."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.silence, self.head = nn.Linear(4, 6), nn.Threshold(1e9, 0.0), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.head(y + self.silence(y))


def check(inspection: Inspection) -> Page:
    """What must hold for any report."""
    page = Page(rendered(inspection))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    assert {f"site-{index}" for index in range(len(inspection.sites))} <= set(ids)
    assert all(href[1:] in ids for href in page.values("href", "a"))
    assert page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for value in page.values("href", "link") + page.values("src"))
    text = " ".join(page.text)
    assert "nan" not in re.findall(r"[a-z]+", text.lower())
    return page


@pytest.mark.parametrize("which", ["digits", "text"])
def test_whole_page(which: str, request: pytest.FixtureRequest) -> None:
    inspection = request.getfixturevalue(which)
    page = check(inspection)
    rows = page.values("data-v", "th")
    assert rows == [str(index) for index in range(len(inspection.sites))]
    assert len(rendered(inspection).encode()) < 5_000_000


def test_nothing_is_loaded_from_elsewhere(digits: Inspection) -> None:
    html = rendered(digits)
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html
    assert set(re.findall(r"url\(([^):]*)", html)) <= {"data", *re.findall(r"url\((#[\w-]+)\)", html)}


def test_pictures_with_the_maximum_marked(digits: Inspection) -> None:
    page = check(digits)
    thumbs = [value for value in page.values("class", "span") if value.startswith("thumb ")]
    rests = [
        asked.finding.places()[:PLACES] for site in digits.sites for asked in digits.at(site.name) if asked.finding
    ]
    wanted = 6 * 6 * len(digits.sites) + sum(map(len, rests))
    assert len(thumbs) == wanted, "six units of six samples, and the activations that answers rest on"
    assert sum(map(len, rests)) >= PLACES * len(digits.sites), "the largest scalars among them"
    labels = page.values("aria-label", "span")
    assert any(re.fullmatch(r"sample \d+, class \d, row \d, column \d", label) for label in labels)


def test_text_with_the_strong_token_marked(text: Inspection) -> None:
    html = rendered(text)
    found = text.observation.result("encoder.layer.1.intermediate", "top")
    info = next(site for site in text.sites if site.name == "encoder.layer.1.intermediate")
    assert info.n_positions > 1
    shown = Gallery(text).at(info)[0]
    for rank, example in enumerate(shown.examples):
        sample, position = int(found.samples[shown.unit, rank]), int(found.positions[shown.unit, rank])
        assert text.data.show is not None
        tokens = text.data.show(sample).tokens
        assert tokens is not None
        strong = [token.text for token in example.tokens if token.strong]
        assert strong == [tokens[position].removeprefix("##")]
    assert "<mark>" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "neted" in html  # a continuing piece follows without a space


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("<img src=x onerror=alert(1)>", nn.Linear(3, 4))
    model.add_module('"><svg onload=alert(2)>', nn.ReLU())
    inputs = torch.randn(20, 3)
    data = Data(
        "</style>" + HOSTILE, [(inputs, torch.arange(20) % 2)], "other", 20, torch.arange(20) % 2, None,
        lambda i: Shown(caption=f"{HOSTILE} {i}"), {"name": "x", "digest<b>": "'\"<b>"},
    )  # fmt: skip
    inspection = inspect(subject_of(model, HOSTILE), data, cache=tmp_path)
    page = check(inspection)
    assert "img" not in page.tags
    assert not [value for _, name, value in page.attributes if name == "src"]
    assert any("digest<b>" in piece for piece in page.text)
    assert any(HOSTILE in piece for piece in page.text)
    path = write_report(inspection, tmp_path / "out")
    assert path.parent == tmp_path / "out"
    assert re.fullmatch(r"[A-Za-z0-9._-]+\.html", path.name)


def test_without_labels_says_what_is_missing(tmp_path: Path) -> None:
    page = check(array_inspection(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(30, 4), tmp_path))
    assert any("needs labels" in piece for piece in page.text)


def test_one_site(tmp_path: Path) -> None:
    page = check(array_inspection(nn.Linear(4, 3), torch.randn(30, 4), tmp_path, sites=["."]))
    assert any("nothing to compare" in piece for piece in page.text)
    assert "heat" not in page.values("class", "svg")


def test_dead_site(tmp_path: Path) -> None:
    page = check(array_inspection(Silent(), torch.randn(30, 4), tmp_path))
    text = " ".join(page.text)
    assert "every value is exactly zero" in text
    assert "Every unit is always zero" in text
    assert "6 of 6" in text


def test_one_unit_and_one_sample(tmp_path: Path) -> None:
    check(array_inspection(nn.Sequential(nn.Linear(4, 1), nn.Tanh()), torch.randn(30, 4), tmp_path / "unit"))
    page = check(array_inspection(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), torch.randn(1, 4), tmp_path / "sample"))
    assert any("No unit varies" in piece for piece in page.text)


def test_huge_and_tiny_values(tmp_path: Path) -> None:
    first, second = nn.Linear(4, 5), nn.Linear(5, 5)
    with torch.no_grad():
        first.weight *= 1e20
        second.weight *= 1e-30
        second.bias.zero_()
    check(array_inspection(nn.Sequential(first, second), torch.randn(30, 4), tmp_path))


def test_cells_are_the_numbers_of_the_findings(digits: Inspection) -> None:
    page = check(digits)
    shown = {float(value) for value in page.values("data-v", "td")}
    wanted = {
        float(value)
        for asked in digits.answers
        if asked.finding is not None and asked.other is None and asked.site != NETWORK
        for value in asked.finding.summary().values()
    }
    assert wanted <= shown
    means = {float(digits.observation.result(site.name, "moments").mean.mean()) for site in digits.sites}
    assert means <= shown


def test_same_inspection_gives_the_same_file(digits: Inspection) -> None:
    assert render(digits) == rendered(digits)


def test_every_number_has_its_meaning(digits: Inspection) -> None:
    text = " ".join(" ".join(Page(rendered(digits)).text).split())
    for asked in digits.answers:
        if asked.finding is not None:
            assert all(meaning in text for meaning in asked.finding.meanings.values())


def test_file_is_there_whole_or_not_at_all(digits: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(digits, tmp_path)
    assert path.name == "digits-cnn-digits.html"
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_report(replace(digits, n_samples=7), tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_folder_that_cannot_be_is_one_sentence(digits: Inspection, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="choose another folder") as caught:
        write_report(digits, tmp_path / "file" / "reports")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("minilm", "minilm"),
        ("../../etc/x", "x"),
        ("data/my set/", "my-set"),
        ("a b:c@d.pt", "a-b-c-d.pt"),
        ("...", "unnamed"),
    ],
)
def test_safe_file_names(name: str, wanted: str) -> None:
    assert safe(name) == wanted
    assert len(safe(name * 50)) <= 80


def test_command_line_is_quoted(digits: Inspection) -> None:
    odd = replace(digits, data=replace(digits.data, name="my file.npz; rm"))
    assert command(odd) == "netloupe inspect digits-cnn 'my file.npz; rm' --samples 80"


def test_blocks_keep_the_order_of_sites(text: Inspection) -> None:
    sites = [_site(text, Gallery(text), index) for index in range(len(text.sites))]
    rows = grouped(sites)
    assert [site.id for _, members in rows for _, site in members] == [site.id for site in sites]
    names = dict(rows)
    assert {"embeddings", "encoder.layer.0", "encoder.layer.1"} <= set(names)
    assert [rest for rest, _ in names["encoder.layer.0"]][-1] == "output"


def test_similarity_numbers_are_those_of_the_findings(digits: Inspection) -> None:
    titles = set(re.findall(r"<title>(\w+) and (\w+): (-?[\d.]+)</title>", rendered(digits)))
    table = digits.similarity()
    for i, one in enumerate(digits.compared):
        for j, two in enumerate(digits.compared):
            assert (one, two, f"{table[i, j]:.3f}") in titles
    assert np.allclose(table, table.T)


class Clock(nn.Module):
    """A site that differs between positions, but never between samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.clock = nn.Linear(3, 4), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return y + self.clock(torch.arange(5.0)[None, :, None].expand(len(x), 5, 4).contiguous())


def test_similarity_of_many_is_that_of_each_pair(digits: Inspection, tmp_path: Path) -> None:
    store = Store(digits.store)
    pairs = [asked for asked in digits.answers if asked.lens.function is cka]
    assert len(pairs) == len(digits.compared) * (len(digits.compared) - 1) // 2
    for asked in pairs[::7]:
        assert asked.other is not None
        assert asked.finding == cka(store[asked.site], store[asked.other])
        assert asked.finding is not None
        assert asked.finding.context.site == f"{asked.site} | {asked.other}"
    found = array_inspection(Clock(), torch.randn(20, 5, 3), tmp_path)
    refused = [asked for asked in found.answers if asked.lens.function is cka and asked.finding is None]
    assert refused
    assert all("clock" in (asked.site, asked.other) for asked in refused)
    assert all("same for every sample" in asked.refusal for asked in refused)
    assert any("not defined" in title for title in Page(rendered(found)).text)
