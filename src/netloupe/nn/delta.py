"""Activations that change little from frame to frame: the delta activation layer and its spatial twin.

Frames of a video are nearly equal, yet activations of successive frames differ a little everywhere. The layer rounds
them to multiples of a step and makes change cost something, so that a device which propagates changes alone has less
to do. Source: "Training for temporal sparsity in deep neural networks, application in video processing", arXiv 2107.07305.

    network = nn.Sequential(...)                       # takes frames (sample, channel, height, width)
    insert_delta(network, frames[:1], rate=1e-4, grad="none")
    model = OverFrames(network)                        # takes clips (sample, time, channel, height, width)
    calibrate_steps(model, clips)
    loss = task(model(clips)) + penalties(model)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.capture import observe
from netloupe.core.errors import InputError
from netloupe.core.statistics import Moments
from netloupe.nn.tracing import LINEAR, fan_out, trace

Granularity = Literal["layer", "channel", "neuron"]
Emit = Literal["value", "delta", "delta_only"]
Grad = Literal["paper", "lsq", "none"]
SMALLEST_STEP = 1e-8


class _Round(torch.autograd.Function):
    """``q round(x / q)``; the gradient passes to ``x`` unchanged, and to ``q`` as ``kind`` says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, kind: Grad) -> Tensor:
        ratio = x / q
        levels = torch.round(ratio)
        ctx.shape = q.shape
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(-levels if kind == "paper" else levels - ratio)
        return q * levels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if not ctx.needs_input_grad[1]:
            return grads[0], None, None
        (factor,) = ctx.saved_tensors
        return grads[0], (grads[0] * factor).sum_to_size(ctx.shape), None


class _InClips(nn.Module):
    """What both layers share: finding the time axis, and forgetting the last pass when copied or saved."""

    def __init__(self, rate: float, fan_out: float) -> None:
        super().__init__()
        if rate < 0 or fan_out < 0:
            raise InputError(f"rate is {rate} and fan_out {fan_out}; numbers of at least 0 are needed")
        self.rate, self.fan_out = float(rate), float(fan_out)
        self.frames: int | None = None  # set by OverFrames: time is then folded into the sample axis
        self.enabled = True
        self._penalty: Tensor | None = None
        self._density: float | None = None

    @property
    def penalty(self) -> Tensor:
        """What the last pass adds to the loss, a scalar; ``InputError`` before the first one."""
        if self._penalty is None:
            raise InputError(f"{type(self).__name__} has seen no clip yet; run the network before asking for a penalty")
        return self._penalty

    @property
    def density(self) -> float:
        """Share counted in the last pass: of changes for :class:`DeltaActivation`, of non-zeros for its twin."""
        if self._density is None:
            raise InputError(f"{type(self).__name__} has seen no clip yet; run the network before asking for a density")
        return self._density

    def _clips(self, x: Tensor) -> Tensor:
        if self.frames is None:
            clips = x
        elif len(x) % self.frames:
            raise InputError(f"{len(x)} frames were given, which is no whole number of clips of {self.frames}")
        else:
            clips = x.unflatten(0, (-1, self.frames))
        if clips.ndim < 3 or clips.shape[1] < 2 or 0 in clips.shape:
            raise InputError(
                f"clips have shape {tuple(clips.shape)}, expected (sample, time, channel, ...) with at least two frames"
            )
        return clips

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_penalty": None}  # a tensor inside a graph can be neither copied nor saved


