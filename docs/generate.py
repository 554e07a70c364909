"""Writes the generated pages: the papers with their recorded verdicts, and the questions with their lenses.

    python docs/generate.py

Nothing on these pages is edited by hand: ``docs/results/<slug>.json`` comes from ``netloupe study <slug> -o docs/results``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from netloupe.core.lens import find_lenses
from netloupe.core.study import papers

DOCS = Path(__file__).parent


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4g}"


def cell(text: str) -> str:
    """Text that cannot break a table."""
    return " ".join(text.split()).replace("|", "\\|")


def claims_table(result: dict[str, Any]) -> str:
    """One recorded study as a table."""
    rows = ["| claim | measured | bar | control | verdict |", "| --- | ---: | --- | ---: | --- |"]
    notes = []
    for claim in result["claims"]:
        interval = claim.get("interval")
        measured = number(claim["measured"]) + (
            f" ({number(interval[0])} to {number(interval[1])})" if interval else ""
        )
        mark = f" [{len(notes) + 1}]" if claim["note"] else ""
        if claim["note"]:
            notes.append(f"{len(notes) + 1}. {cell(claim['note'])}")
        rows.append(
            f"| {cell(claim['claim'])} | {measured} | {claim['bar']} | {number(claim['control'])} | **{claim['verdict']}**{mark} |"
        )
    return "\n".join(rows) + ("\n\n" + "\n".join(notes) if notes else "")


def papers_page() -> str:
    """All papers, the measured ones with their claims."""
    lines = [
        "# Papers", "",
        "Each paper is importable code and a study that measures its claims. A claim is *reproduced* only when it passes "
        "its bar and its control does not; a claim that did not reproduce stays here with its number. The numbers are of the "
        "`small` preset, made on a CPU within minutes.", "",
    ]  # fmt: skip
    waiting = []
    for slug, paper in papers().items():
        path = DOCS / "results" / f"{slug}.json"
        link = f" ([arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}))" if paper.arxiv else ""
        if not (paper.implemented and path.is_file()):
            waiting.append(f"| {slug} | {cell(paper.title)}{link} | {paper.year} | {cell(paper.question)} |")
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        figure = f"![{slug}](figures/{slug}.png)" if (DOCS / "figures" / f"{slug}.png").is_file() else ""
        method = f"[How to use it](methods/{slug}.md). " if (DOCS / "methods" / f"{slug}.md").is_file() else ""
        lines += [
            f"## {slug}", "", f"*{paper.title}*, {paper.year}{link}. {paper.question}", "",
            f"{method}Run it: `netloupe study {slug}` ({result['seconds']:.0f} CPU-seconds, seed {result['seed']}).", "",
            claims_table(result), "", figure, "",
        ]  # fmt: skip
    lines += [
        "## Not yet part of this version",
        "",
        "| paper | title | year | question |",
        "| --- | --- | --- | --- |",
        *waiting,
        "",
    ]
    return "\n".join(lines)


def questions_page() -> str:
    """Every lens under its folder's question."""
    import importlib

    lines = ["# Questions", "", "Every lens that `netloupe inspect` can ask, found in the library itself.", ""]
    folder = ""
    for name, lens in find_lenses().items():
        if name.partition(".")[0] != folder:
            folder = name.partition(".")[0]
            heading = (importlib.import_module(f"netloupe.lenses.{folder}").__doc__ or folder).strip().splitlines()[0]
            lines += ["", f"## {heading}", ""]
        needs = ", ".join(lens.needs)
        lines += [f"- `netloupe.lenses.{name.rpartition('.')[2]}({needs})`: {lens.question}"]
        if lens.limit is not None:
            lines[-1] += f" (at most {lens.limit} samples)"
    return "\n".join([*lines, ""])


def main() -> None:
    """Writes both pages."""
    (DOCS / "papers.md").write_text(papers_page(), encoding="utf-8")
    (DOCS / "questions.md").write_text(questions_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
