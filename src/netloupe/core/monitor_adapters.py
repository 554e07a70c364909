"""The monitor inside the training loops of other libraries; each is imported only where it is used."""

from __future__ import annotations

from typing import Any

from netloupe.core.errors import MissingExtraError
from netloupe.core.monitor import Monitor


def trainer_callback(watch: Monitor) -> Any:
    """A callback for ``transformers.Trainer``: ``Trainer(..., callbacks=[trainer_callback(netloupe.monitor(model))])``.

    Looks follow optimiser steps; of several accumulated batches the first is looked at. Raises MissingExtraError without
    transformers.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("transformers", "text", "the Trainer's callback") from error

    class _Callback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch(state.global_step - 1)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.close()

    return _Callback()


def lightning_callback(watch: Monitor) -> Any:
    """A callback for Lightning: ``Trainer(callbacks=[lightning_callback(netloupe.monitor(module))])``.

    Alerts are counted in the module's log under ``netloupe_alerts``. Raises MissingExtraError without lightning.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise MissingExtraError("lightning", "lightning", "the Lightning callback") from error

    class _Callback(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            found = watch(loss=loss)
            if found:
                pl_module.log("netloupe_alerts", float(len(watch.alerts)))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            watch.close()

    return _Callback()
