"""Moving images with known motion, and folders of videos."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, MissingExtraError, SubjectError
from netloupe.data.video import VideoFolder, moving_digits, moving_images


def test_a_square_drifts_by_one_pixel_over_a_still_background():
    clips = moving_images(torch.ones(5, 1, 3, 3), 12, 9, noise=0.0, seed=3)
    assert clips.shape == (5, 12, 1, 9, 9)
    assert clips.dtype == torch.float32
    places = [[torch.nonzero(frame[0] == 1).amin(0) for frame in clip] for clip in clips]
    for clip, found in zip(clips, places):
        assert all(int((frame == 1).sum()) == 9 for frame in clip)
        steps = torch.stack(found).diff(dim=0).abs()
        assert torch.equal(steps, torch.ones_like(steps))
        never = (clip < 1).all(0)
        assert bool((clip[:, never] == clip[:1, never]).all())
        assert float(clip[:, never].max()) < 0.3
    assert torch.equal(clips, moving_images(torch.ones(5, 1, 3, 3), 12, 9, noise=0.0, seed=3))


def test_independent_frames_noise_and_backgrounds():
    images = torch.ones(200, 1, 3, 3)
    noisy = moving_images(images, 2, 6, noise=0.05) - moving_images(images, 2, 6, noise=0.0)
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    fresh = moving_images(images, 2, 6, noise=0.0, static_background=False)
    free = (fresh < 1).all(1)
    assert float((fresh[:, 0][free] == fresh[:, 1][free]).float().mean()) < 0.01
    apart = moving_images(images, 2, 6, noise=0.0, independent=True)
    corners = torch.stack([torch.stack([torch.nonzero(f[0] == 1).amin(0) for f in clip]) for clip in apart])
    assert int(corners.diff(dim=1).abs().max()) > 1
    shaken = moving_images(images, 4, 6, noise=0.0, jitter=1)
    assert shaken.shape == (200, 4, 1, 6, 6)
    assert not torch.equal(shaken, moving_images(images, 4, 6, noise=0.0))
    filling = moving_images(torch.rand(2, 1, 4, 4) + 1, 3, 4, noise=0.0)
    assert torch.equal(filling[:, 0], filling[:, 2])


def test_digits_of_train_and_test_are_apart():
    clips, labels = moving_digits(6, 3, part="train")
    assert clips.shape == (6, 3, 1, 16, 16)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    _, test = moving_digits(398, 2, size=8, part="test")
    assert test[0] == test[397]
    for options in ({"n": 0}, {"part": "none"}, {"size": 7}, {"T": 0}, {"noise": -1.0}):
        with pytest.raises(InputError):
            moving_digits(**{"n": 2, "T": 2, **options})


def folder(root: Path) -> Path:
    from PIL import Image

    for name, video, n in (("jump", "a", 6), ("jump", "b", 2), ("walk", "c", 5)):
        (root / name / video).mkdir(parents=True)
        for t in range(n):
            Image.fromarray(np.full((4, 6, 3), 10 * t, np.uint8)).save(root / name / video / f"{t:03d}.png")
    return root


def test_a_folder_of_frames_is_read_as_it_is_asked_for(tmp_path: Path):
    root = folder(tmp_path / "videos")
    found = VideoFolder(root, T=3, stride=2, shift=1, size=5)
    assert found.class_names == ("jump", "walk")
    assert found.labels.tolist() == [0, 0, 1]  # five frames a clip: two in a, none in b, one in c
    clip = found.clip(1)
    assert clip.shape == (3, 3, 5, 5)
    torch.testing.assert_close(clip[:, 0, 0, 0], torch.tensor([10.0, 30.0, 50.0]) / 255)
    (root / "walk" / "c" / "001.png").write_bytes(b"broken")  # not a frame of the clip
    assert [tuple(part.shape) for part, _ in found.batches(2)] == [(2, 3, 3, 5, 5), (1, 3, 3, 5, 5)]
    grey = VideoFolder(root, T=2, channels=1, size=4)
    assert grey.clip(0).shape == (2, 1, 4, 4)
    (root / "walk" / "c" / "000.png").write_bytes(b"broken")
    with pytest.raises(SubjectError, match="not a readable image"):
        found.clip(2)


def test_split_files(tmp_path: Path):
    root = folder(tmp_path / "videos")
    split = tmp_path / "split.txt"
    split.write_text("jump/a.avi 1\nwalk/c\n")
    assert len(VideoFolder(root, split, T=4, shift=9)) == 2
    split.write_text("jump/z.avi 1\n")
    with pytest.raises(SubjectError, match="names jump/z"):
        VideoFolder(root, split)
    split.write_text("z.avi\n")
    with pytest.raises(SubjectError, match="without a class"):
        VideoFolder(root, split)
    with pytest.raises(SubjectError, match="cannot be read"):
        VideoFolder(root, tmp_path / "none.txt")
    with pytest.raises(SubjectError, match="is not a folder"):
        VideoFolder(tmp_path / "none")
    with pytest.raises(SubjectError, match="no clip of 50 frames"):
        VideoFolder(root, T=50)
    with pytest.raises(InputError, match="channels"):
        VideoFolder(root, channels=2)


def test_containers_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "videos" / "jump").mkdir(parents=True)
    (tmp_path / "videos" / "jump" / "a.avi").write_bytes(b"")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "av":
            raise ImportError
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"netloupe\[video\]"):
        VideoFolder(tmp_path / "videos")
