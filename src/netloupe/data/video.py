"""Short videos: moving images with exactly known motion, and folders of real ones read frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError, MissingExtraError, SubjectError
from netloupe.data.digits import digits

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
CONTAINERS = {".avi", ".mp4", ".mkv", ".mov", ".webm"}
BACKGROUND = 0.3  # brightest pixel of the random background


def moving_images(
    images: Float[Tensor, "sample 1 height width"],
    T: int,
    size: int,
    *,
    noise: float = 0.02,
    static_background: bool = True,
    independent: bool = False,
    jitter: int = 0,
    seed: int = 0,
) -> Float[Tensor, "sample time 1 size size"]:
    """One clip for each image: it drifts by one pixel a frame along both axes over a random background and turns at the walls.

    A pixel is the brighter of image and background (uniform in 0 to 0.3) plus Gaussian noise of its own in every frame.

    Args:
        T: frames. size: edge of a frame, at least the image's.
        noise: standard deviation of the sensor noise; with 0 a still pixel is exactly still.
        static_background: one background for a clip; otherwise a new one in every frame.
        independent: a new position in every frame as well as a new background, so that frames share only what they show.
        jitter: the camera shifts everything by up to so many pixels, anew in every frame.
    """
    n, edge = len(images), max(images.shape[-2:]) if images.ndim == 4 else 0
    if images.ndim != 4 or n == 0 or T < 1 or size < edge or noise < 0 or jitter < 0:
        raise InputError(
            f"images have shape {tuple(images.shape)}, T is {T}, size {size}, noise {noise} and jitter {jitter}; expected "
            "(sample, 1, height, width), at least one frame, frames no smaller than images, and no negative number"
        )
    draw = np.random.default_rng(seed)
    still, wide = static_background and not independent, size + 2 * jitter
    field = draw.random((n, 1 if still else T, wide, wide), dtype=np.float32) * np.float32(BACKGROUND)
    scene = np.repeat(field, T, axis=1) if still else field
    room = size - np.array(images.shape[-2:])
    place = draw.integers(0, room + 1, (n, 2))
    heading = draw.choice([-1, 1], (n, 2))
    pixels = images[:, 0].numpy()
    height, width = pixels.shape[1:]
    clips = np.empty((n, T, 1, size, size), np.float32)
    for t in range(T):
        if independent:
            place = draw.integers(0, room + 1, (n, 2))
        shift = draw.integers(-jitter, jitter + 1, (n, 2)) if jitter else np.zeros((n, 2), int)
        for i in range(n):
            row, column = place[i] + jitter
            target = scene[i, t, row : row + height, column : column + width]
            np.maximum(target, pixels[i], out=target)
            top, left = shift[i] + jitter
            clips[i, t, 0] = scene[i, t, top : top + size, left : left + size]
        heading = np.where((place + heading < 0) | (place + heading > room), -heading, heading)
        place = np.where(room > 0, place + heading, place)
    if noise:
        clips += draw.standard_normal(clips.shape, dtype=np.float32) * np.float32(noise)
    return torch.from_numpy(clips)


def moving_digits(
    n: int,
    T: int,
    size: int = 16,
    noise: float = 0.02,
    static_background: bool = True,
    seed: int = 0,
    *,
    independent: bool = False,
    jitter: int = 0,
    part: Literal["all", "train", "test"] = "all",
) -> tuple[Float[Tensor, "sample time 1 size size"], Int[Tensor, " sample"]]:
    """``n`` clips of drifting handwritten digits, 8 x 8 pixels each, with their labels.

    ``part``: ``train`` takes the first 1,400 digits, ``test`` the others, whose writers are new. Digits are used in turn, so
    that ``n`` may exceed their number. Other arguments as in :func:`moving_images`.
    """
    if part not in ("all", "train", "test") or n < 1:
        raise InputError(f"part is {part!r} and n {n}; expected all, train or test, and at least one clip")
    images, labels = digits()
    chosen = {"all": slice(None), "train": slice(0, 1400), "test": slice(1400, None)}[part]
    images, labels = images[chosen], labels[chosen]
    index = torch.arange(n) % len(images)
    clips = moving_images(
        images[index], T, size, noise=noise, static_background=static_background, independent=independent, jitter=jitter,
        seed=seed,
    )  # fmt: skip
    return clips, labels[index]


@dataclass(frozen=True)
class _Video:
    path: Path
    label: int
    frames: tuple[Path, ...] | None  # None: a container


class VideoFolder:
    """Clips of a folder laid out as UCF101: ``folder/<class>/<video>``, where a video is a folder of images or a container.

    Frames are read when a clip is asked for, and no others of a folder of images. Classes are the folders' names in order.

    Args:
        folder: holds one folder a class.
        split: a text file with a line ``<class>/<video>[.ending] [number]`` for each video to use; None takes all.
        T, stride: frames of a clip and the step between them. shift: from one clip's start to the next (half a clip).
        size: frames are scaled to so many pixels a side. channels: 3 for colour, 1 for grey.

    ``clip(i)`` is ``(time, channel, size, size)`` in [0, 1]. Folders of images need the extra ``images``, containers the
    extra ``video``. Raises SubjectError for a missing folder or file, one that cannot be read, and where no clip is left.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str | Path | None = None,
        T: int = 8,
        stride: int = 1,
        shift: int | None = None,
        size: int = 224,
        channels: int = 3,
    ) -> None:
        if T < 1 or stride < 1 or size < 1 or channels not in (1, 3) or (shift is not None and shift < 1):
            raise InputError(
                f"T is {T}, stride {stride}, shift {shift}, size {size} and channels {channels}; positive numbers and 1 or 3 "
                "channels are needed"
            )
        self.folder, self.T, self.stride, self.size, self.channels = Path(folder), T, stride, size, channels
        if not self.folder.is_dir():
            raise SubjectError(f"'{folder}' is not a folder; give the one that holds a folder for each class")
        self.class_names = tuple(sorted(place.name for place in self.folder.iterdir() if place.is_dir()))
        wanted = None if split is None else _read_split(Path(split))
        found = [
            _Video(path, label, _frames(path))
            for label, name in enumerate(self.class_names)
            for path in sorted((self.folder / name).iterdir())
            if (path.is_dir() or path.suffix.lower() in CONTAINERS) and (wanted is None or (name, path.stem) in wanted)
        ]
        lost = (wanted or set()) - {(self.class_names[video.label], video.path.stem) for video in found}
        if lost:
            raise SubjectError(
                f"'{split}' names {'/'.join(min(lost))} and {len(lost) - 1} more that are not in '{folder}'"
            )
        span, shift = (T - 1) * stride + 1, shift or max(1, T // 2)
        self.clips = [
            (video, start) for video in found for start in range(0, _length(video) - span + 1, shift)
        ]  # a video that is shorter than a clip has none
        if not self.clips:
            raise SubjectError(f"'{folder}' holds {len(found)} videos and no clip of {span} frames; choose a smaller T")

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def labels(self) -> Int[Tensor, " sample"]:
        """Class of every clip."""
        return torch.tensor([video.label for video, _ in self.clips])

    def clip(self, index: int) -> Float[Tensor, "time channel size size"]:
        """One clip, read now."""
        video, start = self.clips[index]
        wanted = range(start, start + (self.T - 1) * self.stride + 1, self.stride)
        if video.frames is None:
            return torch.stack([self._tensor(image) for image in _decoded(video.path, wanted)])
        return torch.stack([self._tensor(_opened(video.frames[place])) for place in wanted])

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``(clips, labels)`` one batch after the other."""
        for start in range(0, len(self), batch_size):
            rows = range(start, min(start + batch_size, len(self)))
            yield torch.stack([self.clip(row) for row in rows]), self.labels[start : rows.stop]

    def _tensor(self, image: Any) -> Tensor:
        scaled = image.convert("L" if self.channels == 1 else "RGB").resize((self.size, self.size))
        pixels = torch.from_numpy(np.asarray(scaled, dtype=np.float32) / 255)
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _read_split(path: Path) -> set[tuple[str, str]]:
    try:
        lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SubjectError(f"the split '{path}' cannot be read: {error}") from error
    pairs = [tuple(line.replace("\\", "/").split("/")[-2:]) for line in lines]
    if any(len(pair) != 2 for pair in pairs):
        raise SubjectError(f"the split '{path}' has lines without a class; expected <class>/<video> on each")
    return {(name, Path(video).stem if Path(video).suffix.lower() in CONTAINERS else video) for name, video in pairs}


def _frames(path: Path) -> tuple[Path, ...] | None:
    return tuple(sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGES)) if path.is_dir() else None


def _length(video: _Video) -> int:
    if video.frames is not None:
        return len(video.frames)
    with _container(video.path) as opened:
        return opened.streams.video[0].frames or sum(1 for _ in opened.decode(video=0))


def _opened(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "images", "reading a video's frames") from error
    try:
        with Image.open(path) as opened:
            return opened.copy()
    except OSError as error:
        raise SubjectError(f"'{path}' is not a readable image: {error}") from error


def _container(path: Path) -> Any:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("av", "video", f"reading '{path.name}'") from error
    try:
        return av.open(str(path))
    except (OSError, ValueError) as error:
        raise SubjectError(f"'{path}' is not a readable video: {error}") from error


def _decoded(path: Path, wanted: range) -> list[Any]:
    with _container(path) as opened:
        frames = []
        for index, frame in enumerate(opened.decode(video=0)):
            if index in wanted:
                frames.append(frame.to_image())
            if len(frames) == len(wanted):
                return frames
    raise SubjectError(
        f"'{path}' ends after {index + 1} frames, before frame {wanted[-1] + 1}; leave it out of the split"
    )
