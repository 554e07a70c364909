"""Lenses that ask the network itself, and lenses that want samples in order of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from report_subjects import subject_of
from torch import nn

from netloupe.core import lens as lens_module
from netloupe.core.batches import prepare
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.lens import Lens
from netloupe.report import inspection as inspection_module
from netloupe.report.html import render
from netloupe.report.inspection import NETWORK, inspect
from netloupe.subjects import Data


@dataclass(frozen=True, eq=False)
class Answered(Finding):
    total: float
    meanings: ClassVar[dict[str, str]] = {"total": "a number for the whole network"}

    def summary(self) -> dict[str, float]:
        return {"total": self.total}

    def plot(self, axes: Any) -> None:
        axes.plot([0, self.total])


def of_outputs(model: nn.Module, data: Any) -> Answered:
    """Reads the data twice, as a lens of a network may."""
    totals = [sum(float(model(*prepare(raw, model).args).detach().sum()) for raw in data) for _ in range(2)]
    assert totals[0] == totals[1]
    return Answered(totals[0])


def refusing(model: nn.Module, data: Any) -> Answered:
    raise InputError("this network has nothing to ask")


def of_frames(features: Any) -> Answered:
    return Answered(float(len(features)))


NETWORK_LENS = Lens("user.of_outputs", "What comes out?", of_outputs, ("model", "data"))
REFUSING = Lens("user.refusing", "What is refused?", refusing, ("model", "data"))
FRAMES = Lens("user.of_frames", "How much changes?", of_frames, sequence=True)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = {one.name: one for one in (NETWORK_LENS, REFUSING, FRAMES)}
    monkeypatch.setattr(inspection_module, "find_lenses", lambda: found)
    monkeypatch.setattr(lens_module, "find_lenses", lambda: found)
    return


def test_a_lens_of_the_network_is_asked_once_and_shown(only: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(20, 4)
    batches = [inputs[:8], inputs[8:16], inputs[16:]]
    data = Data("array", batches, "vector", 20, identity={"name": "array"})
    found = inspect(subject_of(model, "net"), data, cache=tmp_path)
    answers = found.at(NETWORK)
    assert [one.lens.name for one in answers] == ["user.of_outputs", "user.refusing", "user.of_frames"]
    assert answers[0].finding is not None
    assert answers[0].finding.summary()["total"] == pytest.approx(float(model(inputs).sum()), rel=1e-5)
    assert answers[1].refusal == "this network has nothing to ask"
    assert "--sequence" in answers[2].refusal
    document = found.document()
    assert [(one["lens"], one["site"]) for one in document["findings"]] == [("user.of_outputs", NETWORK)]
    assert document["findings"][0]["paragraph"].startswith("a number for the whole network")
    page = render(found)
    assert "What comes out?" in page
    assert page.lstrip().startswith("<!doctype html>")


def test_a_sequence_is_asked_at_every_site(only: None, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    data = Data("array", [torch.randn(20, 4)], "vector", 20, identity={"name": "array"})
    found = inspect(subject_of(model, "net"), replace(data, sequence=True), cache=tmp_path)
    answered = [one.site for one in found.answers if one.lens is FRAMES and one.finding is not None]
    assert answered == [site.name for site in found.sites]
