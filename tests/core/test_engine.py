"""A local Ray cluster gives what this process gives."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Cnn, Poisoned

from netloupe.core.capture import observe
from netloupe.core.engine import LocalEngine, RayEngine
from netloupe.core.errors import InputError, NonFiniteError, SiteError
from netloupe.core.recording import record
from netloupe.core.statistics import Counts, Moments, Quantiles, TopK

pytest.importorskip("ray", reason="the scale extra is not installed")
STATISTICS = {"m": Moments, "c": Counts, "q": Quantiles, "t": lambda: TopK(4)}


@pytest.fixture(scope="module")
def engine():
    # workers import this folder's networks by name
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with RayEngine(n_workers=2, batches_per_job=2) as started:
        yield started


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def equal_to_local(found, model, x):
    local = LocalEngine().observe(model, x, STATISTICS, "conv", batch_size=7)
    assert found.n_samples == local.n_samples == len(x)
    for name in ("c", "q", "t"):
        assert found["conv"][name] == local["conv"][name], name
    np.testing.assert_allclose(found.result("conv", "m").mean, local.result("conv", "m").mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.result("conv", "m").variance, local.result("conv", "m").variance, rtol=1e-12)


def test_observe_on_two_workers_equals_one_process(engine):
    model, x = Cnn(), torch.randn(60, 1, 8, 8)
    equal_to_local(observe(model, x, STATISTICS, "conv", batch_size=7, engine=engine), model, x)


def test_record_on_two_workers_is_byte_for_byte_the_same(engine, tmp_path):
    model, x, y = Cnn(), torch.randn(61, 1, 8, 8), torch.arange(61) % 3
    arguments = {"batch_size": 7, "rows_per_shard": 16}
    record(model, (x, y), to=tmp_path / "local", **arguments)
    store = record(model, (x, y), to=tmp_path / "ray", engine=engine, **arguments)
    assert len(store) == 61
    assert files(tmp_path / "local") == files(tmp_path / "ray")


class Suicidal(Cnn):
    """Kills its own worker, once, in the middle of the data."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def forward(self, x):
        if float(x[0, 0, 0, 0]) > 50 and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x.clamp(max=3))


def test_a_worker_killed_in_the_middle_loses_nothing(engine, tmp_path):

    x = torch.randn(60, 1, 8, 8)
    x[28, 0, 0, 0] = 100
    for number, run in enumerate(("observe", "record")):
        model = Suicidal(str(tmp_path / f"dead{number}"))
        Path(model.marker).touch()
        if run == "observe":
            expected = LocalEngine().observe(model, x, STATISTICS, "conv", batch_size=7)
            Path(model.marker).unlink()
            found = engine.observe(model, x, STATISTICS, "conv", batch_size=7)
            assert found["conv"]["c"] == expected["conv"]["c"]
            assert found["conv"]["t"] == expected["conv"]["t"]
        else:
            record(model, x, "conv", to=tmp_path / "local", batch_size=7, rows_per_shard=16)
            Path(model.marker).unlink()
            record(model, x, "conv", to=tmp_path / "ray", batch_size=7, rows_per_shard=16, engine=engine)
            assert files(tmp_path / "local") == files(tmp_path / "ray")
        assert Path(model.marker).exists()


def test_errors_come_back_as_they_are(engine, tmp_path):
    x = torch.randn(20, 3)
    x[13, 0] = 200
    with pytest.raises(NonFiniteError, match="sample 13"):
        engine.observe(Poisoned(), x, {"m": Moments}, "act", batch_size=4)
    with pytest.raises(NonFiniteError, match="sample 13"):
        engine.record(Poisoned(), x, "act", to=tmp_path / "s", batch_size=4, rows_per_shard=5)
    with pytest.raises(SiteError, match="did you mean"):
        engine.observe(Poisoned(), x, {"m": Moments}, "akt")
    with pytest.raises(InputError, match="no samples"):
        engine.observe(Poisoned(), x[:0], {"m": Moments})
    with pytest.raises(InputError, match="at least 1"):
        RayEngine(n_workers=0)
