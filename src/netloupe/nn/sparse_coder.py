"""A sparse autoencoder as a network: encoder, decoder, and the four activations and losses it is trained with.

Sources: ReLU with decoder-weighted L1 (Bricken et al., 2023); TopK with an auxiliary loss for dead latents (Gao et al., arXiv
2406.04093); BatchTopK (Bussmann et al., arXiv 2412.06410); JumpReLU with straight-through gradients (Rajamanoharan et
al., arXiv 2407.14435).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from netloupe.core.errors import InputError

Activation = Literal["relu", "topk", "batchtopk", "jumprelu"]
ACTIVATIONS = ("relu", "topk", "batchtopk", "jumprelu")
_WORTH = 40  # latents a kept one from which on products with the kept ones alone are faster
BANDWIDTH = 0.1  # of the straight-through kernel, on activations of about unit variance


class _Jump(torch.autograd.Function):
    """``z`` where it exceeds the threshold; the threshold's gradient goes through a box kernel of the bandwidth."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2).to(z.dtype)
        return grads[0] * (z > threshold), (-threshold / ctx.bandwidth * near * grads[0]).sum(0), None


class _Step(torch.autograd.Function):
    """1 where ``z`` exceeds the threshold; only the threshold has a gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2).to(z.dtype)
        return None, (-near / ctx.bandwidth * grads[0]).sum(0), None


class _KeptLatents(torch.autograd.Function):
    """``relu(pre[kept]) W_dec + b_dec`` for ``pre = (x - b_dec) W_enc + b_enc``, with gradients that touch the kept latents alone.

    Of the products of a training step only ``x W_enc`` is left whole; the others cost ``n k d`` instead of ``n m d``. ``kept`` holds
    flat places ``sample * m + latent``, samples in order. ``pre`` carries no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pre: Tensor, kept: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, b_dec: Tensor
    ) -> Tensor:
        samples, latents = kept // pre.shape[1], kept % pre.shape[1]
        values = pre.flatten()[kept].relu()
        ctx.save_for_backward(x, samples, latents, values, w_enc, w_dec, b_dec)
        return _sums(w_dec, latents, values, torch.bincount(samples, minlength=len(x))) + b_dec

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, samples, latents, values, w_enc, w_dec, b_dec = ctx.saved_tensors
        grad = grads[0]
        inner = _inner(grad, w_dec, latents, torch.bincount(samples, minlength=len(x))) * (values > 0)
        order = torch.argsort(latents, stable=True)
        counts = torch.bincount(latents, minlength=len(w_dec))
        rows = samples[order]
        for_dec = _sums(grad, rows, values[order], counts)
        for_enc = _sums(x - b_dec, rows, inner[order], counts).T
        for_bias = torch.zeros_like(w_dec[:, 0]).index_add_(0, latents, inner)
        return None, None, None, for_enc, for_bias, for_dec, grad.sum(0) - w_enc @ for_bias


