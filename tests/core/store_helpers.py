"""What the store's tests share: batches, whole-folder comparison, and programs that are killed while recording."""

from __future__ import annotations

from pathlib import Path

import torch

from netloupe.core.store import SiteSpec

SITES = {
    "layer1:in": SiteSpec((3, 5), "bfloat16"),
    "layer1/β": SiteSpec((7,), "float32"),
    "labels": SiteSpec((), "int64"),
}


def rows(start: int, stop: int) -> dict[str, torch.Tensor]:
    """Samples ``start`` to ``stop`` of an endless recording whose values are known from the sample's number."""
    number = torch.arange(start, stop)
    first = (number[:, None] * 15 + torch.arange(15)).float().sin().bfloat16().view(-1, 3, 5)
    second = (number[:, None] * 7 + torch.arange(7)).float().cos()
    return {"layer1:in": first, "layer1/β": second, "labels": number}


def files(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes, and every folder with none."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


# started once, it forks a recorder for every line it reads: importing torch takes longer than the recording
NURSERY = """
import os, sys, time
sys.path.insert(0, {here!r})
import torch
from store_helpers import SITES, rows
from netloupe.core.errors import StoreError
from netloupe.core.store import StoreWriter

torch.set_num_threads(1)

def record(folder, total, pause):
    with StoreWriter(folder, SITES, rows_per_shard=16, subject={{"model": "sine"}}, seed=3, resume=True) as writer:
        for start in range(writer.samples_committed, total, 11):
            stop = min(start + 11, total)
            writer.append(rows(start, stop), digest=start)
            time.sleep(pause)

def die_after(changes):
    # the process ends, without any clean-up, in place of its next change to the disk
    left = [changes]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return function(*arguments, **options)
        return call

    for name in ("open", "write", "pwrite", "ftruncate", "fsync", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))

for line in sys.stdin:
    folder, total, pause, changes = line.rstrip().split("|")
    child = os.fork()
    if child == 0:
        if changes != "None":
            die_after(int(changes))
        try:
            record(folder, int(total), float(pause))
        except StoreError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

RANGE = """
import sys
sys.path.insert(0, {here!r})
from store_helpers import rows
from netloupe.core.store import ShardRangeWriter

folder, first, stop, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with ShardRangeWriter(folder, first, stop) as writer:
    end = min(total, stop * writer.rows_per_shard)
    for start in range(writer.samples_committed, end, 7):
        writer.append(rows(start, min(start + 7, end)))
"""


def script(text: str) -> str:
    return text.format(here=str(Path(__file__).parent))
