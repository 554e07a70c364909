"""Which image regions drive each unit of a vision network: its top images, and where in them it is active.

Source: Hernandez et al., "Natural Language Descriptions of Deep Visual Features", arXiv 2201.11114; the regions are those of Bau et al.,
"Network Dissection", arXiv 1704.05796.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from netloupe.core.capture import Captured, CaptureOptions, capture
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.statistics import Quantiles, TopK
from netloupe.lenses.naming.region_features import region_features

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Exemplars(Finding):
    """The ``k`` images with the largest activation of every unit, best first, and where each is active in them.

    ``indices`` int64 and ``scores`` float64 ``(unit, rank)``: the images and their activations. ``maps`` float32 ``(unit, rank, h, w)``:
    activations at the network's own resolution (``1 x 1`` where the site has no positions). ``thresholds`` float64 ``(unit,)``: the
    quantile above which a place counts as active. ``dead`` bool ``(unit,)``: units that never exceed it; their images mean nothing.
    ``size``: height and width of the masks.
    """

    indices: Int[np.ndarray, "unit rank"]
    scores: Float[np.ndarray, "unit rank"]
    maps: Float[np.ndarray, "unit rank h w"]
    thresholds: Float[np.ndarray, " unit"]
    dead: Bool[np.ndarray, " unit"]
    size: tuple[int, int]

    meanings: ClassVar[dict[str, str]] = {
        "area": "share of a top image that its mask covers, mean over images and living units",
        "dead": "share of the units that are nowhere above their own quantile",
        "distinct": "different images among all top images, as a share of them",
        "units": "units",
    }

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        site: str,
        data: Any,
        k: int = 15,
        quantile: float = 0.99,
        reduce: Literal["max", "mean"] = "max",
        *,
        size: tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
        n_special: int = 0,
        bits: int = 16,
        **options: Unpack[CaptureOptions],
    ) -> Self:
        """Two passes over ``data``: the first ranks images and finds each unit's threshold, the second keeps the maps of top images.

        Args:
            model, site: a network and one site name; the unit is a channel (or a coordinate of a token).
            data: images as in :func:`netloupe.core.capture.capture`; a loader must give the same order twice.
            k: images a unit. quantile: of a unit's activations at all positions of all images.
            reduce: what ranks an image: its largest activation, as published, or the mean one.
            size: of the masks; by default the images' own.
            grid: height and width of the positions where the site does not say it (tokens); by default a square.
            n_special: leading tokens without a place (CLS, registers), left out everywhere.
            bits: of each value that the quantile sketch keeps; 16 is within 0.4 % of the threshold and takes 512 KiB a unit.

        Cost: two forward passes (the second over top images only, where ``data`` is an array); memory ``k h w`` numbers a unit.
        Raises InputError for k above the number of images, a quantile outside (0, 1), tokens that make no grid and images of unknown
        size; SiteError for a site that does not exist or is not one site.
        """
        if k < 1 or not 0 < quantile < 1 or reduce not in ("max", "mean") or n_special < 0:
            raise InputError(
                f"k={k}, quantile={quantile}, reduce={reduce!r}, n_special={n_special}; expected k of at least 1, a quantile between "
                "0 and 1, max or mean, and no negative number of tokens"
            )  # fmt: skip
        top, counts = TopK(k), Quantiles(per_unit=True, bits=bits)
        low, shape, images, n = None, None, size, 0
        for captured in capture(model, data, site, **options):
            values, found = _placed(captured, site, grid, n_special)
            shape, images, n = found, images or _image_size(captured), n + len(values)
            flat = values.flatten(0, 1)
            counts.update(flat)
            top.update(values.amax(1) if reduce == "max" else values.mean(1), samples=captured.samples)
            least = flat.amin(0)
            low = least if low is None else torch.minimum(low, least)
        if k > n:
            raise InputError(f"k is {k}, but there are {n} images; give more images or a smaller k")
        assert shape is not None
        assert low is not None
        best = top.result()
        spatial = math.prod(shape) > 1
        if images is None and spatial:
            raise InputError("the inputs are not images (sample, channel, height, width); say the masks' size")
        thresholds = np.asarray(counts.result().quantile(quantile), dtype=np.float64)
        maps, most = np.zeros((*best.samples.shape, *shape), dtype=np.float32), best.values[:, 0]
        for captured in _only(model, data, site, np.unique(best.samples), options):
            values, _ = _placed(captured, site, grid, n_special)
            rows = captured.samples.numpy()
            order = np.searchsorted(rows, best.samples).clip(max=len(rows) - 1)
            unit, rank = np.nonzero(rows[order] == best.samples)
            taken = values.numpy()[order[unit, rank], :, unit]
            maps[unit, rank] = taken.reshape(len(unit), *shape)
        constant = (maps.max((1, 2, 3)) if reduce == "mean" else most) <= low.double().numpy()
        dead = constant | (maps.max((1, 2, 3)) <= thresholds) if spatial else constant
        context = Context(
            site=site, n_samples=n, options={"k": k, "quantile": quantile, "reduce": reduce, "bits": bits}
        )
        return cls(best.samples, best.values, maps, thresholds, dead, images or (1, 1), context=context)

    @property
    def masks(self) -> Bool[np.ndarray, "unit rank height width"]:
        """All masks at once, computed from the maps; large for many units, see :meth:`mask`."""
        return self.mask(np.arange(len(self.indices)))

    def mask(
        self, units: int | Sequence[int] | np.ndarray, *, official: bool = False
    ) -> Bool[np.ndarray, "*unit rank height width"]:
        """Where chosen units are active: the map, up-sampled bilinearly, above the threshold.

        Beyond the map's outermost centres the up-sampled map goes on at its edge; the published code lets it fall to zero there
        (``official=True``), which cuts masks off along the border. A site without positions has a mask of ones.
        """
        chosen = np.atleast_1d(np.asarray(units))
        maps = self.maps[chosen]
        if maps.shape[-2:] == (1, 1):
            found = np.ones((*maps.shape[:2], *self.size), dtype=bool)
        else:
            found = threshold_maps(maps, self.thresholds[chosen], self.size, official=official)
        return found if np.ndim(units) else found[0]

    def region_features(
        self,
        backbone: nn.Module,
        images: Any,
        sites: Sequence[str],
        *,
        official: bool = False,
        units: Sequence[int] | None = None,
        **options: Any,
    ) -> Float[Tensor, "unit rank feature"]:
        """What a backbone sees in each region: :func:`netloupe.lenses.naming.region_features.region_features` of all exemplars.

        ``images`` are those that ``indices`` point into (for a generator: what it made). A backbone runs once for each distinct image.
        """
        chosen = np.arange(len(self.indices)) if units is None else np.asarray(units)
        indices = self.indices[chosen]

        def masks(rows: Int[np.ndarray, " region"]) -> Tensor:
            unit, rank = np.divmod(rows, indices.shape[1])
            if self.maps.shape[-2:] == (1, 1):
                return torch.ones(len(rows), *self.size)
            maps = self.maps[chosen[unit], rank][:, None]
            found = threshold_maps(maps, self.thresholds[chosen[unit]], self.size, official=official)
            return torch.from_numpy(found[:, 0]).float()

        found = region_features(backbone, images, sites, indices.reshape(-1), masks, **options)
        return found.reshape(*indices.shape, -1)

    def masked(self, images: Any, unit: int) -> Float[np.ndarray, "rank channel height width"]:
        """A unit's images, black outside of its regions."""
        chosen = np.stack([np.asarray(images[int(row)]) for row in self.indices[unit]])
        return chosen * self.mask(unit)[:, None]

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains; the first is NaN where all units are dead."""
        alive = np.flatnonzero(~self.dead)
        area = [float(self.mask(part).mean()) * len(part) for part in np.array_split(alive, -(-len(alive) // 64) or 1)]
        distinct = len(np.unique(self.indices)) / self.indices.size
        numbers = (
            sum(area) / len(alive) if len(alive) else float("nan"),
            float(self.dead.mean()),
            distinct,
            float(len(self.dead)),
        )
        return dict(zip(self.meanings, numbers, strict=True))

    def plot(self, axes: Axes) -> None:
        """How activation falls from the best image to the last, for up to 30 living units."""
        for unit in np.flatnonzero(~self.dead)[:30]:
            axes.plot(
                np.arange(1, self.scores.shape[1] + 1), self.scores[unit] - self.thresholds[unit], color="0.4", lw=0.7
            )
        axes.axhline(0, color="C3", lw=1)
        axes.set(xlabel="rank of the image", ylabel="activation above the unit's threshold")


def threshold_maps(
    maps: Float[np.ndarray, "unit rank h w"],
    thresholds: Float[np.ndarray, " unit"],
    size: tuple[int, int],
    *,
    official: bool = False,
) -> Bool[np.ndarray, "unit rank height width"]:
    """Activation maps up-sampled bilinearly to ``size`` (centres of cells aligned), strictly above each unit's threshold.

    ``official`` takes the map to be zero outside instead of going on at its edge.
    """
    flat = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32)).flatten(0, 1)[:, None]
    grid = affine_grid(torch.eye(2, 3)[None], [1, 1, *size], align_corners=False)
    larger = grid_sample(
        flat, grid.expand(len(flat), -1, -1, -1), padding_mode="zeros" if official else "border", align_corners=False
    )
    return (larger.reshape(*maps.shape[:2], *size).double() > torch.from_numpy(thresholds)[:, None, None, None]).numpy()


def _placed(
    captured: Captured, site: str, grid: tuple[int, int] | None, n_special: int
) -> tuple[Tensor, tuple[int, int]]:
    """Activations ``(sample, position, unit)`` of one batch on the CPU in float32, without special tokens, and the grid they lie on."""
    if len(captured.activations) != 1:
        raise InputError(f"'{site}' names {len(captured.activations)} sites, expected one; collect them one by one")
    ((name, values),) = captured.activations.items()
    values = values.detach().float().cpu()
    if values.ndim == 2:
        return values[:, None], (1, 1)
    values = values[:, n_special:]
    n, known = values.shape[1], captured.infos[name].position_shape
    side = math.isqrt(n)
    if grid is not None:
        shape = grid
    elif len(known) == 2 and not n_special:
        shape = (known[0], known[1])
    else:
        shape = (side, side)
    if math.prod(shape) != n or n == 0:
        raise InputError(
            f"site '{name}' has {n} positions after {n_special} special ones, which make no {shape[0]} x {shape[1]} grid; give grid, "
            "or the right n_special"
        )  # fmt: skip
    return values, shape


def _image_size(captured: Captured) -> tuple[int, int] | None:
    first = next(
        (value for value in (*captured.batch.args, *captured.batch.kwargs.values()) if isinstance(value, Tensor)), None
    )
    return None if first is None or first.ndim != 4 else (int(first.shape[2]), int(first.shape[3]))


def _only(model: nn.Module, data: Any, site: str, wanted: np.ndarray, options: CaptureOptions) -> Iterator[Captured]:
    """A second pass with the samples' own numbers: over chosen rows of arrays, over everything else whole."""
    columns = data if isinstance(data, tuple) else (data,)
    if all(isinstance(one, (Tensor, np.ndarray)) for one in columns) and options.get("batch_axis") in (None, 0):
        chosen = tuple(one[wanted] for one in columns)
        for captured in capture(model, chosen if isinstance(data, tuple) else chosen[0], site, **options):
            yield _renumbered(captured, torch.from_numpy(wanted)[captured.samples])
        return
    if not isinstance(data, Iterable) or iter(data) is data:
        raise InputError("the data can be read only once; give arrays or a loader that gives the same order again")
    yield from capture(model, data, site, **options)


def _renumbered(captured: Captured, samples: Tensor) -> Captured:
    return Captured(
        captured.activations, captured.masks, captured.infos, captured.labels, samples, captured.batch, captured.output
    )
