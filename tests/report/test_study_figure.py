"""The picture of a study: one panel a claim, with verdict and numbers."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from netloupe.core.errors import InputError, StoreError
from netloupe.core.study import Bar, Claim, StudyResult
from netloupe.report.study_figure import COLOURS, draw_claim, save_study_figure


def claim(measured, control, drawn=True):
    return Claim(
        "slope", "It rises.", measured, Bar(">", 1.0), control, "It is flat.",
        plot=(lambda axes: axes.plot([0, 1], [0, measured or 0])) if drawn else None,
    )  # fmt: skip


@pytest.mark.parametrize("case", [(2.0, 0.5), (0.5, 0.5), (2.0, 2.0), (None, 0.5), (2.0, None)])
def test_panel_tells_verdict_and_numbers(case):
    drawn = claim(*case)
    axes = Figure().subplots()
    draw_claim(axes, drawn)
    title = axes.get_title()
    assert f"slope: {drawn.verdict}" in title
    assert ("not measured" in title) == (case[0] is None)
    assert "> 1" in title
    assert axes.title.get_color() == COLOURS[drawn.verdict]
    assert len(axes.lines) == 1


def test_picture_holds_every_claim_that_can_be_drawn(tmp_path, monkeypatch):
    grids = []
    subplots = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda self, *a, **k: grids.append(subplots(self, *a, **k)) or grids[-1])
    claims = tuple(claim(2.0, 0.5, drawn) for drawn in (True, True, False, True, True))
    path = save_study_figure(StudyResult("a", "smoke", 0, 1.0, claims), tmp_path / "new" / "study.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert grids[0].shape == (2, 3)
    assert [bool(axes.lines) for axes in grids[0].ravel()] == [True] * 4 + [False] * 2
    assert [axes.axison for axes in grids[0].ravel()] == [True] * 4 + [False] * 2


def test_bad_input_is_refused_in_one_sentence(tmp_path):
    drawn = StudyResult("a", "smoke", 0, 1.0, (claim(2.0, 0.5),))
    empty = StudyResult("a", "smoke", 0, 1.0, (claim(2.0, 0.5, drawn=False),))
    (tmp_path / "file").write_text("")
    for call, error, fragment in [
        (lambda: save_study_figure(empty, tmp_path / "a.png"), InputError, "0 of the 1 claims"),
        (lambda: save_study_figure(drawn, tmp_path / "a.png", columns=0), InputError, "columns is 0"),
        (lambda: save_study_figure(drawn, tmp_path / "file" / "a.png"), StoreError, "could not be written"),
        (lambda: save_study_figure(drawn, tmp_path / "a.unknown"), StoreError, "could not be written"),
    ]:
        with pytest.raises(error, match=fragment):
            call()
