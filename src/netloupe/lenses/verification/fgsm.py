"""How much worse does a network do when its inputs are moved a little in the worst direction?

The fast gradient sign method (Goodfellow et al., arXiv 1412.6572), as Konz and Mazurowski, arXiv 2401.08865, use it to compare
how easily networks of different data sets are attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.batches import Batch, batches_of, prepare
from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.core.forward import run
from netloupe.core.isolation import device_of, guest
from netloupe.core.lens import lens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 2 / 255
"""the published step: 2 of 255 grey levels"""
Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Vulnerability(Finding):
    """Loss and accuracy on clean inputs, on attacked ones, and with random signs of the same size in place of the attack.

    ``penalties`` float64 ``(sample,)``: attacked minus clean loss of every sample.
    """

    clean_loss: float
    attacked_loss: float
    noise_loss: float
    clean_accuracy: float
    attacked_accuracy: float
    noise_accuracy: float
    penalties: np.ndarray
    eps: float
    bounds: tuple[float, float]

    meanings: ClassVar[dict[str, str]] = {
        "penalty": "rise of the loss when every input is moved by the step in the worst direction",
        "standard_error": "its standard error over samples",
        "accuracy_drop": "share of samples that are right before and no longer after",
        "noise_penalty": "rise of the loss for random signs of the same size",
        "clean_loss": "loss on the inputs as they are",
        "clean_accuracy": "accuracy on the inputs as they are",
        "eps": "size of the step in the units of the inputs",
    }

    @property
    def penalty(self) -> float:
        """Attacked minus clean loss."""
        return self.attacked_loss - self.clean_loss

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        n = len(self.penalties)
        return {
            "penalty": self.penalty,
            "standard_error": float(self.penalties.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
            "accuracy_drop": self.clean_accuracy - self.attacked_accuracy,
            "noise_penalty": self.noise_loss - self.clean_loss,
            "clean_loss": self.clean_loss,
            "clean_accuracy": self.clean_accuracy,
            "eps": self.eps,
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        found = self.summary()
        return (
            f"One step of {self.eps:.3g} in the worst direction raises the loss by {self.penalty:.3g} (standard error "
            f"{found['standard_error']:.2g}) from {self.clean_loss:.3g} and takes the accuracy from {100 * self.clean_accuracy:.1f} % to "
            f"{100 * self.attacked_accuracy:.1f} %; random signs of the same size change the loss by {found['noise_penalty']:.2g}. "
            "A network may resist this one step and fall to a stronger attack."
        )

    def plot(self, axes: Axes) -> None:
        """Samples by how much their loss rises."""
        axes.plot(np.sort(self.penalties)[::-1], color="C0")
        axes.axhline(self.penalty, color="C1", linestyle="--", label=f"mean {self.penalty:.3g}")
        axes.axhline(self.noise_loss - self.clean_loss, color="C7", linestyle=":", label="random signs, mean")
        axes.set(xlabel="sample, most harmed first", ylabel="rise of its loss")
        axes.legend(frameon=False, fontsize="small")


def fgsm(
    model: nn.Module,
    x: Float[Tensor, "sample ..."],
    y: Int[Tensor, " sample"],
    eps: float,
    bounds: Bounds = (0.0, 1.0),
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "sample ..."]:
    """``clip(x + eps sign(grad_x L), bounds)``: one step, in evaluation mode; the network is left as it was.

    Args:
        model: any classifier that takes ``x`` and gives logits. x, y: inputs and their classes.
        eps: size of the step in the units of ``x``; the published 2 is of 255.
        bounds: smallest and largest allowed value. loss: ``(logits, y) -> scalar``; cross-entropy by default.

    Cost: one forward and one backward pass. Raises InputError for inputs that are no floats, labels that do not fit, a negative step or
    bounds out of order; errors of the network's own as one sentence.
    """
    if not (np.isfinite(eps) and eps >= 0) or not bounds[0] < bounds[1]:
        raise InputError(
            f"eps is {eps} and bounds {tuple(bounds)}; a step that is not negative and rising bounds are needed"
        )
    if not isinstance(x, Tensor) or not x.is_floating_point() or len(y) != len(x):
        raise InputError(
            "x must be a tensor of floats with one label for each sample; tokens cannot be moved by a gradient"
        )
    device = device_of(model)
    with torch.inference_mode(False), torch.enable_grad(), guest(model):
        moved = x.detach().clone().to(device).requires_grad_(True)
        value = (loss or F.cross_entropy)(
            _logits(run(model, Batch((moved.clone(),), {}, None, None, len(x)))), y.to(device)
        )
        (gradient,) = torch.autograd.grad(value, moved)
    return (moved.detach() + eps * gradient.sign()).clamp(*bounds).to(x.device)


def _logits(output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError("the network does not give logits (sample, class), which an attack on its loss needs")
    return logits


@lens(question="How much worse does it do when inputs move a little in the worst direction?", needs=("model", "data"))
def vulnerability(
    model: nn.Module,
    data: Iterable[Any] | Any,
    eps: float | None = None,
    bounds: Bounds | None = None,
    *,
    batch_size: int = 256,
    random_state: int = 0,
) -> Vulnerability:
    """Attacked minus clean loss, and accuracy, under :func:`fgsm` (arXiv 2401.08865), beside random signs of the same size.

    Args:
        model: a classifier. data: ``(inputs, labels)`` arrays or batches; inputs are floats and labels whole numbers ``(sample,)``.
        eps: size of the step in the units of the inputs; by default 2/255 of the range that the first batch spans.
        bounds: allowed values; by default the range of the first batch, to which inputs are not clipped before.
        batch_size: for arrays. random_state: of the random signs.

    Cost: three forward passes and one backward. Raises InputError for data without labels, inputs that are no floats or take
    one value only, and networks without logits.
    """
    device, generator = device_of(model), torch.Generator().manual_seed(random_state)
    parts: list[tuple[Tensor, ...]] = []
    for raw in batches_of(data, batch_size):
        batch = prepare(raw, model)
        x, y = _inputs(batch)
        if bounds is None:
            bounds = (float(x.min()), float(x.max()))
        if not bounds[0] < bounds[1]:
            raise InputError(f"inputs run from {bounds[0]} to {bounds[1]}, so no step has a size; give eps and bounds")
        eps = LEVELS * (bounds[1] - bounds[0]) if eps is None else eps
        signs = (2 * torch.randint(0, 2, x.shape, generator=generator) - 1).to(x)
        wide = (
            min(bounds[0], float(x.min())),
            max(bounds[1], float(x.max())),
        )  # values beyond the first batch's are data too
        with torch.no_grad(), guest(model):
            for inputs in (x, fgsm(model, x, y, eps, wide), (x + eps * signs).clamp(*wide)):
                logits = _logits(run(model, Batch((inputs.to(device),), {}, None, None, len(x)))).cpu()
                parts.append((F.cross_entropy(logits.double(), y, reduction="none"), logits.argmax(1) == y))
    if not parts or bounds is None or eps is None:
        raise InputError("the data held no samples; at least one is needed")
    losses, hits = (
        [torch.cat([part[i] for part in parts[side::3]]).double().numpy() for side in range(3)] for i in range(2)
    )
    means, rights = [float(one.mean()) for one in losses], [float(one.mean()) for one in hits]
    return Vulnerability(*means, *rights, penalties=losses[1] - losses[0], eps=float(eps), bounds=bounds)


def _inputs(batch: Batch) -> tuple[Tensor, Tensor]:
    first = batch.args[0] if batch.args and not batch.kwargs and len(batch.args) == 1 else None
    if not isinstance(first, Tensor) or not first.is_floating_point():
        raise InputError("the network takes no single tensor of floats, so its inputs cannot be moved by a gradient")
    labels = batch.labels
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        raise InputError("the data carries no classes (sample,), so there is no loss to attack; give (inputs, labels)")
    return first.detach().cpu(), labels.cpu().long()
