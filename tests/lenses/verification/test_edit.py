"""Finding, sorting and removing units by their descriptions: grep, plain loops and a network whose answer is known."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from netloupe.core.errors import InputError, SiteError
from netloupe.core.training import accuracy
from netloupe.lenses.verification.audit import (
    find_units,
    n_content_words,
    n_tagged,
    parse_depth,
    similarity_to,
    sort_units,
    word_spread,
)
from netloupe.lenses.verification.edit import ablation_curve, edit_by_description, without

TEXTS = ["Texture of grass", "the letter A", "text on a sign", "", "letters.", "a red-and-blue contextual thing"]


def test_find_units_is_grep(tmp_path):
    table = tmp_path / "table.txt"
    table.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    for words in (["text"], ["letter", "sign"], ["a"], ["red-and"], ["."]):
        command = ["grep", "-n", "-i", "-F", *[part for word in words for part in ("-e", word)], str(table)]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        assert find_units(TEXTS, words).tolist() == [int(line.split(":")[0]) - 1 for line in lines]
        command.insert(1, "-w")
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        if words != ["."]:
            assert find_units(TEXTS, words, "word").tolist() == [int(line.split(":")[0]) - 1 for line in lines]
    assert find_units(TEXTS, "TEXT").tolist() == [0, 2, 5]
    assert find_units([], "x").tolist() == []
    with pytest.raises(InputError, match="not empty"):
        find_units(TEXTS, [" "])


def test_sort_units():
    assert sort_units(TEXTS, "words").tolist() == [5, 2, 0, 1, 4, 3]
    assert sort_units(TEXTS, "words", largest_first=False).tolist() == [3, 4, 0, 1, 2, 5]
    assert n_content_words("the red and the Red of a striped circle") == 3
    assert sort_units(TEXTS, "characters")[0] == 5
    assert sort_units(["b", "a", "c"], lambda text: float(ord(text))).tolist() == [2, 0, 1]
    space = {"red": np.array([1.0, 0]), "blue": np.array([0.0, 2]), "pink": np.array([0.9, 0.1])}
    spread = word_spread(space.get)
    assert spread("red and blue") == pytest.approx(np.sqrt(5))
    assert spread("unknown red") == 0
    near = similarity_to("red", space.get)
    assert sort_units(["blue", "pink blue", "nothing", "RED"], near).tolist() == [3, 1, 0, 2]
    with pytest.raises(InputError, match="no vector"):
        similarity_to("green", space.get)
    with pytest.raises(InputError, match="criterion is 'size'"):
        sort_units(TEXTS, "size")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NaN"):
        sort_units(TEXTS, lambda _: float("nan"))


def nlp(text: str):
    """Each word hangs on the one before it; words in -ing are verbs."""
    tokens = [
        SimpleNamespace(i=i, pos_="VERB" if word.endswith("ing") else "NOUN") for i, word in enumerate(text.split())
    ]
    for at, token in enumerate(tokens):
        token.head = tokens[max(0, at - 1)]
    return tokens


def test_tagged_criteria():
    texts = ["dog", "dog eating food", "dog running eating"]
    assert sort_units(texts, n_tagged("VERB", nlp)).tolist() == [2, 1, 0]
    assert sort_units(texts, n_tagged("NOUN", nlp)).tolist() == [1, 0, 2]
    assert parse_depth(nlp)("a b c d") == 3
    assert parse_depth(nlp)("") == 0


def voting() -> nn.Sequential:
    """Four units that vote: two for the true class, one for a misleading cue, one that says nothing."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0], [0, 0, 0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 0, 1.0, 0], [0, 1.0, 0, 0]]))
    return model


INPUTS = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 2.0, 1.0], [1.0, 0, 1.0]])
LABELS = torch.tensor([0, 1, 1, 0])
UNITS = [("1", unit) for unit in range(4)]


def right(network: nn.Module) -> float:
    return accuracy(network, INPUTS, LABELS)


