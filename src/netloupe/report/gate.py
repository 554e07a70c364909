"""A regression test of features: did a re-trained or fine-tuned network's activations move more than a policy allows?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from netloupe.core.asking import Asked, ask_pair, ask_site
from netloupe.core.errors import InputError
from netloupe.core.finding import plain
from netloupe.core.lens import Lens
from netloupe.report.parties import Party, load_parties, pooled
from netloupe.report.policy import Rule, read_policy


@dataclass(frozen=True)
class Check:
    """One rule at one site. ``baseline`` is None for a lens that compares; both are None where it has no answer (``why``)."""

    rule: Rule
    site: str
    number: str
    baseline: float | None
    candidate: float | None
    passed: bool
    why: str = ""

    def sentence(self) -> str:
        """What was found and what the policy asks for."""
        what = f"{self.site}: {self.rule.lens.name} {self.number}".rstrip()
        if self.candidate is None:
            return f"{what}: {self.why}"
        if self.baseline is None:
            return f"{what} of candidate and baseline is {self.candidate:.4g}, the policy asks for {self.why}"
        return f"{what} went from {self.baseline:.4g} to {self.candidate:.4g}, the policy asks for {self.why}"


@dataclass(frozen=True)
class GateResult:
    """Every check, in the order of the policy. ``passed``: no rule is broken."""

    baseline: str
    candidate: str
    n_samples: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def reason(self) -> str:
        """Why it failed, a line for each broken rule and site; or that it passed."""
        broken = [check.sentence() for check in self.checks if not check.passed]
        if not broken:
            return f"{len(self.checks)} checks passed: '{self.candidate}' stays within the policy of '{self.baseline}'"
        lines = "\n".join(f"- {sentence}" for sentence in broken)
        return f"{len(broken)} of {len(self.checks)} checks failed: '{self.candidate}' moved too far from '{self.baseline}'\n{lines}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "passed": self.passed, "baseline": self.baseline, "candidate": self.candidate, "n_samples": self.n_samples,
            "checks": [
                plain({
                    "rule": check.rule.place, "lens": check.rule.lens.name, "site": check.site, "number": check.number,
                    "baseline": check.baseline, "candidate": check.candidate, "bounds": check.rule.bounds,
                    "passed": check.passed, "why": check.why,
                })
                for check in self.checks
            ],
        }  # fmt: skip


def gate(
    baseline: str | Path | nn.Module,
    candidate: str | Path | nn.Module,
    policy: str | Path | dict[str, Any] | None = None,
    data: Any = None,
    *,
    sites: tuple[str, ...] = (),
    n_samples: int | None = None,
    batch_size: int = 64,
    download: bool = False,
    cache: Path | None = None,
    progress: bool = False,
) -> GateResult:
    """Holds a candidate against a baseline, site by site of the same name.

    Args:
        baseline, candidate: recordings (folders), networks as the command line names them, or networks in memory.
        policy: a TOML file (:mod:`netloupe.report.policy`), its parsed content, or None for a cautious default.
        data: what networks are run on; may be left out where both are recordings or a network has data of its own.
        sites: names or globs of sites to record; all by default.

    A site of the baseline that the candidate lacks, and a lens without an answer, fail the rules that concern them (unless
    ``required = false``): a gate must not pass because it could not look. A network beside a recording is read with its pooling.
    Raises InputError for bad policies, different samples, and a rule that concerns no site.
    """
    rules = read_policy(policy)
    lenses = list({rule.lens.name: rule.lens for rule in rules}.values())
    old, new = load_parties(
        baseline, candidate, data, sites, n_samples, batch_size, download, lenses, False, cache, progress
    )
    answers: dict[tuple[str, str, str], Asked] = {}
    checks = [check for rule in rules for check in _checks(rule, old, new, answers)]
    return GateResult(old.name, new.name, len(old.store), tuple(checks))


def _checks(rule: Rule, old: Party, new: Party, answers: dict[tuple[str, str, str], Asked]) -> Sequence[Check]:
    concerned = [info.name for info in old.sites if rule.concerns(info.name)]
    if not concerned:
        known = ", ".join(info.name for info in old.sites)
        raise InputError(
            f"rule {rule.place} concerns no site of the baseline ({', '.join(rule.sites)}); there are {known}"
        )
    there = {info.name for info in new.sites}
    found = []
    for site in concerned:
        if site not in there:
            found.append(Check(rule, site, rule.number or "", None, None, False, "the candidate has no such site"))
        elif rule.lens.compares:
            found.append(_compared(rule, site, old, new, answers))
        else:
            found.append(_asked(rule, site, old, new, answers))
    return found


def _compared(rule: Rule, site: str, old: Party, new: Party, answers: dict[tuple[str, str, str], Asked]) -> Check:
    key = ("both", rule.lens.name, site)
    if key not in answers:
        answers[key] = ask_pair(rule.lens, (site, pooled(new.store, site)), (site, pooled(old.store, site)))
    asked = answers[key]
    if asked.finding is None:
        both = not _varies(old, site) and not _varies(new, site)
        return _unanswered(rule, site, asked.refusal, both)
    name, value = rule.value(asked.finding.summary())
    broken = rule.broken(None, value)
    return Check(rule, site, name, None, value, not broken, " and ".join(broken))


def _asked(rule: Rule, site: str, old: Party, new: Party, answers: dict[tuple[str, str, str], Asked]) -> Check:
    asked = [_ask(rule.lens, site, party, word, answers) for word, party in (("old", old), ("new", new))]
    refused = [one for one in asked if one.finding is None]
    if refused:
        return _unanswered(rule, site, refused[-1].refusal, len(refused) == 2)
    findings = [one.finding for one in asked if one.finding is not None]
    (name, before), (_, after) = (rule.value(finding.summary()) for finding in findings)
    broken = rule.broken(before, after)
    return Check(rule, site, name, before, after, not broken, " and ".join(broken))


def _ask(lens: Lens, site: str, party: Party, word: str, answers: dict[tuple[str, str, str], Asked]) -> Asked:
    key = (word, lens.name, site)
    if key not in answers:
        features = pooled(party.store, site) if lens.pooled else party.store[site]
        answers[key] = ask_site(lens, site, features, party.store.labels, party.observation[site])
    return answers[key]


def _unanswered(rule: Rule, site: str, refusal: str, both: bool) -> Check:
    """No answer: passes only where that is allowed and the baseline had none either."""
    return Check(rule, site, rule.number or "", None, None, both and not rule.required, f"not measured ({refusal})")


def _varies(party: Party, site: str) -> bool:
    return bool(party.observation.result(site, "moments").variance.sum() > 0)
