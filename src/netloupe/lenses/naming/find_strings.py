"""Program search: which string operations, alone or two chained, give the outputs that were seen."""

from __future__ import annotations

import itertools
import string as letters
from functools import lru_cache
from typing import Any

import numpy as np

from netloupe.core.errors import InputError
from netloupe.data.find_strings import DIGITS, LETTERS, OPERATIONS, PLACES, SHIFTS, run_program
from netloupe.lenses.naming.find import Answer, Session

PROBES = (
    "TheQuickbrown7foxjumps", "abcdefghij", "Pack my box with 5dozen", "ZEBRA", "liquor jugs", "9lives", "sphinxofBlackquartz",
    "Mississippi", "a", "Ab1", "  pad me  ", "KLMNOPQRST", "uvwxyzABCD", "EFGHIJ", "aeiouAEIOU", "topCODER42", "xylophoneS", "zzz",
    "judgemyvow", "42 is IT",
)  # fmt: skip
Step = tuple[str, tuple[Any, ...]]


@lru_cache(maxsize=1)
def known_steps() -> tuple[Step, ...]:
    """Every operation with every value of its parameters; suffixes, replacements of letters and tables are read from outputs instead."""
    found: list[Step] = []
    for name in OPERATIONS:
        if name in DIGITS:
            found += [(name, (one,)) for one in range(1, 10)]
        elif name in LETTERS:
            found += [(name, (one,)) for one in letters.ascii_letters]
        elif name in PLACES:
            found += [(name, pair) for pair in itertools.permutations(range(10), 2)]
        elif name in SHIFTS:
            found += [(name, (one,)) for one in range(26)]
        elif name not in ("string_concatenate", "replace_substring", "map_string"):
            found.append((name, ()))
    return tuple(found)


@lru_cache(maxsize=4)
def _images(probes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What every known step makes of the probes."""
    return [tuple(OPERATIONS[name](text, *params) for text in probes) for name, params in known_steps()]


@lru_cache(maxsize=4)
def _pairs(probes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All chains of two known steps by what they make of the first two probes: sorted keys, and the chains in that order.

    Chains whose inner step is not told from an earlier one by the probes are left out.
    """
    steps, images = known_steps(), _images(probes)
    inner = list({image: at for at, image in reversed(list(enumerate(images)))}.values())
    keys = np.empty((len(inner), len(steps)), dtype=np.int64)
    for row, at in enumerate(inner):
        one, two = images[at][:2]
        for column, (name, params) in enumerate(steps):
            operation = OPERATIONS[name]
            keys[row, column] = hash((operation(one, *params), operation(two, *params)))
    order = np.argsort(keys, axis=None, kind="stable")
    chains = np.stack([np.array(inner)[order // len(steps)], order % len(steps)], 1)
    return keys.ravel()[order], chains


def _read(name: str, before: tuple[str, ...], after: tuple[str, ...]) -> list[Step]:
    """Parameters of an operation that is not listed, from what it did."""
    pairs = list(zip(before, after, strict=True))
    if name == "string_concatenate":
        tail = after[0][len(before[0]) :]
        return [(name, (tail,))] if tail and all(b == a + tail for a, b in pairs) else []
    if any(len(a) != len(b) for a, b in pairs):
        return []
    changed = {(one, two) for a, b in pairs for one, two in zip(a, b, strict=True) if one != two}
    if name == "replace_substring":
        return [(name, tuple(*changed))] if len(changed) == 1 else []
    seen = {
        one.lower(): two
        for a, b in pairs
        for one, two in zip(a, b, strict=True)
        if one.lower() in letters.ascii_lowercase
    }
    left = iter(sorted(set(letters.ascii_lowercase) - set(seen.values())))
    table = "".join(seen.get(one) or next(left, one) for one in letters.ascii_lowercase)
    return [(name, (table,))] if len(set(table)) == 26 and set(table) <= set(letters.ascii_lowercase) else []


def search(probes: tuple[str, ...], outputs: tuple[str, ...], depth: int = 2) -> tuple[Step, ...] | None:
    """The first program of at most ``depth`` operations that gives these outputs; None where there is none.

    Single operations first, then known chains of two, then chains whose outer operation has parameters that only the outputs tell; a
    suffix, a replacement or a table as the *inner* operation is not found. Cost: the first search at depth 2 tries all chains on
    two probes, half a million, once; later ones look them up.
    """
    steps, images = known_steps(), _images(probes)
    reads = ("string_concatenate", "replace_substring", "map_string")
    singles = [(step,) for step, image in zip(steps, images, strict=True) if image == outputs]
    singles += [(step,) for name in reads for step in _read(name, probes, outputs)]
    for program in singles:
        if _gives(program, probes, outputs):
            return program
    if depth < 2:
        return None
    keys, chains = _pairs(probes)
    key = hash((outputs[0], outputs[1]))
    for inner, outer in chains[np.searchsorted(keys, key) : np.searchsorted(keys, key, side="right")]:
        name, params = steps[outer]
        if all(OPERATIONS[name](text, *params) == said for text, said in zip(images[inner], outputs, strict=True)):
            return steps[outer], steps[inner]
    for at, image in enumerate(images):
        for name in reads[:2]:
            for step in _read(name, image, outputs):
                if _gives((step, steps[at]), probes, outputs):
                    return step, steps[at]
    return None


def _gives(program: tuple[Step, ...], probes: tuple[str, ...], outputs: tuple[str, ...]) -> bool:
    return all(run_program(program, text) == said for text, said in zip(probes, outputs, strict=True))


class StringSearch:
    """Asks fixed probes and answers with the shortest program that explains them.

    Args:
        depth: operations at most, 1 or 2. probes: texts to ask, the first two long and different.

    Where no program fits, the answer says so and repeats its input.
    """

    def __init__(self, depth: int = 2, probes: tuple[str, ...] = PROBES) -> None:
        if depth not in (1, 2) or len(probes) < 2:
            raise InputError(
                f"depth is {depth} with {len(probes)} probes; depth 1 or 2 and at least two probes are possible"
            )
        self.depth, self.probes = depth, tuple(probes)

    def __call__(self, session: Session) -> Answer:
        if session.kind != "string":
            raise InputError(
                f"this interpreter explains programs on strings and was given a function of kind '{session.kind}'"
            )
        outputs = tuple(session.ask(list(self.probes)))
        program = search(self.probes, outputs, self.depth)
        if program is None:
            return session.finish(f"no program of {self.depth} operations explains the outputs", ())
        said = " after ".join(f"{name}{params if params else ''}" for name, params in program)
        return session.finish(said, program)
