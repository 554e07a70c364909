"""What the tests of single studies ask of their smoke preset alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from netloupe.core.study import Claim, StudyResult


def _whole(result: StudyResult, names: Sequence[str], reproduced: Sequence[str]) -> dict[str, Claim]:
    assert [claim.name for claim in result.claims] == list(names)
    for claim in result.claims:
        assert claim.measured is not None, claim.name
        assert claim.control_is_negative, claim.name
    by_name = {claim.name: claim for claim in result.claims}
    for name in reproduced:
        assert by_name[name].verdict == "reproduced", name
    return by_name


@pytest.fixture
def whole() -> Callable[[StudyResult, Sequence[str], Sequence[str]], dict[str, Claim]]:
    """These claims in this order, all measured, no control that shows the effect, and some reproduced: the claims by name."""
    return _whole
