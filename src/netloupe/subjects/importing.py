"""``package.module:name`` as the object it names."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from netloupe.core.errors import SubjectError

_REFERENCE = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


def is_reference(text: str) -> bool:
    """Whether ``text`` looks like ``package.module:name``."""
    return bool(_REFERENCE.match(text))


def import_object(reference: str, what: str) -> Any:
    """The object; the working folder is searched first, as ``python -m`` does."""
    module_name, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: whatever it raises is the answer
        raise SubjectError(
            f"{what} '{reference}': importing '{module_name}' failed with {type(error).__name__}: {_line(error)}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise SubjectError(f"{what} '{reference}': the module '{module_name}' has no '{name}'")
        found = getattr(found, part)
    return found


def call(function: Any, reference: str, what: str) -> Any:
    """``function()``, its failure as one sentence."""
    try:
        return function()
    except Exception as error:
        raise SubjectError(
            f"{what} '{reference}': calling it without arguments failed with {type(error).__name__}: {_line(error)}"
        ) from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
