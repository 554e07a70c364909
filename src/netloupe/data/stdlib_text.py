"""Text that every Python has: the docstrings of its standard library."""

from __future__ import annotations

import ast
import sysconfig
from functools import cache
from pathlib import Path

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
        if limit is not None and len(found) >= limit:
            break
    return tuple(found)[:limit]
