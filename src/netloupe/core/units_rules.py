"""What each operation does to the labels of axes: one rule a kind, looked up by module, function or method (layers: units_layers)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from netloupe.core.units import Role
from netloupe.core.units_layers import LAYERS
from netloupe.core.units_tracing import Factor, Label, Layout, places, plain

if TYPE_CHECKING:
    from netloupe.core.units_tracing import _Walker

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Softsign,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Threshold, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink,
)  # fmt: skip
SILENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample,
)  # fmt: skip
UNARY = {
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "gelu", "silu", "mish", "tanh", "sigmoid", "elu", "elu_",
    "selu", "celu", "softplus", "softsign", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "threshold", "abs",
    "neg", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "sin", "cos", "erf", "clamp", "clamp_min",
    "clamp_max", "sign", "reciprocal",
}  # fmt: skip
QUIET = {
    "long", "int", "dropout", "dropout2d", "alpha_dropout", "float", "double", "half", "bfloat16", "to", "type_as", "contiguous",
    "clone", "detach", "requires_grad_",
}  # fmt: skip
BINARY = {
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "truediv", "true_divide", "pow", "maximum",
    "minimum", "iadd", "isub", "imul", "itruediv", "radd", "rsub", "rmul",
}  # fmt: skip
REDUCE = {
    "mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm", "prod",
}  # fmt: skip
POOLING = {
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "interpolate", "boolean_dispatch",
}  # fmt: skip
HOMOGENEOUS = {
    "ReLU", "relu", "relu_", "LeakyReLU", "leaky_relu", "leaky_relu_", "PReLU", "abs",
    "MaxPool1d", "MaxPool2d", "MaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "Upsample",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d", "mean", "sum",
    "amax", "boolean_dispatch",
}  # fmt: skip
"""functions f with f(a x) = a f(x) for a > 0"""


def label_of(walk: _Walker, n: fx.Node, value: Any) -> Any:
    """The label of what a node gives; None for what is no tensor."""
    if n.op == "placeholder":
        return places(value)
    if n.op == "get_attr":
        return _parameter(walk, str(n.target), value)
    if n.op == "output":
        walk.groups.pin(*[walk.labels[node] for node in n.all_input_nodes if isinstance(walk.labels.get(node), tuple)])
        for node in n.all_input_nodes:
            if isinstance(walk.labels.get(node), list):
                _pin_all(walk, walk.labels[node])
        return None
    if n.op == "call_module":
        return _module(walk, n, value)
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    return _function(walk, n, str(name).strip("_") if str(name).startswith("__") else str(name), value)


def _pin_all(walk: _Walker, label: Any) -> None:
    if isinstance(label, tuple):
        walk.groups.pin(label)
    elif isinstance(label, list):
        for part in label:
            _pin_all(walk, part)


def _parameter(walk: _Walker, name: str, value: Any) -> Any:
    """A parameter that the forward uses by itself: every axis may turn out to be units'."""
    if not isinstance(value, Tensor):
        return None
    if name in walk.by_itself:
        return walk.by_itself[name]
    label = walk.by_itself[name] = tuple(walk.groups.new(size) for size in value.shape)
    for axis, layout in enumerate(label):
        walk.groups.own(name, axis, layout, "unit")
    return label


def _module(walk: _Walker, n: fx.Node, value: Any) -> Any:
    path = str(n.target)
    module = walk.fetch_attr(path)
    inputs = [node for node in n.args if isinstance(node, fx.Node)]
    x = walk.label(inputs[0]) if inputs else ()
    if path in walk.called and any(True for _ in module.parameters()):
        return walk.unknown(
            value, n, f"layer '{path}' is called more than once, and its weights are shared by its calls"
        )
    walk.called.add(path)
    if not isinstance(value, Tensor) or n.kwargs or len(inputs) != 1:
        return walk.unknown(value, n, "it has several inputs or outputs")
    kind = type(module).__name__
    groups = walk.groups
    if isinstance(module, SILENT):
        return x
    if isinstance(module, ELEMENTWISE):
        groups.noted(groups.functions, kind, x)
        return x
    if isinstance(module, POOLS):
        groups.noted(groups.functions, kind, x[:2])
        return _over_places(walk, n, x, value)
    if isinstance(module, nn.Flatten):
        return _reshaped(walk, n, x, value)
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)):
        return _across(walk, x, [module.dim if module.dim is not None else -1], kind)
    rule: Callable[..., Any] | None = next((rule for kinds, rule in LAYERS if isinstance(module, kinds)), None)
    if rule is None:
        return walk.unknown(value, n, "no rule is known for this module")
    return rule(walk, n, path, module, x, value)


