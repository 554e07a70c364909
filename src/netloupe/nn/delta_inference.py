"""Running a network by changes alone: what a device that skips unchanged activations computes, and counts.

Source: "Training for temporal sparsity in deep neural networks, application in video processing", arXiv 2107.07305.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.nn.delta import DeltaActivation, OverFrames, SpatialL1, delta_layers
from netloupe.nn.replace import replace
from netloupe.nn.tracing import LINEAR, fan_out, trace

# keep sums sums: applied to differences they give the differences of what they would have given
KEEP_DIFFERENCES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.ZeroPad2d,
)  # fmt: skip
FEW = 0.25  # below this share of changed columns a linear layer reads those alone


class Step(NamedTuple):
    """One frame's answer, its multiply-adds, and those of a dense run."""

    out: Tensor
    ops: float
    dense_ops: float


class _Incremental(nn.Module):
    """A linear layer with memory: ``u_t = u_{t-1} + W (x_t - x_{t-1})``, answer ``u_t + b``."""

    def __init__(self, layer: nn.Module, stride: bool) -> None:
        super().__init__()
        self.layer, self.fan_out = layer, fan_out(layer, stride)
        self.forget()

    def forget(self) -> None:
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.begin()

    def begin(self) -> None:
        self.calls, self.changed, self.total = 0, 0, 0

    def _map(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        return F.linear(x, layer.weight) if isinstance(layer, nn.Linear) else layer._conv_forward(x, layer.weight, None)

    def _advance(self, sum_: Tensor, change: Tensor, changed: int) -> Tensor:
        if changed == 0:
            return sum_
        if isinstance(self.layer, nn.Linear) and changed < FEW * change.numel() and change.numel() == change.shape[-1]:
            columns = change.flatten().nonzero()[:, 0]
            return sum_ + change[..., columns] @ self.layer.weight[:, columns].T
        return sum_ + self._map(change)

    def forward(self, x: Tensor) -> Tensor:
        changed = x.numel()  # the first frame is dense
        if self.calls < len(self.memory):
            last, sum_ = self.memory[self.calls]
            if last.shape != x.shape:
                raise InputError(f"a frame of shape {tuple(x.shape)} follows one of {tuple(last.shape)}; reset() first")
            change = x - last
            changed = int(torch.count_nonzero(change))
            self.memory[self.calls] = x.clone(), self._advance(sum_, change, changed)
        else:
            self.memory.append((x.clone(), self._map(x)))
        sum_, bias = self.memory[self.calls][1], self.layer.bias
        self.calls, self.changed, self.total = self.calls + 1, self.changed + changed, self.total + x.numel()
        if not isinstance(bias, Tensor):
            return sum_.clone()  # what follows may write into it
        return sum_ + bias.view(-1, *[1] * (sum_.ndim - 2)) if not isinstance(self.layer, nn.Linear) else sum_ + bias


class _Level(nn.Module):
    """A delta layer for one frame at a time: its rounded value; sums and differences are left to the linear layers."""

    def __init__(self, layer: DeltaActivation) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.level(x[:, None])[:, 0]


class DeltaRunner:
    """Runs a network frame by frame and propagates only what has changed, exactly.

    Every convolution and linear layer keeps ``u_t = u_{t-1} + W (y_t - y_{t-1})`` with ``u_0 = b``, which is ``W y_t + b`` in
    exact arithmetic. Whatever else the network does (ReLU, pooling, batch norm in eval mode, residual sums) acts on these
    full values. With :class:`~netloupe.nn.delta.DeltaActivation` layers most differences are zero.

    Args:
        model: a network of single frames, or :class:`~netloupe.nn.delta.OverFrames` of one; it is copied, in eval mode.
        stride: as in :func:`~netloupe.nn.tracing.fan_out`.

    ``step(frame)`` gives ``(out, ops, dense_ops)``: multiply-adds are counted as units that changed times their fan-out,
    the first frame dense. Memory: input and output of every linear layer. Rounding errors add up over frames (about 1e-6
    of the values after 20 in float32); ``reset()`` before a new video, and now and then in a long one.

    Cost: unstructured changes save no time on a CPU or GPU unless nearly nothing changes; the count is the result.
    Raises InputError for a network without linear layers, for ``emit='delta_only'``, which never sees a level, and for a
    frame whose shape differs from the one before.
    """

    def __init__(self, model: nn.Module, stride: bool = True) -> None:
        network = model.network if isinstance(model, OverFrames) else model
        if any(
            isinstance(each, DeltaActivation) and each.emit == "delta_only" for each in delta_layers(network).values()
        ):
            raise InputError("a layer emits 'delta_only', whose first frame is lost; the run needs 'value' or 'delta'")
        self._network = nn.Sequential(copy.deepcopy(network)).eval()
        if any(isinstance(module, DeltaActivation) for module in self._network.modules()):
            replace(self._network, DeltaActivation, lambda each: _Level(each))  # pyright: ignore[reportArgumentType]
        if any(isinstance(module, SpatialL1) for module in self._network.modules()):
            replace(self._network, SpatialL1, lambda _: nn.Identity())
        replace(self._network, lambda _, module: type(module) in LINEAR, lambda each: _Incremental(each, stride))
        self._linear = [each for each in self._network.modules() if isinstance(each, _Incremental)]

    def reset(self) -> None:
        """Forgets the frames seen."""
        for each in self._linear:
            each.forget()

    @torch.no_grad()
    def step(self, frame: Float[Tensor, "sample channel ..."]) -> Step:
        """The network's answer to the next frame, ``(sample, channel, ...)``."""
        if not bool(torch.isfinite(frame).all()):
            raise InputError("the frame holds NaN or infinity, which would stay in the sums for ever; repair it first")
        for each in self._linear:
            each.begin()
        out = self._network(frame)
        return Step(
            out,
            sum(each.changed * each.fan_out for each in self._linear),
            sum(each.total * each.fan_out for each in self._linear),
        )


def check_deltas(model: nn.Module, example: Float[Tensor, "sample time ..."]) -> None:
    """Raises InputError where differences that a layer emits meet something that is not linear before they are summed.

    Between ``emit='delta'`` (or ``delta_only``) and ``accumulate=True`` only linear layers without bias, averages and
    reshapings may stand: a bias would be added in every frame, a ReLU would cut falling values, and batch norm has a
    shift (in training mode also statistics of the differences). ``example`` are clips as the network takes them.
    Functions that are no modules are followed only where they reshape.
    """
    open_: dict[int, str] = {}  # storage of a tensor of differences -> the layer that emitted them
    known: set[int] = set()
    for call in trace(model, example, mode="keep"):
        key = call.input.untyped_storage().data_ptr()
        source, module = open_.get(key), call.module
        out = call.output.untyped_storage().data_ptr()
        if isinstance(module, DeltaActivation):
            if source is not None and not module.accumulate:
                raise InputError(
                    f"'{call.path}' rounds the differences of '{source}' without summing them; set accumulate"
                )
            if module.accumulate and source is None and key in known:
                raise InputError(f"'{call.path}' sums over time what are no differences; set emit='delta' before it")
            if module.emit != "value":
                open_[out] = call.path
        elif source is not None:
            bias = getattr(module, "bias", None)
            if type(module) in LINEAR and bias is not None:
                raise InputError(
                    f"'{call.path}' has a bias between '{source}' and the sum, which adds it in every frame; build it with "
                    "bias=False and give the summing layer the bias"
                )
            if type(module) not in LINEAR and not isinstance(module, KEEP_DIFFERENCES) and not _silent(module):
                state = (
                    " in training mode"
                    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
                    else ""
                )
                raise InputError(
                    f"'{call.path}', a {type(module).__name__}{state}, is not linear and sees the differences of "
                    f"'{source}'; sum them first (accumulate=True)"
                )
            open_[out] = source
        known.add(out)


def _silent(module: nn.Module) -> bool:
    """Dropout in eval mode, and layers that pass their input on."""
    return isinstance(module, SpatialL1) or (isinstance(module, nn.modules.dropout._DropoutNd) and not module.training)
