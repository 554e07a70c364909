"""What the feature-complexity study measures on one trained network: its features and every score of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.nulls import permuted
from netloupe.core.splits import holdout
from netloupe.core.training import History, accuracy, train
from netloupe.lenses.attribution.feature_importance import gradient_x_input
from netloupe.lenses.dictionary.nmf import NonNegativeDictionary
from netloupe.lenses.information.feature_flow import Flow, flow, sensitivity
from netloupe.lenses.information.vinfo import feature_complexity, temporal_score

Data = tuple[Tensor, Tensor]
State = dict[str, Tensor]
ACTIVE = 0.02
"""features active on a smaller share of samples are dropped"""
NOISE = 0.1
MEMORISED = 0.99
"""training accuracy on shuffled labels at which a network stops"""
LEARNED = 0.97
"""and the least at which it counts as having memorised them: the step after the stop may cost a little"""


class Sites(NamedTuple):
    """A network from a seed, and its sites.

    ``layers`` are those complexity is measured along, the last being the rectified ``features`` that ``head`` reads; ``skips``
    and ``branches`` the input and the branch output of each block.
    """

    build: Callable[[int], nn.Module]
    layers: tuple[str, ...]
    skips: tuple[str, ...]
    branches: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """The network and the scale of the study; ``checkpoints`` are epochs."""

    data: str
    sites: Sites
    n_samples: int
    n_test: int
    n_atoms: int
    n_epochs: int
    checkpoints: tuple[int, ...]
    n_seeds: int
    n_draws: int
    n_shaken: int | None = None
    batch_size: int = 64
    nmf_batch: int | None = None
    rate: float = 1e-3
    patience: int = 8

    def seeds(self, seed: int) -> range:
        """One number for each network."""
        return range(seed * 100, seed * 100 + self.n_seeds)


def split_of(setting: Setting, n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bool masks of training and test samples."""
    test = np.zeros(n_samples, bool)
    test[holdout(n_samples, setting.n_test / n_samples, random_state=seed)[1].numpy()] = True
    return ~test, test


