"""Recording a network: what is stored is what capture yields, and being killed leaves no trace."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Cnn, Poisoned, Table

from netloupe.core.capture import capture
from netloupe.core.errors import InputError, NonFiniteError, StoreError
from netloupe.core.recording import record, record_and_observe
from netloupe.core.statistics import Moments
from netloupe.core.store import Store


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_store_holds_what_capture_yields(tmp_path):
    model, x, y = Cnn(), torch.randn(37, 1, 8, 8), torch.arange(37) % 3
    store = record(model, (x, y), to=tmp_path / "s", batch_size=8, rows_per_shard=10)
    parts = list(capture(model, (x, y), batch_size=8))
    assert set(store.sites) == {*parts[0].activations, "labels"}
    for site in parts[0].activations:
        assert torch.equal(store[site][:], torch.cat([part[site] for part in parts]))
    assert torch.equal(torch.as_tensor(store.labels), y)
    assert store.verify() == []
    assert store.manifest["subject"]["model"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_masks_pooling_and_dtype_are_stored(tmp_path):
    class Net(Table):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids)

    ids, mask = torch.randint(0, 11, (12, 9)), torch.rand(12, 9) < 0.7
    mask[:, 0] = True
    data = {"input_ids": ids, "attention_mask": mask.long()}
    store = record(Net(), data, "words", to=tmp_path / "a", dtype="bfloat16")
    assert store["words"].shape == (12, 9, 6)
    assert store["words"][:3].dtype == torch.bfloat16
    assert torch.equal(torch.as_tensor(store.mask), mask)
    pooled = record(Net(), data, "words", to=tmp_path / "b", pool="mean")
    assert pooled["words"].shape == (12, 6)
    assert pooled.mask is None


def test_interrupted_recording_resumes_to_the_same_bytes(tmp_path):
    model, x = Cnn(), torch.randn(64, 1, 8, 8)
    whole = record(model, x, to=tmp_path / "whole", batch_size=7, rows_per_shard=16)

    def broken():
        for start in range(0, 64, 7):
            if start > 40:
                raise KeyboardInterrupt
            yield x[start : start + 7]

    # an iterable has no batch size of its own, so the recording that is broken off must come from the same one
    with pytest.raises(KeyboardInterrupt):
        record(model, broken(), to=tmp_path / "part", batch_size=7, rows_per_shard=16)
    with pytest.raises(StoreError, match="already holds"):
        record(model, x, to=tmp_path / "part", batch_size=7)
    with pytest.raises(StoreError, match=r"unfinished|not complete|incomplete"):
        Store(tmp_path / "part")
    with pytest.raises(StoreError, match="not the data"):
        record(model, x + 1, to=tmp_path / "part", batch_size=7, rows_per_shard=16, resume=True)
    with pytest.raises(StoreError, match="other settings"):
        record(model, x, to=tmp_path / "part", batch_size=7, rows_per_shard=16, resume=True, pool="mean")
    with pytest.raises(StoreError, match="other settings"):
        record(Cnn(), x, to=tmp_path / "part", batch_size=7, rows_per_shard=16, resume=True)
    resumed = record(model, x, to=tmp_path / "part", batch_size=7, rows_per_shard=16, resume=True)
    assert files(tmp_path / "whole") == files(tmp_path / "part")
    again = record(model, x, to=tmp_path / "part", batch_size=7, rows_per_shard=16, resume=True)
    assert len(again) == len(resumed) == len(whole) == 64


SCRIPT = """
import sys, time, torch
sys.path.insert(0, {here!r})
from networks import Cnn
from netloupe.core.recording import record
torch.set_num_threads(1); torch.manual_seed(0)
model = Cnn()
x = torch.randn(400, 1, 8, 8)
class Slow:
    def __iter__(self):
        for start in range(0, 400, 9):
            time.sleep({pause})
            yield x[start:start + 9]
