"""The monitor: what it must notice, what it must not, and that the training it watches stays the same."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netloupe
from netloupe.core.errors import InputError, SiteError
from netloupe.core.monitor import Alert, Limits, Monitor
from netloupe.core.monitor_adapters import lightning_callback, trainer_callback
from netloupe.core.vitals import vitals
from netloupe.data import digits
from netloupe.models.gpt import ByteGPT
from netloupe.models.small import DigitsCNN, mlp


def trained(
    watch: Monitor | None, model: nn.Module, steps: int, spoil: Callable[[int], None] = lambda step: None
) -> list[float]:
    """A plain loop on digits; ``spoil`` may hurt the network before a step."""
    images, labels = digits()
    images = images if isinstance(model, DigitsCNN) else images.flatten(1)
    adam, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        spoil(step)
        rows = torch.randint(len(images), (64,), generator=generator)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
        if watch is not None:
            watch(loss=loss)
    return losses


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def kinds(watch: Monitor, site: str | None = None) -> set[str]:
    return {alert.kind for alert in watch.alerts if site in (None, alert.site)}


@pytest.mark.parametrize("seed", range(3))
def test_vitals_are_the_numbers_they_say(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows = torch.from_numpy(draw.normal(size=(150, 40)) * draw.uniform(0.1, 5, 40) + 3)
    rows[:, 7] = 2.0
    rows[11, 5] = -400.0
    found = vitals(rows)
    assert found.rms == pytest.approx(float(rows.square().mean().sqrt()), rel=1e-12)
    assert found.largest == 400.0
    assert found.ratio == pytest.approx(400 / float(rows.abs().flatten().median()), rel=1e-12)
    covariance = np.cov(rows.numpy().T, ddof=0)
    values = np.linalg.eigvalsh(covariance)
    assert found.dimension == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
    per_unit = np.diag(covariance) / rows.square().mean(0).numpy()
    assert found.spread == pytest.approx(per_unit.max(), rel=1e-9)
    assert found.constant.nonzero().flatten().tolist() == [7]
    wide = vitals(rows[:20])  # fewer rows than units: the other way round
    values = np.linalg.eigvalsh(np.cov(rows[:20].numpy().T, ddof=0))
    assert wide.dimension == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)


def test_a_healthy_training_is_left_alone_and_unchanged() -> None:
    runs = []
    for watched in (False, True):
        model = mlp(64, (48, 48), 10, random_state=0)
        watch = netloupe.monitor(model, every=10) if watched else None
        losses = trained(watch, model, 120)
        runs.append((losses, [p.detach().clone() for p in model.parameters()]))
        if watch is not None:
            assert watch.alerts == []
            assert {row["site"] for row in watch.history} == {"act1", "act2"}
            assert [row["step"] for row in watch.history if row["site"] == "act1"] == list(range(0, 120, 10))
            assert watch.history[0]["loss"] == pytest.approx(losses[0])
    assert runs[0][0] == runs[1][0], "the losses are the same to the last bit"
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1]))


def test_nothing_is_attached_between_looks() -> None:
    model = DigitsCNN()
    watch = netloupe.monitor(model, every=5)
    assert hooks_of(model) > 0
    attached = []
    trained(watch, model, 11, lambda step: attached.append(hooks_of(model) > 0))
    assert attached == [step % 5 == 0 for step in range(11)]
    watch.close()
    assert hooks_of(model) == 0
    with netloupe.monitor(model) as again:
        assert hooks_of(model) > 0
    assert hooks_of(again.model) == 0


def test_validation_without_gradients_is_passed_over() -> None:
    model = mlp(64, (16,), 10, random_state=0)
    watch = netloupe.monitor(model, every=1)
    with torch.no_grad():
        model(torch.full((8, 64), float("nan")))
    assert watch() == []
    assert watch.history == []


def test_dead_units_are_counted_once_they_stay_dead() -> None:
    model = mlp(64, (40, 40), 10, random_state=0)
    watch = netloupe.monitor(model, "act*", every=5)

    def kill(step: int) -> None:
        if step == 20:
            with torch.no_grad():
                model.get_submodule("fc1").bias[:30] = -1e3

    trained(watch, model, 60, kill)
    dead = [alert for alert in watch.alerts if alert.kind == "dead units" and alert.site == "act1"]
    assert [(alert.site, alert.step) for alert in dead] == [("act1", 30)], "three looks: 20, 25, 30"
    assert 0.75 <= dead[0].value < 0.85
    assert "% of the units" in str(dead[0])


def test_a_massive_activation_is_noticed_at_its_site() -> None:
    model = mlp(64, (40, 40), 10, random_state=0)
    found: list[Alert] = []
    watch = netloupe.monitor(model, ["fc1", "fc2"], every=1, on_alert=found.append)

    def grow(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                model.get_submodule("fc2").bias[4] = 3e4

    trained(watch, model, 6, grow)
    massive = [alert for alert in found if alert.kind == "massive activation"]
    assert [(alert.site, alert.step) for alert in massive] == [("fc2", 3)]
    assert massive[0].value > 1000
    assert found == watch.alerts


def test_collapse_and_growth_and_nan() -> None:
    model = mlp(64, (40, 40), 10, random_state=0)
    watch = netloupe.monitor(model, ["fc1", "fc2"], every=1)
    one_direction = torch.outer(torch.randn(40), torch.randn(40))

    def spoil(step: int) -> None:
        with torch.no_grad():
            if step == 4:
                model.get_submodule("fc2").weight.copy_(one_direction)
            if step == 6:
                model.get_submodule("fc1").weight.mul_(50)
            if step == 8:
                model.get_submodule("fc2").weight.zero_()
            if step == 10:
                model.get_submodule("fc1").bias[0] = math.nan

    trained(watch, model, 12, spoil)
    assert "collapsed information" in kinds(watch, "fc2")
    assert [a.step for a in watch.alerts if (a.site, a.kind) == ("fc1", "exploding norm")] == [6]
    assert {a.site for a in watch.alerts if a.kind == "not finite"} == {"fc1", "fc2", "(loss)"}
    collapsed = [a for a in watch.alerts if (a.site, a.kind) == ("fc2", "collapsed information")]
    assert collapsed[0].step == 4, "a matrix of rank one"
    assert collapsed[0].value < 0.2


def test_a_site_is_reported_again_only_after_it_was_well() -> None:
    model = nn.Sequential(nn.Linear(4, 8))
    watch = netloupe.monitor(model, "0", every=1, limits=Limits(growth=None, dimension=None))
    x = torch.randn(32, 4)
    for offset in (0.0, 1e5, 1e5, 0.0, 1e5):
        with torch.no_grad():
            model[0].bias.zero_()
            model[0].bias[0] = offset
        model(x)
        watch()
    assert [alert.step for alert in watch.alerts] == [1, 4]


def test_default_sites_of_a_deep_network_and_of_a_transformer() -> None:
    deep = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(40)))
    assert len(netloupe.monitor(deep).sites) == 24
    names = netloupe.monitor(ByteGPT(16, 2, 2, 32, 16)).sites
    assert names == ["blocks.0", "blocks.0.ffn.act", "blocks.1", "blocks.1.ffn.act"]
    alone = nn.Linear(3, 2)
    watch = netloupe.monitor(alone, every=1)
    alone(torch.randn(5, 3))
    watch()
    assert len(watch.history) == 1


def test_alerts_go_to_the_log_and_the_history_can_be_drawn(caplog: pytest.LogCaptureFixture) -> None:
    import matplotlib.pyplot as plt

    model = nn.Sequential(nn.Linear(4, 8))
    watch = netloupe.monitor(model, every=1)
    with caplog.at_level(logging.WARNING, "netloupe.monitor"):
        for _ in range(2):
            model(torch.full((8, 4), float("inf")))
            watch()
    assert [record.message for record in caplog.records] == ["step 0, 0: activations are NaN or infinite"]
    figure, axes = plt.subplots()
    watch.plot(axes, "rms")
    with pytest.raises(InputError, match="the history has no 'colour'"):
        watch.plot(axes, "colour")
    plt.close(figure)


def test_bad_arguments() -> None:
    model = mlp(64, (16,), 10)
    with pytest.raises(InputError, match="every is 0"):
        netloupe.monitor(model, every=0)
    with pytest.raises(InputError, match="patience is 0"):
        netloupe.monitor(model, limits=Limits(patience=0))
    with pytest.raises(SiteError, match="no site matches 'act9'"):
        netloupe.monitor(model, "act9")
    with pytest.raises(SiteError, match="outputs of whole modules"):
        netloupe.monitor(model, "act1:in")
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        netloupe.monitor("model")  # type: ignore[arg-type]


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Digits as the Trainer takes them."""

    def __init__(self) -> None:
        self.images, self.labels = digits(flat=True)

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.images[index], "labels": self.labels[index]}


class WithLoss(nn.Module):
    """A perceptron that gives its own loss, as Hugging Face networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, (16,), 10, random_state=0)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_inside_the_trainer_of_transformers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from transformers import Trainer, TrainingArguments

    model = WithLoss()
    watch = netloupe.monitor(model, every=4)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=10, per_device_train_batch_size=16, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Pairs(), callbacks=[trainer_callback(watch)]).train()
    assert [row["step"] for row in watch.history] == [0, 4, 8]
    assert hooks_of(model) == 0


def test_inside_lightning(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(64, (16,), 10, random_state=0)

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.body(batch["x"]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    watch = netloupe.monitor(module, every=2)
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(tmp_path), callbacks=[lightning_callback(watch)],
    ).fit(module, torch.utils.data.DataLoader(Pairs(), batch_size=16))  # fmt: skip
    assert [row["step"] for row in watch.history] == [0, 2, 4]
    assert all(math.isfinite(float(row["loss"])) for row in watch.history)
    assert hooks_of(module) == 0
