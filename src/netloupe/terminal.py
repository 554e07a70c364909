"""What the command line says to a person: results on standard output, progress and the rest on standard error."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from netloupe.core.errors import InputError, StoreError

Positional = tyro.conf.Positional
Json = Annotated[
    bool, tyro.conf.arg(name="json", help="print one JSON document to standard output", help_behavior_hint="")
]
LOG = Console(stderr=True, highlight=False)
OUT = Console(highlight=False, soft_wrap=True)
TELLING = ("active_fraction", "dead_fraction", "linear_bits", "gain_bits", "nc1")


def tell(say: Callable[[], None], as_json: bool) -> None:
    """Says something to a person, unless the output is a document."""
    if not as_json:
        say()


def short(value: Any) -> str:
    """A number of four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows of named values as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            *(
                "yes" if row.get(name) is True else "" if row.get(name) in (None, False) else str(row[name])
                for name in columns
            )
        )
    OUT.print(table)


def say_inspection(found: Any, path: Path) -> None:
    """The most telling numbers, a line a site, what was said of the whole network, and where the report is."""
    from netloupe.core.asking import NETWORK

    rows = []
    for site in found.sites:
        row: dict[str, Any] = {"site": site.name, "shape": "x".join(map(str, site.shape))}
        for asked in found.at(site.name):
            summary = asked.finding.summary() if asked.finding is not None else {}
            row |= {name: f"{summary[name]:.3g}" for name in TELLING if name in summary}
        rows.append(row)
    print_table(rows, ["site", "shape", *(name for name in TELLING if any(name in row for row in rows))])
    for asked in found.at(NETWORK):
        if asked.finding is not None:
            OUT.print(f"\n{asked.finding.paragraph()}")
    OUT.print(
        f"\n{found.n_samples} samples, {len(found.sites)} sites, {sum(a.finding is not None for a in found.answers)} findings"
    )
    OUT.print(f"report: {path}")


def say_comparison(document: dict[str, Any], path: Path) -> None:
    """Each site of the first network with its counterpart, and where the page is."""
    measured = {(row["site_a"], row["site_b"]): row for row in document["similarity"]}
    rows, names = [], list(document["summary"])
    for pair in document["pairs"]:
        found = measured[pair["site_a"], pair["site_b"]]
        numbers = {name: short(found[name]["value"]) for name in names}
        alone = {"alone in first": len(pair["alone_a"]), "alone in second": len(pair["alone_b"])}
        rows.append(
            {
                document["a"]: pair["site_a"],
                document["b"]: pair["site_b"],
                **numbers,
                **{k: str(v) for k, v in alone.items()},
            }
        )
    print_table(rows, list(rows[0]) if rows else [])
    OUT.print(f"\n{document['n_samples']} samples\npage: {path}")


def subject_and_data(command: Any, default: bool = True) -> tuple[Any, Any]:
    """The network and the data that a command names; ``default`` limits the samples where the command does not."""
    from netloupe.subjects import load_data, load_model

    require_samples(command.samples)
    LOG.print(f"loading {command.model} ...")
    subject = load_model(command.model, command.weights, command.download, progress=True)
    limit = command.samples if command.samples is not None or not default else 256 if subject.tokenizer else 2000
    return subject, load_data(command.data, subject, limit, command.batch_size)


def require_samples(samples: int | None) -> None:
    """Refuses a number of samples below 1."""
    if samples is not None and samples < 1:
        raise InputError(f"--samples is {samples}, at least 1 is needed")


def require_folder(folder: Path) -> None:
    """Refuses a folder that cannot be written before any work is done."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file, expected a folder")
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not os.access(existing, os.W_OK):
        raise StoreError(f"the folder '{existing}' cannot be written to; choose another")
