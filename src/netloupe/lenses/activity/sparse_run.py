"""Running a network with the weak neurons of every token left out, and what that does to its loss.

Source: Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity", arXiv 2411.02335.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from netloupe.core.batches import Batch, moved
from netloupe.core.capture import Captured, Session
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.forward import run, with_own_inputs
from netloupe.core.intervene import Edit, intervene, replace_with
from netloupe.core.isolation import guest
from netloupe.core.losses import logits_of, natural_loss, next_token_loss, predicts_tokens, tokens_of
from netloupe.lenses.activity.cett_arrays import Rule, column_lengths, keep_mask
from netloupe.lenses.activity.cett_curve import CettCurve, CettCurveResult
from netloupe.lenses.activity.ffn_sites import FfnSite, ffn_sites

Loss = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True, eq=False)
class SparseRun:
    """One pass over the data with neurons left out.

    ``ratios`` ``(site,)``: share of neurons kept, averaged over tokens; ``frequency``: for each site, ``(unit,)`` share of
    tokens on which a unit is kept. ``losses`` one for each batch. ``token_counts`` and ``token_kept`` ``(token value,)``: how
    often a token occurs and its kept shares summed up, averaged over sites; None where the data are no tokens.
    """

    loss: float
    ppl_ratio: float
    ratios: np.ndarray
    frequency: tuple[np.ndarray, ...]
    losses: np.ndarray
    token_counts: np.ndarray | None
    token_kept: np.ndarray | None

    @property
    def ratio(self) -> float:
        """The activation ratio: mean over tokens, then over sites."""
        return float(self.ratios.mean())


class SparsityProbe:
    """A network on fixed data, whose weak neurons can be left out by any rule and as many as one likes.

    Args:
        model: any network with linear layers behind activations; it is left as it was.
        data: batches as for :func:`netloupe.capture`; the first ``max_tokens`` rows (tokens, or samples where there are no
            positions) are used, and held in memory.
        labels: one for each sample, where the batches carry none.
        sites: output projections by path or glob; None looks for them (:func:`netloupe.lenses.activity.ffn_sites.ffn_sites`).
        loss: ``(output, batch) -> scalar``; by default cross-entropy with the labels or, of a causal language model, of the
            next token.
        max_tokens, batch_size: how much of the data; samples at a time where data is arrays.

    ``loss_dense`` is the untouched network's loss, ``curves`` (by path) what each threshold would cost each layer:
    activations come from the untouched network, so that thresholds of deep layers know nothing of the errors made before
    them. Raises InputError where there are no such layers or no loss, NonFiniteError where it is not a number.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        labels: Any = None,
        *,
        sites: str | Sequence[str] | None = None,
        loss: Loss | None = None,
        max_tokens: int = 1024,
        batch_size: int = 16,
    ) -> None:
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}, expected at least 1")
        self.model, self.loss_function = model, loss
        self.batches = _first_batches(model, data, labels, max_tokens, batch_size)
        small = _cut(self.batches[0], min(4, self.batches[0].n_samples))
        self.sites: list[FfnSite] = ffn_sites(model, small, sites)
        if loss is None:
            _require_loss(model, small)
        self.batches = _within(self.batches, max(1, max_tokens // max(site.n_rows for site in self.sites)))
        self._lengths = {site.path: column_lengths(site.weight) for site in self.sites}
        self._weights = np.array([self._weight(batch) for batch in self.batches], dtype=float)
        self.dense_losses, self.curves = self._dense()
        self.loss_dense = self._mean(self.dense_losses)
        self.n_tokens = max(curve.n_tokens for curve in self.curves.values())

    def thresholds(self, cett: float) -> dict[str, float]:
        """The threshold of every layer at which its error is ``cett``; infinite at 1, where everything is dropped."""
        return {path: curve.eps_at(cett) for path, curve in self.curves.items()}

    def dense_ratio(self, cett: float) -> float:
        """The activation ratio at ``cett`` as the curves have it, without running the network."""
        return float(np.mean([self.curves[path].ratio_at(eps) for path, eps in self.thresholds(cett).items()]))

    def at_cett(self, cett: float) -> SparseRun:
        """A run with the same relative error in every layer."""
        return self.run("cett", self.thresholds(cett))

    def run(self, rule: Rule, arg: float | Mapping[str, float] = 0.0, random_state: int = 0) -> SparseRun:
        """A run under any rule of :func:`netloupe.lenses.activity.cett_arrays.keep_mask`.

        ``arg`` is one number for all layers or one for each path. The rules that rank by a score take the activation
        function's output where the network has it as a module (in a gated block the gate alone), else what the
        projection reads.
        """
        args = dict(arg) if isinstance(arg, Mapping) else {site.path: float(arg) for site in self.sites}
        generator = torch.Generator().manual_seed(random_state)
        watchers = [_Watcher(site, self._lengths[site.path], rule, args[site.path], generator) for site in self.sites]
        edits = [edit for watcher in watchers for edit in watcher.edits()]
        losses = []
        tokens = _TokenCount(len(watchers))
        with guest(self.model), torch.no_grad(), intervene(self.model, *edits):
            for batch in self.batches:
                for watcher in watchers:
                    watcher.mask = batch.mask
                output = run(self.model, with_own_inputs(batch))
                losses.append(self._loss(output, batch))
                tokens.add(batch, watchers)
        found = np.array(losses)
        loss = self._mean(found)
        return SparseRun(
            loss,
            float(np.exp(min(loss - self.loss_dense, 700.0))),
            np.array([watcher.kept / watcher.n_rows / len(watcher.units) for watcher in watchers]),
            tuple(watcher.units / watcher.n_rows for watcher in watchers),
            found,
            tokens.counts,
            tokens.kept,
        )

    def ppl_error(self, sparse: SparseRun) -> float | None:
        """Standard error of the perplexity ratio over batches, the same batches in both runs; None for a single batch."""
        if len(self.batches) < 2:
            return None
        change = sparse.losses - self.dense_losses
        return float(sparse.ppl_ratio * np.std(change, ddof=1) / math.sqrt(len(change)))

    def _dense(self) -> tuple[np.ndarray, dict[str, CettCurveResult]]:
        session = Session(self.model, [site.input for site in self.sites])
        curves = {site.path: CettCurve(_numpy(site.weight)) for site in self.sites}
        losses, first = [], 0
        for index, batch in enumerate(self.batches):
            captured: Captured = session.read(batch, index, first)
            losses.append(self._loss(captured.output, batch))
            for site in self.sites:
                curves[site.path].update(captured[site.input], mask=_fitting(batch.mask, captured[site.input]))
            first += batch.n_samples
        try:
            return np.array(losses), {path: curve.result() for path, curve in curves.items()}
        except InputError as error:
            raise InputError(f"a feed-forward layer cannot be measured: {error}") from error

    def _loss(self, output: Any, batch: Batch) -> float:
        value = float((self.loss_function or natural_loss)(output, batch))
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value}, expected a finite number; look for an overflow in the network")
        return value

    def _weight(self, batch: Batch) -> int:
        """How many predictions a batch's loss is the mean of."""
        tokens = tokens_of(batch)
        if self.loss_function is not None or batch.labels is not None or tokens is None:
            return batch.n_samples
        if batch.mask is not None:
            return int((batch.mask[:, 1:] & batch.mask[:, :-1]).sum())
        return tokens[:, 1:].numel()

    def _mean(self, losses: np.ndarray) -> float:
        return float(losses @ self._weights / self._weights.sum())


class _Watcher:
    """Leaves out one layer's weak neurons while the network runs, and counts those that stay."""

    def __init__(self, site: FfnSite, lengths: Tensor, rule: Rule, arg: float, generator: torch.Generator) -> None:
        self.site, self.lengths, self.arg, self.generator = site, lengths, arg, generator
        self.rule: Rule = rule
        self.mask: Bool[Tensor, "sample position"] | None = None
        self.score: Tensor | None = None
        self.units = np.zeros(site.weight.shape[1])
        self.kept, self.n_rows = 0.0, 0
        self.shares: Tensor | None = None

    def edits(self) -> list[Edit]:
        """What to put in force: a look at the score, where the rule needs one, and the change of the input."""
        changing = [replace_with(self.site.input, self._change)]
        scored = self.rule not in ("cett", "random") and self.site.score is not None
        return [replace_with(str(self.site.score), self._look), *changing] if scored else changing

    def _look(self, activations: Tensor) -> Tensor:
        self.score = activations
        return activations

    def _change(self, a: Tensor) -> Tensor:
        rows = a.reshape(-1, a.shape[-1])
        score = None if self.score is None else self.score.reshape(rows.shape)
        real = _fitting(self.mask, a)
        if self.rule == "topk_pooled" and real is not None:
            score = (rows if score is None else score) * real.reshape(-1, 1).to(rows.device)  # padding takes no places
        keep = keep_mask(rows, self.lengths, self.rule, self.arg, score, self.generator)
        self.score = None
        counted = keep if real is None else keep[real.reshape(-1).to(keep.device)]
        units = counted.sum(0)
        self.units += units.cpu().numpy()
        self.kept, self.n_rows = self.kept + float(units.sum()), self.n_rows + len(counted)
        self.shares = keep.float().mean(1).reshape(a.shape[:-1])
        return torch.where(keep.reshape(a.shape), a, torch.zeros((), dtype=a.dtype, device=a.device))


class _TokenCount:
    """How often each token value occurs, and the share of neurons kept on it."""

    def __init__(self, n_sites: int) -> None:
        self.n_sites = n_sites
        self.counts: np.ndarray | None = None
        self.kept: np.ndarray | None = None

    def add(self, batch: Batch, watchers: Sequence[_Watcher]) -> None:
        tokens = tokens_of(batch)
        shares = [watcher.shares for watcher in watchers if watcher.shares is not None]
        if tokens is None or len(shares) != self.n_sites or any(share.shape != tokens.shape for share in shares):
            return
        real = torch.ones_like(tokens, dtype=torch.bool) if batch.mask is None else batch.mask.to(tokens.device)
        values = tokens[real].cpu().numpy()
        mean = torch.stack([share.to(tokens.device) for share in shares]).double().mean(0)[real].cpu().numpy()
        counts = np.bincount(values).astype(float)
        kept = np.bincount(values, mean)
        self.counts = counts if self.counts is None else _added(self.counts, counts)
        self.kept = kept if self.kept is None else _added(self.kept, kept)


def _added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(one), len(other)))
    total[: len(one)] += one
    total[: len(other)] += other
    return total


