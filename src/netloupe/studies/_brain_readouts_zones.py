"""Voxels of three kinds told apart by which features predict them: pixels, the words of objects in their places, or a caption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from netloupe.core.errors import NetloupeError
from netloupe.data.synthetic_voxels import FIELD, gaussian_spots, object_scenes, standardised
from netloupe.lenses.similarity.encoding import fit_ridge_cv
from netloupe.lenses.similarity.scores import partition_voxels, voxel_correlation

THINGS = ("dog", "violin", "lemon", "truck", "candle", "horse", "hammer", "window")
SETTINGS = (
    "in an empty desert at noon", "during a storm at sea", "at a crowded wedding", "in a quiet library", "after a football match",
    "on the first day of school", "beside a burning house", "in an old photograph", "at a funeral", "while everyone laughs",
)  # fmt: skip
ZONES = ("pixels", "words in places", "caption")
WIDTH = 16  # principal components of the embeddings


@dataclass(frozen=True)
class Zones:
    """``accuracy``: share of voxels given to the features that drive them; ``scores`` ``(features, voxel)``; ``truth`` ``(voxel,)``."""

    accuracy: float
    scores: np.ndarray
    truth: np.ndarray


def embedded(sentences: list[str]) -> np.ndarray:
    """MiniLM's mean token states, centred, in their first 16 principal components of unit variance. NetloupeError without it."""
    from netloupe.subjects import load_model

    subject = load_model("minilm")
    parts = []
    for start in range(0, len(sentences), 64):
        batch = subject.tokenizer(sentences[start : start + 64], padding=True, return_tensors="pt")
        with torch.no_grad():
            states = subject.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        parts.append((states * mask).sum(1) / mask.sum(1))
    found = torch.cat(parts).double().numpy()
    found -= found.mean(0)
    left, size, _ = np.linalg.svd(found, full_matrices=False)
    n = min(WIDTH, int((size > 1e-6 * size[0]).sum()))
    return left[:, :n] * np.sqrt(len(found))


def available() -> str:
    """Why MiniLM cannot be had, or nothing."""
    try:
        embedded(["a dog", "a violin"])
    except NetloupeError as error:
        return str(error)
    return ""


def zones(n_samples: int, n_voxels: int, seed: int, shuffle: bool = False) -> Zones:
    """Three features sets, ``n_voxels`` voxels driven by each, and the partition by held-out correlation.

    ``shuffle``: words and captions of other scenes.
    """
    rng = np.random.default_rng(seed)
    scenes = object_scenes(n_samples, 14, n_objects=2, n_categories=len(THINGS), seed=seed)
    context = rng.integers(0, len(SETTINGS), n_samples)
    present = ~np.isnan(scenes.centres[:, :, 0])
    kinds = np.where(present, rng.integers(0, len(THINGS), present.shape), -1)
    said = [
        " and ".join(f"a {THINGS[kind]}" for kind in row if kind >= 0) + " " + SETTINGS[place]
        for row, place in zip(kinds, context, strict=True)
    ]
    known, where = np.unique(said, return_inverse=True)
    caption = embedded(list(known))[where]
    words = embedded([f"a {thing}" for thing in THINGS])
    dense = np.zeros((n_samples, words.shape[1], 14, 14))
    for j in range(2):
        here = present[:, j]
        spots = gaussian_spots(scenes.centres[here, j], 14, FIELD)
        dense[here] += np.einsum("nc,nhw->nchw", words[kinds[here, j]], spots)
    pooled_maps, pooled_dense = (_coarse(each) for each in (scenes.maps, dense))
    driven = [
        _driven(pooled_maps, n_voxels, rng), _driven(pooled_dense, n_voxels, rng), _driven(caption, n_voxels, rng),
    ]  # fmt: skip
    responses = np.concatenate(driven, axis=1)
    responses = responses + 0.5 * rng.standard_normal(responses.shape)
    order = rng.permutation(n_samples) if shuffle else np.arange(n_samples)
    half = n_samples * 3 // 4
    scores = []
    for features in (pooled_maps, pooled_dense[order], caption[order]):
        made = fit_ridge_cv(features[:half], responses[:half], n_splits=3)
        scores.append(voxel_correlation(made.predict(features[half:]), responses[half:]))
    truth = np.repeat(np.arange(3), n_voxels)
    found = partition_voxels(np.nan_to_num(np.stack(scores)), ZONES)
    return Zones(float((found.zone == truth).mean()), np.stack(scores), truth)


def _coarse(maps: np.ndarray) -> np.ndarray:
    """Averaged over 2 by 2 places, flat."""
    n, channels, height, width = maps.shape
    return maps.reshape(n, channels, height // 2, 2, width // 2, 2).mean((3, 5)).reshape(n, -1)


def _driven(features: np.ndarray, n_voxels: int, rng: np.random.Generator) -> np.ndarray:
    return standardised(features @ rng.standard_normal((features.shape[1], n_voxels)))
