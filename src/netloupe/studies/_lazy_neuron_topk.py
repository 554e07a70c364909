"""The claims of the lazy-neuron study about keeping the k largest activations: robustness, accuracy, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.core.training import train
from netloupe.data.ablations import gaussian_noise, impulse_noise, random_labels, shot_noise
from netloupe.lenses.activity.sparsity import activity_report
from netloupe.lenses.verification.calibration import expected_calibration_error
from netloupe.models.small import mlp
from netloupe.nn.replace import replace
from netloupe.nn.topk import TopK, swap_topk
from netloupe.studies._lazy_neuron_setting import BATCH, Images, Settings, adam, device

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATE = 1e-3
LABEL_NOISE = 0.4
TESTS = ("clean", "gaussian", "impulse", "shot")
DENSE, EVERY, RANDOM = "dense", "all", "random"
"""the ordinary network; the top-k layer that keeps every unit; the smallest k, but of random units"""


class RandomK(nn.Module):
    """Keeps ``k`` random units of each row, drawn anew every time: the control of the largest ``k``."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.choose = TopK(k)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with all but ``k`` random units of each row set to 0."""
        return torch.where(self.choose(1 + torch.rand_like(x)) > 0, x, torch.zeros_like(x))


@dataclass(frozen=True)
class Outcome:
    """One trained network on the test images: accuracy by kind of corruption, calibration, activity."""

    accuracy: dict[str, float]
    ece: float
    ece_by_chance: float
    active: float
    dead: float
    weights: tuple[Tensor, ...]


Outcomes = dict[int | str, list[Outcome]]


def topk_claims(settings: Settings, images: Images, seed: int) -> Iterator[Claim]:
    """Claims 5 and 6."""
    first = seed * 100
    noisy = outcomes(settings, images, range(first, first + settings.noise_seeds), LABEL_NOISE, (EVERY,))
    for test in ("clean", "gaussian", "impulse"):
        yield robustness_claim(settings, noisy, test)
    clean = outcomes(settings, images, range(first, first + settings.n_seeds), 0.0, (EVERY, RANDOM))
    yield accuracy_claim(settings, clean)
    yield calibration_claim(settings, clean, noisy)


def outcomes(settings: Settings, images: Images, seeds: range, noise: float, controls: tuple[str, ...]) -> Outcomes:
    """Dense, top-k and control networks trained alike, one entry for each seed (controls: the first seed alone)."""
    found: Outcomes = {DENSE: [], **{k: [] for k in settings.ks}, **{control: [] for control in controls}}
    for seed in seeds:
        for kind, results in found.items():
            if seed == seeds[0] or kind not in controls:
                results.append(_train_and_test(settings, images, kind, seed, noise))
    return found


def _network(settings: Settings, kind: int | str, n_inputs: int, seed: int) -> nn.Module:
    model = mlp(n_inputs, (settings.topk_width,), 10, random_state=seed)
    if kind == RANDOM:
        replace(model, nn.ReLU, lambda act: nn.Sequential(act, RandomK(settings.ks[-1])))
    elif kind != DENSE:
        swap_topk(model, settings.topk_width if kind == EVERY else int(kind))
    return model


def _train_and_test(settings: Settings, images: Images, kind: int | str, seed: int, noise: float) -> Outcome:
    centre, spread = images.train.mean(), images.train.std()
    labels = random_labels(images.train_labels, 10, noise, random_state=seed)
    model = _network(settings, kind, images.train[0].numel(), seed).to(device())
    data = ((images.train - centre) / spread, labels)
    train(model, data, steps=settings.topk_steps, batch_size=BATCH, optimizer=adam(RATE), seed=seed)
    corrupt: dict[str, Callable[[Tensor], Tensor]] = {
        "clean": lambda x: x,
        "gaussian": partial(gaussian_noise, std=0.2, random_state=seed),
        "impulse": partial(impulse_noise, share=0.2, random_state=seed),
        "shot": partial(shot_noise, photons=10.0, random_state=seed),
    }
    accuracy, ece, chance, active, dead = {}, 0.0, 0.0, 0.0, 0.0
    for test in TESTS:
        inputs = (corrupt[test](images.test) - centre) / spread
        logits = torch.cat([each["head"].cpu() for each in capture(model, inputs, "head", batch_size=1024)])
        accuracy[test] = float((logits.argmax(1) == images.test_labels).double().mean())
        if test == "clean":
            calibration = expected_calibration_error(logits.double().softmax(1), images.test_labels)
            ece, chance = calibration.ece, calibration.chance
            site = activity_report(model, inputs, "act1", batch_size=512)["act1"]
            active, dead = site.active_fraction, float(site.dead.mean())
    return Outcome(accuracy, ece, chance, active, dead, tuple(value.detach().cpu() for value in model.parameters()))


def gains(found: Outcomes, kind: int | str, test: str) -> np.ndarray:
    """Accuracy minus the dense network's, one number for each seed."""
    return np.array([a.accuracy[test] - b.accuracy[test] for a, b in zip(found[kind], found[DENSE], strict=False)])


