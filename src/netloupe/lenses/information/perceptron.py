"""A one-hidden-layer classifier small enough that a general library spends its time on checks: plain arrays, Adam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

LOWEST = 1e-12
"""probabilities are read as at least this, so that one sample costs 40 bits at most"""
BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Settings:
    """Adam's rate and batch, the L2 penalty on weights, and when to stop: after ``patience`` epochs without a held-out
    cross-entropy that is lower by ``least_gain`` nats, at the latest after ``max_iter`` epochs."""

    learning_rate: float
    batch_size: int
    alpha: float
    max_iter: int
    patience: int = 10
    least_gain: float = 1e-3


class Perceptron:
    """``softmax(relu(x A + a) B + b)`` with all parameters in one array; He's start for ``A``, Glorot's for ``B``."""

    def __init__(self, n_units: int, n_hidden: int, n_classes: int, rng: np.random.Generator) -> None:
        shapes = [(n_units, n_hidden), (n_hidden,), (n_hidden, n_classes), (n_classes,)]
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
        self.parameters = np.zeros(ends[-1])
        self._places = [(slice(start, end), shape) for start, end, shape in zip(ends[:-1], ends[1:], shapes)]
        first, _, second, _ = self.views(self.parameters)
        first[:] = rng.standard_normal(first.shape) * np.sqrt(2 / n_units)
        second[:] = rng.standard_normal(second.shape) * np.sqrt(2 / (n_hidden + n_classes))

    def views(self, flat: np.ndarray) -> list[np.ndarray]:
        """The four arrays inside a flat one."""
        return [flat[place].reshape(shape) for place, shape in self._places]

    def probabilities(self, x: Float[np.ndarray, "sample unit"]) -> Float[np.ndarray, "sample class"]:
        """Of each class."""
        first, a, second, b = self.views(self.parameters)
        return _softmax(np.maximum(x @ first + a, 0) @ second + b)

    def gradient(self, x: np.ndarray, codes: np.ndarray, alpha: float) -> np.ndarray:
        """Of the mean cross-entropy plus ``alpha / 2n`` times the squared weights, in the order of the parameters."""
        first, a, second, b = self.views(self.parameters)
        hidden = np.maximum(x @ first + a, 0)
        error = _softmax(hidden @ second + b)
        error[np.arange(len(x)), codes] -= 1
        error /= len(x)
        back = (error @ second.T) * (hidden > 0)
        flat = np.empty_like(self.parameters)
        for view, value in zip(
            self.views(flat),
            (
                x.T @ back + alpha / len(x) * first,
                back.sum(0),
                hidden.T @ error + alpha / len(x) * second,
                error.sum(0),
            ),
        ):
            view[:] = value
        return flat

    def fit(
        self, fitted: tuple[np.ndarray, np.ndarray], judged: tuple[np.ndarray, np.ndarray], settings: Settings,
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        """Trains on ``fitted`` and ends with the parameters that did best on ``judged``, each ``(rows, class codes)``."""
        x, codes = fitted
        mean, square, step = np.zeros_like(self.parameters), np.zeros_like(self.parameters), 0
        best, kept, n_worse = cross_entropy(self.probabilities(judged[0]), judged[1]), self.parameters.copy(), 0
        for _ in range(settings.max_iter):
            order = rng.permutation(len(x))
            for start in range(0, len(x), settings.batch_size):
                rows = order[start : start + settings.batch_size]
                found, step = self.gradient(x[rows], codes[rows], settings.alpha), step + 1
                mean += (1 - BETAS[0]) * (found - mean)
                square += (1 - BETAS[1]) * (found * found - square)
                rate = settings.learning_rate * np.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
                self.parameters -= rate * mean / (np.sqrt(square) + 1e-8)
            loss = cross_entropy(self.probabilities(judged[0]), judged[1])
            if loss < best - settings.least_gain:
                best, kept, n_worse = loss, self.parameters.copy(), 0
            elif (n_worse := n_worse + 1) >= settings.patience:
                break
        self.parameters = kept


def cross_entropy(probabilities: Float[np.ndarray, "sample class"], codes: Int[np.ndarray, " sample"]) -> float:
    """In nats."""
    return -float(np.log(np.maximum(probabilities[np.arange(len(codes)), codes], LOWEST)).mean())


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)
