"""What a network's features may do from one version to the next, as a small file.

```toml
[[rule]]
lens = "cka"               # compares each site with the same site of the baseline
min = 0.9

[[rule]]
lens = "sparsity"          # asked of both; the bound is on the way from one to the other
number = "dead_fraction"
max_rise = 0.02
sites = ["layer*.relu"]    # all common sites by default
```
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from netloupe.core.errors import InputError
from netloupe.core.lens import Lens, get_lens

BOUNDS = {
    "min": "at least {:g}",
    "max": "at most {:g}",
    "max_rise": "a rise of at most {:g}",
    "max_fall": "a fall of at most {:g}",
    "max_change": "a change of at most {:g}",
    "max_relative_change": "a change by a factor of at most {:g}",
}
DEFAULT = """
[[rule]]
lens = "cka"
min = 0.9

[[rule]]
lens = "sparsity"
number = "dead_fraction"
max_rise = 0.02

[[rule]]
lens = "sparsity"
number = "active_fraction"
max_change = 0.1

[[rule]]
lens = "intrinsic_dimension"
number = "dimension"
max_relative_change = 1.25
required = false
"""


@dataclass(frozen=True)
class Rule:
    """One line of a policy: a number of a lens, at some sites, and its bounds.

    For a lens that compares two sites ``min`` and ``max`` bound the similarity of a site with itself in the baseline. For others
    they bound the candidate's number, and the rest the way from the baseline's number to it; ``max_relative_change`` is the larger
    of the two over the smaller. ``required = false`` lets a site pass where the lens has no answer in either network.
    """

    lens: Lens
    number: str | None
    bounds: dict[str, float]
    sites: tuple[str, ...]
    required: bool
    place: int

    def concerns(self, site: str) -> bool:
        """Whether a site is meant."""
        return not self.sites or any(site == name or fnmatchcase(site, name) for name in self.sites)

    def value(self, summary: dict[str, float]) -> tuple[str, float]:
        """The number's name and value; InputError where the lens has no such number."""
        name = self.number or next(iter(summary))
        if name not in summary:
            raise InputError(f"rule {self.place}: {self.lens.name} has no number '{name}'; it has {', '.join(summary)}")
        return name, float(summary[name])

    def broken(self, baseline: float | None, candidate: float) -> list[str]:
        """Every bound that is broken, in words."""
        return [
            BOUNDS[name].format(bound)
            for name, bound in self.bounds.items()
            if not _holds(name, bound, baseline, candidate)
        ]


def _holds(name: str, bound: float, baseline: float | None, candidate: float) -> bool:
    if name == "min":
        return candidate >= bound
    if name == "max":
        return candidate <= bound
    assert baseline is not None  # read_policy refuses other bounds for lenses that compare
    if name == "max_rise":
        return candidate - baseline <= bound
    if name == "max_fall":
        return baseline - candidate <= bound
    if name == "max_change":
        return abs(candidate - baseline) <= bound
    small, large = sorted((abs(baseline), abs(candidate)))
    return large <= bound * small and baseline * candidate >= 0


def read_policy(policy: str | Path | dict[str, Any] | None = None) -> tuple[Rule, ...]:
    """Rules of a TOML file, of its parsed content, or of the default policy (None).

    Raises InputError in one sentence for a file that cannot be read or parsed, no rules, an unknown lens, key or bound, and a
    rule without any bound.
    """
    if isinstance(policy, dict):
        document, source = policy, "the policy"
    else:
        source = "the default policy" if policy is None else f"'{policy}'"
        try:
            text = DEFAULT if policy is None else Path(policy).read_text(encoding="utf-8")
            document = tomllib.loads(text)
        except OSError as error:
            raise InputError(f"the policy {source} cannot be read: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"the policy {source} is not valid TOML: {' '.join(str(error).split())}") from error
    rules = document.get("rule")
    if set(document) - {"rule"} or not isinstance(rules, list) or not rules:
        raise InputError(f"{source} holds no list of rules; write one or more [[rule]] tables and nothing else")
    return tuple(_rule(source, place, rule) for place, rule in enumerate(rules, 1))


def _rule(source: str, place: int, rule: Any) -> Rule:
    known = {"lens", "number", "sites", "required", *BOUNDS}
    if not isinstance(rule, dict) or set(rule) - known:
        unknown = ", ".join(sorted(set(rule) - known)) if isinstance(rule, dict) else "no table"
        raise InputError(f"rule {place} of {source} has {unknown}; a rule may have {', '.join(sorted(known))}")
    if not isinstance(rule.get("lens"), str):
        raise InputError(f'rule {place} of {source} names no lens, for example lens = "cka"')
    lens = get_lens(rule["lens"])
    bounds = {name: rule[name] for name in BOUNDS if name in rule}
    wrong = [name for name, bound in bounds.items() if isinstance(bound, bool) or not isinstance(bound, (int, float))]
    if not bounds or wrong:
        said = f"'{wrong[0]}' is no number" if wrong else "no bound"
        raise InputError(f"rule {place} of {source}: {said}; give one or more of {', '.join(BOUNDS)}")
    if lens.of_network:
        raise InputError(f"rule {place} of {source}: {lens.name} asks a whole network, a policy is about sites")
    if lens.compares and set(bounds) - {"min", "max"}:
        raise InputError(
            f"rule {place} of {source}: {lens.name} compares two sites, so that only min and max make sense"
        )
    sites = rule.get("sites", [])
    sites = [sites] if isinstance(sites, str) else sites
    if not isinstance(sites, list) or not all(isinstance(name, str) for name in sites):
        raise InputError(f'rule {place} of {source}: sites are names or globs, for example sites = ["layer*"]')
    return Rule(
        lens, rule.get("number"), {name: float(bound) for name, bound in bounds.items()}, tuple(sites),
        bool(rule.get("required", True)), place,
    )  # fmt: skip
