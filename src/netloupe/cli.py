"""The command line: ``netloupe inspect | record | store | studies | study | train | compare | gate | dictionary | feature``.

With ``--json`` a command prints exactly one JSON document to standard output; everything else goes to standard error.
Bad input is one sentence and exit status 2, Ctrl-C is 130; a gate that does not pass is 1.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from netloupe.cli_features import CardCommand, DictionaryCommand
from netloupe.core.errors import NetloupeError, StoreError
from netloupe.terminal import (
    LOG,
    OUT,
    Json,
    Positional,
    print_table,
    require_folder,
    require_samples,
    say_comparison,
    say_inspection,
    short,
    subject_and_data,
    tell,
)


@dataclass
class Inspect:
    """Ask every lens that applies at every site of a network and write a report."""

    model: Positional[str] = "digits-cnn"
    """recipe, package.module:name[@weights], .pt2 export, or Hugging Face folder or name"""
    data: Positional[str | None] = None
    """digits, fashion-mnist[=FOLDER], stdlib-text, stdlib-bytes, a .npz, .npy, .csv or .txt file, a folder, or package.module:name"""
    sites: tuple[str, ...] = ()
    """names or globs of sites; all by default"""
    lenses: tuple[str, ...] = ()
    """names of lenses; all that apply by default"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("reports")
    """folder for the report"""
    samples: int | None = None
    """how many samples to read; 2,000 by default, 256 of text"""
    batch_size: int = 64
    sequence: bool = False
    """the samples follow each other in time, as frames of a video do"""
    weights: str | None = None
    """a safetensors or state-dict file for MODEL"""
    download: bool = False
    """let a Hugging Face name be fetched"""
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """Report path and the document of the inspection."""
        from netloupe.report.html import write_report
        from netloupe.report.inspection import inspect

        require_folder(self.out)
        subject, data = subject_and_data(self, default=isinstance(self, Inspect))
        data = replace(data, sequence=data.sequence or self.sequence)
        found = inspect(subject, data, self.sites, self.lenses, progress=True)
        path = write_report(found, self.out)
        document = {**found.document(), "report": str(path)}
        tell(lambda: say_inspection(found, path), self.as_json)
        return document


@dataclass
class Record:
    """Record the activations of a network into a folder."""

    model: Positional[str]
    data: Positional[str | None] = None
    to: Path = tyro.MISSING
    """a new or empty folder, or with --resume the interrupted recording"""
    sites: tuple[str, ...] = ()
    """names or globs of sites; all by default"""
    pool: Literal["none", "mean", "max", "cls", "last", "flatten"] = "none"
    """what becomes of positions"""
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    """how numbers are stored; as the network computes by default"""
    resume: bool = False
    """continue an interrupted recording"""
    samples: int | None = None
    batch_size: int = 64
    rows_per_shard: int | None = None
    """samples that are committed together; about 64 MiB by default"""
    weights: str | None = None
    download: bool = False
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """The finished store's summary."""
        from netloupe.core.recording import check_folder, record

        check_folder(self.to, self.resume)
        subject, data = subject_and_data(self, default=isinstance(self, Inspect))
        named = {"model": subject.identity, "data": data.identity}
        store = record(
            subject.model, data.batches, self.sites or None, to=self.to, resume=self.resume, subject=named,
            rows_per_shard=self.rows_per_shard, pool=self.pool, dtype=self.dtype, progress=True, batch_size=self.batch_size,
        )  # fmt: skip
        tell(lambda: OUT.print(str(store)), self.as_json)
        return store.summary()


@dataclass
class StoreCommand:
    """Show what a recording holds, or verify its checksums."""

    action: Positional[Literal["show", "verify"]]
    folder: Positional[Path]
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """The summary; for ``verify`` also the problems, any of which is an error."""
        from netloupe.core.progress import bar
        from netloupe.core.store import Store

        store = Store(self.folder, partial=self.action == "show")
        if self.action == "show":
            tell(lambda: OUT.print(str(store)), self.as_json)
            return store.summary()
        with bar("verifying") as shown:
            problems = store.verify(lambda done, total: shown.update(shown.task_ids[0], completed=done, total=total))
        if problems:
            raise StoreError("; ".join(problems))
        tell(lambda: OUT.print(f"{self.folder}: {len(store)} samples, every checksum agrees"), self.as_json)
        return {**store.summary(), "problems": problems}


@dataclass
class Studies:
    """List the papers; words narrow the list."""

    words: Positional[tuple[str, ...]] = ()
    as_json: Json = False

    def run(self) -> list[dict[str, Any]]:
        """One row a paper."""
        from netloupe.core.study import papers

        rows = [
            {"slug": p.slug, "title": p.title, "year": p.year, "area": p.area, "question": p.question, "implemented": p.implemented}
            for p in papers().values()
        ]  # fmt: skip
        found = [
            row for row in rows if all(word.lower() in " ".join(map(str, row.values())).lower() for word in self.words)
        ]
        tell(lambda: print_table(found, ["slug", "year", "question", "implemented"]), self.as_json)
        return found


