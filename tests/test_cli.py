"""The command line: one JSON document, one sentence for bad input, exit statuses, and being interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from netloupe.cli import execute
from netloupe.core.store import Store

PROGRAM = [sys.executable, "-m", "netloupe.cli"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_folders(cache, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("NETLOUPE_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = execute(list(arguments))
    found = capsys.readouterr()
    return status, found.out, found.err


def document(capsys, *arguments: str):
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def sentence(capsys, *arguments: str) -> str:
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert lines[-1].startswith("netloupe: ")
    assert "Traceback" not in err
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 2
    assert json.loads(out)["error"] == lines[-1].removeprefix("netloupe: ")
    return lines[-1]


def test_inspect_writes_a_report_and_says_what_it_found(capsys, tmp_path):
    found = document(capsys, "inspect", "digits-mlp", "digits", "--samples", "200", "-o", str(tmp_path / "r"))
    assert set(found) >= {"subject", "sites", "findings", "report"}
    names = [site["name"] for site in found["sites"]]
    assert names[:3] == ["flatten", "fc1", "act1"] or names[0] == "fc1"
    asked = {(row["lens"], row["site"]) for row in found["findings"]}
    assert ("activity.sparsity", "act1") in asked
    assert ("geometry.neural_collapse", "act2") in asked
    assert any(lens == "similarity.cka" for lens, _ in asked)
    assert all(isinstance(value, (int, float)) for row in found["findings"] for value in row["summary"].values())
    assert Path(found["report"]).read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    started = time.perf_counter()
    again = document(capsys, "inspect", "digits-mlp", "digits", "--samples", "200", "-o", str(tmp_path / "r"))
    print(f"again: {time.perf_counter() - started:.1f} s")
    assert again == found
    part = document(
        capsys,
        "inspect",
        "digits-mlp",
        "--samples",
        "99",
        "--sites",
        "act*",
        "--lenses",
        "sparsity",
        "-o",
        str(tmp_path / "p"),
    )
    assert [site["name"] for site in part["sites"]] == ["act1", "act2"]
    assert {row["lens"] for row in part["findings"]} == {"activity.sparsity"}
    status, out, _ = run(capsys, "inspect", "digits-mlp", "--samples", "99", "-o", str(tmp_path / "p"))
    assert status == 0
    assert "report: " in out
    assert "act1" in out


def test_record_show_verify_compare(capsys, tmp_path):
    for name in ("a", "b"):
        recipe = {"a": "digits-mlp", "b": "digits-cnn"}[name]
        found = document(
            capsys, "record", recipe, "digits", "--to", str(tmp_path / name), "--samples", "60", "--sites", "head", "f*"
        )
        assert found["samples"] == 60
    assert document(capsys, "store", "show", str(tmp_path / "a"))["samples"] == 60
    assert document(capsys, "store", "verify", str(tmp_path / "a"))["problems"] == []
    compared = document(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    heads = next(row for row in compared["similarity"] if row["site_a"] == row["site_b"] == "head")
    assert 0.5 < heads["cka"]["value"] <= 1
    assert heads["cka"]["low"] <= heads["cka"]["value"] <= heads["cka"]["high"]
    assert Path(compared["report"]).is_file()
    named = document(
        capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--lenses", "cka", "--measures", "rsa"
    )
    assert {"similarity.cka"} <= {row["lens"] for row in named["findings"]}
    assert "head" in run(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"))[1]
    shard = sorted((tmp_path / "a").rglob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert shard.name in sentence(capsys, "store", "verify", str(tmp_path / "a"))


def test_pooling_and_dtype_reach_the_store(capsys, tmp_path):
    document(capsys, "record", "digits-cnn", "--to", str(tmp_path / "s"), "--samples", "20", "--sites", "relu1",
             "--pool", "mean", "--dtype", "bfloat16")  # fmt: skip
    store = Store(tmp_path / "s")
    assert store["relu1"].shape == (20, 16)
    assert store["relu1"][:2].dtype == torch.bfloat16


def test_studies_and_study(capsys, tmp_path):
    rows = document(capsys, "studies")
    assert len(rows) == 75
    assert set(rows[0]) == {"slug", "title", "year", "area", "question", "implemented"}
    assert {row["slug"] for row in rows if row["implemented"]} >= {"lazy-neuron", "neural-collapse"}
    assert [row["slug"] for row in document(capsys, "studies", "lazy", "neuron")] == ["lazy-neuron"]
    assert document(capsys, "studies", "nothinglikethis") == []
    found = document(capsys, "study", "neural-collapse", "--preset", "smoke", "--seed", "1", "-o", str(tmp_path / "s"))
    assert (found["slug"], found["preset"], found["seed"]) == ("neural-collapse", "smoke", 1)
    assert found["seconds"] > 0
    for claim in found["claims"]:
        assert set(claim) >= {"claim", "measured", "bar", "control", "verdict", "note"}
        assert claim["verdict"] in ("reproduced", "not reproduced", "not distinguishable", "not tested")
    assert json.loads((tmp_path / "s" / "neural-collapse.json").read_text()) == found
    assert (tmp_path / "s" / "neural-collapse.png").stat().st_size > 1000


def test_train_writes_weights_that_can_be_inspected(capsys, tmp_path):
    found = document(capsys, "train", "digits-mlp", "-o", str(tmp_path / "n"))
    assert found["test_accuracy"] > 0.85
    assert Path(found["weights"]).is_file()


def test_bad_input_is_one_sentence_and_writes_nothing(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert "did you mean 'act1'" in sentence(capsys, "inspect", "digits-mlp", "--sites", "akt1", "--samples", "9")
    assert "there is no lens" in sentence(capsys, "inspect", "digits-mlp", "--lenses", "nolens", "--samples", "9")
    assert "could not be loaded" in sentence(capsys, "inspect", "no-such-network")
    assert "does not exist" in sentence(capsys, "record", "digits-mlp", "no.npz", "--to", str(tmp_path / "s"))
    assert "is a file" in sentence(capsys, "record", "digits-mlp", "--to", str(tmp_path / "file"))
    assert "is a file" in sentence(capsys, "inspect", "digits-mlp", "-o", str(tmp_path / "file"))
    assert "--samples is 0" in sentence(capsys, "inspect", "digits-mlp", "--samples", "0")
    assert "there is no recipe" in sentence(capsys, "train", "nothing")
    assert "there is no study" in sentence(capsys, "study", "nothing")
    assert "not part of this version" in sentence(capsys, "study", "volsdf")
    sentence(capsys, "store", "show", str(tmp_path / "nothing"))
    sentence(capsys, "compare", str(tmp_path / "nothing"), str(tmp_path / "nothing"))
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_words_exit_with_2(capsys):
    for arguments in (
        ["nonsense"],
        ["inspect", "--nonsense"],
        ["study", "lazy-neuron", "--preset", "huge"],
        ["record", "digits-mlp"],
        [],
    ):
        status, out, err = run(capsys, *arguments)
        assert status == 2, arguments
        assert "Traceback" not in out + err
        assert out == ""


def test_ctrl_c_exits_130_and_the_recording_resumes_to_the_same_bytes(tmp_path, cache):
    module = tmp_path / "slowly.py"
    module.write_text(
        "import time, torch\n"
        "torch.manual_seed(0)\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())\n"
        "x = torch.randn(400, 4)\n"
        "class Data:\n"
        "    pause = 0.0\n"
        "    def __iter__(self):\n"
        "        for i in range(0, 400, 10):\n"
        "            time.sleep(self.pause)\n"
        "            yield x[i:i + 10]\n"
        "import os\n"
        "data = Data()\n"
        "data.pause = float(os.environ.get('PAUSE', '0'))\n"
    )
    environment = {**os.environ, "NETLOUPE_CACHE": str(cache)}
    arguments = [*PROGRAM, "record", "slowly:net", "slowly:data", "--rows-per-shard", "32", "--json", "--to"]
    process = subprocess.Popen(
        [*arguments, str(tmp_path / "cut")], env={**environment, "PAUSE": "0.2"}, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.time() + 120
    while not list((tmp_path / "cut").glob("commits/*.json")) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == b""
    assert b"Traceback" not in err
    for folder, more in (("cut", ["--resume"]), ("whole", [])):
        subprocess.run(
            [*arguments, str(tmp_path / folder), *more], env=environment, cwd=tmp_path, check=True, capture_output=True
        )
    files = [
        {str(p.relative_to(tmp_path / f)): p.read_bytes() for p in (tmp_path / f).rglob("*") if p.is_file()}
        for f in ("cut", "whole")
    ]
    assert files[0] == files[1]
