"""One representation of a dictionary of features: directions at a site, how activations become codes, and back.

Whatever made it - principal components, a factorisation, a sparse autoencoder, a difference of means - a dictionary is a set of
directions ``(feature, unit)``, an offset, and one of a few encoding rules with its numbers; it is data, so it can be saved,
loaded, compared and put into a network.

On disk it is one safetensors file. Tensors: ``directions`` ``(feature, unit)``, ``offset`` ``(unit,)`` and, where the rule has
them, ``weight`` ``(feature, unit)``, ``bias`` and ``threshold`` ``(feature,)``, ``scale`` ``(feature,)``. Metadata: ``format`` =
``netloupe-dictionary``, ``version`` = ``1``, ``rule``, ``k``, ``centred``, ``groups``, ``normed`` (the last two may be absent: 1 and
0), ``site``, ``made_by`` and ``options`` (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netloupe.core.edits import Edit, replace_with, steer
from netloupe.core.errors import InputError, NonFiniteError, StoreError
from netloupe.core.intervene import intervene
from netloupe.core.losses import natural_loss
from netloupe.core.rows import as_rows
from netloupe.core.statistics import Covariance
from netloupe.core.tensorfile import read_tensors, write_tensors
from netloupe.core.training import Loss

Rule = Literal["linear", "nonnegative", "relu", "topk", "threshold", "nearest"]
FORMAT, VERSION = "netloupe-dictionary", "1"
_TENSORS = ("directions", "offset", "weight", "bias", "threshold", "scale")
NORM_EPS = 1e-5  # of ``normed``, as torch's LayerNorm has it
_FLOOR = 1e-6  # keeps multiplicative steps from getting stuck at exactly 0 and from dividing by it


class LossRecovered(NamedTuple):
    """What a splice costs: ``recovered`` is 1 where the loss stays, 0 where it is as bad as with the site set to zero."""

    recovered: float
    clean: float
    spliced: float
    zeroed: float


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Features of one site.

    ``directions`` ``(feature, unit)``; ``decode(codes) = codes @ directions + offset``. The codes of activations ``x`` follow the
    ``rule`` from ``pre = (x - input_offset) @ weight.T + bias``, with ``input_offset`` the offset or, with
    ``centred=False``, nothing:

    - ``linear``: ``pre`` (principal components; one difference of means).
    - ``nonnegative``: the non-negative least squares of ``x - offset`` on the directions (semi-NMF, NMF), by multiplicative steps.
    - ``relu``: ``max(pre, 0)``. ``topk``: the ``k`` largest of ``pre * scale``, rectified; the rest 0.
    - ``threshold``: ``pre`` where it exceeds ``threshold`` and 0, else 0 (JumpReLU; BatchTopK once trained).
    - ``nearest``: 1 at the ``k`` largest of ``pre``, the rest 0 (codebooks). With ``groups`` the features, and the units if
      ``normed``, are cut in as many equal parts, and each part of the features has its own ``k``.

    ``normed`` layer-normalises ``x - input_offset`` (each part of the units by itself) before ``weight``.

    ``site`` names where it was learned (``block.ffn.down:in``), ``made_by`` what made it, ``options`` with what settings.
    Raises InputError for shapes that do not fit together and NonFiniteError for NaN.
    """

    directions: Float[Tensor, "feature unit"]
    rule: Rule = "linear"
    site: str = ""
    made_by: str = ""
    offset: Float[Tensor, " unit"] | None = None
    weight: Float[Tensor, "feature unit"] | None = None
    bias: Float[Tensor, " feature"] | None = None
    threshold: Float[Tensor, " feature"] | None = None
    scale: Float[Tensor, " feature"] | None = None
    k: int = 0
    centred: bool = True
    groups: int = 1
    normed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.directions.ndim != 2 or 0 in self.directions.shape:
            raise InputError(
                f"directions have shape {tuple(self.directions.shape)}, expected (feature, unit), at least one of each"
            )
        if self.rule not in get_args(Rule):
            raise InputError(f"rule is '{self.rule}', expected one of {', '.join(get_args(Rule))}")
        n, d = self.directions.shape
        wanted = {"offset": (d,), "weight": (n, d), "bias": (n,), "threshold": (n,), "scale": (n,)}
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise InputError(f"{name} has shape {tuple(value.shape)}, directions of shape {(n, d)} need {shape}")
        if not self.directions.is_floating_point():
            kind = str(self.directions.dtype).removeprefix("torch.")
            raise InputError(f"directions are {kind} numbers, expected floating-point ones; use directions.float()")
        for name in wanted:  # one number type for all, that of the directions
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, value.to(self.directions))
        for name in _TENSORS:
            value = getattr(self, name)
            if value is not None and not bool(torch.isfinite(value).all()):
                raise NonFiniteError(f"the dictionary's {name} hold NaN or infinity; train or load it again")
        if self.groups < 1 or n % self.groups or (self.normed and d % self.groups):
            raise InputError(
                f"groups is {self.groups}, expected a number that divides {n} features and {d} units evenly"
            )
        if (self.groups > 1 or self.normed) and self.rule == "nonnegative":
            raise InputError("the rule 'nonnegative' knows neither groups nor a normalisation; use rule='nearest'")
        if self.groups > 1 and self.rule not in ("topk", "nearest"):
            raise InputError(f"the rule '{self.rule}' knows no groups; use topk or nearest")
        if self.rule in ("topk", "nearest") and not 1 <= self.k <= n // self.groups:
            raise InputError(f"k is {self.k}, expected 1 to {n // self.groups}, the number of features")
        if self.rule == "threshold" and self.threshold is None:
            raise InputError("the rule 'threshold' needs threshold, one number for each feature")

    def __len__(self) -> int:
        return len(self.directions)

    @property
    def n_units(self) -> int:
        """Width of the site."""
        return self.directions.shape[1]

    def encode(self, features: Float[Tensor, "*rows unit"] | Any) -> Float[Tensor, "*rows feature"]:
        """Codes of activations; rows are whatever comes before the unit axis. Cost O(n d m).

        Raises InputError for another width and NonFiniteError for NaN.
        """
        x = torch.as_tensor(features)
        if x.ndim < 1 or x.shape[-1] != self.n_units:
            raise InputError(
                f"activations of shape {tuple(x.shape)} were given to a dictionary of {self.n_units} units"
            )
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError("activations hold NaN or infinity; look for an overflow in the network")
        x = x.to(self.directions)
        if self.rule == "nonnegative":
            rows = (x if self.offset is None else x - self.offset).reshape(-1, self.n_units)
            return nonnegative_codes(rows, self.directions).reshape(*x.shape[:-1], len(self))
        if self.offset is not None and self.centred:
            x = x - self.offset
        if self.normed:
            parts = x.reshape(*x.shape[:-1], self.groups, -1)
            x = F.layer_norm(parts, parts.shape[-1:], eps=NORM_EPS).reshape(x.shape)
        pre = x @ (self.directions if self.weight is None else self.weight).T
        pre = pre if self.bias is None else pre + self.bias
        return self._active(pre)

    def _active(self, pre: Tensor) -> Tensor:
        if self.rule == "linear":
            return pre
        if self.rule == "relu":
            return pre.relu()
        if self.rule == "threshold":
            assert self.threshold is not None
            return torch.where(pre > self.threshold.clamp_min(0), pre, torch.zeros_like(pre))
        ranked = pre if self.scale is None or self.rule == "nearest" else pre * self.scale
        ranked = ranked.reshape(*pre.shape[:-1], self.groups, -1)
        values, chosen = ranked.topk(self.k, dim=-1)
        codes = torch.ones_like(values) if self.rule == "nearest" else values.relu()
        return torch.zeros_like(ranked).scatter(-1, chosen, codes).reshape(pre.shape)

    def decode(self, codes: Float[Tensor, "*rows feature"] | Any) -> Float[Tensor, "*rows unit"]:
        """Activations that codes stand for. Raises InputError for another number of codes, or negative ones where none can be."""
        z = torch.as_tensor(codes).to(self.directions)
        if z.ndim < 1 or z.shape[-1] != len(self):
            raise InputError(f"codes of shape {tuple(z.shape)} were given to a dictionary of {len(self)} features")
        if self.rule != "linear" and bool((z < 0).any()):
            raise InputError(f"codes go down to {float(z.min()):.3g}, this dictionary's are never negative; clip them")
        if self.scale is not None:
            z = z / self.scale
        found = z @ self.directions
        return found if self.offset is None else found + self.offset

    def reconstruct(self, features: Float[Tensor, "*rows unit"] | Any) -> Float[Tensor, "*rows unit"]:
        """``decode(encode(features))``."""
        return self.decode(self.encode(features))

    def unit_directions(self) -> Float[Tensor, "feature unit"]:
        """Directions of length 1; a direction of length 0 stays."""
        return self.directions / self.directions.norm(dim=1, keepdim=True).clamp_min(
            torch.finfo(self.directions.dtype).tiny
        )

    def splice(self, site: str = "") -> Edit:
        """The edit that puts the reconstruction in place of the site's activations, for ``intervene(model, edit)``."""
        return replace_with(site or self._site(), lambda a: self.to(a.device).reconstruct(a).to(a.dtype))

    def steer(self, feature: int, strength: float, site: str = "") -> Edit:
        """The edit that adds ``strength`` times one feature's direction, of length 1; negative takes away."""
        return steer(site or self._site(), self._direction(feature), strength)

    def ablate(self, feature: int, site: str = "") -> Edit:
        """The edit that takes one feature's contribution ``code * direction`` away and leaves the rest, what no feature explains too.

        Raises InputError for a ``normed`` dictionary: its directions belong to normalised activations, so there is nothing to take away.
        """
        direction = self._direction(feature)
        if self.normed:
            raise InputError(
                "the dictionary's directions are of normalised activations; force its codes in the network instead"
            )

        def change(a: Tensor) -> Tensor:
            here = self.to(a.device)
            codes = here.encode(a)[..., feature, None]
            return a - (codes if here.scale is None else codes / here.scale[feature]).to(a) * direction.to(a)

        return replace_with(site or self._site(), change)

    def _direction(self, feature: int) -> Float[Tensor, " unit"]:
        if isinstance(feature, bool) or not isinstance(feature, (int, np.integer)) or not 0 <= feature < len(self):
            raise InputError(f"feature {feature} was asked for, there are 0 to {len(self) - 1}")
        return self.directions[int(feature)]

    def loss_recovered(self, model: nn.Module, data: Any, loss: Loss = natural_loss, site: str = "") -> LossRecovered:
        """Share of the loss between a zeroed site and the network as it is that the reconstruction wins back.

        ``1 - (spliced - clean) / (zeroed - clean)``; ``data`` are batches that can be read three times, ``loss`` the one that
        the batches define by themselves (:func:`netloupe.core.losses.natural_loss`) or the caller's. Cost: three passes over the data.
        """
        from netloupe.core.capture import run_all

        where = site or self._site()

        def measured(*edits: Edit) -> float:
            total, seen = 0.0, 0
            with intervene(model, *edits):
                for output, batch in run_all(model, data):
                    total += float(loss(output, batch)) * batch.n_samples
                    seen += batch.n_samples
            return total / max(seen, 1)

        clean, spliced = measured(), measured(self.splice(where))
        zeroed = measured(replace_with(where, torch.zeros_like))
        gap = zeroed - clean
        recovered = 1 - (spliced - clean) / gap if gap != 0 else float("nan")
        return LossRecovered(recovered, clean, spliced, zeroed)

    def to(self, *args: Any) -> Dictionary:
        """A copy on another device or of another number type, as ``Tensor.to``."""
        moved: dict[str, Any] = {name: None if (v := getattr(self, name)) is None else v.to(*args) for name in _TENSORS}
        return Dictionary(
            rule=self.rule, site=self.site, made_by=self.made_by, k=self.k, centred=self.centred, groups=self.groups,
            normed=self.normed, options=self.options, **moved
        )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file (layout: this module), whole or not at all; returns its path."""
        meta = {
            "format": FORMAT, "version": VERSION, "rule": self.rule, "k": str(self.k), "centred": str(int(self.centred)),
            "groups": str(self.groups), "normed": str(int(self.normed)),
            "site": self.site, "made_by": self.made_by, "options": json.dumps(dict(self.options), sort_keys=True, default=_plain),
        }  # fmt: skip
        tensors = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        return write_tensors(tensors, path, meta, "dictionary")

    @classmethod
    def load(cls, path: str | Path) -> Dictionary:
        """Reads what :meth:`save` wrote. Raises StoreError for another file."""
        tensors, meta = read_tensors(path)
        if meta.get("format") != FORMAT or meta.get("version") != VERSION:
            raise StoreError(
                f"'{path}' is no netloupe dictionary of version {VERSION}; for other layouts use the loaders of "
                "netloupe.lenses.dictionary.sae"
            )
        try:
            return cls(
                rule=cast(Rule, meta["rule"]), k=int(meta["k"]), centred=meta["centred"] == "1", site=meta["site"],
                made_by=meta["made_by"], groups=int(meta.get("groups", "1")), normed=meta.get("normed", "0") == "1",
                options=dict(json.loads(meta["options"])), directions=tensors["directions"],
                **{name: tensors[name] for name in _TENSORS[1:] if name in tensors},
            )  # fmt: skip
        except KeyError as error:
            raise StoreError(f"'{path}' lacks {error.args[0]!r}, so the file is damaged; write it again") from error
        except (ValueError, TypeError) as error:
            raise StoreError(f"'{path}' is damaged, write it again ({str(error).splitlines()[0]})") from error

    def _site(self) -> str:
        if not self.site:
            raise InputError("the dictionary does not know its site; give site='...'")
        return self.site


def _plain(value: Any) -> Any:
    """What JSON does not know, numbers and arrays of other libraries among them, as what it knows."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def nonnegative_codes(
    rows: Float[Tensor, "sample unit"],
    directions: Float[Tensor, "feature unit"],
    max_iter: int = 2000,
    tol: float = 1e-5,
) -> Float[Tensor, "sample feature"]:
    """``argmin_{g >= 0} |x - g D|^2`` of each row by the multiplicative steps of semi-NMF.

    ``g <- g sqrt((P+ + g Q-) / (P- + g Q+))`` with ``P = x D^T``, ``Q = D D^T`` (Ding, Li and Jordan, 2010), from the
    unconstrained solution with its negative part cut, until the codes change by less than ``tol`` of their length. Cost
    O(n d m + iterations n m^2).
    """
    p, q = rows @ directions.T, directions @ directions.T
    q_up, q_down = q.clamp_min(0), (-q).clamp_min(0)
    p_up, p_down = p.clamp_min(0), (-p).clamp_min(0)
    codes = (p @ torch.linalg.pinv(q, hermitian=True)).clamp_min(_FLOOR)
    for _ in range(max_iter):
        new = codes * torch.sqrt((p_up + codes @ q_down) / (p_down + codes @ q_up + _FLOOR))
        moved = float((new - codes).norm())
        codes = new
        if moved <= tol * float(codes.norm()):
            break
    return codes


def pca_dictionary(features: Any, n_features: int, site: str = "") -> Dictionary:
    """The first principal components, signed, as a dictionary; the offset is the mean. One pass, O(n d^2 + d^3); streams.

    Raises InputError for more components than units or fewer than two samples.
    """
    rows = as_rows(features, ndim=(2,), min_samples=2)
    if not 1 <= n_features <= rows.n_units:
        raise InputError(f"{n_features} components were asked for, expected 1 to {rows.n_units}")
    joint = Covariance()
    for batch in rows:
        joint.update(batch.values)
    found = joint.result()
    _, vectors = torch.linalg.eigh(torch.from_numpy(found.scatter))
    mean = torch.from_numpy(found.mean)
    directions = vectors.flip(1)[:, :n_features].T.contiguous()
    return Dictionary(directions, "linear", site, "principal components", offset=mean)


def unit_dictionary(n_units: int, site: str = "") -> Dictionary:
    """The units themselves as features: codes are activations, ablating one sets it to 0. Raises InputError for fewer than one."""
    if n_units < 1:
        raise InputError(f"{n_units} units were given, at least one is needed")
    return Dictionary(torch.eye(n_units), "linear", site, "units")
