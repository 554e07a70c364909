"""Readouts fitted to synthetic voxels for the brain-readouts study."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from netloupe.data.synthetic_voxels import Kind, Scenes, Voxels, object_scenes, voxel_responses
from netloupe.domains.brain.fitting import fit_readout, predict
from netloupe.domains.brain.readouts import FactorizedReadout, Readout, SemanticSpatialTransformer
from netloupe.lenses.similarity.encoding import fit_ridge_cv
from netloupe.lenses.similarity.scores import voxel_correlation


@dataclass(frozen=True)
class Setting:
    """One preset. ``sizes``: training samples of the parameter-efficiency claim; ``captions``: whether MiniLM reads them."""

    n_train: int
    n_test: int
    size: int
    n_voxels: int
    steps: int
    n_seeds: int
    sizes: tuple[int, ...]
    captions: int = 0
    lr: float = 5e-3
    n_folds: int = 3


@dataclass(frozen=True)
class World:
    """Scenes and voxels of one seed: trained on the first ``n_train``, judged on the rest."""

    setting: Setting
    seed: int

    @cached_property
    def scenes(self) -> Scenes:
        """All scenes."""
        return object_scenes(
            max(self.setting.n_train, *self.setting.sizes) + self.setting.n_test, self.setting.size, seed=self.seed
        )

    def voxels(self, kind: Kind) -> Voxels:
        """Voxels of one kind."""
        return voxel_responses(self.scenes, kind, self.setting.n_voxels, noise=0.5, seed=self.seed + 17)

    @cached_property
    def code(self) -> np.ndarray:
        """What says where objects are: the luminance, averaged to 7 by 7."""
        return self.scenes.code(7)

    @cached_property
    def shuffled_code(self) -> np.ndarray:
        """The same in the order of other scenes."""
        return self.code[np.random.default_rng(self.seed + 5).permutation(len(self.code))]

    @cached_property
    def with_code(self) -> np.ndarray:
        """Maps with the code as a further channel: what a still readout can make of it."""
        scale = self.setting.size // 7
        larger = self.code.repeat(scale, 2).repeat(scale, 3)
        return np.concatenate([self.scenes.maps, larger], axis=1)

    def rows(self, n_train: int | None = None) -> tuple[slice, slice]:
        """Samples to fit and to judge; those judged are always the last."""
        return slice(0, n_train or self.setting.n_train), slice(
            len(self.scenes) - self.setting.n_test, len(self.scenes)
        )

    def still(self, voxels: Voxels, maps: np.ndarray | None = None, n_train: int | None = None) -> float:
        """Mean test correlation of the factorised readout."""
        return self._fitted(self._new(FactorizedReadout, maps), voxels, maps, None, n_train)[0]

    def moving(
        self, voxels: Voxels, code: np.ndarray, warp_features: bool = True
    ) -> tuple[float, SemanticSpatialTransformer]:
        """Mean test correlation of the readout that moves, and the readout."""
        torch.manual_seed(self.seed)
        shape = self.scenes.maps.shape[1:]
        made = SemanticSpatialTransformer(
            shape, self.setting.n_voxels, nn.Identity(), (1, 7, 7), warp_features=warp_features
        )
        score, _ = self._fitted(made, voxels, None, code, None)
        return score, made

    def ridge(self, voxels: Voxels, n_train: int | None = None) -> float:
        """Mean test correlation of ridge regression on the whole map, penalties by cross-validation."""
        fit, judge = self.rows(n_train)
        flat = self.scenes.maps.reshape(len(self.scenes), -1)
        made = fit_ridge_cv(flat[fit], voxels.responses[fit], n_splits=self.setting.n_folds)
        return float(voxel_correlation(made.predict(flat[judge]), voxels.responses[judge]).mean())

    def _new(self, kind: type[FactorizedReadout], maps: np.ndarray | None) -> FactorizedReadout:
        torch.manual_seed(self.seed)
        return kind((self.scenes.maps if maps is None else maps).shape[1:], self.setting.n_voxels)

    def _fitted(
        self, readout: Readout, voxels: Voxels, maps: np.ndarray | None, code: np.ndarray | None, n_train: int | None
    ) -> tuple[float, Readout]:
        x = self.scenes.maps if maps is None else maps
        fit, judge = self.rows(n_train)
        images = (None, None) if code is None else (code[fit], code[judge])
        fit_readout(
            readout, x[fit], voxels.responses[fit], images[0], steps=self.setting.steps, lr=self.setting.lr, patience=8,
            seed=self.seed,
        )  # fmt: skip
        found = voxel_correlation(predict(readout, x[judge], images[1]), voxels.responses[judge])
        return float(found.mean()), readout


def mask_follows(world: World, readout: SemanticSpatialTransformer, code: np.ndarray) -> float:
    """Correlation over test scenes of the centre of a voxel's moved mask with the object's, mean over voxels and both axes."""
    _, judge = world.rows()
    with torch.no_grad():
        masks = readout.moved_masks(torch.from_numpy(code[judge])).double().numpy()
    size = masks.shape[-1]
    places = (2 * np.arange(size) + 1) / size - 1
    weight = masks.sum((2, 3)) + 1e-12
    centres = np.stack([(masks.sum(2) @ places) / weight, (masks.sum(3) @ places) / weight], axis=-1)
    true = world.scenes.centres[judge, 0]
    found = [
        voxel_correlation(centres[:, :, axis], np.repeat(true[:, axis : axis + 1], centres.shape[1], 1))
        for axis in (0, 1)
    ]
    return float(np.nan_to_num(np.concatenate(found)).mean())
