"""Sparse autoencoders of a layer's activations: trained from a recording, or read from SAELens and Sparsify files.

Source: baselines of arXiv 2506.10920; the networks are :class:`netloupe.nn.sparse_coder.SparseCoder` (sources there).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from netloupe.core.batches import Batch
from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError, StoreError
from netloupe.core.rows import as_rows
from netloupe.core.training import History, train
from netloupe.nn.sparse_coder import Activation, SparseCoder

SMALLEST = 1e-12  # spread of the data, below which they count as constant


class SparseAutoencoder(TransformerMixin, BaseEstimator):
    """A sparse autoencoder with ``m`` latents, trained on shuffled rows of activations or of a recorded site.

    Args:
        m: latents. activation: ``relu``, ``topk``, ``batchtopk`` or ``jumprelu``. k: kept by the two TopK kinds.
        l1: sparsity weight of relu and jumprelu, rising over the first 5 % of steps. aux: revives dead latents (topk kinds).
        steps, batch_size, rate: of Adam (betas .9, .999). dead_after: rows without firing until a latent counts as dead.
        multi: weight of the reconstruction with ``4 k`` latents (topk; 1/8 in Sparsify's multi-TopK).
        start: what ``b_dec`` starts at: the ``mean`` of the data or their geometric ``median``.
        normalise: trains on activations divided by their root mean square deviation from the mean, one number for all units, so
            that ``rate``, ``l1`` and the kernel of jumprelu fit whatever their size is; codes and directions are in the data's
            own units again (``network_`` is not). Without it activations much smaller than 1 are not learned.
        seed: of the start and of the order of rows. checkpoint, checkpoint_every: folder and interval; an interrupted
            training goes on from the last to the same result. progress: a bar on a terminal.

    Attributes: ``network_``, ``history_`` (:class:`netloupe.core.training.History`; ``state`` may say ``diverged``), ``n_units_``.
    Cost: O(steps * batch_size * d * m). Raises InputError for sizes that make no sense, NonFiniteError for NaN.
    """

    def __init__(
        self,
        m: int,
        activation: Activation = "relu",
        k: int = 32,
        l1: float = 1.0,
        aux: float = 1 / 32,
        steps: int = 2000,
        batch_size: int = 256,
        rate: float = 3e-4,
        dead_after: int = 100_000,
        multi: float = 0.0,
        start: Literal["mean", "median"] = "mean",
        normalise: bool = False,
        seed: int = 0,
        checkpoint: str | None = None,
        checkpoint_every: int = 0,
        progress: bool = False,
    ) -> None:
        self.m, self.activation, self.k, self.l1, self.aux, self.steps = m, activation, k, l1, aux, steps
        self.batch_size, self.rate, self.dead_after, self.multi, self.start = batch_size, rate, dead_after, multi, start
        self.normalise = normalise
        self.seed, self.checkpoint, self.checkpoint_every, self.progress = seed, checkpoint, checkpoint_every, progress

    def fit(self, features: Float[Tensor, "sample unit"] | Any, y: Any = None) -> Self:
        """Trains from the start on ``(sample, unit)`` or ``(sample, position, unit)``, read in shuffled epochs."""
        rows = as_rows(features, ndim=(2, 3), min_samples=2)
        if self.steps < 1 or self.batch_size < 1 or self.rate <= 0:
            raise InputError(
                f"steps is {self.steps}, batch_size {self.batch_size}, rate {self.rate:g}; all must be positive"
            )
        if self.start not in ("mean", "median"):
            raise InputError(f"start is '{self.start}', expected mean or median")
        mean, scale = _moments(rows)
        self._begin(rows.n_units, _median(rows, mean) if self.start == "median" else mean, scale)
        warm_up = max(1, round(0.05 * self.steps))
        network, step_scale, size = self.network_, self._scale, self._size

        def loss(output: Tensor, batch: Batch) -> Tensor:
            return output

        class Lossy(torch.nn.Module):
            """The network as ``train`` wants it: from a batch to its loss."""

            def __init__(self) -> None:
                super().__init__()
                self.network = network
                self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

            def forward(self, x: Tensor) -> Tensor:
                self.taken += 1
                return network.loss(x if size == 1 else x / size, step_scale, min(1.0, float(self.taken) / warm_up))

        self.history_: History = train(
            Lossy(), shuffled(rows.source, self.batch_size, self.seed), steps=self.steps, optimizer=self._optimiser, loss=loss,
            seed=self.seed, checkpoint=self.checkpoint, checkpoint_every=self.checkpoint_every, progress=self.progress,
            describe="training a sparse autoencoder",
        )  # fmt: skip
        network.eval()
        return self

    def partial_fit(self, batch: Float[Tensor, "sample unit"] | Any, y: Any = None) -> Self:
        """One step of Adam on one batch, the first of which also sets offset and scale; for activations that come in a stream."""
        rows = as_rows(batch, ndim=(2,), min_samples=2)
        if not hasattr(self, "network_"):
            mean, scale = _moments(rows)
            self._begin(rows.n_units, mean, scale)
            self.history_ = History()
        if rows.n_units != self.n_units_:
            raise InputError(f"the batch has {rows.n_units} units, the autoencoder {self.n_units_}")
        warm_up = max(1, round(0.05 * self.steps))
        self.network_.train()
        loss = self.network_.loss(
            rows.array().float() / self._size, self._scale, min(1.0, (self.history_.n_steps + 1) / warm_up)
        )
        optimiser = self._optimiser
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        self.history_.loss.append(float(loss.detach()))
        self.network_.eval()
        return self

    def _begin(self, n_units: int, offset: Tensor, scale: float) -> None:
        self._size = (scale / n_units) ** 0.5 if self.normalise and scale > SMALLEST else 1.0
        offset, scale = offset / self._size, scale / self._size**2
        network = SparseCoder(
            n_units,
            self.m,
            cast(Activation, self.activation),
            self.k,
            self.l1,
            self.aux,
            self.dead_after,
            self.multi,
            self.seed,
        )
        with torch.no_grad():
            network.b_dec.copy_(offset.float())
        optimiser = torch.optim.Adam(network.parameters(), lr=self.rate, betas=(0.9, 0.999))
        optimiser.register_step_pre_hook(lambda *_: network.before_step())
        optimiser.register_step_post_hook(lambda *_: network.after_step())
        self.network_, self._optimiser, self._scale, self.n_units_ = network, optimiser, scale, n_units

    def dictionary(self, site: str = "") -> Dictionary:
        """What was learned as a :class:`~netloupe.core.dictionary.Dictionary`."""
        net, size = self.network_, self._size
        made = {
            "activation": self.activation,
            "k": self.k,
            "l1": self.l1,
            "steps": self.history_.n_steps,
            "seed": self.seed,
        }
        rule, threshold = {
            "relu": ("relu", None),
            "topk": ("topk", None),
            "batchtopk": ("threshold", net.threshold.expand(self.m).clone()),
            "jumprelu": ("threshold", net.log_threshold.detach().exp() if self.activation == "jumprelu" else None),
        }[self.activation]
        return Dictionary(
            net.w_dec.detach().clone(), rule, site, "sparse autoencoder", offset=net.b_dec.detach() * size,
            weight=net.w_enc.detach().T.contiguous().clone(), bias=net.b_enc.detach() * size,
            threshold=None if threshold is None else threshold * size,
            k=self.k if rule == "topk" else 0, options=made,
        )  # fmt: skip

    def transform(self, features: Float[Tensor, "sample unit"] | Any) -> Float[np.ndarray, "sample latent"]:
        """Codes of activations, read in batches."""
        dictionary = self.dictionary()
        return np.concatenate([dictionary.encode(batch.values).numpy() for batch in as_rows(features, ndim=(2,))])


def shuffled(
    source: Any, batch_size: int, seed: int = 0
) -> Callable[[int, torch.Generator], Float[Tensor, "sample unit"]]:
    """Batches for :func:`netloupe.core.training.train`: rows of an array or a stored site in shuffled epochs.

    A batch depends on its step alone, so an interrupted training resumes to the same result. Samples with positions are drawn
    whole, as many as make ``batch_size`` rows.
    """
    n = len(source) if not hasattr(source, "shape") else int(source.shape[0])
    per_sample = int(np.prod(source.shape[1:-1])) if len(source.shape) > 2 else 1
    size = min(n, max(1, batch_size // per_sample))
    per_epoch = max(1, n // size)
    order: dict[int, Tensor] = {}

    def draw(step: int, generator: torch.Generator) -> Tensor:
        epoch, position = divmod(step, per_epoch)
        if epoch not in order:
            order.clear()
            order[epoch] = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        chosen = order[epoch][position * size : (position + 1) * size]
        values = torch.as_tensor(source[chosen.numpy() if isinstance(source, np.ndarray) else chosen])
        return values.reshape(-1, values.shape[-1]).float()

    return draw


def _moments(rows: Any) -> tuple[Float[Tensor, " unit"], float]:
    """The mean, and the mean squared distance from it."""
    total, squares, count = torch.zeros(rows.n_units, dtype=torch.float64), 0.0, 0
    for batch in rows:
        flat = batch.values.reshape(-1, rows.n_units).double()
        total += flat.sum(0)
        squares += float(flat.pow(2).sum())
        count += len(flat)
    mean = total / count
    return mean, max(squares / count - float(mean.pow(2).sum()), SMALLEST)


def _median(rows: Any, mean: Tensor, n_steps: int = 20) -> Float[Tensor, " unit"]:
    """The point of least summed distance to the rows, by Weiszfeld's steps; a pass each."""
    found = mean
    for _ in range(n_steps):
        top, below = torch.zeros_like(mean), 0.0
        for batch in rows:
            flat = batch.values.reshape(-1, rows.n_units).double()
            weight = 1 / (flat - found).norm(dim=1).clamp_min(1e-9)
            top += weight @ flat
            below += float(weight.sum())
        found = top / below
    return found


def diff_mean(
    features: Float[Tensor, "sample unit"] | Any, labels: Int[Tensor, " sample"] | Any, site: str = ""
) -> Dictionary:
    """``unit(mean(x | label = c) - mean(x | label != c))`` for each class ``c``: the simplest concept directions.

    ``features`` ``(sample, unit)``, ``labels`` ``(sample,)`` classes from 0; with two classes 0 and 1 the direction of 1 alone. One
    pass. Raises InputError for one class only, negative labels or equal means.
    """
    rows = as_rows(features, labels, ndim=(2,), min_samples=2)
    if rows.labels is None or len(rows.labels.unique()) < 2 or int(rows.labels.min()) < 0:
        raise InputError(
            "labels must be given, not be negative and hold at least two classes; a difference is asked for"
        )
    n_classes = int(rows.labels.max()) + 1
    sums = torch.zeros(n_classes, rows.n_units, dtype=torch.float64)
    for batch in rows:
        assert batch.labels is not None
        sums.index_add_(0, batch.labels.long(), batch.values.double())
    counts = torch.bincount(rows.labels.long(), minlength=n_classes)[:, None].double()
    wanted = torch.tensor([1]) if n_classes == 2 else torch.nonzero(counts[:, 0] > 0).flatten()
    rest = (sums.sum(0) - sums[wanted]) / (rows.n_samples - counts[wanted])
    found = sums[wanted] / counts[wanted] - rest
    length = found.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        raise InputError("a class has the same mean as the rest, so no direction tells it; give other labels")
    return Dictionary(found / length, "linear", site, "difference of means", options={"classes": wanted.tolist()})


def load_saelens(folder: str | Path) -> Dictionary:
    """An SAE as SAELens writes it: ``cfg.json`` and ``sae_weights.safetensors`` (``W_enc, W_dec, b_enc, b_dec[, threshold]``).

    Architectures standard, topk, batchtopk (saved with its threshold) and jumprelu, older and newer fields. The site is
    SAELens' hook name, which is another library's: give ``site=`` where you use it. Raises StoreError for missing files, and
    InputError for gated SAEs and for normalised activations, which the weights alone do not define.
    """
    config, tensors = _read(Path(folder), "sae_weights.safetensors")
    kind = config.get("architecture") or "standard"
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k") or 0
    normal = config.get("normalize_activations", "none")
    if kind not in ("standard", "topk", "batchtopk", "jumprelu") or normal not in ("none", None, "None"):
        raise InputError(
            f"the SAE is '{kind}' with activations normalised by '{normal}'; standard, topk, batchtopk and jumprelu without "
            "normalisation can be read"
        )
    _require(tensors, ("W_enc", "W_dec", "b_enc", "b_dec"), folder)
    factor = tensors.get("scaling_factor")
    if factor is not None and not bool((factor == 1).all()):
        raise InputError("the SAE rescales its codes (scaling_factor), fold that into W_dec before it is read")
    threshold = tensors.get("threshold")
    if threshold is None and kind == "batchtopk":
        raise InputError("a batchtopk SAE needs its threshold at inference, and the file has none")
    rule = "threshold" if threshold is not None else "topk" if kind == "topk" or activation == "topk" else "relu"
    scale = tensors["W_dec"].norm(dim=1) if config.get("rescale_acts_by_decoder_norm") and rule == "topk" else None
    hook = (config.get("metadata") or {}).get("hook_name") or config.get("hook_name") or ""
    return Dictionary(
        tensors["W_dec"], rule, hook, f"SAELens {kind}", offset=tensors["b_dec"], weight=tensors["W_enc"].T.contiguous(),
        bias=tensors["b_enc"], threshold=threshold, scale=scale, k=int(k) if rule == "topk" else 0,
        centred=bool(config.get("apply_b_dec_to_input", True)), options={"cfg": config},
    )  # fmt: skip


def load_sparsify(folder: str | Path) -> Dictionary:
    """An SAE as Sparsify writes it: ``cfg.json`` and ``sae.safetensors`` (``encoder.weight, encoder.bias, W_dec, b_dec``); TopK.

    The folder's name is the site it was trained on. Raises StoreError for missing files, InputError for transcoders, skip
    connections and other activations.
    """
    config, tensors = _read(Path(folder), "sae.safetensors")
    if config.get("transcode") or config.get("skip_connection") or config.get("activation", "topk") != "topk":
        raise InputError("the folder holds a transcoder or groupmax coder; plain TopK SAEs can be read")
    _require(tensors, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), folder)
    return Dictionary(
        tensors["W_dec"], "topk", Path(folder).name, "Sparsify topk", offset=tensors["b_dec"], weight=tensors["encoder.weight"],
        bias=tensors["encoder.bias"], k=int(config.get("k", 32)), options={"cfg": config},
    )  # fmt: skip


def _read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        return json.loads((folder / "cfg.json").read_text(encoding="utf-8")), load_file(str(folder / name))
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"'{folder}' needs a readable cfg.json and {name} ({str(error).splitlines()[0]})") from error


def _require(tensors: dict[str, Tensor], names: tuple[str, ...], folder: Any) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise StoreError(
            f"the weights in '{folder}' lack {', '.join(missing)}; they hold {', '.join(sorted(tensors)[:8])}"
        )
