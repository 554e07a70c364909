"""Networks and data from the corners: the right number, or one sentence that says what is wrong."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.capture import capture, observe
from netloupe.core.errors import ForwardError, InputError, SiteError, StoreError
from netloupe.core.intervene import ablate, intervene, scale
from netloupe.core.recording import record
from netloupe.core.statistics import LabelMoments, Moments
from netloupe.core.training import train


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def gathered(model, data, site, **options):
    return torch.cat([captured[site] for captured in capture(model, data, site, **options)])


class Reused(nn.Module):
    """Hands out memory of its own that the next pass overwrites: a slice of a table, a result, an array."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.body, self.part = how, nn.Linear(4, 4), nn.Identity()
        self.table, self.result = {"keys": [torch.zeros(8, 4)]}, torch.zeros(2, 4)
        self.array = np.zeros((2, 4), np.float32)

    def forward(self, x):
        y = self.body(x)
        if self.how == "table":
            self.table["keys"][0][: len(x)] = y
            return self.part(self.table["keys"][0][: len(x)])
        if self.how == "result":
            return self.part(self.result.copy_(y))
        self.array[:] = y.numpy()
        return self.part(torch.from_numpy(self.array))


@pytest.mark.parametrize("how", ["table", "result", "array"])
def test_memory_that_a_network_fills_anew_is_copied(how, tmp_path):
    model, x = Reused(how), torch.randn(40, 4)
    expected = model.body(x).detach()
    torch.testing.assert_close(gathered(model, x, "part", batch_size=2), expected)
    store = record(model, x, ["part"], to=tmp_path / "s", batch_size=2, rows_per_shard=16)
    torch.testing.assert_close(store["part"][:], expected)


def test_networks_that_write_into_their_input_change_neither_data_nor_numbers():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x):
            x -= 1
            return self.act(self.body(x))

    model, x = Centred(), torch.randn(6, 4)
    before = x.clone()
    expected = model.body(x - 1).detach()
    for _ in range(2):
        assert torch.equal(gathered(model, x, "body"), expected)  # the pass is repeated for the layer in place
        assert torch.equal(gathered(model, x, ".:in"), before)
    assert torch.equal(x, before)


def test_loaders_that_reuse_their_memory():
    rows, buffer, marks = [torch.randn(2, 4) for _ in range(3)], torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)

    def loader():
        for index, row in enumerate(rows):
            yield buffer.copy_(row), marks.fill_(index)

    parts = list(capture(nn.Sequential(nn.Identity(), nn.Linear(4, 2)), loader(), "0"))
    assert torch.equal(torch.cat([part["0"] for part in parts]), torch.cat(rows))
    assert torch.cat([part.labels for part in parts]).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("n", [4, 5])
def test_time_first_networks_also_with_as_many_steps_as_samples(kind, n):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn, self.head = nn.Linear(3, 6), kind(6, 4, bidirectional=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.rnn(self.embed(x))[0])

    model, x = Wrapped(), torch.randn(5, n, 3)
    with torch.no_grad():
        embedded = model.embed(x)
        (raw, state), y = model.rnn(embedded), model(x)
    state = state[0] if isinstance(state, tuple) else state
    key = "rnn:out.1.0" if kind is nn.LSTM else "rnn:out.1"
    (captured,) = capture(model, [x], [".:in", "embed", "rnn", key, "head", "."], batch_axis=1)
    expected = {".:in": x, "embed": embedded, "rnn": raw, key: state, "head": y, ".": y}
    for site, values in expected.items():
        torch.testing.assert_close(captured[site], values.transpose(0, 1), msg=site)
    bare = kind(3, 4)
    with torch.no_grad():
        out = bare(x)[0]
    # torch's own networks say themselves where samples stand; arrays are cut there
    torch.testing.assert_close(gathered(bare, (x, torch.arange(n)), ".", batch_size=2), out.transpose(0, 1))
    with intervene(bare, ablate(".", positions=-1, samples=0)):
        changed = bare(x)[0]
    out[-1, 0] = 0
    torch.testing.assert_close(changed, out)


def test_attention_weights_have_samples_first_also_where_time_comes_first():
    model, x = nn.MultiheadAttention(8, 2), torch.randn(5, 5, 8)
    weights = model.eval()(x, x, x)[1].detach()
    (captured,) = capture(model, [(x, x, x)], [".:out.1", "."], batch_axis=1)
    assert torch.equal(captured[".:out.1"], weights)


