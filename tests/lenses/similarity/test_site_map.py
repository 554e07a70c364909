"""Two networks site by site: beside the single lenses, a plain bootstrap, and what must hold."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.rows import as_rows
from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.lenses.similarity import site_moments
from netloupe.lenses.similarity.cka import cka
from netloupe.lenses.similarity.rsa import rsa
from netloupe.lenses.similarity.site_map import MEASURES, SiteMap, site_map
from netloupe.lenses.similarity.site_moments import aligned_sides, between
from netloupe.lenses.similarity.subspace import cca, procrustes


def networks(seed: int, n: int = 400, noise: float = 1.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two pairs of sites: the first pair shares six directions, the second is the first turned."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 6)) @ np.diag([3, 2, 2, 1, 1, 1])
    a = shared @ rng.standard_normal((6, 14)) + noise * rng.standard_normal((n, 14))
    b = shared @ rng.standard_normal((6, 9)) + noise * rng.standard_normal((n, 9))
    turn = np.linalg.qr(rng.standard_normal((14, 14)))[0]
    return {"a1": a, "a2": rng.standard_normal((n, 8))}, {"b1": b, "b2": 2 * a @ turn + 30}


@pytest.fixture(scope="module")
def found() -> SiteMap:
    return site_map(*networks(0))


def test_values_are_those_of_the_single_lenses(found: SiteMap):
    one, two = networks(0)
    for i, a in enumerate(one.values()):
        for j, b in enumerate(two.values()):
            assert found.of("cka")[i, j] == pytest.approx(cka(a, b).debiased, abs=1e-9)
            assert found.of("svcca")[i, j] == pytest.approx(cca(a, b).mean, abs=1e-9)
            assert found.of("procrustes")[i, j] == pytest.approx(procrustes(a, b).similarity, abs=1e-9)
            assert found.of("rsa")[i, j] == pytest.approx(rsa(a, b).correlation, abs=1e-5)


def test_a_turned_copy_is_the_same_and_noise_is_at_chance(found: SiteMap):
    for name in MEASURES:
        at = found.measures.index(name)
        assert found.of(name)[0, 1] == pytest.approx(1, abs=1e-5), name
        assert found.low[at, 0, 1] == pytest.approx(1, abs=1e-4)
        nothing = found.of(name)[1]
        assert np.abs(nothing - found.chance[at, 1]).max() < 0.08, name
        assert found.of(name)[0, 0] > found.chance[at, 0, 0] + 0.1
    assert found.best()[0][:2] == ("a1", "b2")
    assert set(found.summary()) == set(MEASURES)


@pytest.mark.parametrize("measure", ["cka", "svcca", "procrustes"])
def test_intervals_are_those_of_a_plain_bootstrap(measure: str):
    one, two = networks(3, n=500)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(150):
        rows = rng.integers(0, 500, 500)
        sides = aligned_sides({"a": one["a1"][rows]}, {"b": two["b1"][rows]}, 0)
        a, b = sides[0][0], sides[1][0]
        drawn.append(between(a, b, measure, a.cross(b)).value)
    made = site_map(one, two, [measure])
    width = (made.high - made.low)[0, 0, 0]
    assert width == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.3)


@pytest.mark.parametrize("measure", ["rsa", "trsa"])
def test_pair_intervals_hold_the_truth_of_a_larger_sample(measure: str):
    many = site_map(*networks(5, n=1000), [measure]).values[0, 0, 0]
    inside = 0
    for seed in range(12):
        one, two = networks(5, n=1000)
        rows = np.random.default_rng(seed).choice(1000, 150, replace=False)
        made = site_map({"a": one["a1"][rows]}, {"b": two["b1"][rows]}, [measure], n_draws=60)
        inside += bool(made.low[0, 0, 0] - 0.02 <= many <= made.high[0, 0, 0] + 0.02)
    assert inside >= 9


def test_ceilings_are_halves_of_units_and_bound_what_can_be_expected():
    one, two = networks(1, noise=0.1)
    clean = site_map(one, two)
    noisy = site_map(*networks(1, noise=6.0))
    for name in MEASURES:
        at = clean.measures.index(name)
        assert clean.ceilings_a[at, 0] > noisy.ceilings_a[at, 0] + 0.2, name
        assert np.isnan(clean.ceiling(name)).sum() == 0


def test_more_units_than_samples_is_turned_not_refused():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 300)) + 0.01 * rng.standard_normal((40, 300))
    other = wide[:, :4] + rng.standard_normal((40, 4))
    made = site_map({"wide": wide}, {"other": other})
    assert made.of("cka")[0, 0] == pytest.approx(cka(wide, other).debiased, abs=1e-8)
    assert made.of("procrustes")[0, 0] == pytest.approx(procrustes(wide, other).similarity, abs=1e-8)
    assert made.of("rsa")[0, 0] == pytest.approx(rsa(wide, other).correlation, abs=1e-5)


def test_stores_give_what_memory_gives_and_a_finding_is_saved_and_drawn(found: SiteMap, tmp_path: Path):
    one, two = networks(0)
    stores = []
    for name, sites in (("a", one), ("b", two)):
        with StoreWriter(tmp_path / name, {k: SiteSpec.like(v) for k, v in sites.items()}, rows_per_shard=64) as writer:
            writer.append(sites)
        stores.append(Store(tmp_path / name))
    again = site_map(*({site: store[site] for site in store.sites} for store in stores))
    np.testing.assert_allclose(again.values, found.values, atol=1e-6)
    assert Finding.load(found.save(tmp_path / "map")) == found
    figure, axes = plt.subplots()
    found.plot(axes)
    figure.canvas.draw()
    plt.close(figure)
    assert "CKA" in found.paragraph()


def test_sites_that_are_kept_and_sites_that_are_read_again_go_together(monkeypatch: pytest.MonkeyPatch):
    """A narrow site stays in memory, a wide one is read in blocks for every pair, one with more units than samples is turned."""
    rng = np.random.default_rng(0)
    narrow, wide, widest = (rng.standard_normal((300, d)) for d in (4, 40, 700))
    wide[:, :4] += 2 * narrow
    whole = site_map({"narrow": narrow, "wide": wide}, {"wide": wide, "widest": widest})
    monkeypatch.setattr(site_moments, "_KEPT_BYTES", 300 * 4 * 8)
    monkeypatch.setattr(site_moments, "as_rows", partial(as_rows, batch_size=64))
    pieces = site_map({"narrow": narrow, "wide": wide}, {"wide": wide, "widest": widest})
    for name in ("values", "low", "high", "ceilings_a", "ceilings_b"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-6, err_msg=name)


def test_four_samples_have_an_interval():
    x = np.random.default_rng(1).standard_normal((4, 3))
    made = site_map({"x": x}, {"y": x + 0.1}, ["rsa"], n_draws=400)
    assert np.isfinite([made.low[0, 0, 0], made.high[0, 0, 0]]).all()


def test_sites_without_an_answer_are_named_and_the_rest_answered():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5))
    made = site_map(
        {"x": x, "flat": np.ones((60, 3)), "one": x[:, :1]}, {"y": x[:, ::-1], "many": rng.standard_normal((60, 400))}
    )
    assert made.of("cka")[0, 0] == pytest.approx(1)
    assert np.isnan(made.values[:, 1]).all()
    assert any("'flat' is the same for every sample" in sentence for sentence in made.refusals)
    assert any(sentence.startswith("RSA of flat: ") for sentence in made.refusals)
    assert any("by counting alone" in sentence and "many" in sentence for sentence in made.refusals)
    assert np.isnan(made.ceilings_a[0, 2])
    assert len(made.best()) == 2


@pytest.mark.parametrize(
    ("sites", "measures", "sentence"),
    [
        (({"x": np.ones((9, 2))}, {"y": np.ones((8, 2))}), ["cka"], "9 at 'x' and 8 at 'y'"),
        (({"x": np.ones((9, 2))}, {}), ["cka"], "no sites"),
        (({"x": np.ones((9, 2))}, {"y": np.ones((9, 2))}, ), ["ckaa"], "expected some of cka"),
        (({"x": np.full((9, 2), np.nan)}, {"y": np.ones((9, 2))}), ["cka"], "nan at sample 0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(sites, measures, sentence: str):
    with pytest.raises(InputError, match=sentence):
        site_map(*sites, measures)
