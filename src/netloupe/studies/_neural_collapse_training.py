"""The claims of the neural-collapse study about trained networks: depth, and the two weight decays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.capture import capture
from netloupe.core.errors import InputError
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import accuracy, cross_entropy, squared_error, train
from netloupe.lenses.geometry.neural_collapse import NeuralCollapse, neural_collapse
from netloupe.models.decay import decay_groups
from netloupe.models.layerwise import Stage, grow_layerwise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECAY, RATE, MOMENTUM = 5e-4, 0.05, 0.9
CHANGES = {"doubled": 2.0, "zero": 0.0}
"""what is done to one of the two weight decays"""
LOSSES: dict[str, Callable[..., Tensor]] = {"squared error": squared_error, "cross-entropy": cross_entropy}
FITTED = 0.999
"""training accuracy from which on a network counts as past zero error: one sample in a thousand may resist"""
N_REDRAWN = 2
"""runs that differ from the baseline in the order of the data alone"""


@dataclass(frozen=True)
class TrainingSettings:
    """The scale of the training claims.

    ``network(head_bias, seed)`` makes the network of the decay claim, with its classifier at ``head``; ``epochs`` are
    for each layer (``layer_epochs``) and each network; the rate falls to a tenth every ``drop_every`` epochs. With
    ``shuffled`` the decay runs are repeated once on shuffled labels, reported and not interpreted.
    """

    data: str
    layer_widths: tuple[int, ...]
    layer_epochs: int
    layer_seeds: int
    network: Callable[[bool, int], nn.Module]
    losses: tuple[str, ...]
    epochs: int
    drop_every: int
    decay_seeds: int
    batch_size: int = 64
    watch_every: int = 10
    shuffled: bool = True


Data = tuple[Tensor, Tensor]


def training_claims(settings: TrainingSettings, data: Data, seed: int) -> Iterator[Claim]:
    """Depth lowers NC1, and the body's weight decay matters more than the head's."""
    yield depth_claim(settings, data, seed)
    yield decay_claim(settings, data, seed)


def measured_at_head(model: nn.Module, data: Data) -> NeuralCollapse:
    """Collapse of what the classifier ``model.head`` reads, on ``data``, in evaluation mode."""
    batches = capture(model, data, ["head:in"], batch_size=1024)
    features = torch.cat([batch.activations["head:in"].cpu() for batch in batches])
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    return neural_collapse(features, data[1].cpu(), head.weight, head.bias)


def depth_profile(settings: TrainingSettings, data: Data, seed: int, n_trained: int | None) -> list[float]:
    """NC1 by traces after each hidden layer of a perceptron grown layer by layer."""
    steps = settings.layer_epochs * max(1, len(data[1]) // settings.batch_size)
    sgd = partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    stages: Iterator[Stage] = grow_layerwise(
        *data, settings.layer_widths, steps=steps, n_trained=n_trained, batch_size=settings.batch_size,
        optimizer=sgd, loss=squared_error, schedule="cosine", head_bias=False, random_state=seed,
    )  # fmt: skip
    return [neural_collapse(stage.features.cpu(), data[1].cpu()).nc1_trace for stage in stages]


def share_not_rising(profile: Sequence[float]) -> float:
    """Share of added layers after which the number is not higher than before."""
    return float((np.diff(profile) <= 0).mean())


def depth_claim(settings: TrainingSettings, data: Data, seed: int) -> Claim:
    """Every layer that is trained on the frozen layers below brings each class closer together."""
    seeds = range(seed * 100, seed * 100 + settings.layer_seeds)
    trained = np.array([depth_profile(settings, data, one, None) for one in seeds])
    random = np.array([depth_profile(settings, data, one, 1) for one in seeds])

    def plot(axes: Axes) -> None:
        depth = np.arange(1, trained.shape[1] + 1)
        for profiles, colour, label in ((trained, "C0", "trained one by one"), (random, "C7", "random (control)")):
            axes.plot(depth, profiles.T, color=colour, alpha=0.4, linewidth=1)
            axes.plot(depth, profiles.mean(0), "o-", color=colour, label=label)
        axes.set(xlabel="hidden layers", ylabel="NC1 by traces", yscale="log", xticks=depth)
        axes.legend(frameon=False, fontsize="small")

    values = ", ".join(f"{value:.3g}" for value in trained.mean(0))
    controls = ", ".join(f"{value:.3g}" for value in random.mean(0))
    return Claim(
        name="depth",
        statement="In a perceptron trained one layer at a time, NC1 by traces on the training data does not rise from "
        "any layer to the next; measured is the share of added layers for which it does not.",
        **over_seeds([share_not_rising(profile) for profile in trained]),
        bar=Bar(">=", 1.0),
        control=float(np.mean([share_not_rising(profile) for profile in random])),
        control_statement="the same when all layers but the first are added and not trained; below 0.25, one of four",
        control_bar=Bar(">=", 0.25),
        note=f"{settings.data}, {len(data[1])} samples, {len(settings.layer_widths)} layers of "
        f"{settings.layer_widths[0]}, {settings.layer_epochs} epochs each, squared error. Mean NC1 by layer: {values}; "
        f"untrained layers: {controls}.",
        plot=plot,
    )


class Run(NamedTuple):
    """One training: NC1 at its end (NaN if it diverged) and on the way, and its accuracy on the training data."""

    nc1: float
    epochs: np.ndarray
    curve: np.ndarray
    accuracy: float


def collapse_run(
    settings: TrainingSettings, data: Data, loss: str, body: float, head: float, seed: int, order: int
) -> Run:
    """Trains one network with the decay of body and head multiplied by ``body`` and ``head``.

    ``seed`` draws the initial weights and ``order`` the order of the samples. Squared error comes without a bias in
    the head, cross-entropy with one.
    """
    model = settings.network(loss != "squared error", seed).to(data[0].device)
    per_epoch = max(1, len(data[1]) // settings.batch_size)
    groups = decay_groups(model, body_decay=DECAY * body, head_decay=DECAY * head)

    def watch(network: nn.Module, step: int) -> dict[str, float]:
        try:
            found = measured_at_head(network, data).nc1
        except InputError:  # a diverged or a dead network: its collapse is not defined, which is a result
            found = None
        return {"nc1": math.nan if found is None else found}

    def objective(output: Tensor, batch: Batch) -> Tensor:
        return LOSSES[loss](output, batch)

    history = train(
        model, data, steps=settings.epochs * per_epoch, batch_size=settings.batch_size,
        optimizer=torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM), loss=objective,
        schedule=lambda step: 0.1 ** (step // (settings.drop_every * per_epoch)), seed=order,
        watch=watch, watch_every=settings.watch_every * per_epoch,
    )  # fmt: skip
    curve = history.column("nc1")
    right = accuracy(model, *data) if history.state == "finished" else 0.0
    return Run(float(curve[-1]), history.column("step") / per_epoch, curve, right)


Runs = dict[str, Run]


def decay_runs(settings: TrainingSettings, data: Data, loss: str, seed: int, n_redrawn: int = N_REDRAWN) -> Runs:
    """The baseline, the four changes of one decay, and baselines that see the data in another order."""
    run = partial(collapse_run, settings, data, loss, seed=seed)
    found = {"baseline": run(1.0, 1.0, order=seed)}
    for name, factor in CHANGES.items():
        found[f"body {name}"] = run(factor, 1.0, order=seed)
        found[f"head {name}"] = run(1.0, factor, order=seed)
    for index in range(n_redrawn):
        found[f"redrawn {index + 1}"] = run(1.0, 1.0, order=seed + 50 + index)
    return found


def log_change(runs: Runs, name: str) -> float:
    """log NC1 of a run less that of the baseline; negative is nearer to collapse."""
    return math.log(runs[name].nc1) - math.log(runs["baseline"].nc1)


def shift(runs: Runs, name: str) -> float:
    """How far a run's log NC1 is from the baseline's, either way."""
    return abs(log_change(runs, name))


def body_lead(runs: Runs) -> float:
    """By how much changing the body's decay moves log NC1 more than changing the head's; the worse change."""
    return float(np.min([shift(runs, f"body {name}") - shift(runs, f"head {name}") for name in CHANGES]))


def decay_claim(settings: TrainingSettings, data: Data, seed: int) -> Claim:
    """Changing the weight decay of the body moves NC1 more than changing that of the head."""
    cases = [(loss, seed * 100 + index) for loss in settings.losses for index in range(settings.decay_seeds)]
    found = [decay_runs(settings, data, loss, one) for loss, one in cases]
    leads = [body_lead(runs) for runs in found]
    noise = float(np.mean([np.max([shift(runs, name) for name in runs if "redrawn" in name]) for runs in found]))
    fitted = min(run.accuracy for runs in found for run in runs.values()) >= FITTED
    lead = float(np.mean(leads)) if fitted else None
    return Claim(
        name="weight-decay",
        statement="Doubling or removing the weight decay of the body moves log NC1 of the penultimate features more "
        "than doing the same to the classifier; measured is the body's lead at the change where it is smaller.",
        measured=lead,
        values=tuple(leads) if fitted else (),
        bar=Bar(">", 0.0),
        control=noise,
        control_statement="how much log NC1 moves when only the order of the samples is drawn anew; less than the "
        "body's lead (where that is not measured: than log 2, a change in proportion to a doubled decay)",
        control_bar=Bar(">=", math.log(2) if lead is None else lead),
        note=("" if fitted else "Not measured, because not every network got past zero training error. ")
        + _decay_note(settings, data, cases, found),
        plot=_decay_plot(found[0], cases[0][0]),
    )


def _decay_note(settings: TrainingSettings, data: Data, cases: Sequence[tuple[str, int]], found: Sequence[Runs]) -> str:
    names = [f"{part} {change}" for change in CHANGES for part in ("body", "head")]
    moves = ", ".join(f"{name} {np.mean([log_change(runs, name) for runs in found]):+.3f}" for name in names)
    per_epoch = max(1, len(data[1]) // settings.batch_size)
    rates = [0.1 ** (epoch // settings.drop_every) for epoch in range(settings.epochs)]
    shrinking = DECAY * RATE / (1 - MOMENTUM) * per_epoch * sum(rates)
    worst = min(run.accuracy for runs in found for run in runs.values())
    note = (
        f"{settings.data}, {len(data[1])} samples, {settings.epochs} epochs at rate {RATE}, a tenth every "
        f"{settings.drop_every}, {' and '.join(settings.losses)}, {settings.decay_seeds} seeds. Mean change of log "
        f"NC1: {moves}; changes smaller than the control are within its noise. Decay alone would shrink the weights by "
        f"a factor exp(-{shrinking:.2f}), at the paper's scale by about exp(-4). Lowest training accuracy {worst:.3f}."
    )
    if settings.shuffled:
        labels = data[1][torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(cases[0][1]))]
        runs = decay_runs(settings, (data[0], labels), cases[0][0], cases[0][1], n_redrawn=0)
        fit = min(run.accuracy for run in runs.values())
        note += f" On shuffled labels, not interpreted: lead {body_lead(runs):.3f}, lowest training accuracy {fit:.3f}."
    return note


def _decay_plot(runs: Runs, loss: str) -> Callable[[Axes], None]:
    styles = {
        "baseline": ("k", "-"), "body doubled": ("C0", "-"), "body zero": ("C0", "--"),
        "head doubled": ("C1", "-"), "head zero": ("C1", "--"),
    }  # fmt: skip

    def plot(axes: Axes) -> None:
        for name, run in runs.items():
            colour, line = styles.get(name, ("C7", ":"))
            label = "other data order" if name == "redrawn 1" else name if name in styles else None
            ratio = run.curve / runs["baseline"].curve
            axes.plot(run.epochs, ratio, color=colour, linestyle=line, linewidth=1.2, label=label)
        axes.set(xlabel=f"epoch ({loss}, first seed)", ylabel="NC1 over the baseline's")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
        axes.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")

    return plot
