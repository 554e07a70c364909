"""The regression test of features: what passes, what fails and says why, in Python, in pytest and on the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import comparison_networks
import pytest
import torch
from torch import nn

from netloupe.cli import execute
from netloupe.core.errors import InputError
from netloupe.core.recording import record
from netloupe.data.digits import digits
from netloupe.models.small import DigitsCNN
from netloupe.report.gate import gate
from netloupe.report.policy import DEFAULT, read_policy

NETWORKS = "comparison_networks"
pytest_plugins = ["pytester"]


def policy(**rule) -> dict:
    return {"rule": [rule]}


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = digits()
    return images[:240], labels[:240]


def test_a_network_passes_against_itself_and_one_that_moved_fails_with_a_reason(data, tmp_path: Path):
    plain, moved = comparison_networks.plain(), comparison_networks.moved()
    same = gate(plain, copy.deepcopy(plain), None, data, cache=tmp_path)
    assert same.passed
    assert "checks passed" in same.reason()
    found = gate(plain, moved, None, data, cache=tmp_path)
    assert not found.passed
    broken = {(check.site, check.rule.lens.name) for check in found.checks if not check.passed}
    assert ("act1", "similarity.cka") in broken
    assert ("act1", "activity.sparsity") in broken
    assert not {site for site, _ in broken} & {"flatten"}, "what did not move is not blamed"
    dead = next(check for check in found.checks if check.number == "dead_fraction" and check.site == "act1")
    assert dead.candidate is not None
    assert dead.baseline is not None
    assert dead.candidate - dead.baseline == pytest.approx(2 / 24, abs=1 / 24 + 1e-9)
    assert "a rise of at most 0.02" in found.reason()
    json.dumps(found.document(), allow_nan=False)


@pytest.mark.parametrize(
    ("bound", "before", "after", "holds"),
    [
        ({"min": 0.5}, 0.9, 0.5, True),
        ({"min": 0.5}, 0.9, 0.49, False),
        ({"max": 0.5}, 0.9, 0.51, False),
        ({"max_rise": 0.1}, 0.2, 0.31, False),
        ({"max_rise": 0.1}, 0.9, 0.2, True),
        ({"max_fall": 0.1}, 0.9, 0.75, False),
        ({"max_fall": 0.1}, 0.2, 0.9, True),
        ({"max_change": 0.1}, 0.2, 0.05, False),
        ({"max_change": 0.2}, 0.2, 0.05, True),
        ({"max_relative_change": 1.5}, 10.0, 14.9, True),
        ({"max_relative_change": 1.5}, 15.1, 10.0, False),
        ({"max_relative_change": 1.5}, 1.0, -1.0, False),
    ],
)
def test_every_bound(bound, before: float, after: float, holds: bool):
    rule = read_policy(policy(lens="sparsity", **bound))[0]
    assert (not rule.broken(before, after)) == holds


def test_a_recording_is_held_against_a_network_read_in_the_same_way(data, tmp_path: Path):
    torch.manual_seed(0)
    model = DigitsCNN().eval()
    for pool in ("mean", "none", "max"):
        record(model, data, ["relu*", "head"], to=tmp_path / pool, pool=pool)
        found = gate(
            tmp_path / pool, copy.deepcopy(model), None, data, sites=("relu*", "head"), cache=tmp_path / "cache"
        )
        assert found.passed, found.reason()
        for check in found.checks:
            if check.baseline is not None:
                assert check.candidate == pytest.approx(check.baseline, rel=1e-6)
    assert gate(tmp_path / "mean", tmp_path / "mean").passed
    with pytest.raises(InputError, match="pooled differently"):
        gate(tmp_path / "mean", tmp_path / "max")


def test_what_could_not_be_looked_at_does_not_pass(data, tmp_path: Path):
    plain = comparison_networks.plain()
    other = nn.Sequential()
    other.flatten, other.fc1, other.head = nn.Flatten(), nn.Linear(64, 24), nn.Linear(24, 10)
    found = gate(plain, other, policy(lens="cka", min=-1.0), data, cache=tmp_path)
    assert [check.site for check in found.checks if not check.passed] == ["act1"]
    assert "no such site" in found.reason()
    unlabelled = gate(plain, plain, policy(lens="neural_collapse", max=1e9), data[0], cache=tmp_path)
    assert not unlabelled.passed
    assert "needs labels" in unlabelled.reason()
    allowed = gate(plain, plain, policy(lens="neural_collapse", max=1e9, required=False), data[0], cache=tmp_path)
    assert allowed.passed
    silent = copy.deepcopy(plain)
    with torch.no_grad():
        silent.fc1.bias.fill_(-1e3)  # type: ignore[union-attr]
    rule = policy(lens="cka", min=0.5, sites="act1", required=False)
    assert not gate(plain, silent, rule, data, cache=tmp_path).passed, "an answer that is lost is a change"


def test_the_default_policy_is_one_that_can_be_written_to_a_file(tmp_path: Path):
    (tmp_path / "policy.toml").write_text(DEFAULT)
    rules = read_policy(tmp_path / "policy.toml")
    assert [(rule.lens.name, rule.bounds) for rule in rules] == [
        (rule.lens.name, rule.bounds) for rule in read_policy(None)
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no list of rules"),
        ("[[rule]\n", "not valid TOML"),
        ("other = 1\n[[rule]]\nlens = 'cka'\nmin = 1", "nothing else"),
        ("[[rule]]\nlens = 'ckaa'\nmin = 1", "no lens 'ckaa'"),
        ("[[rule]]\nmin = 1", "names no lens"),
        ("[[rule]]\nlens = 'cka'", "no bound"),
        ("[[rule]]\nlens = 'cka'\nmin = 'a lot'", "is no number"),
        ("[[rule]]\nlens = 'cka'\nmax_rise = 1", "only min and max"),
        ("[[rule]]\nlens = 'sparsity'\nmax_rice = 1", "max_rice"),
        ("[[rule]]\nlens = 'sparsity'\nmin = 1\nsites = 3", "names or globs"),
        ("[[rule]]\nlens = 'ppl_sparsity'\nmin = 1", "a whole network"),
    ],
)  # fmt: skip
def test_bad_policies_are_one_sentence(text: str, sentence: str, tmp_path: Path):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(InputError, match=sentence) as raised:
        read_policy(tmp_path / "policy.toml")
    assert "\n" not in str(raised.value)


def test_rules_that_miss_are_refused(data, tmp_path: Path):
    plain = comparison_networks.plain()
    with pytest.raises(InputError, match="concerns no site"):
        gate(plain, plain, policy(lens="cka", min=0.5, sites="layer*"), data, cache=tmp_path)
    with pytest.raises(InputError, match="no number 'dead'"):
        gate(plain, plain, policy(lens="sparsity", number="dead", max=1.0), data, cache=tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        gate(plain, plain, tmp_path / "nothing.toml", data, cache=tmp_path)


def test_the_command_exits_with_0_1_or_2(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NETLOUPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "policy.toml").write_text("[[rule]]\nlens = 'cka'\nmin = 0.95\nsites = ['act1', 'head']\n")
    rest = ["digits", "--samples", "120", "--policy", str(tmp_path / "policy.toml")]
    assert execute(["gate", f"{NETWORKS}:plain", f"{NETWORKS}:shuffled", *rest]) == 0
    assert "2 checks passed" in capsys.readouterr().out
    assert execute(["gate", f"{NETWORKS}:plain", f"{NETWORKS}:moved", *rest]) == 1
    assert "the policy asks for at least 0.95" in capsys.readouterr().out
    assert execute(["gate", f"{NETWORKS}:plain", f"{NETWORKS}:moved", *rest, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert (
        execute(["gate", f"{NETWORKS}:plain", f"{NETWORKS}:moved", "digits", "--policy", str(tmp_path / "no.toml")])
        == 2
    )
    assert "cannot be read" in capsys.readouterr().err


def test_the_pytest_fixture_fails_a_test_with_the_reason(pytester: pytest.Pytester):
    pytester.syspathinsert(str(Path(__file__).parent))
    pytester.makepyfile(
        """
        import comparison_networks
        from netloupe.data.digits import digits

        IMAGES, LABELS = (each[:150] for each in digits())

        def test_stays(feature_gate):
            model = comparison_networks.plain()
            assert feature_gate(model, model, data=(IMAGES, LABELS)).passed

        def test_moves(feature_gate):
            rule = {"rule": [{"lens": "cka", "min": 0.95}]}
            feature_gate(comparison_networks.plain(), comparison_networks.moved(), rule, (IMAGES, LABELS))
        """
    )
    result = pytester.runpytest_inprocess("-p", "netloupe.testing", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*moved too far from*", "*act1: similarity.cka cka of candidate and baseline is*"])
