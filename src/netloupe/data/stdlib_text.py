"""Text that every Python has: the docstrings of its standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from netloupe.core.errors import InputError

# Small, stable packages first; test suites and generated tables are left out, they are hardly prose.
_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "site-packages",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "__pycache__",
}


@cache
def stdlib_docstrings(limit: int | None = None, min_characters: int = 40) -> tuple[str, ...]:
    """Docstrings of modules, classes and functions in file order, whitespace folded, each once.

    Read from source with ``ast``, never imported. ``limit`` keeps the first so many; the text depends on the Python version.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        found |= {text: None for text in _docstrings([path], min_characters, root) if text not in found}
        if limit is not None and len(found) >= limit:
            break
    return tuple(found)[:limit]


def stdlib_topics(packages: Sequence[str], per_package: int, random_state: int = 0) -> tuple[list[str], list[int]]:
    """Docstrings of packages of the standard library as texts of known topics: texts, and the number of each one's package.

    As many of each package, drawn at random. Raises InputError where a package has fewer than ``per_package``.
    """
    root = Path(sysconfig.get_path("stdlib"))
    draw = np.random.default_rng(random_state)
    texts: list[str] = []
    topics: list[int] = []
    for index, package in enumerate(packages):
        found = list(_docstrings(sorted((root / package).rglob("*.py")), 40, root))
        if len(found) < per_package:
            raise InputError(
                f"package '{package}' has {len(found)} docstrings, and {per_package} were asked for; ask for fewer"
            )
        texts += [found[place] for place in np.sort(draw.choice(len(found), per_package, replace=False))]
        topics += [index] * per_package
    return texts, topics


def _docstrings(files: Iterable[Path], min_characters: int, root: Path) -> dict[str, None]:
    """Docstrings in file order, each once."""
    found: dict[str, None] = {}
    for path in files:
        if _SKIPPED & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue  # a broken or foreign file in the folder says nothing about the library
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) >= min_characters:
                    found.setdefault(text)
    return found
