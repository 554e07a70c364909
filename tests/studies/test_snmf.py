"""The snmf study: planted material that means what it says, and the claims of its smallest run."""

from __future__ import annotations

import numpy as np
import pytest

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.studies._snmf_planted import CORE, MEMBERS, OWN, Sizes, families, planted
from netloupe.studies._snmf_text import best_codes, sentences


def test_smoke_verdicts():
    verdicts = {claim.name: claim.verdict for claim in run_study("snmf", "smoke", seed=1).claims}
    assert len(verdicts) == 10
    for name in ("recovery", "group-size"):
        assert verdicts[name] == "reproduced", name
    for name in ("topics", "near-sae", "above-pca"):
        assert verdicts[name] == "not tested"
    with pytest.raises(InputError, match="preset"):
        run_study("snmf", "huge")  # type: ignore[arg-type]


def test_planted_material():
    true, x = planted(Sizes(d=60, n=300, k=5, own=6), 0)
    assert (np.count_nonzero(true, axis=1) == 6).all()
    codes = np.linalg.lstsq(true.T, x.T, rcond=None)[0].T
    assert 0.1 < (codes > 0.1).mean() < 0.2
    assert np.std(x - codes @ true) == pytest.approx(0.02, rel=0.1)
    true, family, _ = families(0, 50)
    support = true != 0
    shared = support.astype(int) @ support.T.astype(int)
    same = family[:, None] == family[None]
    assert (shared[same & ~np.eye(len(true), dtype=bool)] == CORE).all()
    assert (shared[~same] == 0).all()
    assert (support.sum(1) == CORE + OWN).all()
    assert len(true) == 4 * MEMBERS


def test_the_best_code_is_chosen_on_other_tokens():
    rng = np.random.default_rng(0)
    labels, test = rng.integers(0, 2, 400), np.arange(400) % 2 == 1
    codes = rng.standard_normal((400, 3))
    codes[:, 1] -= 9 * (labels == 1)  # its sign is found as well
    codes[test, 2] += 9 * (labels[test] == 1)  # tells only where it may not be looked at
    np.testing.assert_allclose(best_codes(codes, labels, test), 1)
    topics = sentences(3, 5)
    assert [len(texts) for texts in topics] == [5, 5, 5]
    assert all(40 <= len(text) <= 200 for texts in topics for text in texts)
