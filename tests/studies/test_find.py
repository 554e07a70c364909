"""The FIND study: its smallest run."""

from __future__ import annotations

import pytest

from netloupe.core.errors import InputError
from netloupe.core.study import run_study


def test_smoke_verdicts():
    found = {claim.name: claim for claim in run_study("find", "smoke", seed=0).claims}
    assert len(found) == 11
    for name in (
        "true to the distribution",
        "truth is the function",
        "a constant succeeds",
        "composition is harder",
        "hints describe",
    ):
        assert found[name].verdict == "reproduced", name
    assert found["truth is the function"].measured == 1
    with pytest.raises(InputError, match="preset"):
        run_study("find", "huge")  # type: ignore[arg-type]