class DeltaActivation(_InClips):
    """Rounds activations to multiples of a step and charges for their change from frame to frame (arXiv 2107.07305).

    ``y = q round(x / q)`` (half to even) with ``q = |theta|``; ``D_t = y_t - y_{t+1}`` for the T - 1 pairs of frames;
    ``penalty = rate * fan_out * sum|D| / size(D)`` and ``density = count_nonzero(D) / size(D)``.

    Args:
        granularity: one step for the ``layer``, each ``channel`` or each ``neuron``.
        channels: number of channels, or for ``neuron`` the shape ``(channel, ...)`` of one frame.
        q_init: first step, in the activations' unit (0.1; the paper's code uses 3 to 4 for inputs of 0 to 255).
        rate: weight of the penalty. fan_out: multiply-adds that one changed unit causes in what follows.
        emit: ``value`` gives y; ``delta`` gives ``y_t - y_{t-1}`` with ``y_0 = 0``, so that the first frame passes whole;
            ``delta_only`` puts the first difference in the first frame's place, as an event camera would.
        accumulate: sums the input over time first, which undoes ``delta`` behind linear layers without bias.
        grad: gradient of q, where g is that of y. ``paper``: ``-sum g round(x / q)``, as the authors' code builds it: its
            sign is opposite to the product rule's, so that the penalty widens steps, and the task's share is reversed
            too. ``lsq``: ``sum g (round(x / q) - x / q)``. ``none``: steps stay as they are. x has gradient g in all.
        bias: adds a trainable bias for each channel after the sum, where linear layers before it must have none.
        activation: ``relu``, ``softmax`` (over channels) or None. max_pool: edge of a pooling; both act before rounding.

    Input ``(sample, time, channel, ...)``, output of the same shape but for pooling. Steps below 1e-8 are held there, with
    a warning. Cost: a few operations a value; training keeps two copies of the activations.

    Raises InputError for unknown options, fewer than two frames, or shapes that do not fit.
    """

    def __init__(
        self,
        granularity: Granularity = "channel",
        channels: int | Sequence[int] | None = None,
        q_init: float = 0.1,
        rate: float = 0.0,
        fan_out: float = 1.0,
        emit: Emit = "value",
        accumulate: bool = False,
        grad: Grad = "paper",
        *,
        bias: bool = False,
        activation: Literal["relu", "softmax"] | None = None,
        max_pool: int | None = None,
    ) -> None:
        super().__init__(rate, fan_out)
        for name, value, known in (
            ("granularity", granularity, ("layer", "channel", "neuron")), ("emit", emit, ("value", "delta", "delta_only")),
            ("grad", grad, ("paper", "lsq", "none")), ("activation", activation, (None, "relu", "softmax")),
        ):  # fmt: skip
            if value not in known:
                raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")
        if not SMALLEST_STEP <= q_init < float("inf"):
            raise InputError(f"q_init is {q_init}, expected a step of at least {SMALLEST_STEP:g}")
        self.granularity, self.emit, self.accumulate, self.grad = granularity, emit, accumulate, grad
        self.activation, self.max_pool = activation, max_pool
        shape = _shape(granularity, channels, bias)
        self.theta = nn.Parameter(torch.full(shape, float(q_init)), requires_grad=grad != "none")
        self.bias = nn.Parameter(torch.zeros(_first(channels))) if bias else None
        self._warned = False

    @property
    def steps(self) -> Tensor:
        """``|theta|``, at least 1e-8."""
        steps = self.theta.abs()
        if not self._warned and bool((steps < SMALLEST_STEP).any()):
            self._warned = True
            warnings.warn("a step of a delta activation collapsed to zero and is held at 1e-8", stacklevel=3)
        return steps.clamp_min(SMALLEST_STEP)

    def level(self, x: Float[Tensor, "sample time channel ..."]) -> Float[Tensor, "sample time channel ..."]:
        """The rounded activation of every frame, without sum or difference over time."""
        if self.bias is not None:
            x = x + self.bias.view(-1, *[1] * (x.ndim - 3))
        if self.activation is not None:
            x = x.relu() if self.activation == "relu" else x.softmax(2)
        if self.max_pool is not None:
            x = F.max_pool2d(x.flatten(0, 1), self.max_pool).unflatten(0, x.shape[:2])
        if not self.enabled:
            return x
        q = self.steps
        if self.granularity == "channel":
            q = q.view(-1, *[1] * (x.ndim - 3))
        if (self.granularity == "channel" and len(q) != x.shape[2]) or (
            self.granularity == "neuron" and q.shape != x.shape[2:]
        ):
            raise InputError(f"frames have shape {tuple(x.shape[2:])}, the layer's steps {tuple(self.theta.shape)}")
        return _Round.apply(x, q, self.grad)  # pyright: ignore[reportReturnType]

    def forward(self, x: Float[Tensor, "sample time channel ..."]) -> Float[Tensor, "sample time channel ..."]:
        """See the class; the penalty and the density of this pass are kept."""
        clips = self._clips(x)
        y = self.level(clips.cumsum(1) if self.accumulate else clips)
        change = y[:, 1:] - y[:, :-1]
        self._density = float(torch.count_nonzero(change.detach())) / change.numel()
        self._penalty = self.rate * self.fan_out * change.abs().mean()
        if self.emit != "value":
            y = torch.cat([y[:, :1] if self.emit == "delta" else change[:, :1], change], dim=1)
        return y if self.frames is None else y.flatten(0, 1)

    def extra_repr(self) -> str:
        return f"{self.granularity}, rate={self.rate:g}, fan_out={self.fan_out:g}, emit={self.emit}, grad={self.grad}"


