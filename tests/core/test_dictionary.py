"""The one dictionary: rules, saving, splicing and steering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import nnls
from sklearn.decomposition import PCA
from torch import nn

from netloupe.core.dictionary import Dictionary, nonnegative_codes, pca_dictionary
from netloupe.core.errors import InputError, NonFiniteError, StoreError
from netloupe.core.intervene import intervene


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_rule() -> list[Dictionary]:
    more: dict[str, Any] = {"offset": draw(4, seed=1), "weight": draw(6, 4, seed=2), "bias": draw(6, seed=3)}
    return [
        Dictionary(draw(6, 4), "linear", "a", "b", **more),
        Dictionary(draw(6, 4), "nonnegative", offset=more["offset"], options={"seed": 3}),
        Dictionary(draw(6, 4), "relu", **more, centred=False),
        Dictionary(draw(6, 4), "topk", **more, k=2, scale=draw(6, seed=4).abs() + 0.1),
        Dictionary(draw(6, 4), "threshold", **more, threshold=draw(6, seed=5).abs()),
        Dictionary(draw(6, 4), "nearest", **more, k=2, scale=draw(6, seed=4).abs() + 0.1),
        Dictionary(draw(6, 4), "nearest", **more, k=2, groups=2, normed=True, centred=False),
        Dictionary(draw(6, 4), "topk", **more, k=1, groups=3),
    ]


@pytest.mark.parametrize("one", every_rule(), ids=lambda d: d.rule)
def test_rules_do_what_they_say_and_come_back_from_disk(one: Dictionary, tmp_path: Path):
    x = draw(10, 4, seed=9)
    codes = one.encode(x)
    assert one.offset is not None
    if one.rule != "nonnegative":
        assert one.weight is not None
        assert one.bias is not None
        given = x - one.offset * one.centred
        if one.normed:
            parts = given.reshape(10, one.groups, -1)
            given = (
                (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            ).flatten(1)
        pre = given @ one.weight.T + one.bias
        if one.rule == "linear":
            wanted = pre
        elif one.rule == "relu":
            wanted = pre.clamp_min(0)
        elif one.rule == "threshold":
            assert one.threshold is not None
            wanted = pre * (pre > one.threshold)
        else:
            ranked = pre if one.scale is None or one.rule == "nearest" else pre * one.scale
            parts = ranked.reshape(10, one.groups, -1)
            chosen = parts >= parts.sort(-1).values[..., -one.k, None]
            wanted = (
                torch.where(chosen, 1.0 if one.rule == "nearest" else parts.clamp_min(0), 0).reshape(pre.shape).double()
            )
        torch.testing.assert_close(codes, wanted)
    kept = codes if one.scale is None else codes / one.scale
    torch.testing.assert_close(one.decode(codes), kept @ one.directions + one.offset)
    again = Dictionary.load(one.save(tmp_path / "d.safetensors"))
    torch.testing.assert_close(again.encode(x), codes, rtol=1e-9, atol=1e-12)
    for name in ("rule", "site", "made_by", "options", "k", "groups", "normed", "centred"):
        assert getattr(again, name) == getattr(one, name)
    torch.testing.assert_close(one.encode(x[:, None]), codes[:, None])


@pytest.mark.parametrize("seed", range(3))
def test_nonnegative_codes_are_non_negative_least_squares(seed: int):
    directions, x = draw(3, 8, seed=seed), draw(20, 8, seed=seed + 50)
    exact = np.stack([nnls(directions.T.numpy(), row)[0] for row in x.numpy()])
    found = nonnegative_codes(x, directions, max_iter=20_000, tol=1e-10)
    np.testing.assert_allclose(found.numpy(), exact, atol=2e-3)


def test_principal_components_are_scikit_learns():
    x = draw(50, 6) @ torch.diag(torch.tensor([5.0, 4, 3, 2, 1, 0.5], dtype=torch.float64)) + 3
    found, peer = pca_dictionary(x, 3), PCA(3).fit(x.numpy())
    np.testing.assert_allclose(np.abs(found.directions.numpy()), np.abs(np.asarray(peer.components_)), atol=1e-9)
    np.testing.assert_allclose(
        found.reconstruct(x).numpy(), peer.inverse_transform(peer.transform(x.numpy())), atol=1e-9
    )


def test_in_a_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
    with torch.no_grad():
        hidden = model[:2](x)
        whole = pca_dictionary(hidden, 8, "1").to(torch.float32)
        found = whole.loss_recovered(model, (x, y))
        assert found.recovered == pytest.approx(1, abs=1e-4)
        assert found.clean == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-5)
        zeroed = model[2](torch.zeros_like(hidden))
        assert found.zeroed == pytest.approx(nn.functional.cross_entropy(zeroed, y).item(), rel=1e-5)
        few = pca_dictionary(hidden, 2, "1").to(torch.float32)
        with intervene(model, few.splice()):
            torch.testing.assert_close(model(x), model[2](few.reconstruct(hidden)))
        with intervene(model, few.steer(1, -2.5)):
            torch.testing.assert_close(model(x), model[2](hidden - 2.5 * few.unit_directions()[1]))
    with pytest.raises(InputError, match="does not know its site"):
        Dictionary(draw(2, 8)).splice()
    with pytest.raises(InputError, match="0 to 1"):
        Dictionary(draw(2, 8), site="1").steer(2, 1.0)


def test_refusals(tmp_path: Path):
    one = Dictionary(draw(3, 4))
    for bad, words in [
        (lambda: Dictionary(draw(3)), "expected \\(feature, unit\\)"),
        (lambda: Dictionary(draw(3, 4), "guess"), "expected one of"),  # type: ignore[arg-type]
        (lambda: Dictionary(draw(3, 4), "topk"), "k is 0"),
        (lambda: Dictionary(draw(4, 4), "nearest", k=3, groups=2), "k is 3, expected 1 to 2"),
        (lambda: Dictionary(draw(4, 4), "nearest", k=1, groups=3), "divides 4 features"),
        (lambda: Dictionary(draw(4, 4), "relu", groups=2), "knows no groups"),
        (lambda: Dictionary(draw(4, 4), "nonnegative", normed=True), "knows neither"),
        (lambda: Dictionary(draw(3, 4), "threshold"), "needs threshold"),
        (lambda: Dictionary(draw(3, 4), offset=draw(3)), "offset has shape"),
        (lambda: one.encode(draw(2, 5)), "4 units"),
        (lambda: one.decode(draw(2, 5)), "3 features"),
        (lambda: pca_dictionary(draw(9, 4), 5), "1 to 4"),
        (lambda: pca_dictionary(draw(1, 4), 1), "at least 2"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        one.encode(draw(2, 4) * float("nan"))
    with pytest.raises(NonFiniteError):
        Dictionary(draw(2, 4) / 0)
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot be read"):
        Dictionary.load(tmp_path / "x")


def test_a_non_negative_factorisation_is_a_dictionary_too():
    from netloupe.lenses.dictionary.nmf import NonNegativeDictionary

    draw = np.random.default_rng(0)
    x = np.maximum(draw.standard_normal((60, 3)), 0) @ np.maximum(draw.standard_normal((3, 8)), 0)
    made = NonNegativeDictionary(3, solver="nnls", random_state=0).fit(x)
    found = made.dictionary("act")
    assert (found.rule, found.site, len(found)) == ("nonnegative", "act", 3)
    np.testing.assert_allclose(
        found.reconstruct(torch.from_numpy(x)).numpy(), made.decode(made.transform(x)), atol=2e-3
    )


@pytest.mark.parametrize("wrong", [-1, 6, 1.5, "a", True, None])
def test_features_that_do_not_exist_are_refused(wrong: Any):
    one = Dictionary(draw(6, 4), "linear", "a")
    for ask in (one.ablate, lambda feature: one.steer(feature, 1.0)):
        with pytest.raises(InputError, match="was asked for, there are 0 to 5"):
            ask(wrong)
    assert one.ablate(np.int64(3)).site == "a"  # pyright: ignore[reportArgumentType]


def test_all_numbers_are_of_the_directions_type():
    mixed = Dictionary(draw(6, 4).float(), "relu", offset=draw(4), weight=draw(6, 4), bias=draw(6))
    assert {mixed.offset.dtype, mixed.weight.dtype, mixed.bias.dtype} == {torch.float32}  # pyright: ignore
    assert mixed.reconstruct(draw(3, 4)).dtype == torch.float32
    with pytest.raises(InputError, match="int64"):
        Dictionary(torch.arange(12).reshape(3, 4))


def test_options_of_other_libraries_are_saved(tmp_path: Path):
    options = {"rate": np.float32(0.5), "ids": np.arange(2), "path": tmp_path, "tensor": torch.ones(1)}
    one = Dictionary(draw(2, 3), site='a b/ü:in "x"', made_by="größe", options=options)
    back = Dictionary.load(one.save(tmp_path / "ö x.safetensors"))
    assert back.options == {"rate": 0.5, "ids": [0, 1], "path": str(tmp_path), "tensor": [1.0]}
    assert (back.site, back.made_by) == (one.site, one.made_by)


META = {
    "format": "netloupe-dictionary", "version": "1", "rule": "linear", "k": "0", "centred": "1", "site": "", "made_by": "",
    "options": "{}",
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"rule": "foo"}, {"k": "x"}, {"options": "{"}, {"options": "[1]"}, {"options": "7"}, {"groups": "0"},
     *({name: None} for name in ("rule", "k", "centred", "site", "made_by", "options"))],
)  # fmt: skip
def test_damaged_files_are_refused_in_a_sentence(change: dict[str, str | None], tmp_path: Path):
    path, made = tmp_path / "x.safetensors", META | change
    save_file({"directions": draw(3, 4)}, path, metadata={key: v for key, v in made.items() if v is not None})
    with pytest.raises(StoreError, match="damaged"):
        Dictionary.load(path)


def test_a_file_without_directions_or_with_whole_numbers_is_refused(tmp_path: Path):
    for tensors in ({"offset": draw(3)}, {"directions": torch.ones(3, 4, dtype=torch.int64)}):
        save_file(tensors, tmp_path / "x.safetensors", metadata=META)
        with pytest.raises(StoreError, match="damaged"):
            Dictionary.load(tmp_path / "x.safetensors")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(StoreError, match="could not be written"):
        Dictionary(draw(3, 4)).save(tmp_path)
    assert not list(tmp_path.parent.glob("*partial*"))