def _inner(grad: Tensor, table: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    """Products of each of grad's rows with its ``counts`` rows of a table: what the library's own sum of rows gives its weights."""
    with torch.enable_grad():
        weights = torch.ones(len(rows), dtype=grad.dtype, device=grad.device, requires_grad=True)
        (found,) = torch.autograd.grad(_sums(table.detach(), rows, weights, counts), weights, grad)
    return found


def _sums(table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Weighted sums of rows of a table, ``counts`` of them in turn."""
    offsets = counts.cumsum(0) - counts
    return F.embedding_bag(rows, table.contiguous(), offsets, mode="sum", per_sample_weights=weights)


class SparseCoder(nn.Module):
    """``xh = z W_dec + b_dec`` with sparse ``z`` from ``(x - b_dec) W_enc + b_enc``.

    Args:
        n_units, n_latents: ``d`` and ``m``. activation: see the module. k: latents kept a row (topk) or on average (batchtopk).
        l1: weight of ``sum_j z_j |W_dec_j|`` (relu) or of the number of active latents (jumprelu), per row; the reconstruction
            term is ``|x - xh|^2`` per row. Its warm-up is the caller's: ``loss(x, warm)``.
        aux: weight of the auxiliary loss of topk and batchtopk, 0 without; latents are dead after ``dead_after`` rows
            without firing, and half as many as there are units try to explain what is left over.
        multi: weight of the reconstruction by ``4 k`` latents (topk).
        random_state: of the decoder's initial rows.
    """

    threshold: Tensor
    silent: Tensor

    def __init__(
        self,
        n_units: int,
        n_latents: int,
        activation: Activation = "relu",
        k: int = 32,
        l1: float = 1.0,
        aux: float = 1 / 32,
        dead_after: int = 100_000,
        multi: float = 0.0,
        random_state: int = 0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS or n_latents < 1 or n_units < 1:
            raise InputError(
                f"activation is '{activation}' with {n_latents} latents of {n_units} units; expected one of "
                f"{', '.join(ACTIVATIONS)} and positive sizes"
            )
        if activation in ("topk", "batchtopk") and not 1 <= k <= n_latents:
            raise InputError(f"k is {k}, expected 1 to {n_latents}, the number of latents")
        self.activation, self.k, self.l1, self.aux, self.multi = activation, k, l1, aux, multi
        self.dead_after = dead_after
        draw = torch.Generator().manual_seed(random_state)
        bound = (6 / n_units) ** 0.5
        rows = (2 * torch.rand(n_latents, n_units, generator=draw) - 1) * bound
        rows = rows / rows.norm(dim=1, keepdim=True) * (1.0 if self.keeps_unit_rows else 0.1)
        self.w_dec = nn.Parameter(rows.clone())
        # TopK kinds keep the largest codes whatever their scale; starting small, as a linear layer does in Sparsify, they learn faster
        self.w_enc = nn.Parameter(
            rows.T.clone().contiguous() * (3**-0.5 if activation in ("topk", "batchtopk") else 1.0)
        )
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec = nn.Parameter(torch.zeros(n_units))
        if activation == "jumprelu":
            self.log_threshold = nn.Parameter(torch.full((n_latents,), 0.01).log())
        self.register_buffer("threshold", torch.zeros(()))  # batchtopk: running mean of the smallest kept value
        self.register_buffer("silent", torch.zeros(n_latents))  # rows since a latent last fired

    @property
    def keeps_unit_rows(self) -> bool:
        """Whether decoder rows are held at length 1 while training."""
        return self.activation != "relu"

    def pre(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample latent"]:
        """What the activation is applied to."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.w_enc)

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample unit"]:
        """The reconstruction."""
        return self.decode(self.active(self.pre(x)))

    def decode(self, z: Float[Tensor, "sample latent"]) -> Float[Tensor, "sample unit"]:
        """``z W_dec + b_dec``."""
        return z @ self.w_dec + self.b_dec

    def active(self, pre: Float[Tensor, "sample latent"], k: int | None = None) -> Float[Tensor, "sample latent"]:
        """The sparse code; batchtopk takes its running threshold outside training."""
        if self.activation == "relu":
            return pre.relu()
        if self.activation == "jumprelu":
            return _Jump.apply(pre.relu(), self.log_threshold.exp(), BANDWIDTH)
        k = min(k or self.k, pre.shape[1])
        if self.activation == "topk":
            values, chosen = pre.topk(k, dim=1)
            return torch.zeros_like(pre).scatter(1, chosen, values.relu())
        positive = pre.relu()
        if not self.training:
            return positive * (positive > self.threshold)
        values, chosen = positive.flatten().topk(k * len(pre))
        self._follow(values)
        return torch.zeros_like(positive).flatten().scatter(0, chosen, values).view_as(positive)

    @torch.no_grad()
    def _follow(self, values: Tensor) -> None:
        kept = values[values > 0]
        if len(kept):
            new = kept.min()
            self.threshold.copy_(new if float(self.threshold) == 0 else 0.99 * self.threshold + 0.01 * new)

    def loss(
        self, x: Float[Tensor, "sample unit"], scale: Float[Tensor, ""] | float, warm: float = 1.0
    ) -> Float[Tensor, ""]:
        """The training loss of a batch; ``scale`` is the data's mean squared distance from its mean, a row.

        relu and jumprelu: ``mean_n [|x - xh|^2 + warm l1 penalty]``, divided by nothing. topk and batchtopk: the share of
        variance unexplained, ``mean |x - xh|^2 / scale``, plus ``multi`` and ``aux`` terms.
        """
        dead = self.silent > self.dead_after
        revive = bool(self.aux) and self.activation in ("topk", "batchtopk") and bool(dead.any())
        if self._few_kept() and not revive and not self.multi:
            return self._loss_of_kept(x) / scale
        pre = self.pre(x)
        z = self.active(pre)
        left = x - self.decode(z)
        error = left.pow(2).sum(1).mean()
        self._count(z)
        if self.activation == "relu":
            return error + warm * self.l1 * (z @ self.w_dec.norm(dim=1)).mean()
        if self.activation == "jumprelu":
            fired = _Step.apply(pre.relu(), self.log_threshold.exp(), BANDWIDTH)
            return error + warm * self.l1 * fired.sum(1).mean()
        total = error / scale
        if self.multi and self.activation == "topk":
            total = total + self.multi * (x - self.decode(self.active(pre, 4 * self.k))).pow(2).sum(1).mean() / scale
        dead = self.silent > self.dead_after
        if self.aux and bool(dead.any()):
            total = total + self.aux * self._revival(pre, left.detach(), dead) / scale
        return total

    def _few_kept(self) -> bool:
        """Whether so few latents are kept that products with these alone are cheaper than whole ones."""
        return self.activation in ("topk", "batchtopk") and self.training and _WORTH * self.k <= len(self.w_dec)

    def _loss_of_kept(self, x: Tensor) -> Tensor:
        """``mean |x - xh|^2`` of a TopK or BatchTopK batch, without the dense code."""
        with torch.no_grad():
            pre, m = self.pre(x), len(self.w_dec)
            if self.activation == "topk":
                chosen = pre.topk(self.k, dim=1, sorted=False).indices
                kept = (chosen + m * torch.arange(len(x), device=x.device)[:, None]).flatten()
            else:
                values, chosen = pre.relu().flatten().topk(self.k * len(x), sorted=False)
                self._follow(values)
                kept = chosen.sort().values
            self.silent += len(x)
            self.silent[(kept % m)[pre.flatten()[kept] > 0]] = 0
        found = _KeptLatents.apply(x, pre, kept, self.w_enc, self.b_enc, self.w_dec, self.b_dec)
        return (x - found).pow(2).sum(1).mean()  # pyright: ignore[reportOperatorIssue]

    def _revival(self, pre: Tensor, left: Tensor, dead: Bool[Tensor, " latent"]) -> Tensor:
        """How badly the dead latents explain what the living left over, weighted by how many they are."""
        n_dead, k = int(dead.sum()), max(1, left.shape[1] // 2)
        values, chosen = pre.masked_fill(~dead, -torch.inf).topk(min(k, n_dead), dim=1)
        z = torch.zeros_like(pre).scatter(1, chosen, values.relu())
        return min(n_dead / k, 1.0) * (left - z @ self.w_dec).pow(2).sum(1).mean()

    @torch.no_grad()
    def _count(self, z: Tensor) -> None:
        self.silent += len(z)
        self.silent[(z > 0).any(0)] = 0

    @torch.no_grad()
    def before_step(self) -> None:
        """Takes from the decoder's gradient what would only change the rows' length."""
        if self.keeps_unit_rows and self.w_dec.grad is not None:
            along = (self.w_dec.grad * self.w_dec).sum(1, keepdim=True)
            self.w_dec.grad -= along * self.w_dec

    @torch.no_grad()
    def after_step(self) -> None:
        """Decoder rows of length 1 again."""
        if self.keeps_unit_rows:
            self.w_dec /= self.w_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
