"""Handwritten digits: 1,797 images of 8 x 8 pixels in 10 classes, shipped with scikit-learn."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def digits(flat: bool = False) -> tuple[Float[Tensor, "sample ..."], Int[Tensor, " sample"]]:
    """Images in [0, 1], ``(1797, 1, 8, 8)`` or with ``flat`` ``(1797, 64)``, and labels 0 to 9.

    The order is scikit-learn's: consecutive samples come from the same writers, so split by position (or use
    :func:`digits_split`) rather than at random where new writers matter.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.tensor(bunch.images / 16.0, dtype=torch.float32)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    return (images.flatten(1) if flat else images[:, None]), labels


def digits_split(n_test: int = 360, flat: bool = False) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``(train inputs, train labels), (test inputs, test labels)``; the last ``n_test`` samples are the test, whose writers are new."""
    images, labels = digits(flat)
    return (images[:-n_test], labels[:-n_test]), (images[-n_test:], labels[-n_test:])
