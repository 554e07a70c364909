"""Codebooks inside networks: reached by site names, trained, saved, copied, read, and turned into dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from netloupe.core.capture import capture
from netloupe.core.errors import InputError, SiteError
from netloupe.core.intervene import intervene
from netloupe.core.isolation import pinned_threads
from netloupe.core.losses import next_token_loss
from netloupe.core.training import train
from netloupe.models.gpt import ByteGPT
from netloupe.nn.codebook_model import CodebookModel, codebook_param_groups, wrap_codebooks

ATTENTION, MLP = "blocks.0.attn.out:in", "blocks.1.ffn"
TOKENS = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with pinned_threads(1):  # small networks gain nothing from a second thread, and lose much on a busy machine
        yield


def gpt() -> ByteGPT:
    return ByteGPT(16, 2, 2, 32, 12, vocab=11, random_state=0)


def wrapped(model: nn.Module | None = None) -> CodebookModel:
    return wrap_codebooks(
        model or gpt(), {ATTENTION: {"dim": 16, "n_codes": 20, "groups": 2}, MLP: {"dim": 16, "n_codes": 30, "k": 2}}
    )


def test_only_codes_pass_and_the_network_itself_is_untouched():
    plain = gpt()
    alone = plain(TOKENS)
    model = wrapped(plain)
    out = model(TOKENS)
    torch.testing.assert_close(plain(TOKENS), alone, rtol=0, atol=0)
    assert not torch.allclose(out, alone)
    x = plain.tokens(TOKENS)
    blocks: Any = plain.blocks
    for index, block in enumerate(blocks):
        heads: list[torch.Tensor] = []
        handle = block.attn.out.register_forward_pre_hook(lambda m, args, heads=heads: heads.append(args[0]))
        attended = block.attn(block.norm1(x))
        handle.remove()
        if index == 0:
            attended = block.attn.out(model[ATTENTION](heads[0]))
        x = x + attended
        added = block.ffn(block.norm2(x))
        x = x + (model[MLP](added) if index == 1 else added)
    torch.testing.assert_close(out, plain.head(plain.norm(x)))
    assert {site: tuple(ids.shape) for site, ids in model.ids.items()} == {ATTENTION: (4, 7, 2, 1), MLP: (4, 7, 1, 2)}
    for _, codebook in model.items():
        codebook.enabled = False
    torch.testing.assert_close(model(TOKENS), alone)


def test_training_saving_copying_and_reading():
    model = wrapped()
    groups = codebook_param_groups(model, 1e-2, 0.1, 0.5)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-2, 0.0), (5e-3, 0.1)]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    history = train(model, lambda step, g: TOKENS, steps=40, optimizer=torch.optim.AdamW(groups), loss=next_token_loss)
    assert history.loss[-1] < 0.8 * history.loss[0]
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    model.eval()
    out = model(TOKENS)
    again = wrapped()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(TOKENS), out, rtol=0, atol=0)
    twin = copy.deepcopy(model)
    twin[MLP].table.data.zero_()
    torch.testing.assert_close(model(TOKENS), out, rtol=0, atol=0)
    assert not torch.allclose(twin(TOKENS), out)
    usage = model[MLP].usage.clone()
    inner, made = f"model.{MLP}", "codebooks.blocks/1/ffn"
    found = next(capture(model, [TOKENS], [inner, made]))
    torch.testing.assert_close(model[MLP](found[inner]), found[made])
    assert int((model[MLP].usage - usage).sum()) == 56  # the call just made, not the recording


def test_forced_codes_reach_the_output_and_only_where_they_are_forced():
    model = wrapped().eval()
    free = model(TOKENS)
    ids = model.ids

    def last(found: torch.Tensor) -> torch.Tensor:
        changed = found.clone()
        changed[:, -1] = 5
        return changed

    with model.force({MLP: last}):
        changed = model(TOKENS)
    torch.testing.assert_close(changed[:, :-1], free[:, :-1])
    assert not torch.allclose(changed[:, -1], free[:, -1])
    with model.force(dict(ids)):
        torch.testing.assert_close(model(TOKENS), free)


def test_a_codebook_is_a_dictionary_of_the_networks_site():
    model = wrapped().eval()
    found = [model.dictionary(site) for site in model.sites]
    with torch.no_grad(), intervene(model.model, *(one.splice() for one in found)):
        spliced = model.model(TOKENS)
    torch.testing.assert_close(spliced, model(TOKENS), rtol=1e-4, atol=1e-4)


def test_fused_attention_tuples_and_compiled_networks():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    model = wrap_codebooks(layer, {"self_attn.out_proj:in": {"dim": 8, "n_codes": 4, "groups": 2}}).eval()
    with torch.no_grad():
        out = model(x)
    assert model.ids["self_attn.out_proj:in"].shape == (3, 5, 2, 1)
    assert not torch.allclose(out, layer(x))
    attention = wrap_codebooks(nn.MultiheadAttention(8, 2, batch_first=True), {"out_proj": {"dim": 8, "n_codes": 3}})
    values, weights = attention(x, x, x)
    assert values.unique(dim=0).shape[0] <= 3
    assert weights.shape == (3, 5, 5)
    lstm = wrap_codebooks(nn.Sequential(nn.LSTM(8, 6, batch_first=True)), {"0": {"dim": 6, "n_codes": 3}})
    states, (hidden, _) = lstm(x)
    assert len(states.flatten(0, 1).unique(dim=0)) <= 3
    assert hidden.shape == (1, 3, 6)


def test_refusals():
    model = gpt()
    for sites, words in [
        ({}, "at least one site"),
        ({"blocks.*.ffn": {"dim": 16, "n_codes": 4}}, "one whole site"),
        ({"blocks.0.ffn#0": {"dim": 16, "n_codes": 4}}, "one whole site"),
        ({"blocks.0.ffn": {"dim": 16, "n_codes": 4, "size": 3}}, "cannot be made"),
        ({"blocks.0.ffn": {"dim": 16, "n_codes": 4, "k": 5}}, "k is 5"),
    ]:
        with pytest.raises(InputError, match=words):
            wrap_codebooks(model, sites)
    with pytest.raises(SiteError, match="did you mean"):
        wrap_codebooks(model, {"blocks.0.fnn": {"dim": 16, "n_codes": 4}})
    shared = nn.Linear(4, 4)
    with pytest.raises(InputError, match="one module"):
        wrap_codebooks(nn.Sequential(shared, shared), {"0": {"dim": 4, "n_codes": 2}, "1": {"dim": 4, "n_codes": 2}})
    with pytest.raises(InputError, match="width 8"):
        wrap_codebooks(model, {"blocks.0.ffn": {"dim": 8, "n_codes": 4}})(TOKENS)
    with pytest.raises(SiteError, match="no codebook"):
        _ = wrapped()["blocks.0.ffn"]


def test_a_hugging_face_network():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    net = transformers.GPTNeoXForCausalLM(config)
    alone = net(TOKENS).logits
    sites = {"gpt_neox.layers.1.attention.dense:in": {"dim": 16, "n_codes": 9, "groups": 2}}
    model = wrap_codebooks(net, sites | {"gpt_neox.layers.0.mlp": {"dim": 16, "n_codes": 9}})
    out = model(input_ids=TOKENS).logits
    assert not torch.allclose(out, alone)
    torch.testing.assert_close(net(TOKENS).logits, alone)
    assert model.ids["gpt_neox.layers.1.attention.dense:in"].shape == (4, 7, 2, 1)
    before = net.get_input_embeddings().weight.detach().clone()
    train(model, lambda step, g: TOKENS, steps=2, loss=next_token_loss)
    assert not torch.equal(net.get_input_embeddings().weight, before)
    assert all(int(book.usage.sum()) > 0 for _, book in model.items())
    with model.attached(), torch.no_grad():
        written = net.generate(TOKENS[:1, :3], max_new_tokens=2, do_sample=False, use_cache=False)
        step = model.model(written[:, :3]).logits[:, -1].argmax(-1)
    assert int(step) == int(written[0, 3])
