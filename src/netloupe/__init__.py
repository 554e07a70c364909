"""netloupe: record a network's activations once, then ask them anything.

>>> import netloupe
>>> store = netloupe.record(model, (images, labels), ["layer*.relu"], to="recording")   # doctest: +SKIP
>>> netloupe.lenses.sparsity(store["layer1.relu"]).summary()                            # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netloupe import lenses as lenses
    from netloupe.core.asking import ask, watching
    from netloupe.core.capture import Captured, Observation, capture, list_sites, observe, tap
    from netloupe.core.engine import LocalEngine, RayEngine
    from netloupe.core.errors import NetloupeError
    from netloupe.core.finding import Finding
    from netloupe.core.identity import fingerprint
    from netloupe.core.intervene import (
        Edit,
        ablate,
        clamp,
        intervene,
        patch,
        project_out,
        replace_with,
        scale,
        steer,
    )
    from netloupe.core.lens import find_lenses, lens
    from netloupe.core.monitor import Monitor, monitor
    from netloupe.core.recording import record
    from netloupe.core.statistics import (
        Counts,
        Covariance,
        CrossCovariance,
        Histogram,
        LabelMoments,
        Moments,
        Quantiles,
        TopK,
    )
    from netloupe.core.store import Store
    from netloupe.core.study import run_study
    from netloupe.core.training import train

__version__ = "0.1.0"

# name -> module; a name is imported when it is first used, so that `import netloupe` costs nothing
_PLACES = {
    "netloupe.core.asking": ("ask", "watching"),
    "netloupe.core.capture": ("Captured", "Observation", "capture", "list_sites", "observe", "tap"),
    "netloupe.core.engine": ("LocalEngine", "RayEngine"),
    "netloupe.core.errors": ("NetloupeError",),
    "netloupe.core.finding": ("Finding",),
    "netloupe.core.identity": ("fingerprint",),
    "netloupe.core.intervene": (
        "Edit", "ablate", "clamp", "intervene", "patch", "project_out", "replace_with", "scale", "steer",
    ),
    "netloupe.core.lens": ("find_lenses", "lens"),
    "netloupe.core.monitor": ("Monitor", "monitor"),
    "netloupe.core.recording": ("record",),
    "netloupe.core.statistics": (
        "Counts", "Covariance", "CrossCovariance", "Histogram", "LabelMoments", "Moments", "Quantiles", "TopK",
    ),
    "netloupe.core.store": ("Store",),
    "netloupe.core.study": ("run_study",),
    "netloupe.core.training": ("train",),
}  # fmt: skip
_HOME = {name: module for module, names in _PLACES.items() for name in names}
__all__ = ["__version__", "lenses", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("lenses", "data", "nn", "models", "studies"):
        return importlib.import_module(f"netloupe.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'netloupe' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
