"""People's descriptions of units: what the largest preset of the MILAN study measures where they are on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.study import Bar, Claim
from netloupe.data.milannotations import AnnotatedLayer, milannotations
from netloupe.lenses.naming.captions import tokens_of
from netloupe.lenses.naming.milan import MilanDescriber
from netloupe.lenses.naming.region_features import region_features
from netloupe.models.scene_networks import DEVICE
from netloupe.studies._milan_claims import bars, low
from netloupe.subjects.models import load_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVELS = ("conv1", "layer1", "layer2", "layer3", "layer4")
NAME, STATEMENT = (
    "people's words",
    "descriptions of a network left out share more words with people's than most likely ones do (lower 95 % bound of F1)",
)
CONTROL = "a describer that learned from the regions of other units"


def people_claim(seed: int, full: bool) -> Claim:
    """Learned from all annotated networks but the last, asked of the last.

    Reads ``NETLOUPE_DATA/milannotations``, a folder a network, and the backbone that ``NETLOUPE_MODEL`` names, a ResNet of torchvision's
    layout whose inputs are normalised as for ImageNet. Not tested without them.
    """
    data, backbone = os.environ.get("NETLOUPE_DATA"), os.environ.get("NETLOUPE_MODEL")
    if not full or not data or not backbone:
        note = "needs MILANNOTATIONS under NETLOUPE_DATA and a backbone in NETLOUPE_MODEL, in the largest preset"
        return Claim(NAME, STATEMENT, None, Bar(">", 0.0), None, CONTROL, note=note)
    folders = sorted(path for path in (Path(data) / "milannotations").iterdir() if path.is_dir())
    if len(folders) < 2:
        raise InputError(
            f"'{data}/milannotations' holds {len(folders)} networks; at least two are needed, one of them to leave out"
        )
    network = load_model(backbone).model.to(DEVICE).eval()
    learned = [layer for folder in folders[:-1] for layer in milannotations(folder)]
    asked = list(milannotations(folders[-1]))
    regions, captions = _features(network, learned), [some for layer in learned for some in layer.captions]
    other, references = _features(network, asked), [some for layer in asked for some in layer.captions]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(captions)))
    gains, scores = [], []
    for given in (regions, regions[order]):
        made = MilanDescriber(random_state=seed).fit(given, captions)
        one, plain = (
            np.array(
                [_f1(told.text, some) for told, some in zip(made.describe(other, lam=lam), references, strict=True)]
            )
            for lam in (0.2, 0.0)
        )
        gains.append(low(one - plain))
        scores.append((float(one.mean()), float(plain.mean())))
    return Claim(
        NAME, STATEMENT, gains[0], Bar(">", 0.0), gains[1], CONTROL,
        note=f"Word F1 with the best of a unit's references: {scores[0][0]:.3f} at lam .2 and {scores[0][1]:.3f} at 0; shuffled "
        f"{scores[1][0]:.3f}.",
        plot=lambda axes: bars(axes, {"lam .2": scores[0][0], "lam 0": scores[0][1], "shuffled": scores[1][0]}, "word F1"),
    )  # fmt: skip


def _features(network: nn.Module, layers: Sequence[AnnotatedLayer]) -> Tensor:
    found = []
    for layer in layers:
        k = layer.images.shape[1]
        for start in range(0, len(layer.units), 64):
            parts = (one[start : start + 64] for one in (layer.images, layer.masks))
            images, masks = (torch.from_numpy(np.ascontiguousarray(one)).flatten(0, 1).float() for one in parts)
            rows = region_features(
                network, images / 255, LEVELS, np.arange(len(images)), masks[:, 0], mean=MEAN, std=STD
            )
            found.append(rows.reshape(-1, k, rows.shape[1]))
    return torch.cat(found)


def _f1(text: str, references: Sequence[str]) -> float:
    said = set(tokens_of(text))
    return max(2 * len(said & set(tokens_of(one))) / max(1, len(said) + len(set(tokens_of(one)))) for one in references)
