"""What each layer with weights does to the labels of axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from netloupe.core.units_tracing import Label, Layout, plain

if TYPE_CHECKING:
    from netloupe.core.units_tracing import _Walker


def _linear(walk: _Walker, n: fx.Node, path: str, module: Any, x: Label, value: Tensor) -> Label:
    walk.groups.own(f"{path}.weight", 1, x[-1], "in")
    return (*x[:-1], _written(walk, path, module, 0, value.shape[-1]))


def _conv(walk: _Walker, n: fx.Node, path: str, module: Any, x: Label, value: Tensor) -> Any:
    if value.ndim != module.weight.ndim:
        return walk.unknown(value, n, "an input without a sample axis")
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if module.groups == 1:
        walk.groups.own(f"{path}.weight", 0 if transposed else 1, x[1], "in")
        out = _written(walk, path, module, 1 if transposed else 0, value.shape[1])
    elif module.groups == module.in_channels == module.out_channels and not transposed:
        out = x[1]
        for name in ("weight", "bias"):
            if getattr(module, name) is not None:
                walk.groups.own(f"{path}.{name}", 0, out, "unit")
    else:
        return walk.unknown(value, n, f"a convolution with {module.groups} groups")
    return (x[0], out, *(plain(size) for size in value.shape[2:]))


def _written(walk: _Walker, path: str, module: Any, axis: int, size: int) -> Layout:
    """New units, computed by a layer's weight and bias."""
    out = walk.groups.new(size)
    walk.groups.own(f"{path}.weight", axis, out, "out")
    if getattr(module, "bias", None) is not None:
        walk.groups.own(f"{path}.bias", 0, out, "out")
    return out


def _embedding(walk: _Walker, n: fx.Node, path: str, module: Any, x: Label, value: Tensor) -> Label:
    out = walk.groups.new(value.shape[-1])
    walk.groups.own(f"{path}.weight", 1, out, "out")
    return (*x, out)


def _norm(walk: _Walker, n: fx.Node, path: str, module: Any, x: Label, value: Tensor) -> Any:
    """Norms with statistics of each unit's own."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and value.ndim != len(x):
        return walk.unknown(value, n, "an input without a sample axis")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            walk.groups.own(f"{path}.{name}", 0, x[1], "unit")
    walk.groups.noted(walk.groups.functions, type(module).__name__, x[1:2])
    return x


def _layer_norm(walk: _Walker, n: fx.Node, path: str, module: Any, x: Label, value: Tensor) -> Label:
    axes = list(range(len(x) - len(module.normalized_shape), len(x)))
    for name in ("weight", "bias"):
        if getattr(module, name, None) is not None:
            for own, axis in enumerate(axes):
                walk.groups.own(f"{path}.{name}", own, x[axis], "unit")
    walk.groups.noted(walk.groups.mixed, f"{type(module).__name__} '{path}'", [x[axis] for axis in axes])
    return x


def _group_norm(walk: _Walker, n: fx.Node, path: str, module: Any, x: Label, value: Tensor) -> Any:
    if module.num_groups not in (1, module.num_channels):
        return walk.unknown(value, n, f"a group norm of {module.num_groups} groups")
    for name in ("weight", "bias"):
        if getattr(module, name, None) is not None:
            walk.groups.own(f"{path}.{name}", 0, x[1], "unit")
    where = walk.groups.mixed if module.num_groups == 1 else walk.groups.functions
    walk.groups.noted(where, f"GroupNorm '{path}'" if module.num_groups == 1 else "GroupNorm", x[1:2])
    return x


def _prelu(walk: _Walker, n: fx.Node, path: str, module: Any, x: Label, value: Tensor) -> Label:
    if module.num_parameters > 1:
        walk.groups.own(f"{path}.weight", 0, x[1], "unit")
    walk.groups.noted(walk.groups.functions, "PReLU", x)
    return x


LAYERS: list[tuple[Any, Callable[..., Any]]] = [
    (nn.Linear, _linear), (nn.modules.conv._ConvNd, _conv), (nn.Embedding, _embedding), (nn.PReLU, _prelu),
    ((nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), _norm), ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.GroupNorm, _group_norm),
]  # fmt: skip
