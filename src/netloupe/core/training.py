"""One small training loop: seeded, resumable, and able to watch a network's sites while it learns."""

from __future__ import annotations

import fnmatch
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from netloupe.core.batches import Batch, prepare
from netloupe.core.errors import InputError, StoreError
from netloupe.core.forward import run
from netloupe.core.isolation import device_of, random_state
from netloupe.core.progress import bar
from netloupe.core.tensorfile import write_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Loss = Callable[[Any, Batch], Tensor]
Watch = Callable[[nn.Module, int], Mapping[str, float]]
Schedule = Literal["constant", "cosine", "linear"]


@dataclass
class History:
    """What happened during a training run.

    ``loss`` is one number a step; ``watched`` has one row for every step at which something was watched, with the step
    under ``"step"``. ``state`` is ``finished``, ``stopped early`` or ``diverged`` (the loss stopped being a number, at
    ``n_steps``); a diverged run is a result, not an exception.
    """

    loss: list[float] = field(default_factory=list)
    watched: list[dict[str, float]] = field(default_factory=list)
    state: str = "finished"

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return len(self.loss)

    def column(self, name: str) -> np.ndarray:
        """One watched number over time; NaN where it was not measured."""
        return np.array([row.get(name, math.nan) for row in self.watched])

    def plot(self, axes: Axes, *names: str) -> None:
        """Watched numbers against steps; a name may be a glob, such as ``*/sparsity/active_fraction``."""
        known = list(dict.fromkeys(name for row in self.watched for name in row if name != "step"))
        chosen = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in names)]
        if not chosen:
            raise InputError(f"nothing watched is called {', '.join(names)}; there are {', '.join(known[:6])}")
        for name in chosen:
            axes.plot(self.column("step"), self.column(name), marker=".", label=name)
        axes.set(xlabel="step")
        axes.legend(frameon=False, fontsize=7)


def train(
    model: nn.Module,
    data: Any,
    *,
    steps: int,
    batch_size: int = 64,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer | None = None,
    loss: Loss | None = None,
    schedule: Schedule | Callable[[int], float] = "constant",
    warmup: int = 0,
    seed: int = 0,
    watch: Watch | None = None,
    watch_every: int = 0,
    stop: Callable[[History], bool] | None = None,
    clip: float | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    progress: bool = False,
    describe: str = "training",
) -> History:
    """Trains ``model`` in place.

    Parameters
    ----------
    data : ``(inputs, labels)`` tensors, drawn in shuffled epochs; a loader of batches, read again when it ends; or
        ``callable(step, generator) -> raw batch`` for fresh data in every step.
    steps : optimiser steps, counted from the start also when a checkpoint is resumed.
    optimizer : made from the parameters, or an optimiser of the caller's own (parameter groups); default Adam, 1e-3.
    loss : ``(output, batch) -> scalar``; default cross-entropy of logits against the batch's labels.
    schedule : factor on the learning rate: ``constant``, ``cosine`` or ``linear`` to zero, or a function of the step;
        ``warmup`` steps rise linearly before it.
    seed : order of the data and random layers; the caller's random state is put back.
    watch : called every ``watch_every`` steps (and before the first and after the last) with the network in eval mode
        and no gradients; its numbers are kept. Give it lenses: ``lambda m, step: finding.summary()``.
    stop : asked after every step; True ends the run.
    clip : largest norm of the gradient.
    precision : ``bfloat16`` computes forward and backward under autocast where the device is a GPU.
    checkpoint, checkpoint_every : folder for ``step-<n>.safetensors`` with optimiser state; an interrupted run with the same
        arguments goes on from the last one, to the same result.

    Raises
    ------
    InputError for unusable data or numbers; StoreError for a checkpoint that is not this network's.
    """
    if steps < 0 or batch_size < 1:
        raise InputError(f"steps is {steps} and batch_size {batch_size}; at least 0 and 1 are needed")
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"precision is '{precision}', expected float32 or bfloat16")
    if optimizer is None and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("the network has no parameter that can be trained; thaw some with requires_grad_(True)")
    device = device_of(model)
    chosen = optimizer if isinstance(optimizer, Optimizer) else (optimizer or _adam)(model.parameters())
    rate = LambdaLR(chosen, _factor(schedule, warmup, steps))
    history, first = History(), 0
    loss = loss or cross_entropy
    folder = None if checkpoint is None else Path(checkpoint)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16" and device.type == "cuda")
    was_training = [(module, module.training) for module in model.modules()]
    # training needs gradients also where the caller has turned them off
    with torch.inference_mode(False), torch.enable_grad(), random_state(seed), bar(describe, steps, progress) as shown:
        feed = _feed(data, batch_size, seed)
        if folder is not None:
            first = _resume(folder, model, chosen, rate, history)
            shown.advance(shown.task_ids[0], first)
        try:
            for step in range(first, steps):
                _watch(watch, watch_every, model, step, history)
                model.train()
                _seed_layers(seed * 1_000_003 + step)  # random layers repeat, also after a resume
                batch = prepare(feed(step), model).to(device)
                with autocast:
                    value = loss(run(model, batch), batch)
                history.loss.append(float(value.detach()))
                if not math.isfinite(history.loss[-1]):
                    history.state = "diverged"
                    break
                _step(value, model, chosen, rate, clip)
                if folder is not None and checkpoint_every and (step + 1) % checkpoint_every == 0:
                    _save(folder, model, chosen, rate, history)
                shown.advance(shown.task_ids[0])
                if stop is not None and stop(history):
                    history.state = "stopped early"
                    break
            _watch(watch, 1, model, history.n_steps, history)
        finally:
            for module, flag in was_training:
                module.training = flag
    return history