def _function(walk: _Walker, n: fx.Node, name: str, value: Any) -> Any:
    first = walk.label(n.args[0]) if n.args else ()
    groups = walk.groups
    if not isinstance(value, Tensor):
        if name in ("size", "getattr", "dim", "ndimension", "numel") or not _holds_tensor(value):
            return None
        return (
            _split(walk, n, name, first, value)
            if name in ("chunk", "split", "unbind")
            else walk.unknown(value, n, "no rule is known for it")
        )
    if name in QUIET:
        return first
    if name in UNARY:
        groups.noted(groups.functions, name, first)
        return first
    if name in BINARY or name in ("where", "masked_fill", "lerp"):
        return _broadcast(walk, [walk.label(arg) for arg in n.args if isinstance(arg, fx.Node)], value, n)
    if name in ("flatten", "view", "reshape", "unsqueeze", "squeeze", "view_as", "reshape_as", "unflatten"):
        return _reshaped(walk, n, first, value)
    if name in ("permute", "transpose", "t", "swapaxes", "movedim"):
        return _reordered(walk, n, name, first, value)
    if name in POOLING:
        groups.noted(groups.functions, name, first[:2])
        return _over_places(walk, n, first, value)
    if name in REDUCE:
        return _reduced(walk, n, name, first, value)
    if name in ("softmax", "log_softmax"):
        dim = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else -1)
        return _across(walk, first, [dim], name)
    if name == "getitem":
        return _item(walk, n, value)
    if name in ("matmul", "bmm"):
        return _matmul(walk, n, value)
    if name == "linear":
        return _functional_linear(walk, n, value)
    if name in ("cat", "concat", "stack"):
        return _joined(walk, n, name, value)
    if name in ("expand", "expand_as"):
        return tuple(
            layout if _length(layout) == size else plain(size)
            for layout, size in zip(((),) * (value.ndim - len(first)) + first, value.shape)
        )
    if not any(isinstance(walk.labels.get(node), tuple) for node in n.all_input_nodes):
        return places(value)  # made of numbers alone: zeros, arange
    return walk.unknown(value, n, "no rule is known for it")


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (tuple, list)) and any(_holds_tensor(part) for part in value)
    )


def _length(layout: Layout) -> int:
    return math.prod(part.size for part in layout)


def _over_places(walk: _Walker, n: fx.Node, x: Label, value: Tensor) -> Any:
    """Pooling: samples and units stay, places change."""
    if value.ndim != len(x) or len(x) < 3:
        return walk.unknown(value, n, "pooling without a sample axis")
    walk.groups.pin(x[2:])
    return (*x[:2], *(plain(size) for size in value.shape[2:]))


def _across(walk: _Walker, x: Label, dims: Sequence[Any], name: str) -> Label:
    """Something computed over all units alike."""
    walk.groups.noted(walk.groups.mixed, name, [x[dim] for dim in dims])
    return x


def _broadcast(walk: _Walker, labels: list[Label], value: Tensor, n: fx.Node) -> Label:
    """Entries meet: axes of equal length are indexed alike, single entries meet all."""
    found: list[Layout] = []
    for axis in range(-value.ndim, 0):
        met = [label[axis] for label in labels if len(label) >= -axis and _length(label[axis]) == value.shape[axis]]
        layout = met[0] if met else plain(value.shape[axis])
        for other in met[1:]:
            layout = walk.groups.join(layout, other)
        found.append(layout)
    if len([label for label in labels if any(part.group is not None for layout in label for part in layout)]) > 1:
        walk.groups.noted(walk.groups.functions, str(getattr(n.target, "__name__", n.target)), found)
    return tuple(found)


