"""Networks of the codebook-features study: one plain network on a token-level machine, and what becomes of it with codebooks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import AdamW

from netloupe.core.capture import capture
from netloupe.core.isolation import device_of, guest
from netloupe.core.losses import next_token_loss
from netloupe.core.training import train
from netloupe.data.tokfsm import TokFSM
from netloupe.lenses.dictionary.codes import code_counts
from netloupe.models.gpt import ByteGPT
from netloupe.nn.codebook import Backward, Codebook
from netloupe.nn.codebook_model import CodebookModel, codebook_param_groups, wrap_codebooks

Where = Literal["attention", "mlp", "both"]


@dataclass(frozen=True)
class Setting:
    """A preset: the machine (states, edges, base), the network (width, blocks, heads), tokens a sequence, sequences a batch, codes a
    table, steps of the plain network and of each with codebooks, learning rates, and sequences to judge on.

    ``from_plain``: networks with codebooks start from the plain one, and their tables from the means of its activations.
    ``sweeps``: whether numbers of codes, gradients and k are varied.
    """

    machine: tuple[int, int, int]
    network: tuple[int, int, int]
    length: int
    batch: int
    n_codes: int
    steps: tuple[int, int]
    rates: tuple[float, float]
    n_judged: int
    from_plain: bool = True
    sweeps: bool = True


@dataclass(frozen=True)
class Spec:
    """One network with codebooks."""

    where: Where = "mlp"
    n_codes: int = 0  # of each table; 0: as the setting says
    k: int = 1
    backward: Backward = "aeloss"
    seed: int = 0


@dataclass
class World:
    """A machine and every network that was trained on it, each trained when it is first asked for."""

    setting: Setting
    seed: int
    _made: dict[Spec, CodebookModel] = field(default_factory=dict)

    @cached_property
    def machine(self) -> TokFSM:
        """The machine."""
        n_states, n_edges, base = self.setting.machine
        return TokFSM(n_states, n_edges, base, self.seed)

    @cached_property
    def judged(self) -> Int[Tensor, "sample position"]:
        """Sequences that no network was trained on."""
        return self.machine.sample(self.setting.n_judged, self.setting.length, 990_000 + self.seed)

    def _network(self) -> ByteGPT:
        width, n_layers, n_heads = self.setting.network
        made = ByteGPT(
            width, n_layers, n_heads, 4 * width, self.setting.length + 1, activation="gelu", gated=False,
            vocab=self.machine.vocab, random_state=self.seed,
        )  # fmt: skip
        return made.to("cuda" if torch.cuda.is_available() and not self.setting.from_plain else "cpu")

    def _train(self, model: nn.Module, steps: int, optimizer: AdamW, seed: int) -> None:
        train(
            model, self.machine.batches(self.setting.batch, self.setting.length), steps=steps, optimizer=optimizer,
            loss=next_token_loss, schedule="cosine", warmup=min(20, steps // 10), seed=seed,
        )  # fmt: skip

    @cached_property
    def start(self) -> ByteGPT:
        """The plain network that the others start from."""
        model = self._network()
        self._train(model, self.setting.steps[0], AdamW(model.parameters(), self.setting.rates[0]), self.seed)
        return model

    @cached_property
    def plain(self) -> ByteGPT:
        """The plain network, trained as long as those with codebooks."""
        if not self.setting.from_plain:
            return self.start
        model = copy.deepcopy(self.start)
        self._train(model, self.setting.steps[1], AdamW(model.parameters(), self.setting.rates[1]), self.seed + 1)
        return model

    def sites(self, where: Where) -> list[str]:
        """Sites of the codebooks: what the heads say, or what feed-forward blocks add."""
        blocks = range(self.setting.network[1])
        attention = [f"blocks.{i}.attn.out:in" for i in blocks] if where != "mlp" else []
        return attention + ([f"blocks.{i}.ffn" for i in blocks] if where != "attention" else [])

    def net(self, spec: Spec) -> CodebookModel:
        """The network with codebooks, trained when first asked for."""
        if spec not in self._made:
            model = self.untrained(spec)
            if self.setting.from_plain:
                self._start_from_means(model)
            groups = codebook_param_groups(model, self.setting.rates[1])
            self._train(model, self.setting.steps[1], AdamW(groups), self.seed + 1 + spec.seed)
            self._made[spec] = model
        return self._made[spec]

    def _start_from_means(self, model: CodebookModel) -> None:
        tokens = self.machine.sample(128, self.setting.length, 770_000 + self.seed)
        found = next(capture(model.model, [tokens], list(model.sites)))
        for site, codebook in model.items():
            codebook.init_from(found[site])

    def untrained(self, spec: Spec) -> CodebookModel:
        """The network with new codebooks, their rows drawn at random."""
        width, _, n_heads = self.setting.network
        arguments = {
            "dim": width,
            "n_codes": spec.n_codes or self.setting.n_codes,
            "k": spec.k,
            "backward": spec.backward,
        }
        sites = {
            site: {
                **arguments,
                "groups": n_heads if site.endswith(":in") else 1,
                "random_state": 1000 * (self.seed + spec.seed) + place,
            }
            for place, site in enumerate(self.sites(spec.where))
        }
        return wrap_codebooks(copy.deepcopy(self.start) if self.setting.from_plain else self._network(), sites)

    def accuracy(self, model: nn.Module) -> float:
        """Transition accuracy."""
        return self.machine.transition_accuracy(model)

    def loss(self, model: nn.Module) -> float:
        """Nats a token on sequences that were not trained on."""
        tokens = self.judged.to(device_of(model))
        with torch.no_grad(), guest(model):
            logits = model(tokens)
        rows = logits[:, :-1].flatten(0, 1).double()
        return float(nn.functional.cross_entropy(rows, tokens[:, 1:].flatten()))

    def ids(self, model: CodebookModel) -> dict[str, Int[Tensor, "sample position group k"]]:
        """Codes on the sequences to judge on."""
        with torch.no_grad(), guest(model):
            model(self.judged.to(device_of(model)))
        return {site: ids.cpu() for site, ids in model.ids.items()}

    def used(self, model: CodebookModel) -> dict[str, int]:
        """How many codes of each table fire there at all."""
        return {site: int((code_counts(ids, model[site].n_codes) > 0).sum()) for site, ids in self.ids(model).items()}

    def units(self, model: CodebookModel, site: str) -> Float[Tensor, "row unit"]:
        """What a codebook is given there, one row a position."""
        found = next(capture(model, [self.judged.to(device_of(model))], [f"model.{site}"]))
        return found[f"model.{site}"].flatten(0, 1).cpu()

    def error(self, model: CodebookModel) -> float:
        """Squared distance of codes from what they stand for, over the latter's squared length; mean over sites."""
        found = []
        for site, codebook in model.items():
            x = self.units(model, site).to(device_of(model))
            with torch.no_grad(), guest(codebook):
                rows, made = codebook.normalised(x).flatten(1), codebook(x)
            found.append(float((rows - made).pow(2).sum() / rows.pow(2).sum()))
        return float(np.mean(found))


def table_entropy(model: CodebookModel, ids: dict[str, Tensor]) -> list[float]:
    """Entropy of how often each code fires, in bits, a site."""
    found = []
    for site, each in ids.items():
        codebook: Codebook = model[site]
        counts = code_counts(each, codebook.n_codes)[0]
        share = counts[counts > 0] / counts.sum()
        found.append(float(-(share * np.log2(share)).sum()))
    return found
