"""The information plane: I(X;T) and I(T;Y) of every layer over training, by any estimator.

Source: Chelombiev, Houghton and O'Donnell, "Adaptive Estimators Show Information Compression in Deep Neural Networks",
arXiv 1902.09037. The compression score is ours, for the paper's exact formula is not published.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.capture import tap
from netloupe.core.errors import InputError
from netloupe.core.finding import Context, Finding
from netloupe.core.isolation import guest
from netloupe.core.rows import as_rows
from netloupe.lenses.information import estimators
from netloupe.lenses.information.mutual_information import Estimator, as_estimator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Range = Literal["global", "epoch", "running"]
RANGES: tuple[Range, ...] = ("global", "epoch", "running")


@dataclass(frozen=True, eq=False)
class PlaneTable(Finding):
    """``i_xt`` and ``i_ty`` float64 ``(step, site)`` in bits, at ``steps`` float64 ``(step,)`` for ``sites`` in order.

    After :meth:`InformationPlane.average`, ``spread_xt`` and ``spread_ty`` hold the standard deviation over runs.
    """

    steps: Float[np.ndarray, " step"]
    sites: tuple[str, ...]
    i_xt: Float[np.ndarray, "step site"]
    i_ty: Float[np.ndarray, "step site"]
    n_samples: int
    estimator: str
    spread_xt: Float[np.ndarray, "step site"] | None = None
    spread_ty: Float[np.ndarray, "step site"] | None = None
    n_runs: int = 1

    meanings: ClassVar[dict[str, str]] = {
        "largest_compression": "largest compression score of any site, 0 (none) to 1",
        "mean_compression": "compression score averaged over sites",
        "final_i_xt": "bits about the input at the last site after the last step",
        "final_i_ty": "bits about the label at the last site after the last step",
        "final_i_ty_spread": "its standard deviation over runs",
        "saturated": "share of sites and steps at which nearly every sample is its own symbol: those say nothing",
    }

    def compression_score(self) -> dict[str, float]:
        """``(max before the end of I(X;T) - final) / max`` of every site; 0 where it does not fall, never NaN."""
        return dict(zip(self.sites, compression_scores(self.i_xt).tolist()))

    def column(self, site: str) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
        """``I(X;T)`` and ``I(T;Y)`` of one site over the steps."""
        if site not in self.sites:
            raise InputError(f"there is no site '{site}' in this plane; there are {', '.join(self.sites)}")
        index = self.sites.index(site)
        return self.i_xt[:, index], self.i_ty[:, index]

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        scores = list(self.compression_score().values())
        found = {
            "largest_compression": max(scores),
            "mean_compression": float(np.mean(scores)),
            "final_i_xt": float(self.i_xt[-1, -1]),
            "final_i_ty": float(self.i_ty[-1, -1]),
            "saturated": float((self.i_xt >= np.log2(self.n_samples) - 0.1).mean()),
        }
        if self.spread_ty is not None:
            found["final_i_ty_spread"] = float(self.spread_ty[-1, -1])
        return found

    def plot(self, axes: Axes) -> None:
        """One path per site through the plane; small marks are early steps, the large mark is the last."""
        sizes = np.linspace(4, 22, len(self.steps))
        for index, site in enumerate(self.sites):
            axes.plot(self.i_xt[:, index], self.i_ty[:, index], color=f"C{index % 10}", alpha=0.5, linewidth=1)
            axes.scatter(self.i_xt[:, index], self.i_ty[:, index], s=sizes, color=f"C{index % 10}")
            axes.scatter(self.i_xt[-1:, index], self.i_ty[-1:, index], s=60, color=f"C{index % 10}", label=site)
        axes.set(xlabel="I(X;T), bits", ylabel="I(T;Y), bits")
        axes.legend(frameon=False, fontsize="small")


def compression_scores(i_xt: Float[np.ndarray, "step ..."]) -> Float[np.ndarray, " ..."]:
    """The share of its highest earlier ``I(X;T)`` that a site has lost by the last step; the first axis is time."""
    i_xt = np.asarray(i_xt, np.float64)
    if len(i_xt) < 2:
        return np.zeros(i_xt.shape[1:])
    top = i_xt[:-1].max(0)
    return np.where((top > i_xt[-1]) & (top > 0), (top - i_xt[-1]) / np.where(top > 0, top, 1.0), 0.0)


class InformationPlane:
    """Collects ``I(X;T)`` and ``I(T;Y)`` step by step, always on the same samples.

    ``estimator`` is a name, an :class:`Estimator`, or one of the baselines that bin from 0 to a largest activation:
    ``global`` (of all layers and steps; keeps every activation until it is asked), ``epoch`` (of all layers at this
    step) and ``running`` (of this layer so far).

    ``plane.add(step, {site: activations}, labels)`` takes what one has; ``plane.watch(sites, inputs, labels)`` is a
    ``watch`` function for :func:`netloupe.core.training.train`.
    """

    def __init__(self, estimator: str | Estimator = "ebab", n_bins: int = estimators.N_BINS) -> None:
        self.range: Range | None = next((each for each in RANGES if each == estimator), None)
        self.estimator = None if self.range else as_estimator(estimator)
        self.n_bins = n_bins
        self.steps: list[float] = []
        self.sites: tuple[str, ...] = ()
        self.n_samples = 0
        self._found: list[list[estimators.Information]] = []
        self._labels: np.ndarray | None = None
        self._running: dict[str, float] = {}
        self._kept: list[dict[str, Any]] = []

    def add(self, step: float, activations: Mapping[str, Any], labels: Any, logits: Collection[str] = ()) -> None:
        """Measures one step.

        Args:
            activations: site to ``(sample, unit)``, the same sites, samples and order at every step.
            labels: ``(sample,)`` whole numbers, at least two of each class.
            logits: sites that are turned into probabilities sample by sample before they are measured.

        Cost: that of the estimator for each site. Raises InputError for other sites, samples or labels than before,
        and as the estimator does.
        """
        if not activations:
            raise InputError("no activations were given; give at least one site")
        first = as_rows(next(iter(activations.values())), labels, ndim=(2,), min_samples=4)
        classes = estimators.class_labels(first)
        if self._labels is None:
            self.sites, self.n_samples, self._labels = tuple(activations), first.n_samples, classes
        if tuple(activations) != self.sites or not np.array_equal(classes, self._labels):
            raise InputError("the sites or labels differ from the first step's; measure the same samples at every step")
        given = {site: probabilities(values) if site in logits else values for site, values in activations.items()}
        if self.range == "global":
            self._kept.append({site: _copy(values) for site, values in given.items()})
        else:
            self._found.append(self._measure(given))
        self.steps.append(float(step))

    def table(self) -> PlaneTable:
        """Everything measured so far; InputError before the first step."""
        if not self.steps or self._labels is None:
            raise InputError("the plane is empty; add at least one step")
        found = self._found
        if self.range == "global":
            top = max(_largest(values) for step in self._kept for values in step.values())
            found = [[self._ranged(step[site], top) for site in self.sites] for step in self._kept]
        table = np.array(found, dtype=np.float64)
        name = f"range {self.range}" if self.estimator is None else self.estimator.name
        options = {"estimator": repr(self.estimator or name), "n_bins": self.n_bins}
        return PlaneTable(
            np.array(self.steps), self.sites, table[:, :, 0], table[:, :, 1], self.n_samples, name,
            context=Context(n_samples=self.n_samples, options=options),
        )  # fmt: skip

    def compression_score(self) -> dict[str, float]:
        """:meth:`PlaneTable.compression_score` of what was measured so far."""
        return self.table().compression_score()

    @staticmethod
    def average(runs: Sequence[InformationPlane | PlaneTable]) -> PlaneTable:
        """Mean and standard deviation over runs, step by step: phases are read from the mean, not from one run."""
        tables = [run.table() if isinstance(run, InformationPlane) else run for run in runs]
        if not tables:
            raise InputError("there are no runs to average; give at least one")
        first = tables[0]
        for other in tables[1:]:
            same = (other.sites, other.n_samples, other.estimator) == (first.sites, first.n_samples, first.estimator)
            if not (same and np.array_equal(other.steps, first.steps)):
                raise InputError("the runs differ in sites, steps, samples or estimator; average like with like")
        i_xt, i_ty = (np.stack([getattr(table, name) for table in tables]) for name in ("i_xt", "i_ty"))
        ddof = min(1, len(tables) - 1)
        return PlaneTable(
            first.steps, first.sites, i_xt.mean(0), i_ty.mean(0), first.n_samples, first.estimator,
            i_xt.std(0, ddof=ddof), i_ty.std(0, ddof=ddof), len(tables), context=first.context,
        )  # fmt: skip

    def watch(
        self,
        sites: Sequence[str],
        inputs: Tensor,
        labels: Any,
        logits: Collection[str] = (),
        steps: Collection[int] | None = None,
    ) -> Callable[[nn.Module, int], dict[str, float]]:
        """A ``watch`` function: runs the network on ``inputs``, adds the step and returns ``{site/i_xt, site/i_ty}``.

        With ``steps`` only those are measured (log-spaced ones, for instance); at others it returns nothing.
        """

        def look(model: nn.Module, step: int) -> dict[str, float]:
            if steps is not None and step not in steps:
                return {}
            with guest(model), torch.no_grad(), tap(model, list(sites)) as values:
                model(inputs)
            self.add(step, {site: values[site] for site in sites}, labels, logits)
            if self.range == "global":
                return {}
            return {
                f"{site}/{name}": value
                for site, pair in zip(self.sites, self._found[-1])
                for name, value in zip(("i_xt", "i_ty"), pair)
            }

        return look

    def _measure(self, given: Mapping[str, Any]) -> list[estimators.Information]:
        assert self._labels is not None
        if self.estimator is not None:
            return [self.estimator.mutual_information(given[site], self._labels) for site in self.sites]
        largest = {site: _largest(values) for site, values in given.items()}
        if self.range == "epoch":
            return [self._ranged(given[site], max(largest.values())) for site in self.sites]
        for site, top in largest.items():
            self._running[site] = max(top, self._running.get(site, top))
        return [self._ranged(given[site], self._running[site]) for site in self.sites]

    def _ranged(self, values: Any, top: float) -> estimators.Information:
        edges = estimators.fixed_edges(0.0, top if top > 0 else 1.0, self.n_bins)
        return estimators.binned_mi(values, self._labels, edges)


def log_spaced(n_steps: int, count: int) -> list[int]:
    """At most ``count`` different whole numbers from 0 to ``n_steps``, evenly spaced on a logarithmic scale after 0."""
    if n_steps < 1 or count < 2:
        raise InputError(f"n_steps is {n_steps} and count {count}; at least 1 and 2 are needed")
    return sorted({0, *np.unique(np.geomspace(1, n_steps, count - 1).round().astype(int)).tolist(), n_steps})


def probabilities(logits: Any) -> Float[Tensor, "sample unit"]:
    """The softmax of every sample, in float64."""
    return torch.cat([batch.values.double().softmax(1) for batch in as_rows(logits, ndim=(2,))])


def _largest(values: Any) -> float:
    return max(float(batch.values.max()) for batch in as_rows(values, ndim=(2,)))


def _copy(values: Any) -> Any:
    return values.detach().clone() if isinstance(values, Tensor) else np.array(values)
