"""Manifolds of known dimension, and radiology files as they lie on disk."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, MissingExtraError, SubjectError
from netloupe.data.medical import medical_images, prepared, read_image
from netloupe.data.sharp_manifolds import flat_samples, manifold_dataset


@pytest.mark.parametrize("d", [1, 3, 8])
def test_the_map_is_nearly_an_isometry_and_its_tangents_have_the_dimension(d: int):
    data = manifold_dataset(300, d, 64, seed=1)
    scale = 64**0.5 / 4
    flat = manifold_dataset(300, d, 64, seed=1, bend=0)
    one, two = np.triu_indices(300, 1)
    latent = np.linalg.norm(data.z[one] - data.z[two], axis=1)
    assert np.linalg.norm(flat.x[one] - flat.x[two], axis=1) == pytest.approx(scale * latent, rel=1e-3, abs=1e-5)
    ratio = np.linalg.norm(data.x[one] - data.x[two], axis=1) / (scale * latent)
    assert 0.999 < ratio.min() <= ratio.max() < 1.3
    assert np.linalg.matrix_rank(flat.x - flat.x.mean(0), tol=1e-3) == d
    assert np.linalg.matrix_rank(data.x - data.x.mean(0), tol=1e-3) > d


def test_draws_share_the_map_and_labels_turn_with_the_sharpness():
    one, two = (manifold_dataset(500, 2, seed=3, draw=draw) for draw in (0, 1))
    assert not np.allclose(one.z, two.z)
    again = manifold_dataset(500, 2, seed=3)
    assert np.array_equal(one.x, again.x)
    order = np.argsort(np.linalg.norm(one.z[:, None] - two.z, axis=2), axis=1)[:, 0]
    near = np.linalg.norm(one.z - two.z[order], axis=1) < 0.05
    assert (one.y[near] == two.y[order[near]]).mean() > 0.9
    calm, fast = (manifold_dataset(500, 2, seed=3, sharpness=s) for s in (1, 40))
    assert np.array_equal(calm.x, fast.x)
    assert (calm.y[near] == manifold_dataset(500, 2, seed=3, sharpness=1, draw=1).y[order[near]]).mean() > 0.95
    assert 0.3 < fast.y.mean() < 0.7


def test_flat_shapes():
    ball = flat_samples(500, 3, 20, "ball")
    assert np.linalg.norm(ball, axis=1).max() <= 1 + 1e-9
    torus = flat_samples(500, 3, 20, "torus")
    assert np.linalg.norm(torus, axis=1) == pytest.approx(3**0.5)
    for shape, rank in (("gaussian", 3), ("cube", 3), ("ball", 3), ("torus", 6)):
        assert np.linalg.matrix_rank(flat_samples(100, 3, 20, shape)) == rank  # type: ignore[arg-type]
    for bad in (
        lambda: flat_samples(10, 3, 2), lambda: flat_samples(10, 3, 5, "torus"), lambda: flat_samples(10, 3, 20, "line"),  # type: ignore[arg-type]
        lambda: manifold_dataset(0, 2), lambda: manifold_dataset(10, 40, 64), lambda: manifold_dataset(10, 2, sharpness=-1),
        lambda: manifold_dataset(10, 2, bend=float("nan")),
    ):  # fmt: skip
        with pytest.raises(InputError):
            bad()


def picture(path: Path, seed: int) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    values = np.random.default_rng(seed).integers(0, 256, (20, 30)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(values).save(path)
    return values


def test_images_and_their_labels_are_found(tmp_path: Path):
    values = picture(tmp_path / "train" / "XR_HAND" / "patient1" / "study1_positive" / "a.png", 0)
    for index in range(3):
        picture(tmp_path / "train" / "XR_HAND" / f"patient{index + 2}" / "study1_negative" / "a.png", index + 1)
    assert np.array_equal(read_image(tmp_path / "train/XR_HAND/patient1/study1_positive/a.png"), values)
    x, y = medical_images("mura", tmp_path, size=16)
    assert x.shape == (2, 1, 16, 16)
    assert sorted(y.tolist()) == [0, 1]
    x, y = medical_images("mura", tmp_path, size=16, balanced=False)
    assert y.sum() == 1
    assert len(y) == 4
    with (tmp_path / "train.csv").open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["Path", "Frontal/Lateral", "Pleural Effusion"])
        name = "CheXpert-v1.0/train/XR_HAND/patient{}/study1_{}/a.png"
        rows.writerows([
            [name.format(1, "positive"), "Frontal", "1.0"], [name.format(2, "negative"), "Frontal", "0.0"],
            [name.format(3, "negative"), "Frontal", "-1.0"], [name.format(4, "negative"), "Lateral", "0.0"],
        ])  # fmt: skip
    x, y = medical_images("chexpert", tmp_path, size=8)
    assert sorted(y.tolist()) == [0, 1]
    (tmp_path / "labels.csv").write_text("path,label\ntrain/XR_HAND/patient1/study1_positive/a.png,1\n")
    with pytest.raises(SubjectError, match="both are needed"):
        medical_images("listed", tmp_path)
    assert len(medical_images("listed", tmp_path, balanced=False)[1]) == 1


def test_pixels_are_brought_to_one_range_and_size():
    found = prepared(np.linspace(-1000, 3000, 600).reshape(20, 30), 10)
    assert found.shape == (1, 10, 10)
    assert float(found.min()) >= 0
    assert 200 < float(found.max()) <= 255
    assert torch.equal(prepared(np.full((4, 4), 7.0), 2), torch.zeros(1, 2, 2))


def test_volumes_and_dicom(tmp_path: Path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).random((8, 9, 40)).astype(np.float32)
    marked = np.zeros((8, 9, 40), np.uint8)
    marked[2, 3, 20:] = 1
    for name, values in (("a_flair.nii.gz", volume), ("a_seg.nii.gz", marked)):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / name)
    assert np.allclose(read_image(tmp_path / "a_flair.nii.gz", 3), volume[..., 3])
    assert medical_images("brats", tmp_path, size=8)[1].tolist() == [0, 1]


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    (tmp_path / "a.png").write_bytes(b"nothing")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match="medical"):
        read_image(tmp_path / "a.dcm")
    for case in (
        lambda: medical_images("lungs", tmp_path), lambda: medical_images("chexpert", tmp_path), lambda: medical_images("mura", tmp_path),
        lambda: read_image(tmp_path / "b.png"), lambda: read_image(tmp_path / "a.png"),
    ):  # fmt: skip
        with pytest.raises(SubjectError) as caught:
            case()
        assert "\n" not in str(caught.value)
