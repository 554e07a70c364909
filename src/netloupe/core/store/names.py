"""What to say of a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near_misses(name: str, known: Iterable[str], at_most: int = 3) -> str:
    """``did you mean 'a' or 'b'?``, or the list of what there is where nothing comes near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=at_most, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(entry) for entry in close)}?"
    shown = ", ".join(repr(entry) for entry in known[:8]) + (", ..." if len(known) > 8 else "")
    return f"it has {shown}"