def _fitting(mask: Tensor | None, activations: Tensor) -> Tensor | None:
    """The padding mask where it belongs to these positions."""
    return mask if mask is not None and tuple(mask.shape) == tuple(activations.shape[:-1]) else None


def _first_batches(model: nn.Module, data: Any, labels: Any, n_samples: int, batch_size: int) -> list[Batch]:
    """Batches with at most ``n_samples`` samples together, each with its labels."""
    session = Session(model, ".", batch_size=batch_size)
    if isinstance(data, Iterable) and iter(data) is data:
        data = list(data)  # type: ignore[arg-type]
    given = None if labels is None else torch.as_tensor(labels)
    found: list[Batch] = []
    seen = 0
    for raw in session.batches(data):
        batch = session.prepare(raw)
        if given is not None and batch.n_samples:
            own = given[seen : seen + batch.n_samples]
            if len(own) != batch.n_samples:
                raise InputError(f"there are {len(given)} labels for more samples than that; give one for each sample")
            batch = replace(batch, labels=own)
        if batch.n_samples:
            found.append(batch)
        seen += batch.n_samples
        if seen >= n_samples:
            break
    if not found:
        raise InputError("the data held no samples; at least one is needed")
    return _within(found, n_samples)


def _within(batches: Sequence[Batch], n_samples: int) -> list[Batch]:
    kept: list[Batch] = []
    for batch in batches:
        if n_samples <= 0:
            break
        kept.append(_cut(batch, min(n_samples, batch.n_samples)))
        n_samples -= batch.n_samples
    return kept


