"""Two networks or recordings compared: units found again, pages whole, samples checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from comparison_networks import ORDER
from report_subjects import Page

from netloupe.core.errors import InputError, StoreError
from netloupe.core.recording import record
from netloupe.report.compare_page import command, render, write_comparison
from netloupe.report.comparison import Comparison, compare
from netloupe.subjects import load_data, load_model

NETWORKS = "comparison_networks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def twins(folder: Path) -> Comparison:
    return compare(f"{NETWORKS}:plain", f"{NETWORKS}:shuffled", "digits", n_samples=300, cache=folder)


def test_a_network_with_its_units_in_another_order_is_found_again_unit_by_unit(twins: Comparison):
    for name in twins.map.measures:
        table = twins.map.of(name)
        at = twins.map.sites_a.index("act1"), twins.map.sites_b.index("act1")
        assert table[at] == pytest.approx(1, abs=1e-6), name
    pair = next(one for one in twins.pairs if one.site_a == "act1")
    assert pair.site_b == "act1"
    assert pair.units is not None
    live = {a: b for a, b, score in pair.units.matched if score > 0.999}
    assert len(live) >= 20
    assert all(int(ORDER[b]) == a for a, b in live.items())
    assert pair.units.alone_a == () == pair.units.alone_b


def test_recordings_give_what_networks_give(twins: Comparison, folder: Path):
    for name in ("plain", "shuffled"):
        subject = load_model(f"{NETWORKS}:{name}")
        record(subject.model, load_data("digits", subject, 300).batches, to=folder / name, pool="mean")
    stores = compare(str(folder / "plain"), str(folder / "shuffled"))
    mixed = compare(f"{NETWORKS}:plain", str(folder / "shuffled"), "digits", cache=folder)
    assert stores.n_samples == mixed.n_samples == 300
    for other in (stores, mixed):
        assert other.map.sites_a == twins.map.sites_a
        np.testing.assert_allclose(other.map.values, twins.map.values, atol=1e-5)
        assert [p.units.matched[0][:2] for p in other.pairs if p.units] == [
            p.units.matched[0][:2] for p in twins.pairs if p.units
        ]
    assert "sample 1" in render(stores)
    assert "digits" in command(mixed)
    assert "--samples" not in command(stores)


def test_other_architectures_and_unpooled_recordings(folder: Path):
    found = compare(f"{NETWORKS}:plain", "netloupe.models.small:DigitsCNN", "digits", n_samples=120, cache=folder)
    assert len(found.map.sites_b) > len(found.map.sites_a)
    check(found)
    subject = load_model("netloupe.models.small:DigitsCNN")
    store = record(subject.model, load_data("digits", subject, 120).batches, "relu*", to=folder / "maps")
    assert len(store["relu1"].shape) == 3
    unpooled = compare(str(folder / "maps"), f"{NETWORKS}:plain", "digits", cache=folder)
    same = compare("netloupe.models.small:DigitsCNN", f"{NETWORKS}:plain", "digits", n_samples=120, cache=folder)
    assert unpooled.map.sites_a == ("relu1", "relu2")
    check(unpooled)
    assert same.n_samples == 120


def check(found: Comparison) -> Page:
    text = render(found)
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {"overview", "map", "table", "units", "provenance"} <= set(ids)
    assert all(href[1:] in ids for href in page.values("href", "a"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for value in page.values("href", "link") + page.values("src"))
    assert "nan" not in re.findall(r"[a-z]+", " ".join(page.text).lower())
    json.dumps(found.document(), allow_nan=False)
    return page


def test_the_page_and_the_document_are_whole(twins: Comparison, tmp_path: Path):
    page = check(twins)
    said = " ".join(page.text)
    assert "Which sites are alike?" in said
    assert "unit_matching" in said
    assert "Which features are one inside each network?" in said
    assert [row["network"] for row in twins.document()["merging"]] == [twins.a.name, twins.b.name]
    assert twins.document()["merging"][0]["summary"] == twins.document()["merging"][1]["summary"], (
        "the order of units is none"
    )
    path = write_comparison(twins, tmp_path)
    assert path.stat().st_size < 3_000_000
    document = twins.document()
    row = next(one for one in document["similarity"] if one["site_a"] == one["site_b"] == "act1")
    assert row["cka"]["low"] <= row["cka"]["value"] <= row["cka"]["high"] + 1e-9
    assert set(row["svcca"]) == {"value", "low", "high", "chance", "ceiling"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="could not be written"):
        write_comparison(twins, tmp_path / "file")


def test_further_lenses_are_asked_of_every_pair(folder: Path):
    found = compare(
        f"{NETWORKS}:plain", f"{NETWORKS}:moved", "digits", sites=("act1", "head"), lenses=("encoding",), measures=("rsa",),
        n_samples=90, cache=folder,
    )  # fmt: skip
    assert [asked.place for asked in found.more] == ["act1 | act1", "act1 | head", "head | act1", "head | head"]
    assert all(asked.finding is not None for asked in found.more)
    assert "encoding" in " ".join(check(found).text)
    assert found.map.measures == ("rsa",)


def test_bad_input_is_one_sentence(folder: Path):
    record(
        load_model(f"{NETWORKS}:plain").model,
        load_data("digits", load_model(f"{NETWORKS}:plain"), 50).batches,
        to=folder / "short",
    )
    cases = [
        (lambda: compare(str(folder / "plain"), str(folder / "short")), "300 samples and .* 50"),
        (lambda: compare(str(folder / "plain"), str(folder / "shuffled"), lenses=("sparsity",)), "looks at one site"),
        (lambda: compare(str(folder / "plain"), str(folder / "shuffled"), sites=("nothing*",)), "no site of"),
        (lambda: compare(str(folder / "plain"), str(folder / "shuffled"), measures=("ckaa",)), "expected some of cka"),
        (lambda: compare(f"{NETWORKS}:constant", f"{NETWORKS}:plain", "digits", sites=("*head",), n_samples=20, cache=folder), "varies"),
    ]  # fmt: skip
    for ask, sentence in cases:
        with pytest.raises(InputError, match=sentence) as raised:
            ask()
        assert "\n" not in str(raised.value)