def test_packed_sequences_of_time_first_networks_and_their_states():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, num_layers=2)

        def forward(self, x, lengths):
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))

    model, x, lengths = Packed(), torch.randn(3, 3, 3), torch.tensor([2, 3, 1])
    packed, (state, _) = model(x, lengths)
    padded = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0].detach()
    sites = ["rnn", "rnn:out.1.0"]
    (captured,) = capture(model, [(x, lengths)], sites, batch_axis=1)
    assert torch.equal(captured["rnn"], padded)
    assert torch.equal(captured["rnn:out.1.0"], state.detach().transpose(0, 1))
    found = observe(model, [(x, lengths)], {"m": Moments}, sites, batch_axis=1)
    assert [found.result(site, "m").count for site in sites] == [6, 6]
    with pytest.raises(InputError, match="packed sequence"):
        list(capture(nn.GRU(3, 4), [nn.utils.rnn.pack_sequence([torch.randn(3, 3)])]))


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize("rebind", [True, False])
def test_buffers_that_a_network_changes_in_any_mode_are_put_back(mode, rebind):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)
            self.register_buffer("n", torch.ones(()))

        def forward(self, x):
            if rebind:
                self.n = self.n + 1
            else:
                self.n += 1
            return self.act(self.body(x) * self.n)

    model, x = Counting(), torch.randn(9, 4)
    buffer = model.n
    for number in (1.0, 5.0):
        model.n.fill_(number)
        got = gathered(model, x, "act", batch_size=3, mode=mode)  # the first pass is repeated: it is in place
        torch.testing.assert_close(got, torch.relu(model.body(x) * (number + 1)).detach())
        assert model.n is buffer
        assert model.n == number


