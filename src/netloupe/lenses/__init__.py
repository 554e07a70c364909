"""Lenses: one folder per question, each method a plain function from activations to a finding.

``netloupe.lenses.<name>`` is any lens by its short name; :func:`netloupe.find_lenses` lists them with their questions.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from netloupe.core.lens import find_lenses

    if not name.startswith("_"):
        for full, declared in find_lenses().items():
            if full.rpartition(".")[2] == name:
                return declared.function
    raise AttributeError(f"there is no lens '{name}'; netloupe.find_lenses() lists them")