def test_ablation_curve_against_a_loop():
    model = voting()
    order = [("1", 2), ("1", 0), ("1", 1), ("1", 3)]
    curve = ablation_curve(model, order, right, steps=[0, 1, 2, 3, 4], random=3)
    plain = []
    for n in range(5):
        with torch.no_grad():
            hidden = model[:2](INPUTS)
            hidden[:, [unit for _, unit in order[:n]]] = 0
            plain.append(float((model[2](hidden).argmax(1) == LABELS).float().mean()))
    assert curve.values.tolist() == plain
    assert plain[:2] == [0.75, 1.0]
    assert curve.values[0] == right(model)
    assert (curve.random[:, 0] == right(model)).all()
    assert (curve.random[:, 4] == plain[4]).all()
    assert curve.counts.tolist() == [0, 1, 2, 3, 4]
    assert curve.summary()["lost"] == pytest.approx(plain[0] - plain[4])
    assert ablation_curve(model, order, right, random=0).counts.tolist() == [0, 1]  # 20 % of four units
    shares = ablation_curve(model, order[:1], right, steps=[0, 0.25], among=UNITS, random=2)
    assert shares.values.tolist() == [0.75, 1.0]
    axes = Figure().subplots()
    curve.plot(axes)
    assert len(axes.lines) == 3 + 2
    assert set(curve.summary()) == set(curve.meanings)
    again = ablation_curve(model, order, right, steps=[0, 1, 2, 3, 4], random=3)
    assert again == curve
    for wrong, word in (
        ((order[:1], [0, 2]), "2 units were to go"),
        (([], [0]), "holds 0"),
        ((order + order[:1], [0]), "each once"),
    ):
        with pytest.raises(InputError, match=word):
            ablation_curve(model, wrong[0], right, steps=wrong[1])
    with pytest.raises(InputError, match="steps must"):
        ablation_curve(model, order, right, steps=[-1])
    with pytest.raises(SiteError):
        ablation_curve(model, [("nowhere", 0)], right, steps=[0, 1])
    with pytest.raises(InputError, match="unit"):
        ablation_curve(model, [("1", 9)], right, steps=[0, 1], random=0)


def test_mean_instead_of_zero():
    model, seen = voting(), []

    def look(network: nn.Module) -> float:
        seen.append(network(INPUTS).detach())
        return 0.0

    ablation_curve(
        model, [("1", 2)], look, steps=[1], random=0, to="mean", reference={"1": torch.tensor([0.0, 0, 1.5, 0])}
    )
    with torch.no_grad():
        hidden = model[:2](INPUTS)
        hidden[:, 2] = 1.5
    torch.testing.assert_close(seen[-1], model[2](hidden))
    assert len(without([("1", 2), ("1", 0), ("3", 1)])) == 2
    with pytest.raises(InputError, match="zero or mean"):
        without([("1", 2)], to="noise")  # type: ignore[arg-type]


def test_edit_by_description():
    model, texts = voting(), ["circles", "Letter-like circles", "letters", "background letters"]
    told = edit_by_description(model, UNITS, texts, "letter", right, right, random=4)
    assert told.candidates.tolist() == [2, 3, 1]  # 1.0, .75 and .5 right with each alone off
    assert told.alone.tolist() == [1.0, 0.75, 0.5]
    assert told.test[:2].tolist() == [0.75, 1.0]
    assert told.test[0] == right(model)
    assert told.random.shape == (4, 4)
    assert told.summary()["gain"] == pytest.approx(told.test[-1] - told.test[0])
    told.plot(Figure().subplots())
    assert set(told.summary()) == set(told.meanings)
    few = edit_by_description(model, UNITS, texts, "letter", right, right, max_units=1)
    assert few.candidates.tolist() == [2]
    assert few.summary()["gain"] == pytest.approx(0.25)
    blind = edit_by_description(model, UNITS, ["", "letter", "", ""], "letter", right, right, among="all")
    assert blind.candidates.tolist() == [2]
    none = edit_by_description(model, UNITS, texts, "sign", right, right)
    assert none.candidates.tolist() == []
    assert none.summary()["gain"] == 0
    with pytest.raises(InputError, match="4 units with 2"):
        edit_by_description(model, UNITS, texts[:2], "letter", right, right)
