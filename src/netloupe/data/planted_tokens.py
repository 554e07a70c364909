"""Tokens whose class is written in one known place: their covariance, their mean, or a parity of their mean."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError


def planted_tokens(
    where: Literal["covariance", "mean", "parity"],
    n_samples: int,
    n_classes: int = 4,
    n_units: int = 16,
    n_positions: int = 49,
    random_state: int = 0,
) -> tuple[Float[Tensor, "sample position unit"], Int[Tensor, " sample"]]:
    """Gaussian tokens, independent over positions, and balanced labels in random order.

    ``covariance``: mean 0, and for class ``k`` the covariance ``Q_k diag(l) Q_k'`` with a random rotation ``Q_k`` and one
    spectrum for all, ``l`` evenly from 0.1 to 1.9: the mean over positions is ``N(0, S_k / L)``, symmetric about 0, so
    a linear reader of it is at chance. ``mean``: covariance I, and class means ``0.12 N(0, I)``, so that all moments
    about the mean are the same. ``parity`` (two classes): covariance I, the mean of the first two units ``(+-0.5, +-0.5)``
    and the class the sign of their product: no linear reader of the mean and no covariance knows it, the mean does.

    The distribution depends on ``random_state`` only through ``Q_k`` and the class means.
    """
    if where not in ("covariance", "mean", "parity") or (where == "parity" and n_classes != 2):
        raise InputError(f"where is '{where}' with {n_classes} classes, expected covariance, mean, or parity with 2")
    if min(n_samples, n_units, n_positions) < 2 or n_classes < 2:
        raise InputError(
            f"{n_samples} samples of {n_positions} positions, {n_units} units and {n_classes} classes were asked for; "
            "at least 2 of each are needed"
        )
    rng = np.random.default_rng(random_state)
    labels = rng.permutation(np.arange(n_samples) % n_classes)
    tokens = rng.standard_normal((n_samples, n_positions, n_units))
    if where == "covariance":
        spectrum = np.linspace(0.1, 1.9, n_units)
        rotations = [np.linalg.qr(rng.standard_normal((n_units, n_units)))[0] for _ in range(n_classes)]
        roots = np.stack([q * np.sqrt(spectrum) @ q.T for q in rotations])
        tokens = tokens @ roots[labels]
    elif where == "mean":
        tokens += 0.12 * rng.standard_normal((n_classes, n_units))[labels][:, None]
    else:
        signs = rng.choice([-1.0, 1.0], n_samples)
        tokens[:, :, 0] += 0.5 * signs[:, None]
        tokens[:, :, 1] += 0.5 * (signs * (2 * labels - 1))[:, None]
    return torch.from_numpy(tokens.astype(np.float32)), torch.from_numpy(labels)
