"""Weight decay of its own for the classifier and for everything below it."""

from __future__ import annotations

from typing import Any

from torch import nn

from netloupe.core.errors import InputError, SiteError


def decay_groups(
    model: nn.Module, *, head: str = "head", body_decay: float = 5e-4, head_decay: float = 5e-4
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: first the body, then the head, each with its own ``weight_decay``.

    ``torch.optim.SGD(decay_groups(model, head_decay=0.0), lr=0.05, momentum=0.9)`` decays all but the classifier. The
    setting is that of arXiv 2210.16658, which changes one of the two decays and watches how far the features collapse.
    Every parameter decays, biases and norms too; frozen ones are left out. A weight that head and body share counts
    as the head's.

    Args:
        model: any network; its parameters are not copied.
        head: module path of the classifier, as in ``model.named_modules()``.
        body_decay, head_decay: factor on the squared norm's gradient, zero or positive.

    Raises SiteError where ``head`` is no module of the network, InputError for a negative decay or where head or body
    hold nothing to train.
    """
    for name, value in (("body_decay", body_decay), ("head_decay", head_decay)):
        if not value >= 0 or value == float("inf"):
            raise InputError(f"{name} is {value}, but zero or a positive number is expected; change {name}.")
    modules = dict(model.named_modules())
    if not head or head not in modules:
        near = [name for name in modules if name.rpartition(".")[2] == head.rpartition(".")[2]]
        known = ", ".join(near or list(modules)[-3:])
        raise SiteError(f"the network has no module '{head}' to take as its head; name one of its modules, as {known}.")
    owned = {id(parameter) for parameter in modules[head].parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    top = [parameter for parameter in trainable if id(parameter) in owned]
    body = [parameter for parameter in trainable if id(parameter) not in owned]
    if not body or not top:
        raise InputError(
            f"'{head}' holds {len(top)} of the network's {len(trainable)} trainable parameters, but head and body both "
            "need some; name the classifier alone and unfreeze what is to be trained."
        )
    return [{"params": body, "weight_decay": body_decay}, {"params": top, "weight_decay": head_decay}]