def trained(
    setting: Setting, data: Data, seed: int, shuffled: bool = False, rate: float | None = None
) -> tuple[nn.Module, dict[int, State], float]:
    """A network, its weights at the checkpoints (by epoch), and its accuracy on what it was trained on.

    With ``shuffled`` it learns labels that mean nothing, and goes on for up to ``patience`` times as long until it has
    memorised them: before that its features are still near those it started with.
    """
    inputs, labels = data
    fitted = torch.from_numpy(split_of(setting, len(labels), seed)[0])
    x, y = inputs[fitted], labels[fitted]
    y = permuted(y.cpu(), seed).to(y.device) if shuffled else y
    model = setting.sites.build(seed).to(inputs.device)
    states: dict[int, State] = {}
    per_epoch = max(1, len(y) // setting.batch_size)
    n_steps = setting.n_epochs * per_epoch

    def keep(model: nn.Module, step: int) -> Mapping[str, float]:
        epoch = step // per_epoch
        if epoch in setting.checkpoints and not shuffled:
            states[epoch] = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return {"accuracy": accuracy(model, x, y) if shuffled and step >= n_steps else 0.0}

    def done(history: History) -> bool:
        return history.n_steps >= n_steps and history.watched[-1]["accuracy"] >= MEMORISED

    train(
        model, (x, y), steps=n_steps * (setting.patience if shuffled else 1), batch_size=setting.batch_size, seed=seed,
        optimizer=torch.optim.Adam(model.parameters(), lr=setting.rate if rate is None else rate),
        watch=keep, watch_every=per_epoch, stop=done if shuffled else None,
    )  # fmt: skip
    return model.eval(), states, accuracy(model, x, y)


def read(model: nn.Module, inputs: Tensor, sites: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Activations of sites ``(sample, unit)``, feature maps as their means over positions."""
    parts = [part.activations for part in capture(model, inputs, list(sites), pool="mean", batch_size=512)]
    return {site: torch.cat([part[site].cpu() for part in parts]).numpy() for site in sites}


class Features(NamedTuple):
    """The last layer's dictionary features at one moment of training."""

    dictionary: NonNegativeDictionary
    kept: np.ndarray
    codes: np.ndarray
    complexity: np.ndarray
    per_layer: np.ndarray
    importance: np.ndarray

    def correlation(self) -> float:
        """Spearman correlation of complexity and importance."""
        return spearman(self.complexity, self.importance)


def features_of(
    setting: Setting, model: nn.Module, inputs: Tensor, masks: tuple[np.ndarray, np.ndarray], seed: int
) -> Features:
    """Dictionary fitted to training samples, codes of all samples, complexity and importance on test samples."""
    layers = read(model, inputs, setting.sites.layers)
    last = np.maximum(layers["features"], 0)
    dictionary = NonNegativeDictionary(setting.n_atoms, batch_size=setting.nmf_batch, random_state=seed).fit(
        last[masks[0]]
    )
    codes = dictionary.transform(last)
    kept = ((codes[masks[0]] > 0).mean(0) >= ACTIVE) & (codes[masks[1]].std(0) > 0)
    found = feature_complexity(layers, codes[:, kept], split=masks)
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    importance = gradient_x_input(codes[masks[1]][:, kept], dictionary.components_[kept], head.weight).importance
    return Features(dictionary, kept, codes[:, kept], found.complexity, found.per_layer, importance)


class Measured(NamedTuple):
    """One network: its features at the end, how they travel and how noise shakes them."""

    final: Features
    shaken: np.ndarray
    travel: Flow
    fitted_accuracy: float


class Trained(NamedTuple):
    """What only a network trained on its own labels is asked: when features were learned, and whether they suffice."""

    at_end: Measured
    temporal: np.ndarray
    early: float
    test_accuracy: float
    kept_accuracy: float
    random_accuracy: float
    random_head: float
    untrained_shaken: float


def measure(setting: Setting, model: nn.Module, data: Data, seed: int, fitted_accuracy: float) -> Measured:
    """The scores of a network's features."""
    inputs, labels = data
    masks = split_of(setting, len(labels), seed)
    final = features_of(setting, model, inputs, masks, seed)
    blocks = [site.removesuffix(":in") for site in setting.sites.skips]
    skips, branches = (
        dict(zip(blocks, read(model, inputs, sites).values(), strict=True))
        for sites in (setting.sites.skips, setting.sites.branches)
    )
    travel = flow(skips, branches, final.codes, final.complexity)
    shaken = _shaken(setting, model, inputs[torch.from_numpy(masks[1])], final, seed)
    return Measured(final, shaken, travel, fitted_accuracy)


def memorising(setting: Setting, data: Data, seed: int) -> Measured:
    """A network of the same kind that has learned shuffled labels."""
    model, _, fitted = trained(setting, data, seed, shuffled=True)
    return measure(setting, model, data, seed, fitted)


def learning(setting: Setting, data: Data, seed: int) -> Trained:
    """A network trained on its labels, over training."""
    inputs, labels = data
    masks = split_of(setting, len(labels), seed)
    model, states, fitted = trained(setting, data, seed)
    at_end = measure(setting, model, data, seed, fitted)
    accuracies = faithful(model, inputs, labels, masks, at_end.final, seed)
    penultimate, early = {}, 0.0
    for epoch, state in states.items():
        model.load_state_dict(state)
        penultimate[epoch] = read(model, inputs, ("features",))["features"]
        if epoch == 1:
            early = features_of(setting, model, inputs, masks, seed).correlation()
    temporal = temporal_score(penultimate, at_end.final.codes, split=masks).complexity
    model.load_state_dict(states[0])
    start = features_of(setting, model, inputs, masks, seed)
    shaken = _shaken(setting, model, inputs[torch.from_numpy(masks[1])], start, seed)
    return Trained(
        at_end,
        temporal,
        early,
        *accuracies,
        random_head(at_end.final, masks[1], seed),
        spearman(start.complexity, shaken),
    )


def random_head(final: Features, test: np.ndarray, seed: int, n_draws: int = 20) -> float:
    """Correlation of complexity with importance for heads of random weights, which prefer nothing: mean over draws."""
    draw, atoms = np.random.default_rng(seed), final.dictionary.components_[final.kept]
    heads = (draw.standard_normal((10, atoms.shape[1])) for _ in range(n_draws))
    return float(np.mean([
        spearman(final.complexity, gradient_x_input(final.codes[test], atoms, head).importance) for head in heads
    ]))  # fmt: skip


def still(setting: Setting, data: Data, seed: int) -> float:
    """Correlation of complexity and importance at epoch 1 less that at the end, with a learning rate of 0."""
    masks = split_of(setting, len(data[1]), seed)
    model, states, _ = trained(setting, data, seed, rate=0.0)
    late = features_of(setting, model, data[0], masks, seed).correlation()
    model.load_state_dict(states[1])
    return features_of(setting, model, data[0], masks, seed).correlation() - late


def _shaken(setting: Setting, model: nn.Module, inputs: Tensor, final: Features, seed: int) -> np.ndarray:
    """Variance of each standardised feature under noise on the inputs."""
    scale = final.codes.std(0)

    def codes(noisy: Tensor) -> np.ndarray:
        last = np.maximum(read(model, noisy, ("features",))["features"], 0)
        return final.dictionary.transform(last)[:, final.kept] / scale

    chosen = inputs if setting.n_shaken is None else inputs[: setting.n_shaken]
    return sensitivity(codes, chosen, (NOISE,), n_draws=setting.n_draws, random_state=seed)[0]


def faithful(
    model: nn.Module, inputs: Tensor, labels: Tensor, masks: tuple[np.ndarray, np.ndarray], final: Features, seed: int
) -> tuple[float, float, float]:
    """Test accuracy, and its share kept when the last layer is replaced: by the dictionary's, by a random dictionary's."""
    test = torch.from_numpy(masks[1])
    last = np.maximum(read(model, inputs[test], ("features",))["features"], 0)
    atoms = final.dictionary.components_
    random = NonNegativeDictionary(len(atoms), solver="nnls")
    random.components_ = np.random.default_rng(seed).random(atoms.shape)
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    weight, bias = (value.detach().cpu().double().numpy() for value in (head.weight, head.bias))
    truth = labels[test].cpu().numpy()

    def share_right(features: np.ndarray) -> float:
        return float(((features @ weight.T + bias).argmax(1) == truth).mean())

    whole = share_right(last)
    dictionaries = (final.dictionary, random)
    kept = [share_right(one.decode(one.transform(last))) / whole for one in dictionaries]
    return whole, kept[0], kept[1]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation over features that have both; NaN where one of them is the same for all."""
    known = np.isfinite(one) & np.isfinite(other)
    a, b = stats.rankdata(one[known]), stats.rankdata(other[known])
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")
