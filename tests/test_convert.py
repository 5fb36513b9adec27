"""replace_modules() swaps torch.nn's recurrent modules for ours inside a model, restore_modules() undoes it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lstmkern
from lstmkern import replace_modules, restore_modules


class Model(nn.Module):
    """Every recurrent class, one module at two places, nested containers."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, 2, dropout=0.5, bidirectional=True, proj_size=2)
        self.deep = nn.ModuleDict({"gru": nn.GRU(4, 4, batch_first=True), "list": nn.ModuleList([nn.RNN(4, 4)])})
        self.again = self.deep["gru"]
        self.cells = nn.ModuleList([nn.LSTMCell(4, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 4, nonlinearity="relu")])

    def forward(self, x):
        x = self.lstm(x)[0]
        x = self.again(self.deep["gru"](x)[0])[0]
        x = self.deep["list"][0](x)[0]
        h, _ = self.cells[0](x[-1])
        return self.cells[2](self.cells[1](h))


NAMES = ["lstm", "deep.gru", "deep.list.0", "cells.0", "cells.1", "cells.2"]


def test_swapped_and_restored():
    model, x = Model().eval(), torch.randn(3, 2, 4)
    modules, parameters, expected = dict(model.named_modules()), list(model.parameters()), model(x)
    text = repr(model)
    report = replace_modules(model)
    assert [name for name, _, _ in report.swapped] == NAMES and not report.skipped and len(report) == 6
    assert "lstm: torch.nn.LSTM -> lstmkern.LSTM" in str(report)
    assert type(model.lstm) is lstmkern.LSTM and type(model.cells[2]) is lstmkern.RNNCell
    assert model.again is model.deep["gru"]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert repr(model) == text and not model.lstm.training
    torch.testing.assert_close(model(x), expected)
    assert len(replace_modules(model)) == 0

    report = restore_modules(model)
    assert [name for name, _, _ in report.swapped] == NAMES
    assert "lstm: lstmkern.LSTM -> torch.nn.LSTM" in str(report)
    assert all(dict(model.named_modules())[name] is module for name, module in modules.items())
    assert type(model.lstm) is nn.LSTM and type(model.cells[0]) is nn.LSTMCell
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(x), expected)
    assert len(restore_modules(model)) == 0


def test_no_random_number_is_drawn():
    model = Model()
    before = torch.get_rng_state()
    replace_modules(model)
    restore_modules(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_optimizer_keeps_training():
    """Swapping in the middle of training changes nothing, dropout included."""
    histories = []
    for swap_at in (None, 1):
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        history = []
        for step in range(4):
            if step == swap_at:
                replace_modules(model)
            loss = (model(torch.randn(3, 2, 4)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        histories.append(history)
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)
    assert histories[0][0] != histories[0][-1]


def test_a_model_that_is_one_module():
    model, x = nn.GRU(4, 5), torch.randn(3, 2, 4)
    expected = model(x)[0]
    report = replace_modules(model)
    assert str(report) == "(model): torch.nn.GRU -> lstmkern.GRU"
    assert type(model) is lstmkern.GRU
    torch.testing.assert_close(model(x)[0], expected)
    restore_modules(model)
    assert type(model) is nn.GRU
    torch.testing.assert_close(model(x)[0], expected)


def test_hooks_and_flags_stay():
    model = nn.Sequential(nn.LSTM(4, 5)).eval()
    seen = []
    model[0].register_forward_hook(lambda module, args, result: seen.append(type(module)))
    model[0].register_full_backward_hook(lambda module, *grads: seen.append("backward"))
    model[0].note = "kept"
    for change, cls in ((replace_modules, lstmkern.LSTM), (restore_modules, nn.LSTM)):
        change(model)
        assert not model[0].training and model[0].note == "kept"
        model(torch.randn(3, 2, 4, requires_grad=True))[0].sum().backward()
        assert seen == [cls, "backward"]
        seen.clear()


def test_parametrizations_stay():
    model, x = nn.Sequential(nn.GRU(4, 5)), torch.randn(3, 2, 4)
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    names, expected = [n for n, _ in model.named_parameters()], model(x)[0]
    assert len(replace_modules(model)) == 1
    assert isinstance(model[0], lstmkern.GRU) and [n for n, _ in model.named_parameters()] == names
    torch.testing.assert_close(model(x)[0], expected)
    model(x)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    restore_modules(model)
    assert isinstance(model[0], nn.GRU)
    torch.testing.assert_close(model(x)[0], expected)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    torch.testing.assert_close(model(x)[0], expected)


class Own(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_what_computes_something_else_is_left_alone_and_reported():
    model = nn.ModuleDict({"own": Own(4, 5), "patched": nn.GRU(4, 5), "plain": nn.RNN(4, 5), "linear": nn.Linear(4, 5)})
    model["patched"].forward = lambda x: x
    report = replace_modules(model)
    assert [name for name, _, _ in report.swapped] == ["plain"]
    assert [name for name, _, _ in report.skipped] == ["own", "patched"]
    assert type(model["own"]) is Own and type(model["patched"]) is nn.GRU
    assert "own: test_convert.Own left as it is, a subclass of torch.nn.LSTM may compute more" in str(report)
    assert "patched: torch.nn.GRU left as it is, its forward was replaced" in str(report)


def test_modules_that_were_ours_before_stay_ours():
    model = nn.ModuleList([nn.LSTM(4, 5), lstmkern.LSTM(4, 5)])
    assert len(replace_modules(model)) == 1
    assert len(restore_modules(model)) == 1
    assert [type(m) for m in model] == [nn.LSTM, lstmkern.LSTM]


def test_swapped_models_can_be_copied_moved_and_pickled():
    model, x = Model().eval(), torch.randn(3, 2, 4)
    replace_modules(model)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), expected)
        restore_modules(twin)
        assert type(twin.lstm) is nn.LSTM
        torch.testing.assert_close(twin(x), expected)
    torch.testing.assert_close(model.double()(x.double()).float(), expected)
    restore_modules(model)
    torch.testing.assert_close(model.float()(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)


def test_nothing_to_do():
    assert str(replace_modules(nn.Linear(2, 2))) == "no recurrent module found"
    with pytest.raises(TypeError, match="model should be a torch.nn.Module, got list"):
        replace_modules([nn.LSTM(4, 5)])
