"""Every error a user can cause, each said in one sentence.

A message tells what was given, what was expected and what to do. The command line prints it and exits
with status 2, so no message may span several lines or need the traceback to be understood.
"""

from __future__ import annotations


class NetloupeError(Exception):
    """Base of all errors that bad input, bad files or an unusable machine can cause."""


class InputError(NetloupeError, ValueError):
    """Arrays, labels or options that cannot be used: wrong shape, NaN, empty, too few samples."""


class ForwardError(InputError, RuntimeError, IndexError):
    """A network that refuses the inputs it is given: another shape, another number type, a token out of range."""


class NonFiniteError(InputError):
    """A network or an array holds NaN or infinity where a number is needed."""


class SiteError(NetloupeError, LookupError):
    """A site that does not exist, cannot be read, or changed its shape while being read."""


class StoreError(NetloupeError, OSError):
    """A recording that cannot be written, read, resumed or trusted."""


class SubjectError(NetloupeError, ValueError):
    """A model or data argument that cannot be turned into a network or into batches."""


class MissingExtraError(NetloupeError, ImportError):
    """An optional library is needed; the message names the extra that brings it."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the library '{library}', which is not installed; run: pip install 'netloupe[{extra}]'"
        )
