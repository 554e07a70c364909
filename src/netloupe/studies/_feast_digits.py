"""Learned event features in front of a linear classifier: digits under saccades, or N-MNIST from a folder (arXiv 1907.07853)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from netloupe.core.study import Bar, Claim, over_seeds
from netloupe.data.digits import digits
from netloupe.data.event_simulation import saccade_events
from netloupe.data.events import events_from_tonic, make_events, nmnist
from netloupe.lenses.dictionary.feast import Feast

ENVIRONMENT = "NETLOUPE_NMNIST"
SENSOR, CELLS = (34, 34), (4, 4)


@dataclass(frozen=True)
class Recordings:
    """Recordings a class for training and for testing; how many of the first train the features; features a polarity."""

    train: int = 40
    test: int = 20
    learned_from: int = 200
    n_features: int = 16
    patch: int = 11


Data = tuple[list[np.ndarray], np.ndarray]


def recordings(sizes: Recordings, full: bool) -> tuple[Data, Data, str]:
    """Train and test recordings with their labels, and what they are. In ``full``, N-MNIST if its folder is given."""
    folder = os.environ.get(ENVIRONMENT)
    if full and folder:
        parts = []
        for train, n in ((True, sizes.train), (False, sizes.test)):
            dataset = nmnist(folder, train)
            order = np.random.default_rng(0).permutation(len(dataset))[: 10 * n]
            pairs = list(events_from_tonic(dataset, order.tolist()))
            parts.append(([events for events, _ in pairs], np.array([int(label) for _, label in pairs])))
        return parts[0], parts[1], "N-MNIST"
    images, labels = (part.numpy() for part in digits())
    rows: dict[str, list[int]] = {"train": [], "test": []}
    for label in range(10):
        mine = np.flatnonzero(labels == label)[: sizes.train + sizes.test]
        cut = min(sizes.train, 2 * len(mine) // 3)  # there may be fewer digits than asked for
        rows["train"] += mine[:cut].tolist()
        rows["test"] += mine[cut:].tolist()
    train, test = (
        ([saccade_events(images[i, 0], noise_rate=1.0, sensor=SENSOR, seed=i) for i in part], labels[part])
        for part in rows.values()
    )
    return train, test, "8 x 8 digits under simulated saccades"


def shuffled(events: np.ndarray, seed: int) -> np.ndarray:
    """The same pixels and the same times, put together at random."""
    times = np.random.default_rng(seed).permutation(events["t"])
    return make_events(events["x"], events["y"], times, events["p"])


def classification(sizes: Recordings, seeds: range, full: bool = False) -> tuple[Claim, Claim]:
    """Accuracy of learned, random and time-shuffled features, all pooled and classified alike."""
    train, test, what = recordings(sizes, full)
    order = np.random.default_rng(0).permutation(len(train[0]))[: sizes.learned_from]
    scores: dict[str, list[float]] = {name: [] for name in ("learned", "random", "other", "shuffled", "patches")}
    mixed = [
        ([shuffled(one, 10_000 * k + i) for i, one in enumerate(part[0])], part[1])
        for k, part in enumerate((train, test))
    ]

    def accuracy(seed: int, data: list[Data], learn: bool, **options: Any) -> float:
        feast = Feast(sizes.n_features, sizes.patch, 30e-3, sensor=SENSOR, seed=seed, **options)
        feast.fit([data[0][0][i] for i in (order if learn else order[:10])])
        x, y = (feast.pool(part[0], CELLS) for part in data)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        return float(model.fit(x, data[0][1]).score(y, data[1][1]))

    fixed = {"eta": 0.0, "adaptive": False}
    for seed in seeds:
        scores["learned"].append(accuracy(seed, [train, test], True))
        scores["random"].append(accuracy(seed, [train, test], False, **fixed))
        scores["other"].append(accuracy(seed + 1000, [train, test], False, **fixed))
        scores["patches"].append(accuracy(seed, [train, test], False, init="samples", **fixed))
        scores["shuffled"].append(accuracy(seed, mixed, True))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    gain = [a - b for a, b in zip(scores["learned"], scores["random"], strict=True)]

    def plot(axes: Any) -> None:
        names = {"learned": "learned", "patches": "random\npatches", "random": "random", "shuffled": "times\nshuffled"}
        axes.bar(list(names.values()), [means[name] for name in names], color=["C0", "C1", "0.6", "0.6"])
        axes.set(ylabel="accuracy on new recordings", ylim=(0, 1))
        axes.axhline(0.8, color="0.4", ls="--")

    def gains(axes: Any) -> None:
        axes.bar(["learned", "other random"], [np.mean(gain), means["other"] - means["random"]], color=["C0", "0.6"])
        axes.axhline(0.05, color="0.4", ls="--")
        axes.set(ylabel="accuracy above random features")

    note = (
        f"{what}; {len(train[0])} recordings to train, {len(test[0])} to test; logistic regression on log counts in 4 x 4 cells; "
        f"random patches as features {means['patches']:.3f}"
    )
    return (
        Claim(
            "classification", "pooled learned features let a linear classifier tell ten digits apart (accuracy)",
            **over_seeds(scores["learned"]), bar=Bar(">=", 0.8), control=means["shuffled"],
            control_statement="times shuffled among each recording's events, everything learned anew; must be below the accuracy itself",
            control_bar=Bar(">=", means["learned"]), note=note, plot=plot,
        ),
        Claim(
            "beats-random", "learned features are better than random ones with the same winner-take-all labels (gain in accuracy)",
            **over_seeds(gain), bar=Bar(">=", 0.05), control=means["other"] - means["random"],
            control_statement="the gain of other random features", plot=gains,
            note=f"accuracy of random features {means['random']:.3f}",
        ),
    )  # fmt: skip


def untested(reason: str) -> tuple[Claim, Claim]:
    """The same two claims where they are not measured."""
    return (
        Claim(
            "classification", "pooled learned features let a linear classifier tell ten digits apart (accuracy)", None,
            Bar(">=", 0.8), None, "times shuffled among each recording's events, everything learned anew", note=reason,
        ),
        Claim(
            "beats-random", "learned features are better than random ones with the same winner-take-all labels (gain in accuracy)",
            None, Bar(">=", 0.05), None, "the gain of other random features", note=reason,
        ),
    )  # fmt: skip
