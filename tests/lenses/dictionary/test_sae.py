"""Sparse autoencoders: losses by hand, training, resuming, and files of other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from netloupe.core.errors import InputError, NonFiniteError, StoreError
from netloupe.core.store import SiteSpec, Store, StoreWriter
from netloupe.lenses.dictionary.sae import SparseAutoencoder, diff_mean, load_saelens, load_sparsify, shuffled
from netloupe.lenses.dictionary.score import mmcs, score
from netloupe.nn import sparse_coder
from netloupe.nn.sparse_coder import BANDWIDTH, SparseCoder
from netloupe.studies._snmf_planted import Sizes, planted

KINDS = ("relu", "topk", "batchtopk", "jumprelu")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coder(kind: str, **more: object) -> SparseCoder:
    made = SparseCoder(5, 8, kind, k=2, l1=0.3, **more)  # type: ignore[arg-type]
    with torch.no_grad():
        made.b_enc.copy_(0.3 * draw(8, seed=3))
        made.b_dec.copy_(draw(5, seed=4))
    return made


def test_losses_by_hand():
    x = draw(6, 5)
    one = coder("relu")
    z = ((x - one.b_dec) @ one.w_enc + one.b_enc).clamp_min(0)
    error = ((x - z @ one.w_dec - one.b_dec) ** 2).sum(1)
    wanted = (error + 0.5 * 0.3 * (z * one.w_dec.norm(dim=1)).sum(1)).mean()
    torch.testing.assert_close(one.loss(x, 2.0, warm=0.5), wanted)
    assert one.w_dec.norm(dim=1).detach().numpy() == pytest.approx(np.full(8, 0.1))

    one = coder("topk", multi=0.125, aux=1 / 32, dead_after=10)
    one.silent += torch.tensor([99.0, 99, 99, 0, 0, 0, 0, 0])
    pre = one.pre(x)
    z = torch.stack([torch.where(row >= row.sort().values[-2], row, 0).clamp_min(0) for row in pre])
    left = x - one.decode(z)
    many = x - one.decode(pre.clamp_min(0))  # 4 k is every latent
    quiet = (one.silent + 6 > 10) & ~(z > 0).any(0)
    aux = torch.zeros(())
    if bool(quiet.any()):
        rows = torch.where(quiet, pre, -torch.inf)
        size = min(2, int(quiet.sum()))
        best = torch.stack([torch.where(row >= row.sort().values[-size], row, 0).clamp_min(0) for row in rows])
        aux = min(int(quiet.sum()) / 2, 1.0) * ((left - best @ one.w_dec) ** 2).sum(1).mean()
    wanted = ((left**2).sum(1).mean() + 0.125 * (many**2).sum(1).mean() + aux / 32) / 3.0
    assert bool(quiet.any())
    torch.testing.assert_close(one.loss(x, 3.0), wanted)

    one = coder("batchtopk").train()
    flat = one.pre(x).clamp_min(0).flatten()
    border = flat.sort().values[-2 * len(x)]
    torch.testing.assert_close(one.active(one.pre(x)).flatten(), torch.where(flat >= border, flat, 0))
    torch.testing.assert_close(one.threshold, border.detach())
    assert int((one.active(one.pre(x)) > 0).sum()) <= 2 * len(x)
    one.eval()
    torch.testing.assert_close(one.active(one.pre(x)).flatten(), torch.where(flat > border, flat, 0))


def test_jumprelu_gradients_are_straight_through():
    one = coder("jumprelu")
    with torch.no_grad():
        one.log_threshold.fill_(float(np.log(0.2)))
    x = draw(200, 5)
    one.loss(x, 1.0, warm=0.5).backward()
    pre = one.pre(x).detach().clamp_min(0)
    near = ((pre - 0.2).abs() < BANDWIDTH / 2).float()
    z = pre * (pre > 0.2)
    upstream = -2 * (x - one.decode(z)).detach() @ one.w_dec.detach().T / len(x)
    by_error = (-0.2 / BANDWIDTH * near * upstream).sum(0)
    by_count = 0.5 * 0.3 * (-near / BANDWIDTH).sum(0) / len(x)
    assert one.log_threshold.grad is not None
    torch.testing.assert_close(one.log_threshold.grad, 0.2 * (by_error + by_count))  # the logarithm's chain rule


@pytest.mark.parametrize("kind", KINDS)
def test_training_explains_more_and_becomes_a_dictionary(kind: str):
    _, x = planted(Sizes(d=30, n=600, k=6, own=4), 0)
    options = {"l1": 0.01 if kind == "relu" else 0.002, "rate": 5e-3, "k": 2, "batch_size": 64, "dead_after": 500}
    short, long = (SparseAutoencoder(12, kind, steps=n, **options).fit(x) for n in (2, 500))  # type: ignore[arg-type]
    first, last = (score(one.dictionary(), x) for one in (short, long))
    assert last.explained > max(0.6, first.explained)
    assert long.history_.state == "finished"
    with torch.no_grad():
        codes = long.network_.active(long.network_.pre(torch.from_numpy(x).float())).numpy()
    np.testing.assert_allclose(long.transform(x), codes, atol=1e-6)
    if kind != "relu":
        np.testing.assert_allclose(long.network_.w_dec.detach().norm(dim=1).numpy(), 1, rtol=1e-5)
    if kind == "topk":
        assert (codes > 0).sum(1).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_on_a_recording_resumes_to_the_same(kind: str, tmp_path: Path):
    x = draw(90, 5)
    with StoreWriter(tmp_path / "s", {"site": SiteSpec.like(x)}, rows_per_shard=16) as writer:
        writer.append({"site": x})
    store = Store(tmp_path / "s")["site"]
    options = {"k": 2, "batch_size": 16, "rate": 1e-2, "dead_after": 40, "seed": 3}
    whole = SparseAutoencoder(8, kind, steps=30, **options).fit(x)  # type: ignore[arg-type]
    kept = {"checkpoint": str(tmp_path / "c"), "checkpoint_every": 5}

    class Killed(Exception):
        pass

    broken = SparseAutoencoder(8, kind, steps=30, **options, **kept)  # type: ignore[arg-type]

    class Dying:
        shape, dtype = store.shape, store.dtype
        left = 18

        def __getitem__(self, index: object) -> torch.Tensor:
            if isinstance(index, torch.Tensor):
                Dying.left -= 1
                if Dying.left == 0:
                    raise Killed
            return store[index]

    with pytest.raises(Killed):
        broken.fit(Dying())
    resumed = SparseAutoencoder(8, kind, steps=30, **options, **kept).fit(store)  # type: ignore[arg-type]
    for name, value in whole.network_.state_dict().items():
        torch.testing.assert_close(resumed.network_.state_dict()[name], value, rtol=0, atol=0)


def test_batches_are_shuffled_epochs_and_streams_work():
    x = torch.arange(40.0)[:, None].expand(40, 3)
    feed = shuffled(x, 10, seed=1)
    seen = torch.cat([feed(step, torch.Generator())[:, 0] for step in range(4)])
    assert sorted(seen.tolist()) == list(range(40))
    assert seen.tolist() != sorted(seen.tolist())
    assert shuffled(draw(8, 5, 3), 10)(0, torch.Generator()).shape == (10, 3)
    model = SparseAutoencoder(6, "topk", k=2, rate=1e-2)
    data = draw(64, 5) @ draw(5, 5, seed=1)
    for _ in range(150):
        model.partial_fit(data)
    assert model.history_.loss[-1] < 0.7 * model.history_.loss[0]
    with pytest.raises(InputError, match="has 4 units"):
        model.partial_fit(draw(9, 4))
    far = SparseAutoencoder(6, steps=1, start="median").fit(torch.cat([draw(99, 5), torch.full((1, 5), 1e4)]))
    assert float(far.network_.b_dec.detach().abs().max()) < 1 < 50


def test_files_of_saelens_and_sparsify(tmp_path: Path):
    x, w_enc, w_dec, b_enc, b_dec = draw(7, 4), draw(4, 6), draw(6, 4, seed=1), draw(6, seed=2), draw(4, seed=3)
    weights = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}

    def saelens(config: dict, **more: torch.Tensor) -> Path:
        save_file({**weights, **more}, tmp_path / "sae_weights.safetensors")
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        return tmp_path

    pre = (x - b_dec) @ w_enc + b_enc
    one = load_saelens(saelens({"architecture": "standard", "hook_name": "blocks.1.hook_mlp_out"}))
    assert one.site == "blocks.1.hook_mlp_out"
    torch.testing.assert_close(one.reconstruct(x), pre.relu() @ w_dec + b_dec)
    one = load_saelens(saelens({"architecture": "standard", "apply_b_dec_to_input": False}))
    torch.testing.assert_close(one.encode(x), (x @ w_enc + b_enc).relu())
    one = load_saelens(saelens({"architecture": "jumprelu"}, threshold=torch.full((6,), 0.5)))
    torch.testing.assert_close(one.encode(x), pre * (pre > 0.5))
    for config in ({"architecture": "topk", "k": 2}, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}):
        one = load_saelens(saelens(config))
        torch.testing.assert_close(one.encode(x), torch.where(pre >= pre.sort(1).values[:, -2:-1], pre, 0).relu())
    one = load_saelens(saelens({"architecture": "topk", "k": 6, "rescale_acts_by_decoder_norm": True}))
    torch.testing.assert_close(one.reconstruct(x), pre.relu() @ w_dec + b_dec)
    for config, words in [
        ({"architecture": "gated"}, "gated"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"architecture": "batchtopk"}, "threshold"),
    ]:
        with pytest.raises(InputError, match=words):
            load_saelens(saelens(config))
    with pytest.raises(StoreError, match="needs a readable"):
        load_sparsify(tmp_path)
    save_file(
        {"encoder.weight": w_enc.T.contiguous(), "encoder.bias": b_enc, "W_dec": w_dec, "b_dec": b_dec},
        tmp_path / "sae.safetensors",
    )
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 2, "activation": "topk"}))
    torch.testing.assert_close(
        load_sparsify(tmp_path).encode(x), torch.where(pre >= pre.sort(1).values[:, -2:-1], pre, 0).relu()
    )


def test_differences_of_means_and_refusals():
    x, y = draw(30, 4), torch.arange(30) % 3
    found = diff_mean(x, y)
    wanted = torch.stack([(x[y == c].mean(0) - x[y != c].mean(0)).double() for c in range(3)])
    torch.testing.assert_close(found.directions, wanted / wanted.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert len(diff_mean(x, y.clamp_max(1))) == 1
    assert mmcs(diff_mean(x, y.clamp_max(1)), (x[y > 0].mean(0) - x[y == 0].mean(0))[None]) == pytest.approx(1)
    for bad, words in [
        (lambda: diff_mean(x, torch.zeros(30, dtype=torch.long)), "two classes"),
        (lambda: diff_mean(torch.ones(30, 4), y), "same mean"),
        (lambda: SparseAutoencoder(4, "guess").fit(x), "expected one of"),  # type: ignore[arg-type]
        (lambda: SparseAutoencoder(4, "topk", k=5).fit(x), "k is 5"),
        (lambda: SparseAutoencoder(4, steps=0).fit(x), "steps is 0"),
        (lambda: SparseAutoencoder(4).fit(x[:1]), "at least 2"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        SparseAutoencoder(4).fit(x * float("nan"))


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_of_few_kept_latents_is_that_of_the_dense_code(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    x = draw(40, 9, seed=seed).double()
    sides = []
    for worth in (1, 10**9):  # always, and never
        monkeypatch.setattr(sparse_coder, "_WORTH", worth)
        made = SparseCoder(9, 30, kind, k=3, random_state=seed).double().train()  # type: ignore[arg-type]
        with torch.no_grad():
            made.b_enc.copy_(draw(30, seed=seed + 7) - 0.5)  # some kept values are negative and rectified
            made.b_dec.copy_(draw(9, seed=seed + 8))
        loss = made.loss(x, 1.7)
        loss.backward()
        sides.append((loss.detach(), *(p.grad for p in made.parameters()), made.silent, made.threshold))
    for one, other in zip(*sides, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


_KINDS = ["standard", "topk", "jumprelu", "batchtopk", "sparsify"]
# What SAELens 6.54.12 and Sparsify 1.3.3 reconstruct from the files below, written by themselves with these weights.
_THEIRS = {
    "standard": [[2.16826, -2.19395, -1.60291, 2.607], [1.63177, -2.57989, -0.96696, 2.82907], [2.40557, -3.69234, -1.45409, 4.06705]],
    "topk": [[2.16826, -2.19395, -1.60291, 2.607], [1.11118, -2.54071, -0.45646, 2.65834], [1.05658, -2.85102, -0.3219, 2.93397]],
    "sparsify": [[7.1516, 1.11431, -7.43874, 0.80258], [5.17655, -5.37739, -3.79086, 6.35425], [2.66801, -7.66522, -0.69277, 7.84374]],
}  # fmt: skip


def _waves(*shape: int, phase: float) -> torch.Tensor:
    return torch.sin(torch.arange(int(np.prod(shape))).float() * 1.7 + phase).reshape(shape)


@pytest.mark.parametrize("kind", _KINDS)
def test_the_libraries_themselves_reconstruct_the_same_from_their_files(kind: str, tmp_path: Path):
    x = 2 * _waves(3, 4, phase=0.5)
    if kind == "sparsify":
        weights = {"encoder.weight": _waves(6, 4, phase=0), "encoder.bias": 0.3 * _waves(6, phase=2)}
        save_file(
            weights | {"W_dec": _waves(6, 4, phase=1), "b_dec": 0.3 * _waves(4, phase=3)},
            str(tmp_path / "sae.safetensors"),
        )
        config: dict = {
            "activation": "topk",
            "num_latents": 6,
            "k": 2,
            "d_in": 4,
            "skip_connection": False,
            "transcode": False,
        }
    else:
        weights = {"W_enc": _waves(4, 6, phase=0), "W_dec": _waves(6, 4, phase=1)}
        weights |= {"b_enc": 0.3 * _waves(6, phase=2), "b_dec": 0.3 * _waves(4, phase=3)}
        threshold = {"jumprelu": _waves(6, phase=5).abs(), "batchtopk": torch.full((6,), 0.4)}.get(kind)
        save_file(
            weights | ({} if threshold is None else {"threshold": threshold}), str(tmp_path / "sae_weights.safetensors")
        )
        config = {
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "d_in": 4,
            "d_sae": 6,
        }
        config |= {
            "architecture": "jumprelu" if kind == "batchtopk" else kind
        }  # a trained BatchTopK is saved as its inference form
        config |= {"k": 2, "rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    found = (load_sparsify if kind == "sparsify" else load_saelens)(tmp_path).reconstruct(x)
    torch.testing.assert_close(found, torch.tensor(_THEIRS.get(kind, _THEIRS["standard"])), atol=2e-5, rtol=0)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_normalised_training_finds_the_same_whatever_the_size_of_the_activations(activation: Any, size: float):
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.exponential(size=(400, 6)) * (rng.random((400, 6)) < 0.3) @ rng.normal(size=(6, 12)) + 1.0)
    made = [
        SparseAutoencoder(8, activation, k=2, steps=60, rate=3e-3, normalise=True).fit(given).dictionary("s")
        for given in (x, x * size)
    ]
    torch.testing.assert_close(made[1].directions, made[0].directions, atol=2e-3, rtol=0)
    codes, scaled = made[0].encode(x), made[1].encode(x * size) / size
    assert float((codes - scaled).norm() / codes.norm()) < 0.02
    left = [float((made[i].reconstruct(given) - given).norm() / given.norm()) for i, given in enumerate((x, x * size))]
    assert left[1] == pytest.approx(left[0], abs=0.01)


def test_normalised_training_is_the_plain_one_on_divided_activations():
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) * 0.05
    size = float(((x - x.mean(0)).pow(2).sum(1).mean() / 8).sqrt())
    one = SparseAutoencoder(6, "topk", k=2, steps=40, normalise=True).fit(x).dictionary()
    other = SparseAutoencoder(6, "topk", k=2, steps=40).fit(x / size).dictionary()
    torch.testing.assert_close(one.reconstruct(x), size * other.reconstruct(x / size), atol=1e-5, rtol=1e-3)
    streamed = SparseAutoencoder(6, "topk", k=2, normalise=True)
    for start in range(0, 300, 100):
        streamed.partial_fit(x[start : start + 100])
    assert bool(torch.isfinite(streamed.dictionary().reconstruct(x)).all())
