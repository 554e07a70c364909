"""The claims of the dse study about networks: entropy and information while they train, and at their start."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.capture import capture
from netloupe.core.nulls import permuted
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import accuracy, train
from netloupe.lenses.information.diffusion import (
    DegenerateSpectrumWarning,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    reference_clusters,
    suggest_sigma,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SITE = "head:in"
SIGMA = 10.0
MATCHED_SIGMA = 5.0
"""the bandwidth where features are rescaled to a median distance of ``SIGMA``"""
LOW_STD, HIGH_STD, EQUAL_STD = 0.01, 0.1, 0.005
TEMPERATURE = 0.5


@dataclass(frozen=True)
class Training:
    """Networks, how long they train, and how often and on how many samples they are looked at."""

    data: str
    network: Callable[[int], nn.Module]
    convolutional: Callable[[int], nn.Module]
    epochs: int
    memory_epochs: int
    """epochs on labels in random order, which take longer to learn"""
    every: int
    """epochs between two looks"""
    n_measured: int
    n_seeds: int
    init_seeds: int
    contrastive_epochs: int
    batch_size: int = 64
    init_epochs: int = 3


class Look(NamedTuple):
    """What is measured at one moment."""

    epoch: float
    entropy: float
    label: float
    inputs: float
    matched_entropy: float
    matched_label: float


@dataclass
class Course:
    """A network's looks, first before training."""

    looks: list[Look] = field(default_factory=list)
    accuracy: float = float("nan")

    def rise(self, name: str) -> float:
        """Last value less the first."""
        return getattr(self.looks[-1], name) - getattr(self.looks[0], name)

    def column(self, name: str) -> list[float]:
        """One number over the looks."""
        return [getattr(look, name) for look in self.looks]


