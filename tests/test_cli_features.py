"""The commands that learn a dictionary and show a feature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from netloupe.cli import execute
from netloupe.core.dictionary import Dictionary


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETLOUPE_CACHE", str(folder / "cache"))
        for maker, more in (("topk", ["--option", "k=4", "steps=80"]), ("pca", [])):
            given = [
                "dictionary",
                "digits-mlp",
                "-s",
                "act2",
                "--features",
                "12",
                "--maker",
                maker,
                "--samples",
                "200",
                *more,
            ]
            assert execute([*given, "-o", str(folder / f"{maker}.safetensors")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _cache(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETLOUPE_CACHE", str(learned / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_dictionary_knows_where_it_is_from_and_a_card_is_written(learned: Path, tmp_path: Path, capsys) -> None:
    made = Dictionary.load(learned / "topk.safetensors")
    assert (len(made), made.k, made.site) == (12, 4, "act2")
    capsys.readouterr()
    others = ["--others", str(learned / "pca.safetensors")]
    status = execute(
        ["feature", "digits-mlp", str(learned / "topk.safetensors"), "3", *others, "--samples", "200", "--json"]
    )
    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert document["feature"] == 3
    assert {n["dictionary"] for n in document["neighbours"]} == {"this dictionary", "pca"}
    assert [Path(f).suffix for f in document["files"]] == [".json", ".png"]
    assert all((tmp_path / f).is_file() for f in document["files"])
    assert "name" in document


def test_a_unit_has_a_card_too_and_ablating_it_is_setting_it_to_zero(capsys) -> None:
    capsys.readouterr()
    assert execute(["feature", "digits-mlp", "units", "5", "--site", "act1", "--samples", "100", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["made_by"] == "units"
    assert {n["cosine"] for n in document["neighbours"]} == {0.0}
    from netloupe.core.capture import run_all
    from netloupe.core.intervene import ablate, intervene
    from netloupe.core.losses import natural_loss
    from netloupe.subjects import load_data, load_model

    subject = load_model("digits-mlp")
    data = load_data(None, subject, 100)
    with intervene(subject.model, ablate("act1", units=[5])):
        losses = [
            (float(natural_loss(out, batch)), batch.n_samples) for out, batch in run_all(subject.model, data.batches)
        ]
    assert document["ablation"]["loss_without"] == pytest.approx(sum(a * n for a, n in losses) / 100, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["feature", "digits-mlp", "{}/topk.safetensors", "99"], "feature 99"),
        (["feature", "digits-mlp", "{}/none.safetensors", "0"], "cannot be read"),
        (["feature", "digits-mlp", "{}/cache", "0"], "cfg.json"),
        (["feature", "digits-mlp", "units", "0"], "needs --site"),
        (["dictionary", "digits-mlp", "-s", "act2", "-o", "{}"], "is a folder"),
        (["feature", "digits-mlp", "units", "0", "--site", "act*", "--samples", "50"], "names 2 sites"),
        (["dictionary", "digits-mlp", "-s", "nowhere", "-o", "x.safetensors"], "nowhere"),
        (["dictionary", "digits-mlp", "-s", "act2", "-o", "x.safetensors", "--option", "k"], "name=value"),
        (["dictionary", "digits-mlp", "-s", "act2", "-o", "x.safetensors", "--option", "kk=2"], "option 'kk'"),
        (["dictionary", "digits-mlp", "-s", "act2", "-o", "x.safetensors", "--samples", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(arguments: list[str], says: str, learned: Path, capsys) -> None:
    status = execute([part.format(learned) for part in arguments])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert said.startswith("netloupe: ")
    assert says in said
    assert not Path("x.safetensors").exists()