def robustness_claim(settings: Settings, noisy: Outcomes, test: str) -> Claim:
    """5: after training with wrong labels, top-k networks are better by two points, on clean and corrupted images."""
    ks, where = settings.ks[-2:], "on clean images" if test == "clean" else f"on images with {test} noise"
    same = _identical(noisy)
    return Claim(
        f"topk-label-noise-{test}",
        f"Trained with 40 % of labels random, networks that keep only the {' or '.join(map(str, ks))} largest "
        f"activations are at least 0.02 more accurate {where} than the ordinary one (measured: the smaller gain).",
        **over_seeds(np.min([gains(noisy, k, test) for k in ks], axis=0)),
        bar=Bar(">=", 0.02),
        control=float(gains(noisy, EVERY, test)[0]),
        control_statement="The top-k layer with k = all units, which must be the ordinary network.",
        note=f"{_told(noisy, settings, lambda o: o.accuracy[test], 'accuracy')} Weights with k = all units equal the "
        f"ordinary network's bit for bit: {'yes' if same else 'no'}. Dead units leave a top-k network fewer to choose "
        "from than its width.",
        plot=partial(_plot_accuracy, found=noisy, settings=settings, tests=(test,), bar=0.02),
    )


def accuracy_claim(settings: Settings, clean: Outcomes) -> Claim:
    """6a: with clean labels the k largest are enough."""
    return Claim(
        "topk-accuracy",
        f"With clean labels, keeping only the {', '.join(map(str, settings.ks))} largest activations costs at most "
        "0.02 of accuracy (measured: the smallest gain over the ordinary network).",
        **over_seeds(np.min([gains(clean, k, "clean") for k in settings.ks], axis=0)),
        bar=Bar(">=", -0.02),
        control=float(gains(clean, RANDOM, "clean")[0]),
        control_statement=f"{settings.ks[-1]} random units kept in place of the largest, in training and test.",
        note=_told(clean, settings, lambda o: o.accuracy["clean"], "accuracy")
        + " "
        + _told(clean, settings, lambda o: o.accuracy["impulse"], "accuracy under impulse noise"),
        plot=partial(_plot_accuracy, found=clean, settings=settings, tests=TESTS, bar=-0.02),
    )


def calibration_claim(settings: Settings, clean: Outcomes, noisy: Outcomes) -> Claim:
    """6b: the top-k networks are better calibrated."""
    change = [[a.ece - b.ece for a, b in zip(clean[k], clean[DENSE], strict=True)] for k in settings.ks]
    return Claim(
        "topk-calibration",
        f"With clean labels, keeping only the {', '.join(map(str, settings.ks))} largest activations lowers the "
        "expected calibration error (measured: the largest change of the error against the ordinary network).",
        **over_seeds(np.max(change, axis=0)),
        bar=Bar("<", 0.0),
        control=clean[EVERY][0].ece - clean[DENSE][0].ece,
        control_statement="The top-k layer with k = all units.",
        note=_told(clean, settings, lambda o: o.ece, "calibration error")
        + " "
        + _told(noisy, settings, lambda o: o.ece, "with 40 % random labels, calibration error")
        + f" Perfect calibration would show {clean[DENSE][0].ece_by_chance:.3f} on so few test images.",
        plot=partial(_plot_calibration, clean=clean, noisy=noisy, settings=settings),
    )


def _identical(found: Outcomes) -> bool:
    one, other = found[DENSE][0].weights, found[EVERY][0].weights
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _told(found: Outcomes, settings: Settings, number: Callable[[Outcome], float], what: str) -> str:
    parts = []
    for kind in (DENSE, *settings.ks):
        name = DENSE if kind == DENSE else f"k={kind}"
        mean, active, dead = (
            float(np.mean([f(o) for o in found[kind]])) for f in (number, lambda o: o.active, lambda o: o.dead)
        )
        parts.append(f"{name} {mean:.3f} (active {active:.3f}, dead {dead:.3f})")
    return f"{what.capitalize()}: {', '.join(parts)}."


def _kinds(settings: Settings) -> list[tuple[int | str, str]]:
    return [(DENSE, "dense"), *((k, f"k = {k}") for k in settings.ks)]


def _plot_accuracy(axes: Axes, found: Outcomes, settings: Settings, tests: tuple[str, ...], bar: float) -> None:
    kinds = _kinds(settings)
    for index, test in enumerate(tests):
        values = np.array([[o.accuracy[test] for o in found[kind]] for kind, _ in kinds])
        axes.errorbar(
            np.arange(len(kinds)) + 0.08 * index, values.mean(1), values.std(1), fmt="o-", capsize=3,
            color=f"C{index}", label=test,
        )  # fmt: skip
        axes.axhline(values[0].mean() + bar, color=f"C{index}", linestyle="--", linewidth=0.8)
    axes.set(xlabel="activations kept", ylabel="test accuracy (dashed: bar)")
    axes.set_xticks(range(len(kinds)), [name for _, name in kinds])
    axes.legend(frameon=False, fontsize="small")


def _plot_calibration(axes: Axes, clean: Outcomes, noisy: Outcomes, settings: Settings) -> None:
    kinds = _kinds(settings)
    for index, (found, label) in enumerate(((clean, "clean labels"), (noisy, "40 % random labels"))):
        values = np.array([[o.ece for o in found[kind]] for kind, _ in kinds])
        places, colour = np.arange(len(kinds)), f"C{index}"
        axes.errorbar(places, values.mean(1), values.std(1), fmt="o-", capsize=3, color=colour, label=label)
    axes.set(xlabel="activations kept", ylabel="expected calibration error", ylim=(0, None))
    axes.set_xticks(range(len(kinds)), [name for _, name in kinds])
    axes.legend(frameon=False, fontsize="small")
