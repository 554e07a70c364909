"""The activation-reasoning study: its preset's name and what its pieces promise."""

from __future__ import annotations

import numpy as np
import pytest

from netloupe.core.errors import InputError
from netloupe.data.logic_tasks import CONCEPTS
from netloupe.lenses.control.formula import And, Atom, Not, Or, Xor
from netloupe.studies._activation_reasoning_logic import table
from netloupe.studies._activation_reasoning_network import corpus, document, vocabulary
from netloupe.studies.activation_reasoning import run


def test_truth_tables():
    a, b = Atom("a"), Atom("b")
    assert table(And((a, b))).mean() == 0.25
    assert table(Or((a, Not(b)))).mean() == 0.75
    assert table(Xor(a, b)).mean() == 0.5


def test_every_word_of_the_corpus_has_a_number_and_documents_keep_to_their_concept():
    assert set(corpus(200, 3)) <= set(vocabulary())
    found = document(np.random.default_rng(0), "dog")
    first, last, concept = found.spans[0]
    assert found.words[first:last][0] in CONCEPTS[concept]


def test_another_preset_is_refused():
    with pytest.raises(InputError, match="preset is 'large'"):
        next(run("large"))  # type: ignore[arg-type]
