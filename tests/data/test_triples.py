"""Facts: files, splits by subject, and what the generator promises."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, SubjectError
from netloupe.data.stdlib_text import stdlib_topics
from netloupe.data.triples import load_lre, require_disjoint_subjects, subject_split, synthetic_relations


@pytest.mark.parametrize("seed", range(3))
def test_planted_relations_keep_their_promises(seed: int):
    facts = synthetic_relations(5, 20, 4, seed=seed, shared=[(1, 3)])
    assert facts.prompts.shape == (3 * 5 * 20, 5)
    assert facts.vocab == int(facts.prompts.max()) + 1
    assert int(facts.answers.max()) < facts.vocab
    by_key: dict[tuple[int, int], set[int]] = {}
    for relation, subject, answer in zip(facts.relations, facts.subjects, facts.answers, strict=True):
        by_key.setdefault((int(relation), int(subject)), set()).add(int(answer))
        assert int(answer) in facts.objects[relation]
    assert all(len(answers) == 1 for answers in by_key.values()), "wordings agree"
    assert all(by_key[1, subject] == by_key[3, subject] for subject in range(20))
    assert not set(facts.objects[0].tolist()) & set(facts.objects[1].tolist())
    words = [set(facts.prompts[facts.templates == t].unique().tolist()) - set(range(20)) for t in range(3)]
    assert not words[0] & words[1]
    assert not words[1] & words[2]
    assert (facts.prompts == facts.subjects[:, None]).any(1).all()
    for template in range(3):
        rows = facts.prompts[(facts.templates == template) & (facts.subjects == 0)]
        assert len(torch.unique(rows, dim=0)) == 5, "a relation has a word of its own"
    assert torch.equal(facts.prompts, synthetic_relations(5, 20, 4, seed=seed, shared=[(1, 3)]).prompts)


def test_split_by_subject():
    subjects = np.repeat(["a", "b", "c", "d", "e"], 4)
    fit, judge = subject_split(subjects, 2, 1)
    assert len(judge) == 8
    assert set(subjects[fit]) | set(subjects[judge]) == set("abcde")
    require_disjoint_subjects(subjects[fit], subjects[judge])
    with pytest.raises(InputError, match="in both splits"):
        require_disjoint_subjects(["a", "b"], ["b"])
    with pytest.raises(InputError, match="leave some"):
        subject_split(subjects, 5)


def test_relation_files(tmp_path):
    sample = {"name": "ceo", "prompt_templates": ["The CEO of {} is"], "samples": [{"subject": "A", "object": "B"}] * 3}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "ceo.json").write_text(json.dumps(sample))
    (found,) = load_lre(tmp_path)
    assert (found.name, found.templates, found.pairs) == ("ceo", ("The CEO of {} is",), (("A", "B"),) * 3)
    assert load_lre(tmp_path, min_pairs=4) == []
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(SubjectError, match=r"'bad\.json' is no file of a relation"):
        load_lre(tmp_path)
    with pytest.raises(SubjectError, match="holds no JSON files"):
        load_lre(tmp_path / "none")


def test_bad_sizes():
    with pytest.raises(InputError, match="expected positive ones"):
        synthetic_relations(0)
    with pytest.raises(InputError, match="at most 3 templates"):
        synthetic_relations(n_templates=4)
    with pytest.raises(InputError, match="pairs of relations from 0 to 2"):
        synthetic_relations(3, shared=[(0, 3)])


def test_topics_of_the_standard_library():
    texts, topics = stdlib_topics(("json", "email"), 5, 1)
    assert topics == [0] * 5 + [1] * 5
    assert len(set(texts)) == 10
    assert (texts, topics) == stdlib_topics(("json", "email"), 5, 1)
    with pytest.raises(InputError, match="ask for fewer"):
        stdlib_topics(("json",), 10_000)
