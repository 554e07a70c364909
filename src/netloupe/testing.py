"""A pytest fixture that keeps a network's features where they were. pytest finds it by itself where netloupe is installed.

def test_features_stay(feature_gate):
    feature_gate("baseline-recording", my_network(), policy="features.toml", data=(images, labels))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from netloupe.report.gate import GateResult


@pytest.fixture
def feature_gate(tmp_path: Any) -> Callable[..., GateResult]:
    """Calls :func:`netloupe.report.gate.gate` and fails the test with its reason where a rule is broken.

    Arguments as there: ``feature_gate(baseline, candidate, policy=None, data=None, ...)``. Returns the result where it passed.
    """

    def check(baseline: Any, candidate: Any, policy: Any = None, data: Any = None, **options: Any) -> GateResult:
        from netloupe.report.gate import gate

        found = gate(baseline, candidate, policy, data, **{"cache": tmp_path / "netloupe", **options})
        if not found.passed:
            pytest.fail(found.reason(), pytrace=False)
        return found

    return check
