"""The DATA argument: built-in sets, arrays, images, tables, text, or a user's own loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from netloupe.core.batches import batches_of, prepare
from netloupe.core.errors import SubjectError
from netloupe.data import digits, fashion_mnist, stdlib_docstrings
from netloupe.data.bytes_text import byte_windows, characters, stdlib_bytes
from netloupe.subjects.files import BUILT_IN, FORMS, ImageFolder, read_array, read_csv, read_npz, read_text
from netloupe.subjects.importing import call, import_object, is_reference
from netloupe.subjects.models import Subject

Kind = Literal["image", "text", "vector", "other"]


@dataclass(frozen=True)
class Shown:
    """One sample as a person sees it: an image ``(height, width[, 3])`` in [0, 1], tokens, or a sentence about it."""

    image: np.ndarray | None = None
    tokens: tuple[str, ...] | None = None
    caption: str = ""


@dataclass(frozen=True)
class Data:
    """Batches for one network: ``batches`` can be iterated any number of times.

    ``labels`` int64 ``(sample,)`` where they are known beforehand; ``show(i)`` gives sample ``i`` to a person. ``sequence``
    says that samples follow each other in time.
    """

    name: str
    batches: Iterable[Any]
    kind: Kind
    n_samples: int | None = None
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    show: Callable[[int], Shown] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    sequence: bool = False

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def load_data(
    argument: str | None, subject: Subject, n_samples: int | None = None, batch_size: int = 64, max_length: int = 128
) -> Data:
    """Batches of what ``argument`` names, as ``subject`` takes them; SubjectError in one sentence where that fails.

    ``n_samples`` keeps the first so many; text is padded to at most ``max_length`` tokens (the same for all samples).
    """
    if argument is None:
        argument = subject.default_data
    if argument is None:
        raise SubjectError(f"the network '{subject.name}' has no default data; name some: {FORMS}")
    raw = _raw(argument, subject)
    if isinstance(raw, Texts):
        return _text_data(argument, raw, subject, n_samples, batch_size, max_length)
    if isinstance(raw, Arrays):
        return _array_data(argument, raw, subject, n_samples, batch_size)
    if isinstance(raw, ImageFolder):
        return _image_data(argument, raw, n_samples, batch_size)
    return _loader_data(argument, raw, subject, n_samples, batch_size)


@dataclass(frozen=True)
class Texts:
    """Sentences, and labels where there are some."""

    samples: Sequence[str]
    labels: Tensor | None = None


@dataclass(frozen=True)
class Arrays:
    """Inputs ``(sample, ...)`` and labels; ``as_text`` tells how a person reads a sample of token numbers."""

    inputs: Any
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    as_text: Callable[[Tensor], tuple[str, ...]] | None = None


def _raw(argument: str, subject: Subject) -> Any:
    path = Path(argument)
    if argument == "digits":
        return Arrays(*digits())
    if argument == "stdlib-text":
        return Texts(stdlib_docstrings())
    if argument == "stdlib-bytes":
        length = min(128, int(getattr(subject.model, "context", 64)))
        return Arrays(byte_windows(stdlib_bytes("validation"), length), as_text=characters)
    if argument.partition("=")[0] == "fashion-mnist":
        return Arrays(*fashion_mnist("test", argument.partition("=")[2] or None))
    if is_reference(argument):
        found = import_object(argument, "data")
        if callable(found) and not hasattr(found, "__iter__"):
            found = call(found, argument, "data")
        return found
    if not path.exists():
        raise SubjectError(f"data '{argument}' does not exist; expected {FORMS}")
    if path.is_dir():
        if any(path.glob("t10k-images-idx3*")):
            return Arrays(*fashion_mnist("test", path))
        return ImageFolder(path, _channels(subject.model))
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return Arrays(*read_npz(path))
    if suffix == ".npy":
        return Arrays(read_array(path))
    if suffix == ".csv":
        return Arrays(*read_csv(path))
    if suffix in (".txt", ".text", ".md"):
        return Texts(read_text(path))
    raise SubjectError(
        f"data '{argument}' has the unknown ending '{suffix}'; expected {FORMS} (built in: {', '.join(BUILT_IN)})"
    )


def _channels(model: nn.Module) -> int:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def _as_input(inputs: Any, model: nn.Module) -> Tensor:
    """Arrays as the network takes them: token numbers stay whole, bytes become [0, 1], floats the network's precision."""
    tensor = torch.as_tensor(np.array(inputs)) if not isinstance(inputs, Tensor) else inputs
    takes_tokens = isinstance(
        next((m for m in model.modules() if list(m.parameters(recurse=False))), None), nn.Embedding
    )
    if takes_tokens and not tensor.is_floating_point():
        return tensor.long()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tensor.to(dtype) / 255 if tensor.dtype == torch.uint8 else tensor.to(dtype)


