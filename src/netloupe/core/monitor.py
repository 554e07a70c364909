"""An early warning for anyone's training loop: dead units, massive activations, collapsing information, exploding norms.

watch = netloupe.monitor(model)
for images, labels in loader:
    loss = criterion(model(images), labels)
    ...
    watch(loss=loss)

Every ``every`` steps the training's own forward pass is read through :mod:`netloupe.core.hooks`: there is no pass of the
monitor's own, nothing is kept from it but a few numbers a site, and between two looks nothing is attached to the network.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from netloupe.core.errors import InputError, SiteError
from netloupe.core.hooks import Visit, attach, hidden_by_script, unpack_packed, unwrap
from netloupe.core.sites import LayoutTracker, module_paths, select
from netloupe.core.values import entries_of, main_key, main_tensor, unreadable
from netloupe.core.vitals import Vitals, rows_of, vitals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["dead units", "massive activation", "collapsed information", "exploding norm", "not finite"]
MOST_SITES = 24
_log = logging.getLogger("netloupe.monitor")


@dataclass(frozen=True)
class Limits:
    """When a site is reported; every limit can be changed, and None turns it off.

    dead : share of units that had one and the same value in every row of each of the last ``patience`` looks. A quarter of
        a layer gone is beyond what ReLU networks lose at initialisation, and rarely comes back.
    massive : the largest absolute value over the median one, together with ``massive_value`` as the smallest such value:
        the definition of Sun et al., arXiv 2402.17762 (1,000 and 100). They are normal in large language models, and what
        breaks low-precision arithmetic and quantisation.
    dimension : the participation ratio of the site fell below this share of the largest that was seen there (0.2): most of
        the directions in which inputs differed are gone.
    spread : share of any unit's mean square in which rows differ (1e-6): every input looks the same.
    growth : root mean square over its median in the last five looks (10): what diverges does so within a few. Learning by
        itself makes activations several times larger than at initialisation, but slowly.
    total_growth : the same over the first three looks (100), for what grows steadily.
    patience : looks in a row before units count as dead (3).
    """

    dead: float | None = 0.25
    massive: float | None = 1000.0
    massive_value: float = 100.0
    dimension: float | None = 0.2
    spread: float | None = 1e-6
    growth: float | None = 10.0
    total_growth: float | None = 100.0
    patience: int = 3


@dataclass(frozen=True)
class Alert:
    """One warning: ``value`` went beyond ``limit`` at ``site`` in ``step``."""

    step: int
    site: str
    kind: Kind
    value: float
    limit: float
    sentence: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.site}: {self.sentence}"


@dataclass
class _Past:
    """What is remembered of one site."""

    first: list[float] = field(default_factory=list)
    rms: list[float] = field(default_factory=list)
    widest: float = 0.0
    constant: list[Tensor] = field(default_factory=list)


class Monitor:
    """Made by :func:`monitor`; call it once after every training step.

    Attributes
    ----------
    alerts : every :class:`Alert` so far; a site is reported again only after it was well in between.
    history : one dictionary a look and site: ``step``, ``site``, ``loss`` and the numbers of
        :class:`netloupe.core.vitals.Vitals`.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: str | Sequence[str] | None,
        every: int,
        limits: Limits,
        on_alert: Callable[[Alert], None] | None,
    ) -> None:
        if every < 1:
            raise InputError(f"every is {every}, expected a number of steps of at least 1")
        if limits.patience < 1:
            raise InputError(f"patience is {limits.patience}, expected at least 1 look")
        self.model, self.every, self.limits = unwrap(model), every, limits
        self.sites = _chosen(self.model, sites)
        self.on_alert = on_alert or (lambda alert: _log.warning("%s", alert))
        self.alerts: list[Alert] = []
        self.history: list[dict[str, float | str]] = []
        self._past: dict[str, _Past] = {}
        self._ill: set[tuple[str, Kind]] = set()
        self._seen: dict[str, Vitals] = {}
        self._attached: weakref.finalize[..., Monitor] | None = None
        self._step = 0
        self._arm()

    def __call__(self, step: int | None = None, loss: Tensor | float | None = None) -> list[Alert]:
        """Says that a training step is done; returns the alerts it led to (an empty list most of the time).

        ``step`` is counted from 0 where it is not given. The next look happens in the forward pass of the next step that
        ``every`` divides.
        """
        self._step = self._step if step is None else int(step)
        found = self._look(loss) if self._attached is not None and self._seen else []
        self._step += 1
        self._disarm()
        if self._step % self.every == 0:
            self._arm()
        return found

    def close(self) -> None:
        """Detaches the monitor for good; also the end of a ``with`` block."""
        self._disarm()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plot(self, axes: Axes, number: str = "dimension") -> None:
        """One number of every site over the steps; alerts are marked."""
        names = list(dict.fromkeys(row["site"] for row in self.history))
        if self.history and number not in self.history[0]:
            raise InputError(f"the history has no '{number}'; there are {', '.join(map(str, self.history[0]))}")
        for index, site in enumerate(names):
            rows = [row for row in self.history if row["site"] == site]
            axes.plot([float(r["step"]) for r in rows], [float(r[number]) for r in rows], color=f"C{index}", label=site)
        for alert in self.alerts:
            axes.axvline(alert.step, color="0.6", linestyle=":", linewidth=0.8)
        axes.set(xlabel="step", ylabel=number.replace("_", " "))
        if 0 < len(names) <= 8:
            axes.legend(frameon=False, fontsize=7)

    def _arm(self) -> None:
        self._seen = {}
        tracker = LayoutTracker()
        wanted, found = set(self.sites), self._seen

        def visit(seen: Visit) -> None:
            if seen.path not in wanted or not torch.is_grad_enabled():  # a validation pass between two steps
                return
            entries = entries_of(unpack_packed(seen.value)[0], "out")
            key = main_key(entries)
            raw = dict(entries).get(key) if key is not None else None
            if raw is None or unreadable(raw) or not raw.is_floating_point() or raw.numel() == 0:
                return
            source = main_tensor(seen.source) if seen.source is not None else None
            axis = tracker.unit_axis(seen.path, seen.module, raw, source)
            tracker.learn(raw, axis)
            found.setdefault(seen.path, vitals(rows_of(raw, axis)))

        attached = ExitStack()
        attached.enter_context(attach(self.model, [(path, "out") for path in self.sites], visit))
        # also when the loop ends between an armed look and its pass, and nobody calls close()
        self._attached = weakref.finalize(self, attached.close)

    def _disarm(self) -> None:
        if self._attached is not None:
            self._attached()
            self._attached = None

    def _look(self, loss: Tensor | float | None) -> list[Alert]:
        value = math.nan if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
        found = []
        for site, one in self._seen.items():
            self.history.append({"step": float(self._step), "site": site, "loss": value, **one.numbers()})
            past = self._past.setdefault(site, _Past())
            for kind, alert in self._judged(site, one, past).items():
                if alert is None:
                    self._ill.discard((site, kind))
                elif (site, kind) not in self._ill:
                    self._ill.add((site, kind))
                    found.append(alert)
        if loss is not None and not math.isfinite(value) and ("(loss)", "not finite") not in self._ill:
            self._ill.add(("(loss)", "not finite"))
            found.append(Alert(self._step, "(loss)", "not finite", value, math.inf, f"the loss is {value}"))
        for alert in found:
            self.alerts.append(alert)
            self.on_alert(alert)
        return found

    def _judged(self, site: str, one: Vitals, past: _Past) -> dict[Kind, Alert | None]:
        """Every kind of warning at one site, with the alert or None where all is well."""
        limits, step = self.limits, self._step

        def alert(kind: Kind, bad: bool, value: float, limit: float | None, sentence: str) -> Alert | None:
            return Alert(step, site, kind, value, float(limit or 0.0), sentence) if bad else None

        judged: dict[Kind, Alert | None] = {
            "not finite": alert("not finite", not one.finite, one.largest, math.inf, "activations are NaN or infinite")
        }
        if not one.finite:
            return judged
        past.constant = [*past.constant, one.constant][-limits.patience :]
        share = float(torch.stack(past.constant).all(0).float().mean()) if _same_width(past.constant) else 0.0
        settled = len(past.constant) == limits.patience and one.n_rows > 1
        dead = limits.dead is not None and settled and share > limits.dead
        judged["dead units"] = alert(
            "dead units", dead, share, limits.dead,
            f"{100 * share:.0f} % of the units had one value for every input in the last {limits.patience} looks "
            f"(limit {100 * (limits.dead or 0):.0f} %); lower the learning rate or look at the biases",
        )  # fmt: skip
        massive = limits.massive is not None and one.largest > limits.massive_value and one.ratio >= limits.massive
        judged["massive activation"] = alert(
            "massive activation", massive, one.ratio, limits.massive,
            f"an activation of {one.largest:.3g} is {one.ratio:.3g} times the median one (limit {limits.massive:g})"
            if massive else "",
        )  # fmt: skip
        judged["collapsed information"] = self._collapse(site, one, past)
        judged["exploding norm"] = self._growth(site, one, past)
        past.first, past.rms = [*past.first, one.rms][:3], [*past.rms, one.rms][-5:]
        past.widest = max(past.widest, one.dimension)
        return judged

    def _growth(self, site: str, one: Vitals, past: _Past) -> Alert | None:
        limits = self.limits
        for limit, looks, since in (
            (limits.growth, past.rms, "in the last looks"),
            (limits.total_growth, past.first, "since the first looks"),
        ):
            usual = median(looks) if len(looks) >= 3 else 0.0
            if limit is not None and usual > 0 and one.rms > limit * usual:
                sentence = (
                    f"activations have grown {one.rms / usual:.3g} times {since} (limit {limit:g}); "
                    "clip gradients or lower the learning rate"
                )
                return Alert(self._step, site, "exploding norm", one.rms / usual, limit, sentence)
        return None

    def _collapse(self, site: str, one: Vitals, past: _Past) -> Alert | None:
        limits = self.limits
        if limits.spread is not None and one.rms > 0 and one.n_rows > 1 and one.spread < limits.spread:
            sentence = f"every input gives the same activations (they differ in {one.spread:.1g} of the mean square)"
            return Alert(self._step, site, "collapsed information", one.spread, limits.spread, sentence)
        if limits.dimension is not None and one.dimension < limits.dimension * past.widest:
            sentence = (
                f"inputs differ in {one.dimension:.2g} directions and differed in {past.widest:.2g} "
                f"(limit {limits.dimension:g} of that)"
            )
            return Alert(
                self._step, site, "collapsed information", one.dimension / past.widest, limits.dimension, sentence
            )
        return None