def cross_entropy(output: Any, batch: Batch) -> Tensor:
    """Cross-entropy of logits (the output itself, or its ``logits``) against the batch's labels."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(f"the network gives a {type(output).__name__}, expected logits; give a loss of your own")
    if batch.labels is None:
        raise InputError("the batches carry no labels; give a loss that needs none, or (inputs, labels)")
    try:
        return F.cross_entropy(logits, batch.labels.to(logits.device))
    except (RuntimeError, IndexError, ValueError) as error:
        low, high = float(batch.labels.min()), float(batch.labels.max())
        raise InputError(
            f"cross-entropy cannot compare logits of shape {tuple(logits.shape)} with {batch.labels.dtype} labels "
            f"from {low:g} to {high:g} ({str(error).splitlines()[0]}); give class indices or a loss of your own"
        ) from error


def squared_error(output: Any, batch: Batch, n_classes: int | None = None) -> Tensor:
    """Mean over samples of half the squared distance between outputs and one-hot labels."""
    if batch.labels is None:
        raise InputError("the batches carry no labels; give (inputs, labels)")
    targets = F.one_hot(batch.labels.to(output.device), n_classes or output.shape[-1]).to(output.dtype)
    return 0.5 * ((output - targets) ** 2).sum(1).mean()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 1024) -> float:
    """Share of samples whose largest logit is their label; the network is read as a guest."""
    from netloupe.core.capture import run_all

    hits = 0
    for output, batch in run_all(model, (inputs, labels), batch_size=batch_size, nonfinite="allow"):
        assert batch.labels is not None
        hits += int((output.argmax(-1).cpu() == batch.labels).sum())
    return hits / len(labels)


def _adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def _seed_layers(value: int) -> None:
    """``torch.manual_seed`` without its cost where no GPU is in use: there it formats the call stack each time."""
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


def _seed_batch(value: int) -> None:
    _seed_layers(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - what loaders draw from
    random.seed(value)


def _step(value: Tensor, model: nn.Module, optimizer: Optimizer, rate: LambdaLR, clip: float | None) -> None:
    if not value.requires_grad:
        raise InputError("the loss does not depend on any trainable parameter, so nothing can be learned from it")
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    rate.step()


def _factor(schedule: Schedule | Callable[[int], float], warmup: int, steps: int) -> Callable[[int], float]:
    if schedule not in ("constant", "cosine", "linear") and not callable(schedule):
        raise InputError(f"schedule is '{schedule}', expected constant, cosine, linear or a function of the step")

    def factor(step: int) -> float:
        if callable(schedule):
            return schedule(step)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * min(done, 1.0))),
            "linear": max(0.0, 1 - done),
        }[schedule]

    return factor


def _feed(data: Any, batch_size: int, seed: int) -> Callable[[int], Any]:
    """The raw batch of a step: a function of the step alone, so that a resumed run sees the same data."""
    if callable(data):
        return lambda step: data(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
    if not isinstance(data, (tuple, list)) or not all(isinstance(column, (Tensor, np.ndarray)) for column in data):
        return _cycle(data, seed)
    columns: Sequence[Tensor] = [torch.as_tensor(column) for column in data]
    n_samples = len(columns[0])
    if n_samples == 0 or any(len(column) != n_samples for column in columns):
        raise InputError(
            f"the training arrays have {[len(column) for column in columns]} samples; equal, positive numbers are needed"
        )
    per_epoch = max(1, n_samples // batch_size)
    order: dict[int, Tensor] = {}

    def feed(step: int) -> tuple[Tensor, ...]:
        epoch, position = divmod(step, per_epoch)
        if epoch not in order:
            order.clear()
            order[epoch] = torch.randperm(n_samples, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        rows = order[epoch][position * batch_size : (position + 1) * batch_size]
        return tuple(column[rows] for column in columns)

    return feed


def _cycle(loader: Any, seed: int) -> Callable[[int], Any]:
    """Batch after batch of a loader, again from its start when it ends; a resumed run passes over what was seen.

    A loader that shuffles or augments draws from the global generators: they are set for every batch, also for those
    passed over, so that a resumed run is given the batches of an unbroken one.
    """
    if not hasattr(loader, "__iter__"):
        raise InputError(
            f"training data is a {type(loader).__name__}, expected (inputs, labels), a loader or a function"
        )
    state: dict[str, Any] = {"next": 0, "batches": iter(loader)}

    def feed(step: int) -> Any:
        raw = None
        while state["next"] <= step:
            _seed_batch(seed * 1_000_003 + state["next"])
            raw = next(state["batches"], None)
            if raw is None:
                state["batches"] = iter(loader)
                raw = next(state["batches"], None)
                if raw is None:
                    raise InputError(
                        "the training data has no batches, or can be read only once; give a loader that can be read again"
                    )
            state["next"] += 1
        return raw

    return feed


def _watch(watch: Any, every: int, model: nn.Module, step: int, history: History) -> None:
    if watch is None or every < 1 or step % every or (history.watched and history.watched[-1]["step"] == step):
        return
    model.eval()
    with torch.no_grad():
        history.watched.append(
            {"step": float(step), **{name: float(value) for name, value in watch(model, step).items()}}
        )


def _save(folder: Path, model: nn.Module, optimizer: Optimizer, rate: LambdaLR, history: History) -> None:
    state = optimizer.state_dict()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        plain[str(index)] = {}
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                plain[str(index)][key] = value
    meta = {
        "groups": state["param_groups"], "plain": plain, "rate": rate.last_epoch, "loss": history.loss, "watched": history.watched,
    }  # fmt: skip
    words = {"training": json.dumps(meta, default=_no_tensor)}
    write_tensors(tensors, folder / f"step-{history.n_steps:08d}.safetensors", words, "checkpoint")


def _no_tensor(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else str(value)


def _resume(folder: Path, model: nn.Module, optimizer: Optimizer, rate: LambdaLR, history: History) -> int:
    from safetensors import SafetensorError, safe_open

    newest = max(folder.glob("step-*.safetensors"), default=None)
    if newest is None:
        return 0
    try:
        with safe_open(str(newest), framework="pt") as opened:
            meta = json.loads(opened.metadata()["training"])
        tensors = load_file(str(newest))
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise StoreError(
            f"checkpoint '{newest}' does not fit this network: {reason}; remove it or change the folder"
        ) from error
    _require_same_optimizer(newest, meta["groups"], optimizer)
    state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in meta["plain"].items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": meta["groups"]})
    rate.last_epoch = meta["rate"]
    history.loss, history.watched = list(meta["loss"]), list(meta["watched"])
    return history.n_steps


def _require_same_optimizer(checkpoint: Path, groups: list[dict[str, Any]], optimizer: Optimizer) -> None:
    now = optimizer.state_dict()["param_groups"]
    fits = len(now) == len(groups) and all(
        set(mine) == set(theirs) and len(mine["params"]) == len(theirs["params"])
        for mine, theirs in zip(now, groups, strict=True)
    )
    if not fits:
        raise StoreError(
            f"checkpoint '{checkpoint}' was written by another optimizer or other parameter groups; "
            "use the same optimizer or change the folder"
        )


def checkpoints(folder: str | Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Step and weights of every checkpoint in a folder, in order: a lens at each gives a trajectory."""
    for path in sorted(Path(folder).glob("step-*.safetensors")):
        tensors = load_file(str(path))
        yield (
            int(path.stem.split("-")[1]),
            {name[6:]: value for name, value in tensors.items() if name.startswith("model.")},
        )
