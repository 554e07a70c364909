"""A study in one picture: every claim's own figure, with its verdict."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netloupe.core.errors import InputError, StoreError
from netloupe.core.study import Claim, StudyResult

COLOURS = {
    "reproduced": "#1a7f37",
    "not reproduced": "#b42318",
    "not distinguishable": "#b54708",
    "not tested": "#57606a",
}


def save_study_figure(result: StudyResult, path: str | Path, columns: int = 3, dpi: int = 100) -> Path:
    """Draws all claims that have a plot in a grid, each under its name, numbers and verdict; returns the path.

    The format follows the path's suffix (``.png``, ``.svg``, ``.pdf``). Raises InputError where no claim has a plot
    or ``columns`` is not positive, StoreError where the file cannot be written.
    """
    drawn = [claim for claim in result.claims if claim.plot is not None]
    if not drawn or columns < 1:
        raise InputError(
            f"{len(drawn)} of the {len(result.claims)} claims of '{result.slug}' have a plot and columns is {columns}, "
            "but at least one of each is needed; run the study again or change columns."
        )
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, claim in zip(grid, drawn):
        draw_claim(axes, claim)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=dpi)
    except (OSError, ValueError) as error:
        raise StoreError(f"the figure could not be written to '{target}': {error}; choose another path.") from error
    return target


def draw_claim(axes: Axes, claim: Claim) -> None:
    """One claim's figure on an axes, under its name, verdict, and both numbers with their bars."""
    assert claim.plot is not None
    claim.plot(axes)
    measured = "not measured" if claim.measured is None else f"{claim.measured:.3g}"
    control = "none" if claim.control is None else f"{claim.control:.3g}"
    title = f"{claim.name}: {claim.verdict}\n{measured} (bar {claim.bar}); control {control}"
    axes.set_title(title, fontsize="medium", color=COLOURS[claim.verdict])