@dataclass
class Study:
    """Measure a paper's claims, each against its bar and its control."""

    slug: Positional[str]
    preset: Literal["smoke", "small", "full"] = "small"
    """smoke takes seconds, small minutes on a CPU, full a GPU and the paper's data"""
    seed: int = 0
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """folder for the claims as JSON and as a figure"""
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """The claims with their verdicts."""
        from netloupe.core.study import run_study

        result = run_study(
            self.slug, self.preset, self.seed, on_claim=lambda claim: LOG.print(f"{claim.verdict:>19}  {claim.name}")
        )
        document = result.document()
        if self.out is not None:
            from netloupe.report.study_figure import save_study_figure

            require_folder(self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / f"{self.slug}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
            save_study_figure(result, self.out / f"{self.slug}.png")
        rows = [
            {**claim, "measured": short(claim["measured"]), "control": short(claim["control"])}
            for claim in document["claims"]
        ]
        tell(lambda: print_table(rows, ["claim", "measured", "bar", "control", "verdict", "note"]), self.as_json)
        return document


@dataclass
class Train:
    """Train one of the built-in networks anew."""

    recipe: Positional[str]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("networks")
    """folder for the weights"""
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """Where the weights are, and how good the network is."""
        from netloupe.models.recipes import run_recipe

        path, numbers = run_recipe(self.recipe, self.out)
        tell(
            lambda: OUT.print(f"{path}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())),
            self.as_json,
        )
        return {"recipe": self.recipe, "weights": str(path), **numbers}


@dataclass
class Compare:
    """Compare two networks, or recordings, on the same samples: sites, units, and what each has alone."""

    a: Positional[str]
    """a network as for inspect, or the folder of a recording"""
    b: Positional[str]
    """another, of any architecture"""
    data: Positional[str | None] = None
    """what networks are run on, as for inspect; by default the data of the first"""
    sites: tuple[str, ...] = ()
    """names or globs of sites, in both; all by default"""
    measures: tuple[Literal["cka", "svcca", "procrustes", "rsa", "trsa"], ...] = (
        "cka",
        "svcca",
        "procrustes",
        "rsa",
        "trsa",
    )
    """of the site-by-site map; the first decides which sites are counterparts"""
    lenses: tuple[str, ...] = ()
    """further comparing lenses, asked of every pair of sites"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("reports")
    """folder for the page"""
    samples: int | None = None
    """how many samples to read; 2,000 by default, 256 of text, all of a recording"""
    batch_size: int = 64
    download: bool = False
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """The comparison's document and the path of its page."""
        from netloupe.report.compare_page import write_comparison
        from netloupe.report.comparison import compare

        require_folder(self.out)
        require_samples(self.samples)
        found = compare(
            self.a, self.b, self.data, sites=self.sites, measures=self.measures, lenses=self.lenses, n_samples=self.samples,
            batch_size=self.batch_size, download=self.download, progress=True,
        )  # fmt: skip
        path = write_comparison(found, self.out)
        document = {**found.document(), "report": str(path)}
        tell(lambda: say_comparison(document, path), self.as_json)
        return document


@dataclass
class Gate:
    """Fail (exit status 1) where a network's features moved further from a baseline than a policy allows."""

    baseline: Positional[str]
    """the folder of a recording, or a network as for inspect"""
    candidate: Positional[str]
    data: Positional[str | None] = None
    """what networks are run on, as for inspect; by default the data of the baseline"""
    policy: Path | None = None
    """a TOML file of [[rule]] tables; a cautious default where none is given"""
    sites: tuple[str, ...] = ()
    """names or globs of sites to look at; all by default"""
    samples: int | None = None
    """how many samples to read; 2,000 by default, 256 of text, all of a recording"""
    batch_size: int = 64
    download: bool = False
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """Every check; the exit status follows from it."""
        from netloupe.report.gate import gate

        require_samples(self.samples)
        found = gate(
            self.baseline, self.candidate, self.policy, self.data, sites=self.sites, n_samples=self.samples,
            batch_size=self.batch_size, download=self.download, progress=True,
        )  # fmt: skip
        self.status = 0 if found.passed else 1
        tell(lambda: OUT.print(found.reason(), markup=False), self.as_json)
        return found.document()


COMMANDS: dict[str, type[Any]] = {
    "inspect": Inspect, "record": Record, "store": StoreCommand, "studies": Studies, "study": Study, "train": Train,
    "compare": Compare, "gate": Gate, "dictionary": DictionaryCommand, "feature": CardCommand,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0, 1 for a gate that does not pass, 2 for bad input, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(execute(given))


def execute(arguments: list[str]) -> int:
    """Runs one command and returns the exit status."""
    warnings.filterwarnings("ignore")
    as_json = "--json" in arguments
    try:
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="netloupe", description=__doc__, args=arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        document = command.run()
    except NetloupeError as error:
        return _fail(" ".join(str(error).split()), as_json)
    except KeyboardInterrupt:
        LOG.print("interrupted; a recording can be continued with --resume")
        return 130
    except OSError as error:
        return _fail(f"{error.filename or 'the disk'}: {error.strerror or error}", as_json)
    if as_json:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    return getattr(command, "status", 0)


def _fail(sentence: str, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps({"error": sentence}) + "\n")
    sys.stderr.write(f"netloupe: {sentence}\n")
    return 2


if __name__ == "__main__":
    main()
