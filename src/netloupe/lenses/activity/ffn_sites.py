"""Where a network sums up neurons: the linear layers that read an activation, found by looking at one batch.

Such a layer is the output projection of a feed-forward block, or any linear layer behind an activation function.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.batches import Batch
from netloupe.core.capture import tap
from netloupe.core.errors import InputError, SiteError
from netloupe.core.forward import run, with_own_inputs
from netloupe.core.isolation import guest
from netloupe.nn.ffn import ThresholdedLinear
from netloupe.nn.topk import TopK

_NOT_POINTWISE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
_OTHERS = ("GELU", "SiLU", "ReLU", "Mish", "Activation", "LaplaceActivation")  # classes of other libraries end so


@dataclass(frozen=True)
class FfnSite:
    """One projection: ``path`` of the linear layer, its ``weight`` ``(out, unit)``, ``score`` the site of the activation
    function's output (None where there is none of that shape), ``n_rows`` rows of its input for each sample."""

    path: str
    weight: Float[Tensor, "out unit"]
    score: str | None
    n_rows: int

    @property
    def input(self) -> str:
        """The site of the tensor that the projection reads."""
        return f"{self.path}:in"


def projection_weight(module: nn.Module) -> Float[Tensor, "out unit"] | None:
    """``(out, unit)`` of a linear layer (also of Hugging Face's ``Conv1D``, which keeps it transposed); else None."""
    if isinstance(module, (nn.Linear, ThresholdedLinear)):
        return module.weight.detach()
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), Tensor):
        return module.get_parameter("weight").detach().T
    return None


def ffn_sites(model: nn.Module, batch: Batch, sites: str | Sequence[str] | None = None) -> list[FfnSite]:
    """The projections of ``model`` in the order they run.

    Without names, those that read an activation function's output as it is, and those of feed-forward blocks: a linear
    layer from ``d_ff`` to a smaller width that an earlier layer led to ``d_ff``. ``sites`` names linear layers
    instead, by path or glob.

    Raises SiteError for a name that is no linear layer, InputError where there is none to be found.
    """
    weights = {
        path: weight for path, module in model.named_modules() if (weight := projection_weight(module)) is not None
    }
    weights = {path: weight for path, weight in weights.items() if weight.ndim == 2 and path}
    if not weights:
        raise InputError("the network has no linear layer, so there are no neurons whose outputs are summed up")
    activations = [path for path, module in model.named_modules() if path and _is_activation(module)]
    seen = _first_pass(model, batch, [f"{path}:in" for path in weights] + activations)
    ran = [path for path in (name.removesuffix(":in") for name in seen) if path in weights]
    chosen = _named(sites, list(weights), ran) if sites is not None else _found(weights, ran, activations, seen)
    if not chosen:
        raise InputError(
            "the network has no linear layer behind an activation and no feed-forward block that could be told by its "
            "widths; name the output projections as sites"
        )
    found = []
    for path in chosen:
        rows = seen[f"{path}:in"].numel() // (batch.n_samples * weights[path].shape[1])
        found.append(FfnSite(path, weights[path], _score(path, chosen, seen, activations), rows))
    return found


def _is_activation(module: nn.Module) -> bool:
    if isinstance(module, _NOT_POINTWISE):
        return False
    own = type(module).__module__ == "torch.nn.modules.activation" or isinstance(module, TopK)
    return own or (type(module).__name__.endswith(_OTHERS) and not any(True for _ in module.children()))


def _first_pass(model: nn.Module, batch: Batch, names: list[str]) -> dict[str, Tensor]:
    """Tensors of the first call of each site, in the order they fired."""
    with guest(model), torch.no_grad(), tap(model, names) as values:
        run(model, with_own_inputs(batch))
    return {name: value for name, value in values.items() if "#" not in name}


def _found(weights: dict[str, Tensor], ran: list[str], activations: list[str], seen: dict[str, Tensor]) -> list[str]:
    chosen, widened = [], set()
    for path in ran:
        n_out, n_in = weights[path].shape
        block = n_in > n_out and (n_out, n_in) in widened
        if block or any(_same(seen[f"{path}:in"], seen[name]) for name in activations if name in seen):
            chosen.append(path)
        widened.add((n_in, n_out))
    return chosen


def _same(read: Tensor, made: Tensor) -> bool:
    """Whether a layer reads an activation function's output as it is, perhaps flattened."""
    if read.numel() != made.numel() or len(read) != len(made):
        return False
    one, other = read.reshape(-1), made.reshape(-1)
    return torch.equal(one.nan_to_num(), other.nan_to_num())  # NaN is refused later, in the words of its place


def _named(sites: str | Sequence[str], paths: list[str], ran: list[str]) -> list[str]:
    wanted = [sites] if isinstance(sites, str) else list(sites)
    chosen: set[str] = set()
    for name in wanted:
        plain = name.removesuffix(":in")
        found = [path for path in paths if fnmatch.fnmatchcase(path, plain)]
        if not found:
            raise SiteError(f"'{name}' is no linear layer of the network; there are {', '.join(paths[:12])}")
        chosen |= set(found)
    silent = chosen - set(ran)
    if silent:
        raise SiteError(f"the layer '{min(silent)}' was not called as a module, so its input cannot be seen or changed")
    return [path for path in ran if path in chosen]


def _score(path: str, chosen: list[str], seen: dict[str, Tensor], activations: list[str]) -> str | None:
    """The last activation function between the projection before and this one that has as many units: the gate."""
    read, found = seen[f"{path}:in"], None
    for name, value in seen.items():
        if name == f"{path}:in":
            return found
        if name.removesuffix(":in") in chosen:
            found = None
        if name in activations and value.numel() == read.numel():
            found = name
    return found