def monitor(
    model: nn.Module,
    sites: str | Sequence[str] | None = None,
    *,
    every: int = 100,
    limits: Limits | None = None,
    on_alert: Callable[[Alert], None] | None = None,
) -> Monitor:
    """Watches a network while anyone's loop trains it; call what this returns once after every step.

    Parameters
    ----------
    model : the network that is trained.
    sites : names or globs of modules whose outputs are looked at; None takes at most 24 of the network's parts, evenly
        over its depth (activation functions and blocks first).
    every : steps between two looks (100); the first look is at the first step.
    limits : when something is reported, see :class:`Limits`.
    on_alert : what to do with an :class:`Alert`; the default is a warning of the logger ``netloupe.monitor``.

    A look adds a few milliseconds to one step in ``every`` and touches neither gradients nor random state; padding counts as
    data. In that step a compiled network runs uncompiled and fused attention unfused. Forward passes without gradients
    (validation) are passed over. Raises SiteError for unknown sites, InputError for impossible numbers.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    return Monitor(model, sites, every, limits or Limits(), on_alert)


def _same_width(masks: list[Tensor]) -> bool:
    return len({len(mask) for mask in masks}) == 1


def _chosen(model: nn.Module, sites: str | Sequence[str] | None) -> list[str]:
    paths = module_paths(model)
    if sites is not None:
        found = [address for address, _ in select(model, sites)]
        wrong = next((a for a in found if a.side != "out" or a.call is not None or a.key is not None), None)
        if wrong is not None:
            raise SiteError(f"the monitor looks at outputs of whole modules, '{wrong.name}' names something else")
        return [address.path for address in found]
    readable = [path for path, _ in model.named_modules() if path and not hidden_by_script(paths, path)]
    acting = [path for path in readable if _is_telling(paths[path], path)] or readable or [""]
    if len(acting) <= MOST_SITES:
        return acting
    return [acting[round(index * (len(acting) - 1) / (MOST_SITES - 1))] for index in range(MOST_SITES)]


def _is_telling(module: nn.Module, path: str) -> bool:
    """Activation functions, and the numbered blocks of a network: what its features are and what carries them."""
    if type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention):
        return True
    return path.rpartition(".")[2].isdigit() and next(module.children(), None) is not None
