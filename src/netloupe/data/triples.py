"""Facts as triples (subject, relation, object): files of the LRE kind, splits by subject, and planted relations.

The files are those of Hernandez et al., arXiv 2308.09124: one JSON a relation with ``name``, ``prompt_templates`` and ``samples``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from netloupe.core.errors import InputError, SubjectError


@dataclass(frozen=True)
class Relation:
    """One relation: its name, prompt templates with ``{}`` for the subject, and pairs (subject, object)."""

    name: str
    templates: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def load_lre(folder: str | Path, min_pairs: int = 1) -> list[Relation]:
    """Every relation under ``folder`` with at least ``min_pairs`` facts, by name; SubjectError for files that cannot be read."""
    root = Path(folder)
    files = sorted(root.rglob("*.json")) if root.is_dir() else []
    if not files:
        raise SubjectError(f"'{folder}' holds no JSON files of relations; give the folder that does")
    found = []
    for path in files:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            templates = [*document.get("prompt_templates_zs", ()), *document.get("prompt_templates", ())]
            pairs = tuple((str(one["subject"]), str(one["object"])) for one in document["samples"])
            found.append(Relation(str(document["name"]), tuple(dict.fromkeys(map(str, templates))), pairs))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SubjectError(
                f"'{path.name}' is no file of a relation (name, prompt_templates, samples): {error}"
            ) from None
    return sorted((one for one in found if len(one.pairs) >= min_pairs), key=lambda one: one.name)


def subject_split(
    subjects: Sequence[object] | np.ndarray, n_eval: int = 50, random_state: int = 0
) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " judged"]]:
    """Rows to rank on and rows to judge on, with no subject in both: all rows of ``n_eval`` random subjects are judged on.

    Raises InputError where no subject would be left to rank on.
    """
    names = np.asarray([str(subject) for subject in subjects])
    known = np.unique(names)
    if not 0 < n_eval < len(known):
        raise InputError(
            f"{n_eval} subjects to judge on were asked for, and there are {len(known)}; leave some to rank on"
        )
    drawn = np.random.default_rng(random_state).choice(known, n_eval, replace=False)
    judged = np.isin(names, drawn)
    return np.flatnonzero(~judged), np.flatnonzero(judged)


def require_disjoint_subjects(one: Sequence[object] | np.ndarray, other: Sequence[object] | np.ndarray) -> None:
    """InputError where a subject is in both: the classic leak."""
    common = {str(subject) for subject in one} & {str(subject) for subject in other}
    if common:
        raise InputError(
            f"{len(common)} subjects are in both splits, such as '{min(common)}'; split by subject (subject_split)"
        )


@dataclass(frozen=True)
class PlantedRelations:
    """Facts in an invented language, every prompt five tokens long.

    ``prompts`` int64 ``(fact, 5)``, ``answers``, ``relations``, ``subjects`` and ``templates`` int64 ``(fact,)``; ``objects`` int64
    ``(relation, object)``: the tokens that may answer a relation. ``vocab``: number of tokens.
    """

    prompts: Int[Tensor, "fact position"]
    answers: Int[Tensor, " fact"]
    relations: Int[Tensor, " fact"]
    subjects: Int[Tensor, " fact"]
    templates: Int[Tensor, " fact"]
    objects: Int[Tensor, "relation object"]
    vocab: int

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, chosen: Tensor) -> PlantedRelations:
        """Some of the facts, by flags or numbers."""
        parts = (self.prompts, self.answers, self.relations, self.subjects, self.templates)
        prompts, answers, relations, subjects, templates = (part[chosen] for part in parts)
        return PlantedRelations(prompts, answers, relations, subjects, templates, self.objects, self.vocab)


# Where subject (S), the relation's word (R) and a template's own three words stand.
_ORDERS = ("WRWSW", "SWRWW", "WWSRW")


def synthetic_relations(
    n_relations: int = 8,
    n_subjects: int = 120,
    n_objects: int = 12,
    n_templates: int = 3,
    seed: int = 0,
    *,
    shared: Sequence[tuple[int, int]] = (),
) -> PlantedRelations:
    """Random facts: every subject has an object in every relation, asked in every template.

    Subjects are the same in all relations, so a subject's token says nothing of the relation. A relation has its own objects and,
    in each template, a word of its own, so wordings share no token but the subject. The second relation of a pair in ``shared``
    has the objects and the facts of the first. Facts are drawn uniformly, so they can only be learned by heart.

    Raises InputError for sizes below 1, more than three templates, or a pair of relations that are not there.
    """  # fmt: skip
    if min(n_relations, n_subjects, n_objects, n_templates) < 1 or n_templates > len(_ORDERS):
        raise InputError(
            f"sizes are {n_relations, n_subjects, n_objects, n_templates}, expected positive ones and at most {len(_ORDERS)} templates"
        )
    if any(not (0 <= one < n_relations and 0 <= other < n_relations) for one, other in shared):
        raise InputError(f"shared is {list(shared)}, expected pairs of relations from 0 to {n_relations - 1}")
    draw = np.random.default_rng(seed)
    facts = draw.integers(0, n_objects, (n_relations, n_subjects))
    objects = n_subjects + np.arange(n_relations * n_objects).reshape(n_relations, n_objects)
    for one, other in shared:
        facts[other], objects[other] = facts[one], objects[one]
    words = n_subjects + n_relations * n_objects + np.arange(n_templates * (n_relations + 3)).reshape(n_templates, -1)
    template, relation, subject = (axis.ravel() for axis in np.indices((n_templates, n_relations, n_subjects)))
    prompts = np.empty((len(template), 5), dtype=np.int64)
    for index in range(n_templates):
        rows, n_words = template == index, 0
        for place, kind in enumerate(_ORDERS[index]):
            own = {"S": subject[rows], "R": words[index, relation[rows]]}
            prompts[rows, place] = own[kind] if kind in own else words[index, n_relations + n_words]
            n_words += kind == "W"
    answers = objects[relation, facts[relation, subject]]
    prompts, answers, relation, subject, template, objects = (
        torch.from_numpy(each.astype(np.int64)) for each in (prompts, answers, relation, subject, template, objects)
    )
    return PlantedRelations(prompts, answers, relation, subject, template, objects, int(words.max()) + 1)
