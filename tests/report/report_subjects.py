"""Small networks and data to inspect: none is trained, none is fetched."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netloupe.core.identity import describe_model
from netloupe.models.small import DigitsCNN
from netloupe.report.html import render
from netloupe.report.inspection import Inspection, inspect
from netloupe.subjects import Data, Subject, load_data

HOSTILE = "<script>alert(1)</script>"
SECTIONS = ("overview", "network", "table", "similarity", "lenses", "provenance")
_PAGES: dict[int, tuple[Inspection, str]] = {}
VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}


def subject_of(model: nn.Module, name: str, tokenizer: Any = None) -> Subject:
    model.eval()
    return Subject(name, model, tokenizer, identity={"name": name, **describe_model(model)})


def digits_inspection(folder: Path, n_samples: int = 80) -> Inspection:
    torch.manual_seed(0)
    subject = subject_of(DigitsCNN(), "digits-cnn")
    return inspect(subject, load_data("digits", subject, n_samples), cache=folder)


class WordTokenizer:
    """Words by white space, numbered as they come; capital letters are pieces that continue the word before."""

    model_max_length = 32
    padding_side = "right"

    def __init__(self) -> None:
        self.words = ["[PAD]"]

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
        rows = [[self._number(word) for word in text.split()] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def _number(self, word: str) -> int:
        word = f"##{word.lower()}" if word.isupper() else word
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.words[index] for index in ids]


def text_inspection(folder: Path) -> Inspection:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40,
    )  # fmt: skip
    lines = [f"the small net ED number {i} reads {HOSTILE} and says {'so ' * (i % 5)}" for i in range(12)]
    path = folder / "lines.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    subject = subject_of(BertModel(config), "tiny-bert", WordTokenizer())
    return inspect(subject, load_data(str(path), subject), cache=folder)


def array_inspection(model: nn.Module, inputs: Tensor, folder: Path, name: str = "net", **options: Any) -> Inspection:
    """Any network on an array without labels."""
    batches = [inputs[start : start + 8] for start in range(0, len(inputs), 8)]
    data = Data("array", batches, "vector", len(inputs), identity={"name": "array", "samples": len(inputs)})
    return inspect(subject_of(model, name), data, cache=folder, **options)


def rendered(inspection: Inspection) -> str:
    """The report of an inspection, made once: most tests only read it."""
    if id(inspection) not in _PAGES:
        _PAGES[id(inspection)] = inspection, render(inspection)
    return _PAGES[id(inspection)][1]


class Page(HTMLParser):
    """Reads a report: checks that tags match, and keeps tags, ids, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def values(self, name: str, tag: str | None = None) -> list[str]:
        """Every value of one attribute, of one kind of element or all."""
        return [value for owner, given, value in self.attributes if given == name and tag in (None, owner)]
