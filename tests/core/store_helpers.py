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


RECORD = """
import sys, time
sys.path.insert(0, {here!r})
from store_helpers import SITES, rows
from netloupe.core.store import StoreWriter

folder, total, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
with StoreWriter(folder, SITES, rows_per_shard=16, subject={{"model": "sine"}}, seed=3, resume=True) as writer:
    for start in range(writer.samples_committed, total, 11):
        stop = min(start + 11, total)
        writer.append(rows(start, stop), digest=start)
        time.sleep(pause)
print("done", flush=True)
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
