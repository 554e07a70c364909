"""What every study must do, asked of every study that is found."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

import netloupe
from netloupe.core.errors import InputError
from netloupe.core.study import Bar, Claim, StudyResult, papers, run_study

IMPLEMENTED = [slug for slug, paper in papers().items() if paper.implemented]
VERDICTS = {"reproduced", "not reproduced", "not distinguishable", "not tested"}
every_study = pytest.mark.parametrize("slug", IMPLEMENTED)


@cache
def smoke(slug: str) -> StudyResult:
    return run_study(slug, "smoke", seed=0)


def test_the_list_of_papers():
    assert len(papers()) == 75
    assert {"lazy-neuron", "neural-collapse"} <= set(IMPLEMENTED)
    for paper in papers().values():
        assert paper.question.endswith("?")
        assert 1990 < paper.year < 2030
        assert paper.title
    folder = Path(netloupe.__file__).parent / "studies"
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert modules == {slug.replace("-", "_") for slug in IMPLEMENTED}, "every module is a paper's slug"


@every_study
def test_smoke_preset_measures_at_least_three_claims_and_every_control_is_negative(slug: str):
    result = smoke(slug)
    measured = [claim for claim in result.claims if claim.measured is not None]
    assert len(measured) >= 3
    for claim in result.claims:
        assert claim.verdict in VERDICTS
        assert claim.statement
        assert claim.control_statement
        if claim.measured is None:
            assert claim.note, f"{claim.name}: why it is not tested"
        else:
            assert claim.control_is_negative, f"{claim.name}: control {claim.control} passes"
    assert len({claim.name for claim in result.claims}) == len(result.claims)
    json.dumps(result.document(), allow_nan=False)


@every_study
def test_same_seed_same_numbers(slug: str):
    again = run_study(slug, "smoke", seed=0)
    assert [(c.name, c.measured, c.control) for c in again.claims] == [
        (c.name, c.measured, c.control) for c in smoke(slug).claims
    ]


@every_study
def test_every_measured_claim_can_be_drawn(slug: str):
    for claim in smoke(slug).claims:
        if claim.measured is not None:
            assert claim.plot is not None, claim.name
            figure, axes = plt.subplots()
            claim.plot(axes)
            figure.canvas.draw()
            plt.close(figure)


@every_study
def test_recorded_results_are_of_the_small_preset(slug: str):
    path = Path(__file__).parents[2] / "docs" / "results" / f"{slug}.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert recorded["slug"] == slug
    assert recorded["preset"] == "small"
    assert recorded["seconds"] < 300
    assert [claim["name"] for claim in recorded["claims"]] == [claim.name for claim in smoke(slug).claims]
    for claim in recorded["claims"]:
        assert claim["verdict"] in VERDICTS
        assert claim["verdict"] != "not tested" or claim["note"]


def claim(measured: float | None, control: float | None, **more: object) -> Claim:
    return Claim("n", "s", measured, Bar(">=", 0.5), control, "c", **more)  # type: ignore[arg-type]


def test_verdicts():
    assert claim(0.6, 0.1).verdict == "reproduced"
    assert claim(0.4, 0.1).verdict == "not reproduced"
    assert claim(0.6, 0.55).verdict == "not distinguishable"
    assert claim(None, 0.1).verdict == "not tested"
    assert claim(float("nan"), 0.1).verdict == "not reproduced"
    assert claim(0.6, 0.55, control_bar=Bar(">", 0.55)).verdict == "reproduced"
    low, high = claim(0.5, 0.1, values=(0.4, 0.5, 0.6)).interval or (0, 0)
    assert low == pytest.approx(0.5 - 4.302652 * 0.1 / 3**0.5, rel=1e-5)
    assert high == pytest.approx(0.5 + 4.302652 * 0.1 / 3**0.5, rel=1e-5)
    assert claim(0.5, 0.1).interval is None


def test_bad_arguments():
    with pytest.raises(InputError, match="there is no study"):
        run_study("nothing")
    with pytest.raises(InputError, match="not part of this version"):
        run_study(next(slug for slug in papers() if slug not in IMPLEMENTED))
    with pytest.raises(InputError, match="preset is"):
        run_study("neural-collapse", "huge")  # type: ignore[arg-type]
