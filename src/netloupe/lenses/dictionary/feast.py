"""FEAST: local features of an event camera's stream, learned one event at a time without labels (arXiv 1907.07853).

The surfaces around events (:class:`netloupe.data.events.SurfaceMaps`) are the vectors, and
:class:`~netloupe.lenses.dictionary.adaptive_thresholds.AdaptiveThresholdClusters` is the rule: one population for each polarity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, clone

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError
from netloupe.data.events import EVENT, MICRO, Shape, SurfaceMaps, as_events, extent
from netloupe.lenses.dictionary.adaptive_thresholds import AdaptiveThresholdClusters, History, Init

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHUNK = 4096
_SHARED = (
    "n_features", "eta", "gain", "loosen", "init", "thresholds", "adaptive", "clip", "block", "log_every", "backend",
)  # fmt: skip


class Feast(BaseEstimator):
    """Features of local time surfaces with adaptive selection thresholds.

    Args:
        n_features: of each population. patch: edge of a surface, pixels, odd. tau: seconds, or several (multi-scale).
        eta, gain, loosen, init, thresholds, adaptive, clip, block, log_every, backend: :class:`AdaptiveThresholdClusters`.
        per_polarity: True: a population and maps of its own for each polarity; False: polarities are ignored; ``stacked``: one population
            whose patches hold all polarities (or all features of the layer below).
        sensor: rows and columns; default as far as the first events reach. n_channels: p is 0 to ``n_channels - 1``; for a second layer
            the features of the first.
        pad: surfaces at the border are filled with 0; otherwise events there are left out.
        epochs: passes of ``fit``. seed: of the start and of the order of recordings.

    Attributes: ``populations_`` (one :class:`AdaptiveThresholdClusters` each, with history, wins and read-outs), ``features_``
    ``(population, feature, row, column)``, ``thresholds_`` ``(population, feature)``, ``history_`` (one a population).

    Cost O(N patch^2) an event, in order; the state is the features and one map, so recordings of any length. Raises InputError for
    options, events out of order, off the sensor or with other polarities.
    """

    def __init__(
        self,
        n_features: int = 100,
        patch: int = 11,
        tau: float | Sequence[float] = 30e-3,
        eta: float = 0.001,
        gain: float = 0.001,
        loosen: float = 0.003,
        per_polarity: bool | Literal["stacked"] = True,
        init: Init = "uniform",
        seed: int = 0,
        *,
        sensor: Shape | None = None,
        n_channels: int = 2,
        pad: bool = False,
        thresholds: Literal["closed", "random"] = "closed",
        adaptive: bool = True,
        clip: bool = True,
        block: int = 1,
        epochs: int = 1,
        log_every: int = 1000,
        backend: Literal["numba", "numpy"] = "numba",
    ) -> None:
        self.n_features, self.patch, self.tau, self.eta, self.gain, self.loosen = (
            n_features,
            patch,
            tau,
            eta,
            gain,
            loosen,
        )
        self.per_polarity, self.init, self.seed = per_polarity, init, seed
        self.sensor, self.n_channels, self.pad, self.thresholds, self.adaptive = (
            sensor,
            n_channels,
            pad,
            thresholds,
            adaptive,
        )
        self.clip, self.block, self.epochs, self.log_every, self.backend = clip, block, epochs, log_every, backend

    def fit(self, recordings: np.ndarray | Sequence[np.ndarray], y: Any = None) -> Self:
        """Forgets what was learned and learns from one recording or several.

        In each epoch recordings come in a random order, events in their own; maps start anew with each recording.
        """
        several = [as_events(one, self.sensor, self.n_channels) for one in _several(recordings)]
        if self.epochs < 1:
            raise InputError(f"epochs is {self.epochs}, expected at least 1")
        self.__dict__.pop("populations_", None)
        if self.sensor is None:
            reach = [extent(one, self.patch) for one in several]
            self.sensor_ = max(r[0] for r in reach), max(r[1] for r in reach)
        span = max(int(one["t"][-1]) - int(one["t"][0]) if len(one) else 0 for one in several)
        shortest = float(np.min(self.tau)) * MICRO
        if span < shortest < np.inf and max(map(len, several)) >= 100:
            warnings.warn(
                f"the recordings span at most {span} us, less than tau ({shortest:g} us): are their times microseconds, and tau seconds?",
                stacklevel=2,
            )
        rng = np.random.default_rng(self.seed)
        for _ in range(self.epochs):
            for i in rng.permutation(len(several)) if len(several) > 1 else [0]:
                self.partial_fit(several[i], new=True)
        return self

    def partial_fit(self, events: np.ndarray, y: Any = None, *, new: bool = False) -> Self:
        """Goes on with the next events of a recording, or, ``new``, with the first of another, before which nothing fired."""
        checked = as_events(events, self.sensor or getattr(self, "sensor_", None), self.n_channels)
        if not hasattr(self, "populations_"):
            self._begin(checked)
        if new:
            self.maps_.reset()
        for _, channel, rows in self._surfaces(self.maps_, checked):
            for which, population in enumerate(self.populations_):
                mine = rows if len(self.populations_) == 1 else rows[channel == which]
                if len(mine):
                    population._learn(mine, np.ones(len(mine)))
        return self

    def _begin(self, events: np.ndarray) -> None:
        if self.per_polarity not in (True, False, "stacked"):
            raise InputError(f"per_polarity is {self.per_polarity!r}, expected True, False or 'stacked'")
        if self.sensor is not None or not hasattr(self, "sensor_"):
            self.sensor_ = self.sensor or extent(events, self.patch)
        self.maps_ = self._maps()
        shared = {name: getattr(self, name) for name in _SHARED}
        n = self.n_channels if self.per_polarity is True else 1
        self.populations_ = [AdaptiveThresholdClusters(**shared, seed=self.seed + i) for i in range(n)]
        for population in self.populations_:
            population._check()

    def _maps(self) -> SurfaceMaps:
        n = self.n_channels if self.per_polarity else 1
        return SurfaceMaps(self.patch, self.tau, self.sensor_, n, self.per_polarity == "stacked", self.pad)

    def _surfaces(self, maps: SurfaceMaps, events: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Indices, channels and surfaces, a chunk at a time."""
        for start in range(0, len(events), CHUNK):
            part = events[start : start + CHUNK]
            if not self.per_polarity:
                part = part.copy()
                part["p"] = 0
            kept, rows = maps.rows(part)
            yield kept + start, part["p"][kept], rows

    @property
    def features_(self) -> Float[np.ndarray, "population feature row column"]:
        """Learned surfaces; with several taus or stacked channels ``(population, feature, channel * tau, row, column)``."""
        each = [p.directions_.reshape(self.n_features, -1, self.patch, self.patch) for p in self._learned()]
        found = np.stack(each)
        return found[:, :, 0] if found.shape[2] == 1 else found

    @property
    def thresholds_(self) -> Float[np.ndarray, "population feature"]:
        """Selection thresholds, as they are now."""
        return np.stack([p.thresholds_ for p in self._learned()])

    @property
    def history_(self) -> list[History]:
        """What each window of ``log_every`` events was like, one history a population."""
        return [p.history_ for p in self._learned()]

    def _learned(self) -> list[AdaptiveThresholdClusters]:
        found = getattr(self, "populations_", [])
        if not found or not all(hasattr(p, "thresholds_") for p in found):
            without = [i for i, p in enumerate(found) if not hasattr(p, "thresholds_")]
            raise InputError(
                "nothing was learned yet"
                + (f" of polarity {without[0]}, which had no event away from the border" if found else "")
                + "; call fit with events (per_polarity=False if only one polarity occurs)"
            )
        return found

    def transform(self, events: np.ndarray) -> Int[np.ndarray, " event"]:
        """Label of each event of one whole recording: its most similar feature, whatever the thresholds; -1 at the border.

        Features of polarity p are numbered ``p * n_features`` on.
        """
        populations = self._learned()
        checked = as_events(events, self.sensor_, self.n_channels)
        labels = np.full(len(checked), -1)
        for kept, channel, rows in self._surfaces(self._maps(), checked):
            for which, population in enumerate(populations):
                mine = slice(None) if len(populations) == 1 else channel == which
                labels[kept[mine]] = (rows[mine] @ population._weights).argmax(1) + which * self.n_features
        return labels

    def feature_events(self, events: np.ndarray) -> np.ndarray:
        """One event for each that has a label, the label as its ``p``: the input of a second layer (``n_channels=self.n_labels``)."""
        labels = self.transform(events)
        found = as_events(events, self.sensor_, self.n_channels)[labels >= 0].astype(EVENT)
        found["p"] = labels[labels >= 0]
        return found

    @property
    def n_labels(self) -> int:
        """Features of all populations together."""
        return self.n_features * (self.n_channels if self.per_polarity is True else 1)

    def layer_above(self, n_features: int, patch: int | None = None, **options: Any) -> Feast:
        """A second layer, to be fitted on :meth:`feature_events`: its patches hold all features of this one, tau twice as long."""
        settings: dict[str, Any] = {name: getattr(self, name) for name in _SHARED if name != "n_features"}
        settings |= {
            "tau": tuple(2 * np.atleast_1d(self.tau)),
            "sensor": self.sensor_,
            "seed": self.seed,
            "pad": self.pad,
        }
        return Feast(
            n_features, patch or self.patch, per_polarity="stacked", n_channels=self.n_labels, **settings
        )  # fmt: skip

    def pool(
        self, recordings: np.ndarray | Sequence[np.ndarray], cells: Shape = (1, 1), slices: int = 1
    ) -> Float[np.ndarray, "recording unit"]:
        """``log(1 + counts)`` of each label in each of ``cells`` parts of the sensor and ``slices`` of the time."""
        found = []
        for one in _several(recordings):
            checked = as_events(one, self.sensor_, self.n_channels)
            found.append(pool_labels(checked, self.transform(checked), self.n_labels, self.sensor_, cells, slices))
        return np.stack(found)

    def isolated(self) -> Float[np.ndarray, "population feature"]:
        """Cosine of each feature with the surface of an event that nothing else is near: 1 at its own pixel, 0 around."""
        middle = self.patch // 2
        each = []
        for population in self._learned():
            parts = population.directions_.reshape(
                self.n_features, -1, len(np.atleast_1d(self.tau)), self.patch, self.patch
            )
            each.append(parts[..., middle, middle].sum(2).max(1) / np.sqrt(parts.shape[2]))
        return np.stack(each)

    def noise_features(self, level: float = 0.9) -> Bool[np.ndarray, "population feature"]:
        """Features that stand for isolated events, which is what noise makes: :meth:`isolated` above ``level``."""
        return self.isolated() > level

    def dictionary(self, site: str = "", population: int = 0) -> Dictionary:
        """One population's features, patches as vectors of pixels."""
        return self._learned()[population].dictionary(site)

    def size_heuristic(
        self, recordings: np.ndarray | Sequence[np.ndarray], sizes: Sequence[int], level: float = 0.9
    ) -> NetworkSize:
        """The smallest network with a feature for noise: all others are then for the signal. Trains one network a size, like this one.

        The paper says that features specialised on noise tell how large a network should be; the exact rule is ours.
        """
        wanted = sorted(set(sizes))
        if not wanted or wanted[0] < 1:
            raise InputError(f"sizes are {list(sizes)}, expected positive numbers of features")
        closest, counts = [], []
        for n in wanted:
            other = cast(Feast, clone(self)).set_params(n_features=n).fit(recordings)
            closest.append(float(other.isolated().max()))
            counts.append(int(other.noise_features(level).sum()))
        found = next((n for n, c in zip(wanted, counts, strict=True) if c), None)
        return NetworkSize(tuple(wanted), tuple(closest), tuple(counts), found)

    def plot(self, axes: Axes, population: int = 0) -> None:
        """The features side by side on a matplotlib axes, several channels and taus summed; each with its own scale of brightness."""
        found = self._learned()[population].directions_.reshape(self.n_features, -1, self.patch, self.patch).sum(1)
        found = found / np.maximum(found.max((1, 2), keepdims=True), 1e-300)
        across = int(np.ceil(np.sqrt(len(found))))
        down, edge = -(-len(found) // across), self.patch + 1
        sheet = np.full((down * edge - 1, across * edge - 1), np.nan)
        for i, one in enumerate(found):
            row, column = i // across * edge, i % across * edge
            sheet[row : row + self.patch, column : column + self.patch] = one
        axes.imshow(sheet, cmap="viridis", interpolation="nearest")
        axes.set(xticks=[], yticks=[])

    def said(self) -> str:
        """The run in a few lines: sizes, miss rate beside its formula, evenness of wins, features that are dead or stand for noise."""
        lines = []
        for i, p in enumerate(self._learned()):
            last = min(10 * self.log_every, p.n_seen_ // self.log_every * self.log_every)
            lines.append(
                f"population {i}: N {self.n_features}, tau {self.tau} s, patch {self.patch}, {p.n_seen_} events; missed "
                f"{p.miss_rate(last or None):.4f} (in balance {p.expected_miss_rate:.4f}); evenness of wins "
                f"{p.evenness(last or None):.3f}; {int(p.dead().sum())} dead, {int(self.noise_features()[i].sum())} for isolated events"
            )
        return "\n".join(lines)


class NetworkSize(NamedTuple):
    """For each of ``sizes``: cosine of the feature ``closest`` to an isolated event, and how many ``features`` are above the level.

    ``found``: the smallest size with one, None where no size has.
    """

    sizes: tuple[int, ...]
    closest: tuple[float, ...]
    features: tuple[int, ...]
    found: int | None


def pool_labels(
    events: np.ndarray,
    labels: Int[np.ndarray, " event"],
    n_labels: int,
    sensor: Shape,
    cells: Shape = (1, 1),
    slices: int = 1,
    scale: Callable[[np.ndarray], np.ndarray] | None = np.log1p,
) -> Float[np.ndarray, " unit"]:
    """``(slice, cell, label)`` counts of one recording's labels, flat; labels of -1 do not count. ``scale``: None for plain counts.

    ``cells``: parts down and across. Raises InputError for labels that do not match and numbers that make no sense.
    """
    if len(events) != len(labels) or min(*cells, slices, n_labels) < 1:
        raise InputError(
            f"{len(events)} events have {len(labels)} labels of {n_labels}, cells are {cells} and slices {slices}; expected one label for "
            "each event and positive numbers"
        )
    kept = labels >= 0
    e, label = events[kept], labels[kept]
    start = int(events["t"][0]) if len(events) else 0
    span = max(int(events["t"][-1]) - start + 1, 1) if len(events) else 1
    when = (e["t"] - start) * slices // span
    row = e["y"].astype(np.int64) * cells[0] // sensor[0]
    column = e["x"].astype(np.int64) * cells[1] // sensor[1]
    place = ((when * cells[0] + row) * cells[1] + column) * n_labels + label
    counts = np.bincount(place, minlength=slices * cells[0] * cells[1] * n_labels).astype(np.float64)
    return counts if scale is None else scale(counts)


def _several(recordings: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(recordings, np.ndarray) and recordings.dtype.names:
        return [recordings]
    found = list(cast(Sequence[np.ndarray], recordings))
    if not found:
        raise InputError("there is no recording; give events, or a list of them")
    return found