def embedding(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """What the network's last layer reads, ``(sample, unit)`` float64."""
    parts = [part.activations[SITE] for part in capture(model, inputs, [SITE], batch_size=512, nonfinite="allow")]
    return torch.cat(parts).double().cpu().numpy()


def entropy_of(z: np.ndarray, sigma: float = SIGMA) -> float:
    """Of all samples; features that start out as one point at this bandwidth are part of the story, not worth a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateSpectrumWarning)
        return diffusion_spectral_entropy(z, sigma=sigma, max_n=len(z))


def look_at(z: np.ndarray, labels: np.ndarray, clusters: np.ndarray, epoch: float) -> Look:
    """Everything, at the paper's bandwidth and at the features' own scale."""
    if not np.isfinite(z).all():
        return Look(epoch, *[float("nan")] * 5)
    matched = z * (SIGMA / suggest_sigma(z))

    def about(rows: np.ndarray, groups: np.ndarray, sigma: float) -> float:
        return diffusion_spectral_mutual_information(rows, clusters=groups, sigma=sigma)[0]

    return Look(
        epoch,
        entropy_of(z),
        about(z, labels, SIGMA),
        about(z, clusters, SIGMA),
        entropy_of(matched, MATCHED_SIGMA),
        about(matched, labels, MATCHED_SIGMA),
    )


def course(
    settings: Training,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    clusters: np.ndarray,
    epochs: int,
    rate: float,
    seed: int,
) -> Course:
    """Trains a network by cross-entropy and looks at its penultimate layer."""
    inputs, labels = data
    model = model.to(inputs.device)
    per_epoch = max(1, len(labels) // settings.batch_size)
    seen, own = inputs[: settings.n_measured], labels[: settings.n_measured].cpu().numpy()
    found = Course()

    def watch(network: nn.Module, step: int) -> dict[str, float]:
        found.looks.append(look_at(embedding(network, seen), own, clusters, step / per_epoch))
        return {}

    train(
        model,
        data,
        steps=epochs * per_epoch,
        batch_size=settings.batch_size,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate),
        seed=seed,
        watch=watch,
        watch_every=settings.every * per_epoch * max(1, epochs // settings.epochs),
    )
    found.accuracy = accuracy(model, inputs, labels.cpu())
    return found


def training_claims(settings: Training, data: tuple[Tensor, Tensor], seed: int) -> Iterator[Claim]:
    """Entropy and information while a network learns, or memorises; and the same at matched scale."""
    inputs, labels = data
    clusters = reference_clusters(inputs[: settings.n_measured].flatten(1).cpu().numpy())
    seeds = range(100 * seed, 100 * seed + settings.n_seeds)
    learned = [course(settings, settings.network(s), data, clusters, settings.epochs, 1e-3, s) for s in seeds]
    shuffled = [(inputs, permuted(labels.cpu(), s).to(labels.device)) for s in seeds]
    memorised = [
        course(settings, settings.network(s), mixed, clusters, settings.memory_epochs, 1e-3, s)
        for s, mixed in zip(seeds, shuffled)
    ]
    still = course(settings, settings.network(seeds[0]), data, clusters, 1, 0.0, seeds[0])
    common = (
        f"{settings.data[0].upper() + settings.data[1:]}, penultimate layer of {settings.n_measured} samples, {settings.epochs} "
        f"epochs; labels in random order {settings.memory_epochs} epochs (training accuracy "
        f"{np.mean([each.accuracy for each in memorised]):.2f}). "
    )

    def between(courses: Sequence[Course], name: str) -> str:
        first, last = (np.mean([each.column(name)[index] for each in courses]) for index in (0, -1))
        return f"{first:.3g} to {last:.3g}"

    def plot(name: str, title: str, others: bool = True) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for index, each in enumerate(learned):
                axes.plot(each.column("epoch"), each.column(name), color="C0", label=None if index else "true labels")
            for index, each in enumerate(memorised if others else []):
                label = None if index else "labels in random order"
                axes.plot(each.column("epoch"), each.column(name), color="C1", linestyle="--", label=label)
            axes.set(xlabel="epoch", ylabel=title)
            axes.legend(frameon=False, fontsize="small")

        return draw

    yield Claim(
        name="entropy-rises",
        statement="Over training the entropy of the penultimate layer rises; measured is its rise in bits at sigma 10.",
        **over_seeds([each.rise("entropy") for each in learned]),
        bar=Bar(">=", 3.0),
        control=abs(still.rise("entropy")),
        control_statement="the same for a network at a learning rate of 0",
        note=common + f"Entropy {between(learned, 'entropy')} bits; with labels in random order it rises too, "
        f"{between(memorised, 'entropy')}.",
        plot=plot("entropy", "entropy, bits"),
    )
    yield Claim(
        name="information-rises",
        statement="So does what it says about the labels, where the network can generalise; measured is the rise in bits.",
        **over_seeds([each.rise("label") for each in learned]),
        bar=Bar(">=", 1.5),
        control=float(np.mean([each.looks[-1].label for each in memorised])),
        control_statement="bits about labels in random order, once the network has learned those; at most 0.5",
        control_bar=Bar(">", 0.5),
        note=common
        + f"Bits about the label {between(learned, 'label')}, about random labels {between(memorised, 'label')}, "
        f"about the input's clusters {between(learned, 'inputs')}.",
        plot=plot("label", "bits about the label"),
    )
    yield Claim(
        name="matched-scale",
        statement="At matched scale (ours: features rescaled to a median distance of 10, sigma 5) the entropy falls; measured "
        "is its change, so that much of the rise above is the growth of the features.",
        **over_seeds([each.rise("matched_entropy") for each in learned]),
        bar=Bar("<", 0.0),
        control=float(np.mean([each.rise("entropy") for each in learned])),
        control_statement="its change in the same networks at a fixed bandwidth",
        note=common + f"Entropy {between(learned, 'matched_entropy')} bits.",
        plot=plot("matched_entropy", "entropy at matched scale, bits"),
    )
    yield Claim(
        name="matched-information",
        statement="The information about the labels rises at matched scale too; measured is the rise in bits.",
        **over_seeds([each.rise("matched_label") for each in learned]),
        bar=Bar(">", 0.0),
        control=still.rise("matched_label"),
        control_statement="the same for a network at a learning rate of 0",
        note=common + f"Bits {between(learned, 'matched_label')}; with labels in random order "
        f"{between(memorised, 'matched_label')}.",
        plot=plot("matched_label", "bits about the label, matched scale"),
    )


def views(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each image: shifted by up to a pixel, dimmed or brightened, with noise."""
    side = int(inputs[0].numel() ** 0.5)
    images = inputs.reshape(len(inputs), side, side)
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    gain = 1 + 0.2 * torch.randn(len(images), 1, 1, generator=generator).to(images.device)
    noise = 0.1 * torch.randn(images.shape, generator=generator).to(images.device)
    return (torch.roll(images, shift, (1, 2)) * gain + noise).reshape(inputs.shape)


def agreement_loss(output: Tensor, batch: Batch) -> Tensor:
    """SimCLR's loss (arXiv 2002.05709): the two views of an image, one after the other, must find each other."""
    unit = F.normalize(output, dim=1)
    similar = unit @ unit.T / TEMPERATURE
    similar = similar.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), float("-inf"))
    half = len(unit) // 2
    return F.cross_entropy(similar, torch.arange(2 * half, device=unit.device).roll(half))