class _Converted:
    """Array batches turned into the network's input as they are read: a mapped file may be larger than memory."""

    def __init__(self, arrays: Arrays, model: nn.Module, n_samples: int, batch_size: int) -> None:
        self.arrays, self.model, self.n_samples, self.batch_size = arrays, model, n_samples, batch_size

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def inputs(self, start: int, stop: int) -> Tensor:
        """Samples ``start`` to ``stop`` as the network takes them."""
        return _reshaped(_as_input(self.arrays.inputs[start:stop], self.model), self.model)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.n_samples, self.batch_size):
            stop = min(start + self.batch_size, self.n_samples)
            inputs = self.inputs(start, stop)
            yield inputs if self.arrays.labels is None else (inputs, self.arrays.labels[start:stop])


def _array_data(name: str, raw: Arrays, subject: Subject, limit: int | None, batch_size: int) -> Data:
    n_samples = min(len(raw.inputs), limit or len(raw.inputs))
    if n_samples == 0:
        raise SubjectError(f"data '{name}' holds no samples; at least one is needed")
    if raw.labels is not None and len(raw.labels) != len(raw.inputs):
        raise SubjectError(
            f"data '{name}' has {len(raw.inputs)} samples and {len(raw.labels)} labels; each sample needs one label"
        )
    labels = None if raw.labels is None else torch.as_tensor(raw.labels)[:n_samples]
    batches = _Converted(Arrays(raw.inputs, labels), subject.model, n_samples, batch_size)
    first = batches.inputs(0, 1)
    seen = _as_input(raw.inputs[:1], subject.model)  # images stay pictures to a person where a network takes them flat
    kind: Kind = "image" if seen.ndim == 4 and seen.shape[1] in (1, 3) else "vector" if first.ndim == 2 else "other"
    kind = kind if raw.as_text is None else "text"

    def show(index: int) -> Shown:
        caption = _caption(index, labels, raw.class_names)
        if raw.as_text is not None:
            return Shown(tokens=raw.as_text(torch.as_tensor(raw.inputs[index])), caption=caption)
        if kind != "image":
            return Shown(caption=caption)
        return Shown(image=_picture(_as_input(raw.inputs[index : index + 1], subject.model)[0]), caption=caption)

    identity = {
        "name": name, "samples": n_samples, "shape": list(first.shape[1:]), "digest": _digest(raw.inputs, n_samples),
    }  # fmt: skip
    return Data(name, batches, kind, n_samples, labels, raw.class_names, show, identity)


def _digest(inputs: Any, n_samples: int) -> str:
    """32 characters that stand for the samples, read piece by piece."""
    state = xxhash.xxh3_128()
    rows = max(1, 2**24 // max(1, int(np.prod(inputs.shape[1:]))))
    for start in range(0, n_samples, rows):
        state.update(np.ascontiguousarray(np.asarray(inputs[start : min(start + rows, n_samples)])).view(np.uint8).data)
    return state.hexdigest()


def _reshaped(tensor: Tensor, model: nn.Module) -> Tensor:
    """Flat images for a network of linear layers, a channel axis for one of convolutions, where that is all that is missing."""
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Flatten))), None)
    if isinstance(first, nn.Conv2d) and tensor.ndim == 3 and first.in_channels == 1:
        return tensor[:, None]
    if isinstance(first, nn.Linear) and tensor.ndim > 2 and tensor[0].numel() == first.in_features != tensor.shape[-1]:
        return tensor.flatten(1)
    return tensor


