"""How well a network does on a batch, where the batch itself says what right would be."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError
from netloupe.core.training import cross_entropy
from netloupe.core.values import flatten

TOKENS = "input_ids"


def logits_of(output: Any) -> Tensor | None:
    """The output itself, or its ``logits``; None where there are none."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, dict):
        found = output.get("logits")
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def tokens_of(batch: Batch) -> Int[Tensor, "sample position"] | None:
    """The whole numbers ``(sample, position)`` that a batch consists of: ``input_ids``, or else the first input."""
    inputs = [tensor for _, tensor in flatten((batch.args, batch.kwargs))]
    found = batch.kwargs.get(TOKENS, inputs[0] if inputs else None)
    whole = isinstance(found, Tensor) and found.ndim == 2 and found.dtype in (torch.int64, torch.int32, torch.int16)
    return found if whole else None


def predicts_tokens(output: Any, batch: Batch) -> bool:
    """Whether the output has one logit for each token value at each position of the batch."""
    logits, tokens = logits_of(output), tokens_of(batch)
    return logits is not None and tokens is not None and logits.ndim == 3 and logits.shape[:2] == tokens.shape


def next_token_loss(output: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy of each position's logits against the next token, in nats; padding is left out.

    The output is ``(sample, position, vocab)`` or has it as ``logits``. Raises InputError where output and tokens do
    not fit, and where no position has a next token.
    """
    logits, tokens = logits_of(output), tokens_of(batch)
    if logits is None or tokens is None or not predicts_tokens(output, batch):
        raise InputError(
            "a next-token loss needs tokens (sample, position) and logits (sample, position, vocab), got "
            f"{'no tokens' if tokens is None else tuple(tokens.shape)} and "
            f"{'no logits' if logits is None else tuple(logits.shape)}"
        )
    wanted = tokens[:, 1:].long().to(logits.device)
    if batch.mask is not None:
        both = (batch.mask[:, 1:] & batch.mask[:, :-1]).to(logits.device)
        wanted = wanted.masked_fill(~both, -100)
    if wanted.numel() == 0 or not bool((wanted != -100).any()):
        raise InputError("no position of the batch has a next token; sequences of at least two tokens are needed")
    # (sample, position, vocab) stays as it is: a transposed copy would double the largest tensor of a language model
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), wanted.reshape(-1))


def natural_loss(output: Any, batch: Batch) -> Tensor:
    """The loss that a batch defines by itself: cross-entropy with its labels, or of the next token where it has none.

    Raises InputError where it defines none: neither labels nor logits for tokens.
    """
    logits = logits_of(output)
    if batch.labels is not None and logits is not None and logits.ndim == 2:
        return cross_entropy(logits, batch)
    if predicts_tokens(output, batch):
        return next_token_loss(output, batch)
    raise InputError(
        "no loss is defined: the data has no labels and the network does not predict tokens; give labels, or a loss of "
        "your own"
    )
