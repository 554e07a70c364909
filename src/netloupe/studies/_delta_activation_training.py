"""The networks of the delta-activation study: trained plainly, then refined with delta layers or their spatial twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.isolation import guest
from netloupe.core.training import train
from netloupe.lenses.activity.temporal import ChangeReport, change_report
from netloupe.nn.delta import (
    DeltaActivation,
    Grad,
    Granularity,
    OverFrames,
    calibrate_steps,
    delta_layers,
    insert_delta,
    penalties,
)

RATES = (0.0, 1e-4, 1e-3, 1e-2)
RATE = 1e-4
TWIN_RATE = 1e-3
SLOW = 1e-3  # learning rate of the steps, as a share of the weights'
Kind = Literal["motion", "independent", "noise-free"]
Clips = Callable[[Kind, Literal["train", "test"], int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Training:
    """How networks are trained; ``clips(kind, part, seed)`` makes the data, ``network(seed)`` a network of frames."""

    what: str
    clips: Clips
    network: Callable[[int], nn.Module]
    steps: int
    refine_steps: int
    learn_steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    n_seeds: int = 1
    device: str = "cpu"
    variants: bool = False
    cures: bool = True


@dataclass(frozen=True)
class Run:
    """One network over the test clips."""

    report: ChangeReport
    accuracy: float
    steps: dict[str, float] = field(default_factory=dict)

    @property
    def temporal(self) -> float:
        """Operation density of changes."""
        return self.report.summary()["operation_density"]

    @property
    def spatial(self) -> float:
        """Operation density of non-zeros."""
        return self.report.summary()["spatial_operation_density"]


@dataclass(frozen=True)
class Runs:
    """Everything that is trained for one seed."""

    plain: Run
    noise_free: Run
    refined: dict[float, Run]
    twin: Run
    independent_plain: Run
    independent: Run
    unrefined: Run
    learned: dict[str, Run]
    variants: dict[str, Run]


def frame_loss(output: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of every frame's logits ``(sample, time, class)`` against its clip's label."""
    assert batch.labels is not None
    return F.cross_entropy(output.flatten(0, 1), batch.labels.to(output.device).repeat_interleave(output.shape[1]))


def run_on(network: nn.Module, clips: Tensor, labels: Tensor) -> Run:
    """Densities and accuracy; a clip's prediction is the mean over frames of the softmax."""
    model, hits = OverFrames(network), 0
    with guest(model), torch.no_grad():
        for part, target in zip(clips.split(64), labels.split(64)):
            hits += int((model(part).softmax(-1).mean(1).argmax(-1) == target).sum())
    steps = {
        n: float(x.steps.detach().mean()) for n, x in delta_layers(network).items() if isinstance(x, DeltaActivation)
    }
    return Run(change_report(network, clips), hits / len(labels), steps)


def fit(
    settings: Training, network: nn.Module, data: tuple[Tensor, Tensor], steps: int, seed: int, step_rate: float = 1.0
) -> nn.Module:
    """Trains in place with Adam; ``step_rate`` is the learning rate of delta steps as a share of the weights'."""
    model = OverFrames(network)
    thetas = [x.theta for x in delta_layers(network).values() if isinstance(x, DeltaActivation)]
    own = {id(theta) for theta in thetas}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups = [{"params": weights}, {"params": thetas, "lr": settings.learning_rate * step_rate}][: 2 if thetas else 1]

    def loss(output: Tensor, batch: Batch) -> Tensor:
        task = frame_loss(output, batch)
        return task + penalties(model) if delta_layers(network) else task

    train(
        model, data, steps=steps, batch_size=settings.batch_size, seed=seed, loss=loss,
        optimizer=torch.optim.Adam(groups, lr=settings.learning_rate),
    )  # fmt: skip
    return network


def refined(
    settings: Training,
    plain: nn.Module,
    data: tuple[Tensor, Tensor],
    seed: int,
    *,
    rate: float = RATE,
    grad: Grad = "none",
    granularity: Granularity = "channel",
    step_rate: float = 1.0,
    twin: bool = False,
    steps: int | None = None,
) -> nn.Module:
    """A copy of ``plain`` with delta layers, their steps half a standard deviation, trained on."""
    network = copy.deepcopy(plain)
    insert_delta(network, data[0][:1, 0], rate=rate, grad=grad, granularity=granularity, twin=twin)
    if not twin:
        calibrate_steps(OverFrames(network), data[0][:256])
    return fit(settings, network, data, settings.refine_steps if steps is None else steps, seed + 1, step_rate)


def measure(settings: Training, seed: int, learn: bool = True) -> Runs:
    """All trainings of one seed; those of learned steps only if ``learn``."""
    data, test = settings.clips("motion", "train", seed), settings.clips("motion", "test", seed + 1)
    plain = fit(settings, settings.network(seed).to(settings.device), data, settings.steps, seed)
    shuffled = settings.clips("independent", "train", seed)
    other = fit(settings, settings.network(seed).to(settings.device), shuffled, settings.steps, seed)
    other_test = settings.clips("independent", "test", seed + 1)
    learned: dict[str, tuple[Grad, float]] = {"fixed": ("none", 1.0), "paper": ("paper", 1.0)}
    if settings.cures:
        learned |= {"slow": ("paper", SLOW), "lsq": ("lsq", 1.0)}
    variants: dict[str, Run] = {}
    if settings.variants:
        for size in ("layer", "neuron"):
            variants[size] = run_on(refined(settings, plain, data, seed, granularity=size), *test)
        fresh = settings.network(seed).to(settings.device)
        variants["scratch"] = run_on(refined(settings, fresh, data, seed, steps=settings.steps), *test)
    return Runs(
        plain=run_on(plain, *test),
        noise_free=run_on(plain, *settings.clips("noise-free", "test", seed + 1)),
        refined={rate: run_on(refined(settings, plain, data, seed, rate=rate), *test) for rate in RATES},
        twin=run_on(refined(settings, plain, data, seed, rate=TWIN_RATE, twin=True), *test),
        independent_plain=run_on(other, *other_test),
        independent=run_on(refined(settings, other, shuffled, seed), *other_test),
        unrefined=run_on(refined(settings, plain, data, seed, steps=0), *test),
        learned={
            name: run_on(
                refined(settings, plain, data, seed, grad=grad, step_rate=share, steps=settings.learn_steps), *test
            )
            for name, (grad, share) in (learned.items() if learn else ())
        },
        variants=variants,
    )