def contrastive_claim(settings: Training, data: tuple[Tensor, Tensor], seed: int) -> Claim:
    """A network that never sees a label comes to say more about it."""
    inputs, labels = data
    own = labels[: settings.n_measured].cpu().numpy()
    per_epoch = max(1, len(labels) // settings.batch_size)

    def feed(step: int, generator: torch.Generator) -> tuple[Tensor]:
        chosen = torch.randint(len(inputs), (settings.batch_size,), generator=generator)
        return (torch.cat([views(inputs[chosen], generator) for _ in range(2)]),)

    courses = []
    for s in range(100 * seed, 100 * seed + settings.n_seeds):
        found, model = Course(), settings.network(s).to(inputs.device)
        seen = inputs[: settings.n_measured]

        def watch(network: nn.Module, step: int, found: Course = found, seen: Tensor = seen) -> dict[str, float]:
            found.looks.append(look_at(embedding(network, seen), own, own, step / per_epoch))
            return {}

        steps = settings.contrastive_epochs * per_epoch
        train(model, feed, steps=steps, loss=agreement_loss, seed=s, watch=watch, watch_every=max(1, steps // 5))
        courses.append(found)
    chance = diffusion_spectral_mutual_information(
        embedding(model, inputs[: settings.n_measured]), np.random.default_rng(seed).permutation(own)
    )[0]

    rises = [float(np.mean([each.rise(name) for each in courses])) for name in ("matched_entropy", "matched_label")]

    def plot(axes: Axes) -> None:
        for each in courses:
            axes.plot(each.column("epoch"), each.column("entropy"), color="C0")
            axes.plot(each.column("epoch"), each.column("label"), color="C1")
        axes.plot([], [], color="C0", label="entropy")
        axes.plot([], [], color="C1", label="about the label")
        axes.set(xlabel="epoch", ylabel="bits")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="contrastive",
        statement="Entropy and information about the label rise also where views of one image are taught to agree and labels "
        "are never seen; measured is the smaller of the two rises, in bits.",
        **over_seeds([min(each.rise("entropy"), each.rise("label")) for each in courses]),
        bar=Bar(">", 0.0),
        control=abs(chance),
        control_statement="size of the information about labels in random order in the trained features; zero to 0.05",
        control_bar=Bar(">", 0.05),
        note=f"{settings.contrastive_epochs} epochs on {settings.data}, views shifted, dimmed and with noise. Rises of entropy "
        f"{np.mean([each.rise('entropy') for each in courses]):.2f} and information "
        f"{np.mean([each.rise('label') for each in courses]):.2f} bits: small, "
        f"for this loss does not make features grow. At matched scale {rises[0]:+.2f} and {rises[1]:+.2f} bits. The paper gives "
        "curves, so the bar is the sign.",
        plot=plot,
    )


def redraw(model: nn.Module, std: float, seed: int) -> nn.Module:
    """Draws all convolutions anew from a normal of this width."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(std * torch.randn(module.weight.shape, generator=generator))
    return model


class Start(NamedTuple):
    """A network's entropy before training and its accuracy soon after."""

    entropy: float
    accuracy: float


def start(settings: Training, data: tuple[Tensor, Tensor], std: float, seed: int) -> Start:
    """Trains on four fifths for a few epochs; the accuracy is that of the last fifth."""
    inputs, labels = data
    model = redraw(settings.convolutional(seed), std, seed).to(inputs.device)
    n_train = len(labels) * 4 // 5
    entropy = entropy_of(embedding(model, inputs[: settings.n_measured]))
    steps = settings.init_epochs * max(1, n_train // settings.batch_size)
    train(model, (inputs[:n_train], labels[:n_train]), steps=steps, batch_size=settings.batch_size, seed=seed)
    return Start(entropy, accuracy(model, inputs[n_train:], labels[n_train:].cpu()))


def initialisation_claim(settings: Training, data: tuple[Tensor, Tensor], seed: int) -> Claim:
    """Convolutions that start small give a low entropy, and train no worse."""
    stds = (LOW_STD, HIGH_STD, EQUAL_STD)
    seeds = range(100 * seed, 100 * seed + settings.init_seeds)
    table = {std: [start(settings, data, std, s) for s in seeds] for std in stds}
    entropy = {std: float(np.mean([each.entropy for each in table[std]])) for std in stds}
    gaps = [low.accuracy - high.accuracy for low, high in zip(table[LOW_STD], table[HIGH_STD])]
    equal = np.array([low.accuracy - other.accuracy for low, other in zip(table[LOW_STD], table[EQUAL_STD])])
    error = float(equal.std(ddof=1) / np.sqrt(len(equal)))
    line = float(stats.t.ppf(0.975, len(equal) - 1))
    systematic = 0.0 if not equal.any() else abs(float(equal.mean())) / error if error > 0 else float("inf")
    lower = entropy[LOW_STD] < entropy[HIGH_STD]

    def plot(axes: Axes) -> None:
        for index, std in enumerate(stds):
            axes.plot(*zip(*table[std]), "os^"[index], color=f"C{index}", alpha=0.6, markersize=8, label=f"std {std:g}")
        axes.set(xlabel="entropy before training, bits", ylabel=f"accuracy after {settings.init_epochs} epochs")
        axes.legend(frameon=False, fontsize="small")

    return Claim(
        name="initialisation",
        statement=f"Convolutions drawn with standard deviation {LOW_STD:g} give a lower entropy before training than with "
        f"{HIGH_STD:g} and no lower accuracy soon after; measured is the accuracy gained, counted as -1 where the mean entropy is "
        "not lower.",
        **over_seeds(gaps if lower else [-1.0] * len(gaps)),
        bar=Bar(">=", 0.0),
        control=systematic,
        control_statement=f"size of the accuracy gap to standard deviation {EQUAL_STD:g}, whose entropy is nearly equal, in standard "
        "errors: within the 95 % interval",
        control_bar=Bar(">", line),
        note=f"{settings.data[0].upper() + settings.data[1:]}, convolutions with batch norm, {settings.init_epochs} epochs, "
        f"{len(gaps)} seeds. Entropy "
        + ", ".join(f"{entropy[std]:.3g} at {std:g}" for std in stds)
        + "; accuracy "
        + ", ".join(f"{np.mean([each.accuracy for each in table[std]]):.3f}" for std in stds)
        + f". Gaps {', '.join(f'{gap:+.3f}' for gap in gaps)}. Entropy is that of evaluation mode, where untrained batch norm "
        "passes small weights on as small features; in training mode it would hide them. The paper shows curves for ResNets and gives "
        "no threshold.",
        plot=plot,
    )
