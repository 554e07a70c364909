"""The one progress bar: on a terminal's standard error, silent everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


@contextmanager
def bar(description: str, total: int | None = None, enabled: bool = True) -> Iterator[Progress]:
    """A bar whose task 0 the caller advances with ``progress.advance(0)``; drawn only on a terminal."""
    console = Console(stderr=True)
    shown = enabled and sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
        progress.add_task(description, total=total)
        yield progress


def track(items: Iterable[T], description: str, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Yields ``items`` and advances a bar."""
    with bar(description, total, enabled) as progress:
        for item in items:
            yield item
            progress.advance(progress.task_ids[0])
