"""What one feature of a dictionary does: where it is active, what falls when it is taken away, what rises when it is pushed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.batches import Batch, prepare
from netloupe.core.capture import capture, run_all, tap
from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError
from netloupe.core.forward import last_linear
from netloupe.core.intervene import intervene, steer
from netloupe.core.isolation import guest
from netloupe.core.losses import logits_of, natural_loss
from netloupe.core.nulls import random_direction
from netloupe.core.sites import SiteInfo
from netloupe.core.statistics import Moments, MomentsResult, Quantiles, QuantilesResult
from netloupe.lenses.control.kl_matching import KLMatch, kl_matched_alpha, last_logits
from netloupe.lenses.naming.vocabulary import vocab_projection

N_OUTPUTS = 8  # outputs named at either end
N_RANDOM = 3
STEPS = 24  # most halvings when a push is fitted to a divergence
_ON = 1e-6  # a code that adds less than this share of the activation's length is off


class Responses(NamedTuple):
    """One feature's codes over the data: per sample the ``strongest`` and the position ``at`` it; of all positions the rest.

    ``density``: share of positions at which it is on. ``n_rows``: positions read.
    """

    strongest: Float[np.ndarray, " sample"]
    at: Int[np.ndarray, " sample"]
    moments: MomentsResult
    quantiles: QuantilesResult
    density: float
    n_rows: int
    info: SiteInfo


class Output(NamedTuple):
    """An output of the network - a token, a class - and a change of it."""

    index: int
    text: str
    change: float


class Ablation(NamedTuple):
    """The network with one feature's contribution taken away, everywhere.

    ``loss`` and ``loss_without``: mean over batches' samples, NaN where the data define none. ``kl``: mean divergence of the outputs
    ``KL(with || without)`` in nats. ``raised``, ``lowered``: the outputs whose probability the feature's presence changes most, at
    the ``n_places`` where it is strongest, mean over these.
    """

    loss: float
    loss_without: float
    kl: float
    raised: tuple[Output, ...]
    lowered: tuple[Output, ...]
    n_places: int


class Push(NamedTuple):
    """The feature's direction added everywhere, ``alpha`` long (negative: taken away), until outputs diverge by ``target`` nats.

    ``rise``: logarithm of how many times as probable the outputs that the feature raises have become, all together on average;
    ``random_rise``: the same for random directions at the same divergence, mean of three.
    """

    target: float
    alpha: float
    kl: float
    converged: bool
    rise: float
    random_rise: float


def responses(
    model: nn.Module, data: Any, dictionary: Dictionary, feature: int, site: str, progress: bool = False
) -> Responses:
    """One pass over the data; two numbers a sample are kept. Raises InputError for a feature or width that does not exist."""
    if not 0 <= feature < len(dictionary):
        raise InputError(f"feature {feature} was asked for, there are 0 to {len(dictionary) - 1}")
    moments, quantiles, on, n_rows = Moments(), Quantiles(), 0, 0
    strongest, at, info = [], [], None
    lengths = dictionary.directions.norm(dim=1)[feature]
    for captured in capture(model, data, [site], progress=progress):
        if len(captured.infos) != 1:
            raise InputError(f"'{site}' names {len(captured.infos)} sites; give one site's name")
        info = next(iter(captured.infos.values()))
        x, mask = captured[info.name], captured.masks[info.name]
        codes = dictionary.to(x.device).encode(x)[..., feature].double()
        active = codes.abs() * float(lengths) > _ON * x.double().norm(dim=-1)
        codes = torch.where(active, codes, torch.zeros_like(codes))
        kept = torch.ones_like(active) if mask is None else mask.bool()
        rows = codes[kept].float().cpu()[:, None]
        moments.update(rows)
        quantiles.update(rows)
        on, n_rows = on + int((active & kept).sum()), n_rows + len(rows)
        flat = codes.masked_fill(~kept, -torch.inf).reshape(len(codes), -1)
        strongest.append(flat.max(1).values.cpu().numpy())
        at.append(flat.argmax(1).cpu().numpy())
    assert info is not None
    return Responses(
        np.concatenate(strongest), np.concatenate(at), moments.result(), quantiles.result(), on / max(n_rows, 1), n_rows, info
    )  # fmt: skip


def ablation(
    model: nn.Module,
    data: Iterable[Any],
    dictionary: Dictionary,
    feature: int,
    site: str,
    seen: Responses,
    names: list[str] | None = None,
    n_places: int = 20,
) -> Ablation | None:
    """Runs the data with and without the feature; None for a network without logits. Cost: two passes."""
    top = np.argsort(-seen.strongest, kind="stable")[:n_places]
    places = {int(i): int(seen.at[i]) for i in top if seen.strongest[i] > 0}
    losses, kl, rows, n_seen, change = np.zeros(2), 0.0, 0, 0, None
    edit = dictionary.ablate(feature, site)
    for raw in data:
        (clean, batch), without = _run(model, raw), _run(model, raw, edit)[0]
        before, after = _log_probabilities(clean), _log_probabilities(without)
        if before is None or after is None:
            return None
        losses += batch.n_samples * np.array([_loss(clean, batch), _loss(without, batch)])
        divergences = (before.exp() * (before - after)).sum(-1)
        kept = batch.mask.to(divergences.device) if batch.mask is not None and divergences.ndim == 2 else None
        kl += float(divergences.sum() if kept is None else divergences[kept].sum())
        rows += divergences.numel() if kept is None else int(kept.sum())
        for sample, position in places.items():
            if n_seen <= sample < n_seen + batch.n_samples:
                moved = (before.exp() - after.exp())[sample - n_seen]
                moved = moved if moved.ndim == 1 else moved[min(position, len(moved) - 1)]
                change = moved if change is None else change + moved
        n_seen += batch.n_samples
    if n_seen == 0:
        raise InputError("the data held no samples; at least one is needed")
    mean = torch.zeros(0) if change is None else change / len(places)
    raised, lowered = (_ends(sign * mean, sign, names) for sign in (1, -1))
    loss, without = (losses / n_seen).tolist()
    return Ablation(loss, without, max(0.0, kl / max(rows, 1)), raised, lowered, len(places))


def pushes(
    model: nn.Module,
    data: Iterable[Any],
    dictionary: Dictionary,
    feature: int,
    site: str,
    outputs: Sequence[int],
    targets: Sequence[float] = (0.1,),
    random_state: int = 0,
) -> tuple[Push, ...]:
    """Both ways along the feature, and along random directions, on the first batch. Cost: about 60 runs of a batch a target."""
    first = list(islice(data, 1))
    base = last_logits(model, first).softmax(-1)
    wanted = list(outputs)

    def pushed(vector: Tensor, target: float) -> tuple[KLMatch, float]:
        fit = kl_matched_alpha(model, site, vector, first, target, steps=STEPS, tol=0.05 * target)
        moved = last_logits(model, first, steer(site, vector, fit.alpha)).softmax(-1)
        return fit, float((moved[:, wanted].sum() / base[:, wanted].sum()).log())

    direction, found = dictionary.directions[feature], []
    for target in targets:
        random = [random_direction(torch.ones(dictionary.n_units), random_state + i) for i in range(N_RANDOM)]
        by_chance = sum(pushed(vector, target)[1] for vector in random) / N_RANDOM
        for sign in (1, -1):
            fit, rise = pushed(sign * direction, target)
            found.append(Push(target, sign * fit.alpha, fit.kl, fit.converged, rise, by_chance))
    return tuple(found)


def vocabulary(
    model: nn.Module, raw: Any, dictionary: Dictionary, feature: int, site: str, names: list[str] | None = None
) -> tuple[tuple[Output, ...], tuple[Output, ...]] | None:
    """The outputs that the direction raises and lowers most through the final norm and the head alone; None where it cannot reach them.

    It can where it is as wide as what the head reads, or is the input of a linear layer that writes so much.
    """
    found = last_linear(model)
    if found is None:
        return None
    path, head = found
    direction = dictionary.directions[feature]
    writer = dict(model.named_modules()).get(site.removesuffix(":in")) if site.endswith(":in") else None
    if isinstance(writer, nn.Linear) and len(direction) == writer.in_features:
        direction = writer.weight.detach() @ direction.to(writer.weight)
    if len(direction) != head.in_features or site.startswith(f"{path}:out") or site == path:
        return None
    norm = _final_norm(model, prepare(raw, model), f"{path}:in")
    with torch.no_grad(), guest(model):
        logits = vocab_projection(direction, head.weight.detach(), norm, N_OUTPUTS).logits.double()
    logits = logits - logits.mean()  # what all outputs share changes no probability
    return _ends(logits, 1, names), _ends(-logits, -1, names)


def _final_norm(model: nn.Module, batch: Batch, reads: str) -> nn.Module | None:
    """The normalisation whose output the head reads."""
    norms = {path: module for path, module in model.named_modules() if "Norm" in type(module).__name__}
    with guest(model), torch.no_grad(), tap(model, [*norms, reads]) as values:
        model(*batch.args, **batch.kwargs)
    wanted = values.get(reads)
    for path, module in norms.items():
        given = values.get(path)
        if given is not None and wanted is not None and given.shape == wanted.shape and torch.equal(given, wanted):
            return module
    return None


def _run(model: nn.Module, raw: Any, *edits: Any) -> tuple[Any, Batch]:
    with intervene(model, *edits):
        return next(iter(run_all(model, [raw])))


def _log_probabilities(output: Any) -> Float[Tensor, "*rows output"] | None:
    logits = logits_of(output)
    return None if logits is None or logits.ndim not in (2, 3) else logits.detach().double().log_softmax(-1)


def _loss(output: Any, batch: Batch) -> float:
    try:
        return float(natural_loss(output, batch))
    except InputError:
        return float("nan")


def _ends(values: Float[Tensor, " output"], sign: int, names: list[str] | None) -> tuple[Output, ...]:
    """The largest values that are positive, as outputs, with ``sign`` put back."""
    order = torch.argsort(-values, stable=True)[:N_OUTPUTS].tolist()
    return tuple(
        Output(i, names[i] if names and i < len(names) else str(i), sign * float(values[i]))
        for i in order
        if values[i] > 0
    )
