"""Recording a network while it runs, beside what the forward pass and the disk allow, and beside other ways to keep tensors.

    python bench/record.py [--batches 8] [--repeats 5] [--folder DIR]

The six MLP sites of a 6-layer, 384-wide BERT, 16 x 128 tokens a batch. "allowed" is the slower of the bare forward and a
raw sequential write (with fsync) of the same bytes. Goal: at least 0.85 of that speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from support.bert import SITES, bare, bert, hooked, tokens
from support.timing import alternate, print_table, ratio

from netloupe import record


def raw_write(path: Path, n_batches: int, block: bytes) -> None:
    """The same number of bytes, one after the other, to one file."""
    with path.open("wb", buffering=0) as opened:
        for _ in range(n_batches * len(SITES)):
            opened.write(block)
        os.fsync(opened.fileno())


def with_torch_save(model: torch.nn.Module, batches: list[torch.Tensor], path: Path) -> None:
    """Hooks, then torch.save of everything."""
    kept = hooked(model, batches)
    with path.open("wb") as opened:
        torch.save({site: torch.cat(parts) for site, parts in kept.items()}, opened)
        opened.flush()
        os.fsync(opened.fileno())


def with_zarr(model: torch.nn.Module, batches: list[torch.Tensor], folder: Path) -> None:
    """A zarr array a site, filled batch by batch."""
    import zarr

    group = zarr.open_group(str(folder), mode="w")
    n = sum(map(len, batches))
    arrays = {
        site: group.create_array(site, shape=(n, 128, 1536), chunks=(64, 128, 1536), dtype="float32") for site in SITES
    }
    done = 0
    for batch in batches:
        kept = hooked(model, [batch])
        for site, parts in kept.items():
            arrays[site][done : done + len(batch)] = parts[0].numpy()
        done += len(batch)


def with_datasets(model: torch.nn.Module, batches: list[torch.Tensor], folder: Path) -> None:
    """The Arrow writer of ``datasets``, one file a site."""
    from datasets import Array2D, Features
    from datasets.arrow_writer import ArrowWriter

    folder.mkdir(exist_ok=True)
    features = Features({"values": Array2D((128, 1536), "float32")})
    writers = {site: ArrowWriter(path=str(folder / f"{i}.arrow"), features=features) for i, site in enumerate(SITES)}
    for batch in batches:
        for site, parts in hooked(model, [batch]).items():
            writers[site].write_batch({"values": parts[0].numpy()})
    for writer in writers.values():
        writer.finalize()


def ours(model: torch.nn.Module, batches: list[torch.Tensor], folder: Path) -> None:
    """netloupe."""
    record(model, batches, SITES, to=folder)


def clear(root: Path) -> None:
    """Removes what a run wrote and lets the disk come to rest, so that no side pays for the one before."""
    for entry in root.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    os.sync()


def peak(n_batches: int, folder: Path) -> float:
    """Peak memory in MB of a recording of ``n_batches`` in a process of its own."""
    # a child's ru_maxrss begins at its parent's size; the kernel's own high-water mark does not
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}; from record import *; ours(bert(), (b for b in tokens({n_batches})), Path({str(folder)!r})); print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) / 1024


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    model, batches = bert(), tokens(options.batches)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        store = record(model, batches, SITES, to=root / "check")
        expected = hooked(model, batches)
        for site in SITES:
            assert torch.equal(store[site][:], torch.cat(expected[site])), "the recording holds what the hooks saw"
        del store
        shutil.rmtree(root / "check")
        block = os.urandom(4 * 16 * 128 * 1536)
        sides = {
            "bare forward": lambda: bare(model, batches),
            "raw write": lambda: raw_write(root / "raw", options.batches, block),
            "netloupe": lambda: ours(model, batches, root / "store"),
            "torch.save": lambda: with_torch_save(model, batches, root / "all.pt"),
            "zarr": lambda: with_zarr(model, batches, root / "zarr"),
            "datasets": lambda: with_datasets(model, batches, root / "arrow"),
        }
        seconds = alternate(sides, options.repeats, between=lambda: clear(root))
        print(
            f"{options.batches} batches, {options.batches * 6 * len(block) / 2**20:.0f} MiB, {torch.get_num_threads()} threads, contents agree"
        )
        print_table(seconds, "bare forward")
        allowed = np.maximum(seconds["bare forward"], seconds["raw write"])
        print(f"  goal: at least 0.85 of what is allowed; measured {ratio(allowed, seconds['netloupe']):.3f}")
        low = peak(4, root / "short")
        high = peak(24, root / "long")
        print(f"  peak memory with 4 batches {low:.0f} MB, with 24 {high:.0f} MB")


if __name__ == "__main__":
    main()
