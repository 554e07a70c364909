"""Edits from the corners: globs, choices and values in every form, and what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.errors import InputError, SiteError
from netloupe.core.intervene import ablate, intervene, patch, project_out, replace_with, scale, steer
from netloupe.core.recording import record


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def test_a_glob_changes_each_tensor_once_and_refuses_to_do_nothing():
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Identity()), nn.Linear(4, 3)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.b(self.a(x))

    model, x = Blocks().eval(), torch.randn(5, 4)
    expected = model.b(2 * torch.relu(2 * model.a[0](x)))
    with intervene(model, scale("a*", 2.0)), torch.no_grad():  # the linear layer, and the activation in place
        torch.testing.assert_close(model(x), expected)
    with pytest.raises(SiteError, match=r"'unus\*' was not reached"), intervene(model, ablate("unus*")):
        model(x)


def test_choices_and_values_in_every_form(tmp_path):
    model, x, other = net(), torch.randn(5, 4), torch.randn(9, 4)
    hidden, there = torch.relu(model[0](x)).detach(), torch.relu(model[0](other)).detach()
    flags = torch.tensor([0, 1, 0, 1, 0, 0]).bool()
    cut = hidden.clone()
    cut[:, [1, 3]] = 0
    for units in (flags, flags.numpy(), flags.tolist(), np.array([1, 3]), (1, 3), {1, 3}, [-5, -3], slice(1, 4, 2)):
        with intervene(model, ablate("1", units=units)):
            torch.testing.assert_close(model(x), model[2](cut))
    store = record(model, other, "1", to=tmp_path / "s", rows_per_shard=2)
    for rows in ([4, 3, 2, 1, 0], torch.tensor([4, 3, 2, 1, 0]), np.array([4, 3, 2, 1, 0]), slice(2, 7), 0):
        chosen = there[:1] if isinstance(rows, int) else there[rows]
        for edit in (
            patch("1", store["1"], rows=rows),
            patch("1", there, rows=rows),
            patch("1", inputs=other, rows=rows),
        ):
            with intervene(model, edit):
                torch.testing.assert_close(model(x), model[2](chosen.expand(5, 6)))
    with intervene(model, ablate("1", "mean", np.ones(6)), project_out("1", torch.zeros(1, 6))):
        torch.testing.assert_close(model(x), model[2](torch.ones(5, 6)))
    for edit, message in (
        (ablate("1", units="a"), "unit a was chosen"),
        (replace_with("1", lambda a: None), "gave a NoneType"),
        (scale("1:out.x", 2.0), "no tensor 'x'"),
    ):
        with pytest.raises((InputError, SiteError), match=message), intervene(model, edit):
            model(x)
    for bad in (lambda: intervene(model, "1"), lambda: intervene(len, ablate("1"))):
        with pytest.raises(InputError), bad():
            pass


def test_patching_takes_each_site_and_each_call_from_its_own():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x):
            return self.cell(torch.tanh(self.cell(x)))

    for model, site in ((Twice(), "cell"), (net(), "*")):
        x, other = torch.randn(5, 4), torch.randn(5, 4)
        with intervene(model, patch(site, inputs=other)):
            torch.testing.assert_close(model(x), model(other))


def test_rows_of_other_samples_go_to_samples():
    model, x, reference = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), torch.randn(5, 5, 4), torch.randn(9, 6)
    edit = ablate("1", "resample", reference, random_state=2)
    rows = torch.randint(9, (5,), generator=torch.Generator().manual_seed(2))
    for _ in range(2):  # the same in every block
        with intervene(model, edit):
            assert torch.equal(model(x), reference[rows][:, None].expand(5, 5, 6))
    with pytest.raises(InputError, match="samples or positions"), intervene(model, patch("1", torch.randn(5, 6))):
        model(x)


def test_whole_numbers_take_no_fractions_and_a_direction_can_be_learned():
    model, ids = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), torch.tensor([[1, 2, 4], [2, 2, 4]])
    with pytest.raises(InputError, match="int64 numbers"), intervene(model, ablate("0:in", "mean")):
        model(ids)
    direction = torch.ones(3, requires_grad=True)
    with intervene(model, steer("1", direction, 2.0, by="raw")):
        model(ids).sum().backward()
    assert torch.equal(direction.grad, torch.full((3,), 12.0))
