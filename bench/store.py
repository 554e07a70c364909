"""Writing and reading a store beside the usual ways to keep activations: ``python bench/store.py --mb 1024``.

Every contestant gets the same batches, syncs what it wrote, and must give back the same rows. Runs alternate, medians
are compared. Writing is timed with a second thread multiplying matrices, since that is when a recording writes.
Contestants whose library is not installed are left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from netloupe.core.store import SiteSpec, Store, StoreWriter

UNITS, BATCH, RANDOM_ROWS = 768, 1024, 4096
Batches = list[torch.Tensor]


@contextmanager
def busy() -> Iterator[None]:
    """A thread that computes, as a network's forward pass would."""
    stop, matrix = threading.Event(), torch.randn(512, 512)

    def work() -> None:
        while not stop.is_set():
            torch.mm(matrix, matrix)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def write_raw(folder: Path, batches: Batches) -> None:
    with open(folder / "raw", "wb", buffering=0) as file:
        for batch in batches:
            file.write(batch.numpy().data.cast("B"))
        os.fsync(file.fileno())


def write_store(folder: Path, batches: Batches) -> None:
    with StoreWriter(folder / "store", {"site": SiteSpec((UNITS,))}) as writer:
        for batch in batches:
            writer.append({"site": batch})


def write_torch(folder: Path, batches: Batches) -> None:
    torch.save(torch.cat(batches), folder / "all.pt")
    sync_tree(folder)


def write_zarr(folder: Path, batches: Batches) -> None:
    import zarr

    shape = (len(batches) * BATCH, UNITS)
    array = zarr.create_array(
        str(folder / "zarr"), shape=shape, chunks=(BATCH, UNITS), dtype="float32", compressors=None
    )
    for index, batch in enumerate(batches):
        array[index * BATCH : (index + 1) * BATCH] = batch.numpy()
    sync_tree(folder)


def write_datasets(folder: Path, batches: Batches) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({"site": List(Value("float32"), length=UNITS)})
    with ArrowWriter(path=str(folder / "data.arrow"), features=features) as writer:
        for batch in batches:
            writer.write_batch({"site": batch.numpy()})  # pyright: ignore[reportArgumentType]
        writer.finalize()
    sync_tree(folder)


def opened(name: str, folder: Path, n: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from row numbers to rows that keeps the contestant's files open."""
    if name == "store":
        site = Store(folder / "store")["site"]
        return lambda rows: site.rows(rows).numpy()
    if name == "raw write+fsync":
        raw = np.memmap(folder / "raw", np.float32, "r", shape=(n, UNITS))
        return lambda rows: raw[rows]
    if name == "torch.save":
        tensor = torch.load(folder / "all.pt", mmap=True)
        return lambda rows: tensor[torch.from_numpy(rows)].numpy()
    if name == "zarr":
        import zarr

        array = zarr.open_array(str(folder / "zarr"), mode="r")
        return lambda rows: np.asarray(array.oindex[rows])
    from datasets import Dataset

    data = Dataset.from_file(str(folder / "data.arrow")).with_format("numpy")
    return lambda rows: data[rows.tolist()]["site"]


WRITERS = {
    "store": write_store,
    "raw write+fsync": write_raw,
    "torch.save": write_torch,
    "zarr": write_zarr,
    "datasets": write_datasets,
}


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def table(title: str, seconds: dict[str, list[float]], megabytes: float) -> None:
    print(f"\n{title}\n{'':<18}{'seconds':>10}{'MB/s':>10}{'time / store':>14}")
    store = statistics.median(seconds["store"])
    for name, runs in seconds.items():
        middle = statistics.median(runs)
        print(f"{name:<18}{middle:>10.4f}{megabytes / middle:>10.0f}{middle / store:>14.2f}")


def bench_writing(root: Path, batches: Batches, runs: int, names: list[str]) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            folder = root / name.split()[0]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            with busy():
                seconds[name].append(timed(lambda f=folder, n=name: WRITERS[n](f, batches)))
    table(f"writing, median of {runs}", seconds, len(batches) * BATCH * UNITS * 4 / 1e6)


def bench_random_rows(root: Path, batches: Batches, runs: int, names: list[str], fresh: bool) -> None:
    """Random rows from files in the page cache: opening included, or from handles opened before."""
    n = len(batches) * BATCH
    readers: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        name: lambda rows, m=name: opened(m, root / m.split()[0], n)(rows) for name in names
    }
    if not fresh:
        readers = {name: opened(name, root / name.split()[0], n) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    generator = np.random.default_rng(0)
    for _ in range(runs):
        rows = generator.integers(0, n, RANDOM_ROWS)
        expected = np.stack([batches[row // BATCH][row % BATCH].numpy() for row in rows])
        for name, read in readers.items():
            answers: list[np.ndarray] = []
            seconds[name].append(timed(lambda r=read, a=answers, i=rows: a.append(r(i))))
            if not np.array_equal(answers[0], expected):
                raise SystemExit(f"{name} gave other rows back")
    handles = "opening included" if fresh else "files kept open"
    table(f"{RANDOM_ROWS} random rows, {handles}, median of {runs}", seconds, RANDOM_ROWS * UNITS * 4 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1024, help="size of the recording")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; the system's temporary folder by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    different = [torch.randn(BATCH, UNITS, generator=generator) for _ in range(16)]
    count = max(2, options.mb * 2**20 // (BATCH * UNITS * 4))
    batches = [different[index % 16] for index in range(count)]
    names = list(WRITERS)
    for name in ("zarr", "datasets"):
        try:
            __import__(name)
        except ImportError:
            print(f"{name} is not installed and left out")
            names.remove(name)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        bench_writing(root, batches, options.runs, names)
        bench_random_rows(root, batches, options.runs, names, fresh=True)
        bench_random_rows(root, batches, 2 * options.runs, names, fresh=False)


if __name__ == "__main__":
    main()