def _reshaped(walk: _Walker, n: fx.Node, x: Label, value: Tensor) -> Any:
    """Row-major factors in their order, grouped anew; an axis of places may be cut, one of units not."""
    parts = [part for layout in x for part in layout]
    found: list[Layout] = []
    for size in value.shape:
        taken: list[Factor] = []
        left = size
        while left > 1:
            if not parts:
                return walk.unknown(value, n, "its shape does not follow from that of its input")
            part = parts.pop(0)
            if left % part.size == 0:
                taken.append(part)
                left //= part.size
            elif part.group is None and part.size % left == 0:
                taken.append(Factor(left, None))
                parts.insert(0, Factor(part.size // left, None))
                left = 1
            elif part.group is None and parts and parts[0].group is None:
                parts[0] = Factor(part.size * parts[0].size, None)
            else:
                return walk.unknown(value, n, "it cuts an axis of units in parts")
        found.append(tuple(taken))
    return tuple(found)


def _reordered(walk: _Walker, n: fx.Node, name: str, x: Label, value: Tensor) -> Any:
    order = list(range(len(x)))
    args = [walk.value(arg) for arg in n.args[1:]]
    if name == "permute":
        given = n.kwargs.get("dims", args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args)
        order = [axis % len(x) for axis in given]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    elif name == "t":
        order = order[::-1]
    elif name == "movedim" or len(args) != 2:
        return walk.unknown(value, n, "its axes are not told by two numbers")
    else:
        a, b = (axis % len(x) for axis in args)
        order[a], order[b] = order[b], order[a]
    return tuple(x[axis] for axis in order)


def _reduced(walk: _Walker, n: fx.Node, name: str, x: Label, value: Tensor) -> Any:
    dims = n.kwargs.get("dim", walk.value(n.args[1]) if len(n.args) > 1 else None)
    keep = bool(n.kwargs.get("keepdim", n.args[2] if len(n.args) > 2 else False))
    axes: list[Any] = [*range(len(x))] if dims is None else [dims] if isinstance(dims, int) else [*walk.value(dims)]
    gone = {axis % len(x) for axis in axes}
    walk.groups.noted(walk.groups.mixed, f"{name} {walk.groups.place}", [x[axis] for axis in gone])
    walk.groups.noted(walk.groups.functions, name, [x[axis] for axis in range(len(x)) if axis not in gone])
    return tuple(() if axis in gone else layout for axis, layout in enumerate(x) if keep or axis not in gone)


def _item(walk: _Walker, n: fx.Node, value: Tensor) -> Any:
    """Parts of a tensor along axes without units, or one of several tensors."""
    source, index = walk.labels.get(n.args[0]), walk.value(n.args[1])  # pyright: ignore[reportArgumentType]
    if isinstance(source, list):
        return source[index]
    if not isinstance(source, tuple):
        return places(value)
    given = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [each for each in given if not isinstance(each, Tensor)]:
        at = given.index(Ellipsis)
        given[at : at + 1] = [slice(None)] * (len(source) - sum(each is not None for each in given) + 1)
    found: list[Layout] = []
    axes = iter(source)
    sizes = iter(value.shape)
    for each in given:
        if each is None:
            found.append(())
            next(sizes)
            continue
        layout = next(axes)
        whole = each == slice(None) if isinstance(each, slice) else False
        if whole:
            found.append(layout)
            next(sizes)
        elif any(part.group is not None for part in layout) or not isinstance(each, (int, slice)):
            return walk.unknown(value, n, "it takes parts of an axis of units")
        elif isinstance(each, slice):
            found.append(plain(next(sizes)))
    return (*found, *axes)


def _split(walk: _Walker, n: fx.Node, name: str, x: Label, value: Any) -> Any:
    default = 0
    dim = n.kwargs.get(
        "dim", n.args[2] if len(n.args) > 2 else (n.args[1] if name == "unbind" and len(n.args) > 1 else default)
    )
    axis = int(dim) % len(x)  # pyright: ignore[reportArgumentType]
    if any(part.group is not None for part in x[axis]):
        return walk.unknown(value, n, "it cuts an axis of units in parts")
    if name == "unbind":
        return [(*x[:axis], *x[axis + 1 :]) for _ in value]
    return [(*x[:axis], plain(part.shape[axis]), *x[axis + 1 :]) for part in value]


def _joined(walk: _Walker, n: fx.Node, name: str, value: Tensor) -> Any:
    labels = [walk.labels[node] for node in n.all_input_nodes if isinstance(walk.labels.get(node), tuple)]
    dim = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else 0)
    axis = int(dim) % value.ndim  # pyright: ignore[reportArgumentType]
    if name == "stack":
        labels = [(*label[:axis], (), *label[axis:]) for label in labels]
    if any(part.group is not None for label in labels for part in label[axis]):
        return walk.unknown(value, n, "it puts units of several layers beside each other")
    found = list(labels[0])
    for label in labels[1:]:
        found = [layout if at == axis else walk.groups.join(layout, label[at]) for at, layout in enumerate(found)]
    found[axis] = plain(value.shape[axis])
    return tuple(found)


def _matmul(walk: _Walker, n: fx.Node, value: Tensor) -> Any:
    """Entries of the left's last axis meet the right's last but one; leading axes meet each other."""
    a, b = (walk.label(arg) for arg in n.args[:2])
    if len(a) < 2 or len(b) < 2:
        return walk.unknown(value, n, "a product with a vector")
    met = walk.groups.join(a[-1], b[-2])
    uses: tuple[tuple[Any, int, Role], ...] = (
        (n.args[0], -1, "in"), (n.args[0], -2, "out"), (n.args[1], -2, "in"), (n.args[1], -1, "out"),
    )  # fmt: skip
    for arg, axis, role in uses:
        if isinstance(arg, fx.Node) and arg.op == "get_attr":
            walk.groups.role(str(arg.target), axis % len(walk.label(arg)), role)
    walk.groups.noted(walk.groups.functions, "matmul", [met])
    lead = _broadcast(walk, [a[:-2], b[:-2]], value[..., 0, 0], n) if value.ndim > 2 else ()
    return (*lead, a[-2], b[-1])


def _functional_linear(walk: _Walker, n: fx.Node, value: Tensor) -> Any:
    named = dict(zip(("input", "weight", "bias"), n.args)) | dict(n.kwargs)
    x, weight, bias = walk.label(named["input"]), walk.label(named["weight"]), walk.label(named.get("bias"))
    walk.groups.join(x[-1], weight[1])
    out = walk.groups.join(weight[0], bias[0]) if bias else weight[0]
    uses: tuple[tuple[str, int, Role], ...] = (("weight", 1, "in"), ("weight", 0, "out"), ("bias", 0, "out"))
    for name, axis, role in uses:
        node = named.get(name)
        if isinstance(node, fx.Node) and node.op == "get_attr":
            walk.groups.role(str(node.target), axis, role)
    return (*x[:-1], out)
