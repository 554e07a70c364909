"""What a lens answers: numbers and arrays, where they come from, and how they look."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from netloupe.core.errors import StoreError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIBRARIES = ("netloupe", "torch", "numpy", "scipy", "scikit-learn")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose numbers a result depends on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


@dataclass(frozen=True)
class Context:
    """What a finding was measured on: everything one needs to measure it again.

    ``site``, ``subject`` (model and data identity), ``n_samples``, ``seed``, ``options`` (pooling, thresholds,
    bandwidths: whatever the number depends on), ``versions``, ``date`` (ISO, UTC) and ``seconds`` (process time).
    """

    site: str = ""
    subject: dict[str, Any] = field(default_factory=dict)
    n_samples: int = 0
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=library_versions)
    date: str = ""
    seconds: float = 0.0


class Place(NamedTuple):
    """One activation: its value, and where it is."""

    value: float
    sample: int
    position: int
    unit: int


@dataclass(frozen=True, eq=False)
class Finding:
    """Base of all answers. A subclass is a frozen dataclass (``@dataclass(frozen=True, eq=False)``).

    Its fields are numbers, strings, None, tuples or dictionaries of these, and numpy arrays. It gives
    ``summary()`` - name to number, each name explained in the class attribute ``meanings`` - and ``plot(axes)``.
    Two findings are equal when they are of one class and all fields but the context are equal (NaN equals NaN).
    """

    context: Context = field(default_factory=Context, kw_only=True, repr=False)
    meanings: ClassVar[dict[str, str]] = {}

    def summary(self) -> dict[str, float]:
        """The numbers to show first."""
        raise TypeError(f"{type(self).__name__} does not define summary()")

    def plot(self, axes: Axes) -> None:
        """Draws itself on a matplotlib axes."""
        raise TypeError(f"{type(self).__name__} does not define plot()")

    def paragraph(self) -> str:
        """The answer in plain words: each number with what it means."""
        return " ".join(
            f"{self.meanings[name]}: {value:.4g}." for name, value in self.summary().items() if name in self.meanings
        )

    def places(self) -> list[Place]:
        """Single activations that the answer rests on, the most telling first; none where it rests on all alike."""
        return []

    def in_context(self, **changes: Any) -> Self:
        """The same finding with some of its context filled in."""
        return dataclasses.replace(self, context=dataclasses.replace(self.context, **changes))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_equal(getattr(self, name), getattr(other, name)) for name in self._value_names())

    def __hash__(self) -> int:
        return hash((type(self), tuple(sorted(self.summary().items()))))

    @classmethod
    def _value_names(cls) -> list[str]:
        return [entry.name for entry in dataclasses.fields(cls) if entry.name != "context"]

    def save(self, path: str | Path) -> Path:
        """Writes ``path.json`` and, where there are arrays, ``path.npz`` beside it; returns the JSON's path."""
        base = Path(path).with_suffix("") if Path(path).suffix in (".json", ".npz") else Path(path)
        values = {name: getattr(self, name) for name in self._value_names()}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        document = {
            "finding": f"{type(self).__module__}:{type(self).__qualname__}",
            "context": dataclasses.asdict(self.context),
            "values": {name: plain(value) for name, value in values.items() if name not in arrays},
            "arrays": sorted(arrays),
            "summary": plain(self.summary()),
        }
        target = base.with_name(base.name + ".json")
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
            if arrays:
                np.savez(base.with_name(base.name + ".npz"), allow_pickle=False, **arrays)
            partial = target.with_name(target.name + ".partial")
            partial.write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(partial, target)
        except OSError as error:
            raise StoreError(f"the finding could not be written to '{target}': {error.strerror or error}") from error
        return target

    @classmethod
    def load(cls, path: str | Path) -> Finding:
        """Reads what :meth:`save` wrote. Only classes of this library, or ``cls`` itself, are made."""
        base = Path(path).with_suffix("") if Path(path).suffix in (".json", ".npz") else Path(path)
        source = base.with_name(base.name + ".json")
        try:
            document = json.loads(source.read_text(encoding="utf-8"))
            kind = _class_of(document["finding"], cls)
            values = {name: _tuples(value) for name, value in document["values"].items()}
            if document["arrays"]:
                with np.load(base.with_name(base.name + ".npz"), allow_pickle=False) as arrays:
                    values |= {name: arrays[name] for name in document["arrays"]}
            return kind(**values, context=Context(**document["context"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"'{source}' is not a readable finding: {error}") from error


def _class_of(name: str, asked: type[Finding]) -> type[Finding]:
    if name == f"{asked.__module__}:{asked.__qualname__}":
        return asked
    module, _, qualified = name.partition(":")
    if not module.startswith("netloupe."):
        raise ValueError(f"it holds a '{name}', which is not part of this library; load it through its own class")
    found = getattr(importlib.import_module(module), qualified, None)
    if not (isinstance(found, type) and issubclass(found, Finding)):
        raise ValueError(f"'{name}' is not a finding")
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, float) and isinstance(other, float) and np.isnan(one) and np.isnan(other):
        return True
    return bool(one == other)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy numbers become Python's, NaN and infinity become null."""
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(inner) for inner in value)
    return {key: _tuples(inner) for key, inner in value.items()} if isinstance(value, dict) else value