class SpatialL1(_InClips):
    """The spatial baseline: passes x on, ``penalty = rate * fan_out * mean|x|``, ``density = count_nonzero(x) / size(x)``.

    Clips ``(sample, time, channel, ...)``. Raises InputError for fewer than two frames.
    """

    def __init__(self, rate: float, fan_out: float = 1.0) -> None:
        super().__init__(rate, fan_out)

    def forward(self, x: Float[Tensor, "sample time channel ..."]) -> Float[Tensor, "sample time channel ..."]:
        """The input itself."""
        clips = self._clips(x)
        self._density = float(torch.count_nonzero(clips.detach())) / clips.numel()
        self._penalty = self.rate * self.fan_out * clips.abs().mean()
        return x

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, fan_out={self.fan_out:g}"


def _shape(granularity: Granularity, channels: int | Sequence[int] | None, bias: bool) -> tuple[int, ...]:
    if granularity == "layer" and not bias:
        return (1,)
    if channels is None:
        raise InputError(
            f"granularity is '{granularity}'{' with a bias' if bias else ''} and channels is None; say how many there are"
        )
    if granularity == "neuron":
        if isinstance(channels, int):
            raise InputError(f"granularity is 'neuron' and channels is {channels}; give a frame's shape (channel, ...)")
        return tuple(channels)
    return (1,) if granularity == "layer" else (_first(channels),)


def _first(channels: int | Sequence[int] | None) -> int:
    return channels if isinstance(channels, int) else (channels or (1,))[0]


class OverFrames(nn.Module):
    """Runs a network of single frames over clips: ``(sample, time, ...)`` in, ``(sample, time, output)`` out.

    Delta layers inside are told the number of frames. Batch norm in training mode and dropout make changes that are not
    there; refine with them in eval mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Float[Tensor, "sample time ..."]) -> Float[Tensor, "sample time ..."]:
        """The network's answer to every frame."""
        if clips.ndim < 3:
            raise InputError(f"clips have shape {tuple(clips.shape)}, expected (sample, time, channel, ...)")
        with clip_length(self.network, clips.shape[1]):
            return self.network(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])


def delta_layers(model: nn.Module) -> dict[str, DeltaActivation | SpatialL1]:
    """The delta layers and spatial twins of a network by module path."""
    return {name: each for name, each in model.named_modules() if isinstance(each, (DeltaActivation, SpatialL1))}


@contextmanager
def clip_length(model: nn.Module, frames: int) -> Iterator[None]:
    """Tells delta layers for a block that ``frames`` successive rows of the sample axis are one clip."""
    before = [(layer, layer.frames) for layer in delta_layers(model).values()]
    try:
        for layer, _ in before:
            layer.frames = frames
        yield
    finally:
        for layer, was in before:
            layer.frames = was


def penalties(model: nn.Module) -> Float[Tensor, ""]:
    """What the network's delta layers and twins add to the loss; InputError where there are none or none has run."""
    layers = list(delta_layers(model).values())
    if not layers:
        raise InputError("the network has no delta layer; put some in with insert_delta")
    return torch.stack([layer.penalty for layer in layers]).sum()


