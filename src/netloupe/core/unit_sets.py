"""Units of several sites under one numbering, so that sets of them can be ranked, drawn and compared as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError, SiteError
from netloupe.core.reading import Pool

UnitSet = Int[np.ndarray, " member"]

# The last part of a module's path, in the order of the families: gated, plain, GPT-2, BERT.
PROJECTIONS = (
    r"gate_proj", r"up_proj", r"down_proj", r"gate_up_proj", r"gate", r"up", r"down", r"fc_?1", r"fc_?2", r"fc_in", r"fc_out",
    r"c_fc", r"mlp\.c_proj", r"dense_h_to_4h", r"dense_4h_to_h", r"intermediate\.dense", r"(?<!attention\.)output\.dense",
)  # fmt: skip


@dataclass(frozen=True)
class UnitSpace:
    """Sites in order with their numbers of units; unit ``u`` of site ``s`` has the number ``offset(s) + u``."""

    sites: tuple[str, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def site_of(self) -> Int[np.ndarray, " unit"]:
        """The place of each unit's site among ``sites``."""
        return np.repeat(np.arange(len(self.sites)), self.sizes)

    def split(self, units: Any) -> dict[str, UnitSet]:
        """A set of numbers as units of each site that has some; InputError for numbers outside."""
        chosen = np.unique(np.asarray(units, dtype=np.int64))
        if chosen.ndim != 1 or (len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(self)):
            raise InputError(
                f"units are numbers from {chosen.min()} to {chosen.max()}, expected 0 to {len(self) - 1} of this network"
            )
        bounds = np.concatenate([[0], np.cumsum(self.sizes)])
        parts = {
            site: chosen[(chosen >= first) & (chosen < last)] - first
            for site, first, last in zip(self.sites, bounds[:-1], bounds[1:], strict=True)
        }
        return {site: part for site, part in parts.items() if len(part)}

    def histogram(self, units: Any) -> Int[np.ndarray, " site"]:
        """How many of a set lie at each site."""
        return np.bincount(self.site_of[np.asarray(units, dtype=np.int64)], minlength=len(self.sites))

    def random(self, size: int, random_state: int = 0, like: Any = None) -> UnitSet:
        """``size`` units drawn without replacement; with ``like``, as many from each site as that set has."""
        draw = np.random.default_rng(random_state)
        if like is None:
            if not 0 <= size <= len(self):
                raise InputError(f"{size} units were asked for and the network has {len(self)}; ask for fewer")
            return np.sort(draw.choice(len(self), size, replace=False))
        bounds = np.concatenate([[0], np.cumsum(self.sizes)])
        counts = self.histogram(like)
        return np.sort(
            np.concatenate(
                [first + draw.choice(n, k, replace=False) for first, n, k in zip(bounds, self.sizes, counts)]
            )
        )


def mlp_projections(model: nn.Module, patterns: Sequence[str] = PROJECTIONS) -> list[str]:
    """Sites of the linear maps of every feed-forward block, told by the end of their names, in the order of the network.

    Llama, Gemma and Qwen (``gate_proj, up_proj, down_proj``; a fused ``gate_up_proj`` keeps gate and up as halves of one
    site), GPT-2 (``c_fc, mlp.c_proj``), GPT-J and OPT (``fc_in``, ``fc1`` ...), BERT (``intermediate.dense, output.dense``) and
    the networks of this library. ``patterns`` are regular expressions for other names. Raises SiteError where nothing fits and
    names the linear layers that were seen.
    """
    wanted = re.compile(r"(?:^|\.)(?:" + "|".join(patterns) + r")$")
    linear = [
        name for name, part in model.named_modules() if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
    ]
    found = [name for name in linear if wanted.search(name)]
    if not found:
        raise SiteError(
            f"no linear layer looks like one of a feed-forward block; give patterns for {', '.join(linear[:8]) or 'none at all'}"
        )
    return found


def pooled_responses(
    model: nn.Module,
    prompts: Sequence[Sequence[int]] | Int[Tensor, "sample position"],
    sites: Sequence[str],
    *,
    pool: Pool = "mean",
    batch_size: int = 64,
) -> tuple[Float[np.ndarray, "sample unit"], UnitSpace]:
    """What every unit of ``sites`` says to every prompt, float32 ``(sample, unit)``, and which column is which unit.

    Prompts are token numbers; those of equal length run together, so that nothing is padded and a network without a padding
    token can be asked. ``pool``: ``mean`` over tokens (arXiv 2502.17355), ``max``, or ``last``.

    Cost: one pass; ``4 n U`` bytes: record to a store and rank that where memory does not hold them. Raises InputError for
    no prompts or an empty one, and the errors of :func:`netloupe.capture`.
    """  # fmt: skip
    out: np.ndarray | None = None
    space: UnitSpace | None = None
    for rows, tokens in by_length(prompts).items():
        chosen = np.asarray(rows)
        start = 0
        for batch in capture(model, tokens, list(sites), pool=pool, batch_size=batch_size):
            if space is None or out is None:
                names = [site for site in sites if site in batch.activations] or list(batch.activations)
                space = UnitSpace(tuple(names), tuple(batch[name].shape[-1] for name in names))
                out = np.empty((len(prompts), len(space)), dtype=np.float32)
            joined = torch.cat([batch[name].float() for name in space.sites], -1)
            out[chosen[start : start + len(joined)]] = joined.cpu().numpy()
            start += len(joined)
    assert out is not None
    assert space is not None
    return out, space


def by_length(prompts: Sequence[Sequence[int]] | Tensor) -> Mapping[tuple[int, ...], Tensor]:
    """Prompts of equal length together: their places, and their tokens int64 ``(sample, position)``."""
    if not len(prompts) or any(not len(prompt) for prompt in prompts):
        raise InputError(f"{len(prompts)} prompts were given, expected at least one and each with a token")
    if isinstance(prompts, Tensor):
        return {tuple(range(len(prompts))): prompts.long()}
    lengths = np.array([len(prompt) for prompt in prompts])
    groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    return {tuple(rows.tolist()): torch.tensor([list(prompts[int(row)]) for row in rows]).long() for rows in groups}