def test_single_calls_may_be_followed_by_any_number():
    class Some(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(len(x)):
                x = self.cell(x)
            return x

    model, batches = Some(), [torch.randn(2, 4), torch.randn(3, 4)]
    expected = torch.cat([model.cell(model.cell(batch)) for batch in batches]).detach()
    torch.testing.assert_close(gathered(model, batches, "cell#1"), expected)
    with pytest.raises(SiteError, match="2 times in the first batch and 3 times"):
        list(capture(model, batches, "cell"))
    with pytest.raises(SiteError, match=r"'cell#1' was called 2 times in the first batch and 1 times"):
        list(capture(model, [torch.randn(2, 4), torch.randn(1, 4)], "cell#1"))


class Gives(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("give", "take", "message"),
    [
        (lambda x: x.to_sparse(), lambda x: x.to_dense(), "sparse"),
        (lambda x: torch.nested.nested_tensor(list(x)), lambda x: x.to_padded_tensor(0.0), "nested"),
        (lambda x: {"x": x, "none": None}["none"], lambda x: torch.ones(5, 3), "nothing that holds a tensor"),
    ],
)
def test_outputs_that_hold_no_rows_are_passed_over_and_refused_by_name(give, take, message):
    model, x = nn.Sequential(nn.Linear(4, 3), Gives(give), Gives(take)), torch.randn(5, 4)
    assert list(next(capture(model, x)).activations) == ["0", "2"]
    with pytest.raises(SiteError, match=message):
        next(capture(model, x, "1"))
    with pytest.raises(SiteError, match=message), intervene(model, ablate("1")):
        model(x)


def test_modules_inside_vmap_are_refused():
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(torch.vmap(self.body)(x))

    model, x = Mapped(), torch.randn(5, 4)
    assert list(next(capture(model, x)).activations) == ["head"]
    with pytest.raises(SiteError, match="vmap"):
        next(capture(model, x, "body"))


def test_mappings_of_any_kind_are_read_and_rebuilt():
    from collections import OrderedDict, UserDict, defaultdict

    x = torch.randn(5, 4)
    for kind in (dict, OrderedDict, UserDict, lambda entries: defaultdict(list, entries)):
        model = nn.Sequential(nn.Linear(4, 3), Gives(lambda y, kind=kind: kind({"a.b": y, 3: 2 * y})))
        y = model[0](x).detach()
        for site, key in (("1:out.a.b", "a.b"), ("1:out.3", 3)):
            before = gathered(model, x, site)
            assert torch.equal(before, {"a.b": y, 3: 2 * y}[key])
            with intervene(model, scale(site, 2.0)):
                assert torch.equal(model(x)[key], 2 * before)


def test_inputs_that_do_not_fit_are_one_sentence():
    with pytest.raises(ForwardError, match="computes in float32, convert"):
        list(capture(net(), np.random.default_rng(0).normal(size=(5, 4))))
    with pytest.raises(ForwardError, match=r"inputs \(5, 7\) float32"):
        list(capture(net(), torch.randn(5, 7)))
    with pytest.raises(ForwardError, match="index out of range"):
        list(capture(nn.Embedding(5, 3), torch.tensor([[7, 1]])))
    with pytest.raises(ForwardError, match="load its weights first"):
        list(capture(net().to("meta"), torch.randn(5, 4)))
    with pytest.raises(InputError, match="missing a required argument"):
        list(capture(nn.Bilinear(4, 4, 2), torch.randn(5, 4)))
    with pytest.raises(InputError, match="expected numbers"):
        list(capture(net(), np.array([[1, "a"]], dtype=object)))
    for wrong in ({"mode": "test"}, {"nonfinite": "warn"}, {"batch_size": 2.5}, {"seed": "a"}, {"batch_axis": -1}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            list(capture(net(), torch.randn(5, 4), **wrong))
    with pytest.raises(SiteError, match="given as 3"):
        list(capture(net(), torch.randn(5, 4), [3]))
    with pytest.raises(InputError, match="dictionary of name"):
        observe(net(), torch.randn(5, 4), {"m": Moments()})


def test_labels_in_every_form():
    x, whole = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    for labels in (whole[:, None], whole.float(), whole.tolist(), whole.numpy(), whole.to(torch.int8)):
        for data in ((x, labels), [(x, labels)]):
            counts = observe(net(), data, {"l": LabelMoments}, "1").result("1", "l").counts
            assert counts.tolist() == [2, 2, 2]
    assert observe(net(), (x, whole > 0), {"l": LabelMoments}, "1").result("1", "l").counts.tolist() == [2, 4]
    assert observe(net(), (x, torch.rand(6)), {"m": Moments}, "1").result("1", "m").count == 6
    with pytest.raises(InputError, match=r"site '1': .*labels"):
        observe(net(), (x, torch.rand(6)), {"l": LabelMoments}, "1")
    (captured,) = capture(nn.Bilinear(4, 3, 2), (x, torch.randn(6, 3), whole))
    assert torch.equal(captured.labels, whole)


def test_padding_masks_in_every_form():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)

        def forward(self, input_ids, attention_mask=None):
            return self.words(input_ids)

    ids, mask = torch.randint(0, 9, (3, 5)), torch.ones(3, 5, dtype=torch.int64)
    mask[1, 2:] = 0
    for given in (mask, mask.bool(), mask.float(), mask.numpy(), mask.tolist()):
        for data in ({"input_ids": ids, "attention_mask": given}, [{"input_ids": ids, "attention_mask": given}]):
            assert observe(Words(), data, {"m": Moments}, "words").result("words", "m").count == 12
    for given, message in ((torch.where(mask > 0, 0.0, -torch.inf), "added to scores"), (mask[:2], "2 rows")):
        with pytest.raises(InputError, match=message):
            list(capture(Words(), [{"input_ids": ids, "attention_mask": given}], "words"))


def test_threads_that_read_one_network_take_turns():
    model, x = net().train(), torch.randn(60, 4)
    expected, found = torch.relu(model[0](x)).detach(), []

    def read():
        found.extend(gathered(model, x, "1", batch_size=10) for _ in range(4))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    for values in found:
        torch.testing.assert_close(values, expected)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_resuming_with_other_data_is_refused(tmp_path):
    x = torch.randn(64, 4)

    def batches(size, stop=99, data=x):
        for start in range(0, len(data), size):
            if start >= stop:
                raise KeyboardInterrupt
            yield data[start : start + size]

    def begun(name):
        with pytest.raises(KeyboardInterrupt):
            record(net(), batches(7, 42), "1", to=tmp_path / name, rows_per_shard=8)
        return {"sites": "1", "to": tmp_path / name, "rows_per_shard": 8, "resume": True}

    for name, data, message in (
        ("other", batches(7, data=x + 1), "not the data"),
        ("cut otherwise", batches(5, data=2 * x), "batches of another size"),
        ("shorter", batches(7, data=x[:21]), "already holds 40 samples, but the data has 21"),
    ):
        folder = begun(name)
        with pytest.raises(StoreError, match=message):
            record(net(), data, **folder)
        store = record(net(), batches(7), **folder)  # and nothing was lost
        torch.testing.assert_close(store["1"][:], torch.relu(net()[0](x)).detach())
        with pytest.raises(StoreError, match="not what site '1' says"):
            record(net(), batches(7, data=x + 1), **folder)


def test_training_with_a_shuffling_loader_resumes_to_the_same_weights(tmp_path):
    data = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.arange(40) % 3)

    def run(folder, stop=None):
        model = net()
        loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
        history = train(model, loader, steps=12, checkpoint=folder, checkpoint_every=4, stop=stop)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), history.loss

    def interrupt(history):
        if history.n_steps == 10:
            raise KeyboardInterrupt
        return False

    whole, losses = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", interrupt)
    resumed, later = run(tmp_path / "part")
    assert torch.equal(whole, resumed)
    assert losses == later


def test_training_that_cannot_be_done_is_one_sentence(tmp_path):
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    frozen = net().requires_grad_(False)
    for message, call in {
        "precision is": lambda: train(net(), (x, y), steps=1, precision="float8"),
        "no parameter": lambda: train(frozen, (x, y), steps=1),
        "computes in float32": lambda: train(net(), (x.double(), y), steps=1),
        "labels from 9 to 11": lambda: train(net(), (x, y + 9), steps=1),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    train(net(), (x, y), steps=2, checkpoint=tmp_path, checkpoint_every=1)
    with pytest.raises(StoreError, match="another optimizer"):
        train(net(), (x, y), steps=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), checkpoint=tmp_path)
    model = net()
    with torch.no_grad():
        assert train(model, (x, y), steps=2).n_steps == 2