print("ready", flush=True)
record(model, Slow(), to=sys.argv[1], rows_per_shard=24, resume=True)
print("done", flush=True)
"""


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(tmp_path):
    """SIGKILL at 30 random moments of recordings; each is resumed, and the end is an unbroken one's bytes."""
    here = str(Path(__file__).parent)
    quick, slow = (tmp_path / name for name in ("quick.py", "slow.py"))
    quick.write_text(SCRIPT.format(here=here, pause=0.0))
    slow.write_text(SCRIPT.format(here=here, pause=0.004))
    subprocess.run([sys.executable, str(quick), str(tmp_path / "unbroken")], check=True, capture_output=True)
    expected, draw, kills, rounds = files(tmp_path / "unbroken"), random.Random(0), 0, 0
    while kills < 30:
        folder = tmp_path / f"killed{rounds}"
        rounds += 1
        for _ in range(12):
            process = subprocess.Popen([sys.executable, str(slow), str(folder)], stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(draw.uniform(0.0, 0.25))
            finished = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += not finished
            if finished or kills >= 30:
                break
        subprocess.run([sys.executable, str(quick), str(folder)], check=True, capture_output=True)
        assert files(folder) == expected, f"after {kills} kills"
    assert kills >= 30


def test_nan_stops_the_recording_and_keeps_what_was_whole(tmp_path):
    x = torch.randn(50, 3)
    x[33, 0] = 200
    with pytest.raises(NonFiniteError, match=r"'act' is nan at sample 33"):
        record(Poisoned(), x, "act", to=tmp_path / "s", batch_size=5, rows_per_shard=10)
    assert len(Store(tmp_path / "s", partial=True)) == 30


def test_bad_recordings(tmp_path):
    x = torch.randn(6, 1, 8, 8)
    with pytest.raises(InputError, match="no samples"):
        record(Cnn(), x[:0], to=tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        record(Cnn(), x, to=tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="not empty"):
        record(Cnn(), x, to=tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "x"
    with pytest.raises(StoreError, match="row"):
        record(Table(), [torch.randint(0, 11, (3, 9)), torch.randint(0, 11, (3, 8))], "words", to=tmp_path / "ragged")


def test_recording_and_observing_in_one_pass(tmp_path):
    model, x = Cnn(), torch.randn(20, 1, 8, 8)
    store, observation = record_and_observe(
        model, x, {"m": Moments}, "relu", to=tmp_path / "s", pool="mean", batch_size=6
    )
    assert store["relu"].shape == (20, 4)
    assert observation.result("relu", "m").count == 20 * 64
    np.testing.assert_allclose(store["relu"][:].double().mean(0), observation.result("relu", "m").mean, rtol=1e-5)


def test_memory_does_not_grow_with_the_data(tmp_path):
    """A recording four times as long peaks no higher (measured in a process of its own).

    At most 32 MB may wait for the disk here, so that both recordings are longer than that whatever the disk does.
    """
    script = tmp_path / "peak.py"
    script.write_text(
        "import sys, torch\n"
        "from torch import nn\n"
        "from netloupe.core.recording import record\n"
        "from netloupe.core.store import StoreWriter\n"
        "StoreWriter.__init__.__kwdefaults__['queue_bytes'] = 32 * 2**20\n"
        "torch.set_num_threads(1)\n"
        "model = nn.Sequential(nn.Linear(16, 4096), nn.ReLU())\n"
        "def data(n):\n"
        "    for _ in range(n): yield torch.randn(128, 16)\n"
        "record(model, data(int(sys.argv[2])), ['1'], to=sys.argv[1], rows_per_shard=256)\n"
        # not ru_maxrss, which a child inherits from its parent
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    peaks = []
    for n_batches in (50, 200):  # 100 and 400 MB
        folder = tmp_path / str(n_batches)
        out = subprocess.run(
            [sys.executable, str(script), str(folder), str(n_batches)],
            check=True,
            capture_output=True,
            env=dict(os.environ),
        )
        peaks.append(int(out.stdout) / 1024)
    assert peaks[1] < peaks[0] + 60, peaks