def _picture(pixels: Tensor) -> np.ndarray:
    image = pixels.detach().float().cpu().numpy().transpose(1, 2, 0)
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:  # a normalised input: stretched to be seen
        image = (image - low) / max(high - low, 1e-12)
    return image[..., 0] if image.shape[-1] == 1 else image


def _caption(index: int, labels: Tensor | None, names: Sequence[str] | None) -> str:
    if labels is None:
        return f"sample {index}"
    label = int(labels[index]) if not labels.is_floating_point() else float(labels[index])
    shown = names[label] if names is not None and isinstance(label, int) and 0 <= label < len(names) else label
    return f"sample {index}, class {shown}"


def _image_data(name: str, folder: ImageFolder, limit: int | None, batch_size: int) -> Data:
    chosen = folder if limit is None else folder.first(limit)

    def show(index: int) -> Shown:
        return Shown(image=_picture(chosen.image(index)), caption=_caption(index, chosen.labels, chosen.class_names))

    identity = {"name": name, "samples": len(chosen), "classes": list(chosen.class_names)}
    return Data(
        name, chosen.batches(batch_size), "image", len(chosen), chosen.labels, chosen.class_names, show, identity
    )


def _text_data(name: str, raw: Texts, subject: Subject, limit: int | None, batch_size: int, max_length: int) -> Data:
    if subject.tokenizer is None:
        raise SubjectError(
            f"data '{name}' is text, but the network '{subject.name}' comes without a tokenizer; give it arrays of token numbers"
        )
    texts = list(raw.samples[:limit])
    if not texts:
        raise SubjectError(f"data '{name}' holds no text; at least one line is needed")
    length = min(max_length, int(getattr(subject.tokenizer, "model_max_length", max_length) or max_length))
    encoded = subject.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    columns = dict(encoded)
    if raw.labels is not None:
        columns["labels"] = raw.labels[:limit]

    def show(index: int) -> Shown:
        tokens = subject.tokenizer.convert_ids_to_tokens(columns["input_ids"][index].tolist())
        real = columns["attention_mask"][index].bool().tolist()
        return Shown(
            tokens=tuple(t for t, keep in zip(tokens, real) if keep), caption=_caption(index, raw.labels, None)
        )

    identity = {"name": name, "samples": len(texts), "digest": xxhash.xxh3_128_hexdigest("\0".join(texts).encode())}
    return Data(name, batches_of(columns, batch_size), "text", len(texts), columns.get("labels"), None, show, identity)


class _Limited:
    """The first samples of a user's loader; iterates it anew each time."""

    def __init__(self, loader: Iterable[Any], limit: int | None, model: nn.Module) -> None:
        self.loader, self.limit, self.model = loader, limit, model

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for raw in self.loader:
            if self.limit is not None and seen >= self.limit:
                return
            yield raw
            seen += prepare(raw, self.model).n_samples


def _loader_data(name: str, raw: Any, subject: Subject, limit: int | None, batch_size: int) -> Data:
    if isinstance(raw, (list, tuple)) and raw and all(isinstance(line, str) for line in raw):
        return _text_data(name, Texts(raw), subject, limit, batch_size, 128)
    if isinstance(raw, (np.ndarray, Tensor)):
        return _array_data(name, Arrays(raw), subject, limit, batch_size)
    if isinstance(raw, tuple) and len(raw) == 2 and all(isinstance(part, (np.ndarray, Tensor)) for part in raw):
        return _array_data(name, Arrays(raw[0], torch.as_tensor(raw[1])), subject, limit, batch_size)
    if isinstance(raw, torch.utils.data.Dataset) and not isinstance(raw, torch.utils.data.IterableDataset):
        raw = torch.utils.data.DataLoader(raw, batch_size=batch_size)
    if iter(raw) is raw if hasattr(raw, "__iter__") else True:
        if not hasattr(raw, "__iter__"):
            raise SubjectError(
                f"data '{name}' is a {type(raw).__name__}, expected arrays, a dataset or an iterable of batches"
            )
        raw = list(raw)  # a one-shot iterator: kept, since it is read more than once
    batches = batches_of(raw, batch_size) if isinstance(raw, Mapping) else raw
    return Data(name, _Limited(batches, limit, subject.model), "other", None, None, None, None, {"name": name})
