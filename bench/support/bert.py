"""The network of the measurements: 6 layers, 384 wide, 16 x 128 tokens."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

SITES = [f"encoder.layer.{layer}.intermediate" for layer in range(6)]


def bert() -> BertModel:
    """Random weights, eval mode."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return BertModel(config).eval()


def tokens(n_batches: int, n_samples: int = 16, length: int = 128) -> list[torch.Tensor]:
    """Batches of random token numbers."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 30000, (n_samples, length), generator=generator) for _ in range(n_batches)]


def bare(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    """The forward passes alone."""
    with torch.no_grad():
        for batch in batches:
            model(batch)


def hooked(model: torch.nn.Module, batches: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Everything the sites say, kept in memory by plain hooks."""
    kept: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}
    handles = [
        model.get_submodule(site).register_forward_hook(lambda m, i, o, site=site: kept[site].append(o))
        for site in SITES
    ]
    bare(model, batches)
    for handle in handles:
        handle.remove()
    return kept