def insert_delta(
    model: nn.Module,
    example: Float[Tensor, "sample channel ..."],
    *,
    granularity: Granularity = "channel",
    q_init: float = 0.1,
    rate: float = 0.0,
    grad: Grad = "paper",
    stride: bool = True,
    twin: bool = False,
) -> dict[str, float]:
    """Puts a delta layer before every convolution and linear layer of a frame network, in place.

    That is behind every activation, pooling and sum that a linear layer reads, and on the input. Layers that read one
    tensor share one delta layer. Fan-outs are filled in from a pass over ``example``, frames ``(sample, channel, ...)``.

    Args:
        granularity, q_init, rate, grad: as in :class:`DeltaActivation`. stride: as in :func:`~netloupe.nn.tracing.fan_out`.
        twin: puts in :class:`SpatialL1` instead.

    Returns the fan-out before each linear layer by its old path. Raises InputError where the network already has delta
    layers, has no linear layer, or a linear layer reads more than one axis of features.
    """
    if delta_layers(model):
        raise InputError("the network already has delta layers; put them into a network without")
    calls = trace(model, example, LINEAR)
    shared: list[tuple[Tensor, nn.Module]] = []
    found: dict[str, float] = {}
    for call in calls:
        if call.path in found:
            continue  # called again: its delta layer is there already
        if isinstance(call.module, nn.Linear) and call.input.ndim > 2 and granularity != "layer":
            raise InputError(
                f"'{call.path}' reads {tuple(call.input.shape)}, whose channels are not the second axis; "
                "choose granularity 'layer'"
            )
        layer: Any = next((layer for tensor, layer in shared if tensor is call.input), None)
        if layer is None:
            frame = tuple(call.input.shape[1:])
            size = frame if granularity == "neuron" else frame[0]
            layer = SpatialL1(rate, 0.0) if twin else DeltaActivation(granularity, size, q_init, rate, 0.0, grad=grad)
            layer.to(call.input.device, call.input.dtype).train(model.training)
            shared.append((call.input, layer))
        layer.fan_out += fan_out(call.module, stride)
        found[call.path] = fan_out(call.module, stride)
        parent, _, name = call.path.rpartition(".")
        old = model.get_submodule(call.path)
        setattr(model.get_submodule(parent), name, nn.Sequential(layer, old).train(old.training))
    return found


def calibrate_steps(model: nn.Module, clips: Float[Tensor, "sample time ..."], c: float = 0.5) -> dict[str, float]:
    """Sets every step to ``c`` times the standard deviation of what its layer sees, with rounding off; returns the steps.

    One deviation for a layer, over samples, time, channels and places: a channel that is constant here would get no
    step at all. Raises InputError where a layer sees a constant or there is none, and for layers with their own bias.
    """
    network = model.network if isinstance(model, OverFrames) else model
    layers = {name: each for name, each in delta_layers(network).items() if isinstance(each, DeltaActivation)}
    if not layers or c <= 0 or clips.ndim < 3:
        raise InputError(
            f"the network has {len(layers)} delta layers, c is {c} and clips have shape {tuple(clips.shape)}; layers, "
            "a positive c and (sample, time, channel, ...) are needed"
        )
    if any(layer.bias is not None or layer.activation or layer.accumulate for layer in layers.values()):
        raise InputError(
            "a delta layer has a bias, an activation or a sum of its own; set the steps of such a layer by hand"
        )
    chunks = [part.flatten(0, 1) for part in clips.split(max(1, 512 // clips.shape[1]))]
    steps: dict[str, float] = {}
    with clip_length(network, clips.shape[1]):
        try:
            for layer in layers.values():
                layer.enabled = False
            seen = observe(network, chunks, {"moments": Moments}, [f"{name}:in" for name in layers])
        finally:
            for layer in layers.values():
                layer.enabled = True
    for name, layer in layers.items():
        site = next(
            site for site in seen.statistics if site in (f"{name}:in", f"{name}:in#0")
        )  # #0: shared, called again
        moments: Any = seen[site]["moments"].result()
        steps[name] = c * float(moments.variance.mean() + moments.mean.var()) ** 0.5
        if not steps[name] > SMALLEST_STEP:
            raise InputError(f"'{name}' sees a constant, for which there is no step; give clips with something on them")
        with torch.no_grad():
            layer.theta.fill_(steps[name])
    return steps