def _cut(batch: Batch, n: int) -> Batch:
    """The first ``n`` samples of a batch."""
    if n >= batch.n_samples:
        return batch

    def cut(value: Any) -> Any:
        return value[:n] if isinstance(value, Tensor) and value.ndim and len(value) == batch.n_samples else value

    labels, mask = (None if part is None else part[:n] for part in (batch.labels, batch.mask))
    return Batch(moved(batch.args, cut), moved(batch.kwargs, cut), labels, mask, n)


def _require_loss(model: nn.Module, batch: Batch) -> None:
    """Refuses data that define no loss, and a network that sees the tokens it would have to predict."""
    with guest(model), torch.no_grad():
        output = run(model, with_own_inputs(batch))
        natural_loss(output, batch)
        tokens, logits = tokens_of(batch), logits_of(output)
        if batch.labels is not None or tokens is None or logits is None or not predicts_tokens(output, batch):
            return
        next_token_loss(output, batch)
        changed = tokens.clone()
        changed[:, -1] = torch.where(changed[:, -1] == changed[:, 0], tokens.max() - changed[:, -1], changed[:, 0])

        def swap(value: Any) -> Any:
            return changed if value is tokens else value

        other = logits_of(
            run(model, Batch(moved(batch.args, swap), moved(batch.kwargs, swap), None, batch.mask, batch.n_samples))
        )
    if other is not None and not torch.allclose(other[:, :-1], logits[:, :-1], rtol=1e-3, atol=1e-4):
        raise InputError(
            "no loss is defined: there are no labels, and the network sees later tokens, so it does not predict the next "
            "one; give labels, or a loss of your own"
        )


def _numpy(weight: Tensor) -> np.ndarray:
    """In memory, in float32 at least."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).cpu().numpy()
