"""Hugging Face networks: dictionary inputs, dataclass outputs, padding left out of every statistic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.capture import capture, list_sites, observe
from netloupe.core.intervene import ablate, intervene, steer
from netloupe.core.statistics import Counts, Moments, TopK

transformers = pytest.importorskip("transformers", reason="the text extra is not installed")


def tiny(kind: str):
    t = transformers
    torch.manual_seed(0)
    small = {"vocab_size": 40}
    if kind == "bert":
        return t.BertModel(
            t.BertConfig(**small, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
        )
    if kind == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(**small, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2))
    if kind == "llama":
        return t.LlamaForCausalLM(
            t.LlamaConfig(**small, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
        )
    return t.BertForSequenceClassification(
        t.BertConfig(
            **small, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3
        )
    )


SITES = {
    "bert": ["encoder.layer.0.intermediate", "encoder.layer.1.output.dense", "encoder.layer.1", "."],
    "gpt2": ["transformer.h.0.mlp.act", "transformer.h.1", "lm_head", "transformer.h.0.attn"],
    "llama": ["model.layers.0.mlp.act_fn", "model.layers.1", "lm_head"],
    "classifier": ["bert.encoder.layer.0.intermediate", "bert.pooler", "classifier"],
}


@pytest.fixture(params=list(SITES))
def case(request):
    model = tiny(request.param).eval()
    ids = torch.randint(3, 40, (7, 9))
    mask = (torch.arange(9)[None] < torch.tensor([9, 4, 7, 1, 9, 5, 2])[:, None]).long()
    return model, {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(7) % 3}, SITES[request.param]


def oracle(model, data, site):
    seen = []
    module = model if site == "." else model.get_submodule(site)
    take = lambda o: o if isinstance(o, torch.Tensor) else o[0]  # noqa: E731
    handle = module.register_forward_hook(lambda m, i, o: seen.append(take(o).detach().clone()))
    with torch.no_grad():
        model(input_ids=data["input_ids"], attention_mask=data["attention_mask"])
    handle.remove()
    return seen[0]


def test_sites_equal_hooks_and_statistics_leave_padding_out(case):
    model, data, sites = case
    (captured,) = capture(model, data, sites, batch_size=7)
    assert torch.equal(captured.labels, data["labels"])
    found = observe(model, data, {"m": Moments, "c": Counts, "t": lambda: TopK(3)}, sites, batch_size=7)
    real = data["attention_mask"].bool()
    for site in sites:
        expected = oracle(model, data, site)
        assert torch.equal(captured[site], expected), site
        rows = expected[real] if expected.ndim == 3 else expected
        result = found.result(site, "m")
        assert result.count == len(rows)
        np.testing.assert_allclose(result.mean, rows.double().mean(0).numpy(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(result.variance, rows.double().var(0, correction=0).numpy(), rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(found.result(site, "c").active, (rows > 0).sum(0).numpy())
        if expected.ndim == 3:
            top = found.result(site, "t")
            for unit in range(0, rows.shape[1], 5):
                best = expected[..., unit].masked_fill(~real, -torch.inf).amax(1).sort(descending=True)
                np.testing.assert_allclose(top.values[unit], best.values[:3].double().numpy())
                assert real[top.samples[unit], top.positions[unit]].all()


def test_every_site_of_every_network_is_found_with_its_shape(case):
    model, data, sites = case
    listed = {site.name: site for site in list_sites(model, data)}
    assert len(listed) > 10
    for site in sites:
        if site in listed:
            assert listed[site].n_units == oracle(model, data, site).shape[-1]


def test_interventions_reach_inside(case):
    model, data, sites = case
    inputs = {k: v for k, v in data.items() if k != "labels"}
    with torch.no_grad():
        before = model(**inputs)[0]
        with intervene(model, steer(sites[0], torch.ones(oracle(model, data, sites[0]).shape[-1]), 5.0)):
            changed = model(**inputs)[0]
        with intervene(model, ablate("*", units=slice(0, 0))):
            same = model(**inputs)[0]
        after = model(**inputs)[0]
    assert not torch.allclose(before, changed)
    assert torch.equal(before, after)
    assert torch.equal(before, same)


def test_batches_of_different_lengths_are_observed():
    model = tiny("bert").eval()
    batches = [
        {"input_ids": torch.randint(3, 40, (4, length)), "attention_mask": torch.ones(4, length).long()}
        for length in (9, 5, 12)
    ]
    found = observe(model, batches, {"m": Moments}, "encoder.layer.0.intermediate")
    assert found.result("encoder.layer.0.intermediate", "m").count == 4 * 26


def zoo():
    t, n = transformers, 5
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    ids, image = torch.randint(3, 40, (n, 9)), torch.randn(n, 3, 32, 32)
    return {
        "windows": (t.SwinModel, t.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1], num_heads=[2], window_size=4), {"pixel_values": image}),
        "channels in both places": (t.ConvNextModel, t.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2), {"pixel_values": image}),
        "convolution over time": (
            t.Wav2Vec2Model,
            t.Wav2Vec2Config(**small, conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(3, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2),
            {"input_values": torch.randn(n, 200)},
        ),
        "a table of ten positions": (
            t.WhisperModel,
            t.WhisperConfig(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                            encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=10, pad_token_id=0,
                            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
            {"input_features": torch.randn(n, 8, 20), "decoder_input_ids": ids[:, :4]},
        ),
        "routed tokens": (t.MixtralModel, t.MixtralConfig(vocab_size=40, **small, num_key_value_heads=2, num_local_experts=3), {"input_ids": ids}),
        "flattened tokens": (
            t.OPTModel,
            t.OPTConfig(vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16),
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        ),
        "encoder and decoder": (
            t.T5Model,
            t.T5Config(vocab_size=40, d_model=16, d_ff=24, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0),
            {"input_ids": ids, "decoder_input_ids": ids[:, :4]},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["windows", "channels in both places", "convolution over time", "a table of ten positions",
                                  "routed tokens", "flattened tokens", "encoder and decoder"])  # fmt: skip
def test_shuffled_samples_shuffle_the_activations_of_every_site(name):
    """The sample axis is the right one at every site: what a sample says does not depend on where it stands."""
    torch.manual_seed(0)
    kind, config, data = zoo()[name]
    model, order = kind(config).eval(), torch.tensor([3, 0, 4, 2, 1])
    (plain,) = capture(model, data)
    (shuffled,) = capture(model, {key: value[order] for key, value in data.items()})
    assert len(plain.activations) >= 10
    for site, values in plain.activations.items():
        torch.testing.assert_close(
            shuffled[site], values[order], atol=1e-4, rtol=1e-3, msg=lambda m, s=site: f"{s}: {m}"
        )
    if name == "convolution over time":
        assert plain.infos["feature_extractor.conv_layers.0.conv"].n_units == 8
        assert plain.infos["encoder.pos_conv_embed.activation"].n_units == 16
    if name == "channels in both places":
        assert {info.n_units for site, info in plain.infos.items() if site.endswith("pwconv1")} == {32, 64}
