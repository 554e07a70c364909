"""The local-interaction-basis study: its networks, its controls, and the claims of its smallest run."""

from __future__ import annotations

import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.studies._local_interaction_basis_networks import (
    addition_network,
    kept_information,
    needed,
    rotated,
    with_noise,
)


def test_smoke_verdicts():
    verdicts = {claim.name: claim.verdict for claim in run_study("local-interaction-basis", "smoke", seed=1).claims}
    assert len(verdicts) == 10
    for name in ("blocks-purity", "blocks-edges", "addition-edges", "hidden-dimensions", "noise-inputs"):
        assert verdicts[name] == "reproduced", name
    assert verdicts["language-model"] == "not tested"
    with pytest.raises(InputError, match="preset"):
        run_study("local-interaction-basis", "huge")  # type: ignore[arg-type]


def test_rotated_features_span_the_same():
    network = addition_network(5, 12, 60, 0)
    basis = network.basis("jacobian")
    turned = rotated(basis, 0, 1)
    x = network.acts[0]
    torch.testing.assert_close(turned.decode(0, turned.encode(0, x)), basis.decode(0, basis.encode(0, x)))
    assert not torch.allclose(turned.encode(0, x), basis.encode(0, x), atol=0.1)
    noisy = with_noise(network, 0)
    torch.testing.assert_close(noisy.maps[0](noisy.acts[0]), network.acts[1])
    score = kept_information(network)
    assert score(network.acts[-1]) == pytest.approx(0, abs=1e-12)
    assert score(network.acts[-1] + torch.randn(25, 5, dtype=torch.float64)) < -0.01
    few, many = (sum(needed(network, basis, score, tolerance)) for tolerance in (0.5, 0.001))
    assert few < many
