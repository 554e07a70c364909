"""Training of MILAN's two networks: teacher-forced, stopped by held-out units, the best weights kept.

Source: Hernandez et al., arXiv 2201.11114.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError
from netloupe.core.splits import holdout as split
from netloupe.core.training import History, train
from netloupe.lenses.naming.captions import Vocabulary
from netloupe.lenses.naming.milan_networks import Captioner, WordModel, until_stop

Stop = Literal["loss"] | Callable[[Sequence[str], Sequence[Sequence[str]]], float]


def fit_captioner(
    network: Captioner,
    vocabulary: Vocabulary,
    regions: Tensor,
    captions: Sequence[list[str]],
    describe: Callable[[Tensor], list[str]],
    *,
    batch_size: int,
    learning_rate: float,
    max_epochs: int,
    patience: int,
    holdout: float,
    regularisation: float,
    official: bool,
    stop: Stop,
    random_state: int,
) -> History:
    """Trains in place; ``describe`` is what ``stop`` is asked about where it is a function."""
    learn, judge = (
        part.tolist() for part in split(len(regions), _share(holdout, len(regions)), random_state=random_state)
    )
    units = {"learn": [u for u in learn for _ in captions[u]], "judge": [u for u in judge for _ in captions[u]]}
    tokens = vocabulary.encode([one for u in (*learn, *judge) for one in captions[u]])
    owner = torch.tensor(units["learn"] + units["judge"])
    n = len(units["learn"])

    def loss(output: Any, batch: Batch) -> Tensor:
        wanted = batch.args[2]
        value = _nll(output[0], wanted, vocabulary.padding)
        counted = output[1] if official else output[1] * until_stop(wanted, vocabulary.stop)[..., None]
        return value + regularisation * ((1 - counted.sum(1)) ** 2).mean()

    def draw(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted = tokens[rows]
        wanted = wanted[:, : int((wanted != vocabulary.padding).sum(1).max())]
        return regions[owner[rows]], _given(wanted, vocabulary.start), wanted

    def held_out() -> float:
        if callable(stop):
            return -float(stop(describe(regions[judge]), [captions[u] for u in judge]))
        every = draw(torch.arange(n, len(tokens)))
        return float(_nll(network(*every[:2])[0], every[2], vocabulary.padding))

    return _epochs(
        _Sees(network), n, lambda step, _: draw(_rows(step, n, batch_size, random_state)), loss, held_out,
        batch_size=batch_size, learning_rate=learning_rate, max_epochs=max_epochs, patience=patience, random_state=random_state,
    )  # fmt: skip


def fit_words(
    network: WordModel,
    vocabulary: Vocabulary,
    captions: Sequence[str],
    *,
    batch_size: int,
    learning_rate: float,
    max_epochs: int,
    patience: int,
    holdout: float,
    random_state: int,
) -> History:
    """Trains in place."""
    learn, judge = split(len(captions), _share(holdout, len(captions)), random_state=random_state)
    tokens = vocabulary.encode(captions)
    n = len(learn)

    def draw(rows: Tensor) -> tuple[Tensor, Tensor]:
        wanted = tokens[rows]
        return _given(wanted, vocabulary.start), wanted

    def held_out() -> float:
        given, wanted = draw(judge)
        return float(_nll(network(given), wanted, vocabulary.padding))

    return _epochs(
        _Reads(network), n, lambda step, _: draw(learn[_rows(step, n, batch_size, random_state)]),
        lambda output, batch: _nll(output, batch.args[1], vocabulary.padding), held_out,
        batch_size=batch_size, learning_rate=learning_rate, max_epochs=max_epochs, patience=patience, random_state=random_state,
    )  # fmt: skip


class _Sees(nn.Module):
    """A captioner whose batches carry the wanted tokens too."""

    def __init__(self, network: Captioner) -> None:
        super().__init__()
        self.network = network

    def forward(self, regions: Tensor, given: Tensor, wanted: Tensor) -> Any:
        return self.network(regions, given)


class _Reads(nn.Module):
    """A language model whose batches carry the wanted tokens too."""

    def __init__(self, network: WordModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, given: Tensor, wanted: Tensor) -> Tensor:
        return self.network(given)


def _epochs(
    network: nn.Module, n: int, data: Any, loss: Any, held_out: Callable[[], float], *, batch_size: int, learning_rate: float,
    max_epochs: int, patience: int, random_state: int,
) -> History:  # fmt: skip
    per_epoch = -(-n // batch_size)
    best: dict[str, Any] = {"value": np.inf, "epoch": 0, "state": copy.deepcopy(network.state_dict())}

    def watch(_: nn.Module, step: int) -> Mapping[str, float]:
        value = held_out()
        if value < best["value"]:
            best.update(value=value, epoch=step // per_epoch, state=copy.deepcopy(network.state_dict()))
        return {"held out": value}

    def stop(history: History) -> bool:
        return history.n_steps // per_epoch > best["epoch"] + patience

    history = train(
        network, data, steps=per_epoch * max_epochs, seed=random_state,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=learning_rate), loss=loss, watch=watch,
        watch_every=per_epoch, stop=stop,
    )  # fmt: skip
    network.load_state_dict(best["state"])
    return history


def _rows(step: int, n: int, batch_size: int, seed: int) -> Tensor:
    epoch, at = divmod(step, -(-n // batch_size))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[at * batch_size : (at + 1) * batch_size]


def _given(wanted: Tensor, start: int) -> Tensor:
    return torch.cat([torch.full_like(wanted[:, :1], start), wanted[:, :-1]], 1)


def _nll(logp: Tensor, wanted: Tensor, padding: int) -> Tensor:
    return nn.functional.nll_loss(logp.flatten(0, 1), wanted.flatten(), ignore_index=padding)


def _share(share: float, n: int) -> float:
    if not 0 < share < 1:
        raise InputError(f"holdout is {share}, expected a share between 0 and 1")
    return max(share, 1 / n)
