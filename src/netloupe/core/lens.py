"""How a method declares itself: the ``@lens`` decorator, and how all lenses are found.

A lens is a plain function from arrays to a :class:`~netloupe.core.finding.Finding`. The decorator only adds a
``lens`` attribute that tells the command line and the report which question it answers and what it needs; a module
under ``netloupe.lenses`` that defines one is found by being there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.statistics import Statistic

F = TypeVar("F", bound=Callable[..., Finding])
NEEDS = ("features", "labels", "other", "weight", "bias", "mask", "model", "data")
INVARIANCES = ("unit permutation", "sample permutation", "rotation", "scale", "translation")


@dataclass(frozen=True)
class Lens:
    """What a lens declares.

    name : ``folder.function``, for example ``activity.sparsity``.
    question : what it answers, a question in plain words.
    needs, optional : names of its array parameters (from ``NEEDS``). ``other`` means it compares two sites.
    pooled : True if it wants ``(sample, unit)``; sites with positions are pooled first.
    positions : True if it needs ``(sample, position, unit)``; such a lens refuses sites without positions.
    min_samples : fewest samples it can answer for.
    invariances : changes of the input that leave ``summary()`` alone (from ``INVARIANCES``); tested.
    statistics, conclude : for a lens that one pass can answer: factories of mergeable statistics, and the
        function from these (by name) to the finding. Then it also runs during a recording and on a cluster.
    limit : most samples it takes, where it cannot stream; None for no limit.
    sequence : True if samples must follow each other in time (frames of a video, steps of an episode).

    A lens that needs ``model`` and ``data`` is asked once for the whole network, with batches that can be read again.
    """

    name: str
    question: str
    function: Callable[..., Finding]
    needs: tuple[str, ...] = ("features",)
    optional: tuple[str, ...] = ()
    pooled: bool = False
    min_samples: int = 1
    invariances: tuple[str, ...] = ()
    statistics: Mapping[str, Callable[[], Statistic]] = field(default_factory=dict)
    conclude: Callable[[Mapping[str, Statistic]], Finding] | None = None
    limit: int | None = None
    positions: bool = False
    sequence: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Finding:
        return self.function(*args, **kwargs)

    @property
    def compares(self) -> bool:
        """Whether it takes two sites (or two networks)."""
        return "other" in self.needs

    @property
    def of_network(self) -> bool:
        """Whether it asks the network itself instead of one site's activations."""
        return "model" in self.needs


def lens(
    *,
    question: str,
    needs: tuple[str, ...] = ("features",),
    optional: tuple[str, ...] = (),
    pooled: bool = False,
    min_samples: int = 1,
    invariances: tuple[str, ...] = (),
    statistics: Mapping[str, Callable[[], Statistic]] | None = None,
    conclude: Callable[[Mapping[str, Statistic]], Finding] | None = None,
    limit: int | None = None,
    positions: bool = False,
    sequence: bool = False,
) -> Callable[[F], F]:
    """Declares a function as a lens (fields: :class:`Lens`); the function itself is returned unchanged."""

    def declare(function: F) -> F:
        parameters = inspect.signature(function).parameters
        unknown = [name for name in (*needs, *optional) if name not in NEEDS or name not in parameters]
        if unknown or set(invariances) - set(INVARIANCES):
            raise TypeError(f"lens {function.__name__} declares unknown needs or invariances: {unknown}, {invariances}")
        if (statistics is None) != (conclude is None):
            raise TypeError(f"lens {function.__name__} must declare statistics and conclude together")
        folder = function.__module__.removeprefix("netloupe.lenses.").rpartition(".")[0] or "user"
        declared = Lens(
            f"{folder}.{function.__name__}", question, function, needs, optional, pooled, min_samples,
            invariances, statistics or {}, conclude, limit, positions, sequence,
        )  # fmt: skip
        function.lens = declared  # type: ignore[attr-defined]
        return function

    return declare


@cache
def find_lenses() -> dict[str, Lens]:
    """Every lens of the library by name, found by importing the modules under ``netloupe.lenses``."""
    package = importlib.import_module("netloupe.lenses")
    found: dict[str, Lens] = {}
    for entry in pkgutil.walk_packages(package.__path__, "netloupe.lenses."):
        module = importlib.import_module(entry.name)
        for value in vars(module).values():
            declared = getattr(value, "lens", None)
            if isinstance(declared, Lens) and declared.function.__module__ == entry.name:
                found[declared.name] = declared
    return dict(sorted(found.items()))


def get_lens(name: str) -> Lens:
    """A lens by its name or, where that is unambiguous, by its last part."""
    lenses = find_lenses()
    matches = [known for known in lenses if known == name or known.rpartition(".")[2] == name]
    if len(matches) != 1:
        raise InputError(f"there is no lens '{name}'; there are {', '.join(lenses)}")
    return lenses[matches[0]]
