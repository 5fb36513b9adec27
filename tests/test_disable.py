"""LSTMKERN_DISABLE=1: the modules run torch.nn's own code where a call uses nothing beyond it."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import lstmkern
from lstmkern import disable

T, N, I, H = 4, 3, 5, 6  # noqa: E741


class Ops(TorchDispatchMode):
    """The names of the ops that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.namespace)
        return func(*args, **(kwargs or {}))


def run(module, *args, **keywords):
    """Results and gradients of a call, and whether lstmkern's ops took part."""
    with Ops() as ops:
        result = module(*args, **keywords)
        output = result[0] if isinstance(result, tuple) else result
        data = output.data if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output
        data.float().sum().backward()
    gradients = [p.grad for p in module.parameters()]
    module.zero_grad()
    return [*torch.utils._pytree.tree_leaves(result), *gradients], "lstmkern" in ops.names


def equal(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) if isinstance(b, torch.Tensor) else a is b for a, b in pairs)


@pytest.fixture
def disabled(monkeypatch):
    monkeypatch.setattr(disable, "DISABLED", True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind_of_input", ["dense", "batch_first", "unbatched", "packed"])
def test_layers_have_the_bits_of_torch(disabled, pair, kind, kind_of_input, autocast):
    theirs, ours = pair(kind, I, H, 2, bidirectional=True, batch_first=kind_of_input == "batch_first")
    x = torch.randn(T, N, I)
    if kind_of_input == "unbatched":
        x = x[:, 0]
    elif kind_of_input == "packed":
        x = pack_sequence([torch.randn(2, I), torch.randn(4, I)], enforce_sorted=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (mine, used), (expected, _) = run(ours, x), run(theirs, x)
    assert equal(mine, expected) and not used


def test_initial_states(disabled, pair, kind):
    theirs, ours = pair(kind, I, H)
    x, h, c = torch.randn(T, N, I), torch.randn(1, N, theirs.proj_size or H), torch.randn(1, N, H)
    hx = (h, c) if theirs.mode == "LSTM" else h
    (mine, used), (expected, _) = run(ours, x, hx), run(theirs, x, hx)
    assert equal(mine, expected) and not used


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_have_the_bits_of_torch(disabled, name):
    theirs, ours = getattr(torch.nn, name)(I, H), getattr(lstmkern, name)(I, H)
    ours.load_state_dict(theirs.state_dict())
    (mine, used), (expected, _) = run(ours, torch.ones(N, I)), run(theirs, torch.ones(N, I))
    assert equal(mine, expected) and not used


@pytest.mark.parametrize("keywords", [{"lengths": torch.tensor([4, 1, 0])}, {"resets": torch.ones(T, N) > 0}])
def test_what_torch_lacks_still_runs_on_the_kernels(disabled, pair, kind, keywords, monkeypatch):
    _, ours = pair(kind, I, H)
    x = torch.randn(T, N, I)
    results, used = run(ours, x, **keywords)
    monkeypatch.setattr(disable, "DISABLED", False)
    assert used and equal(results, run(ours, x, **keywords)[0])


def test_cell_states_still_run_on_the_kernels(disabled):
    assert run(lstmkern.LSTM(I, H), torch.randn(T, N, I), return_cells=True)[1]


def test_without_it_the_kernels_run(pair, kind):
    """What the tests above measure with notices the kernels."""
    _, ours = pair(kind, I, H)
    assert run(ours, torch.randn(T, N, I))[1]


def test_compiled(disabled, pair, kind):
    torch._dynamo.reset()
    theirs, ours = pair(kind, I, H)
    x = torch.randn(T, N, I)
    with torch.no_grad():
        compiled = torch.compile(ours, fullgraph=True, backend="eager")
        assert equal(torch.utils._pytree.tree_leaves(compiled(x)), torch.utils._pytree.tree_leaves(theirs(x)))
    torch._dynamo.reset()


def test_weights_that_replace_parameters(disabled, pair):
    theirs, ours = pair("lstm", I, H)
    x, doubled = torch.randn(T, N, I), {name: 2 * p.detach() for name, p in theirs.named_parameters()}
    theirs.load_state_dict(doubled)
    assert torch.equal(torch.func.functional_call(ours, doubled, (x,))[0], theirs(x)[0])


def test_copies_and_moves(disabled, pair):
    theirs, ours = pair("gru", I, H)
    x = torch.randn(T, N, I, dtype=torch.float64)
    ours, theirs = pickle.loads(pickle.dumps(copy.deepcopy(ours))).double(), theirs.double()
    assert torch.equal(ours(x)[0], theirs(x)[0])


PROGRAM = """
import torch, lstmkern
module, x = lstmkern.LSTM(3, 4), torch.ones(2, 1, 3)
with torch.profiler.profile() as profile:
    module(x)
print(lstmkern.disable.DISABLED, any(e.key.startswith("lstmkern::") for e in profile.key_averages()))
"""


@pytest.mark.parametrize("value, expected", [("1", "True False"), ("0", "False True"), ("", "False True")])
def test_environment(value, expected):
    environment = {**os.environ, disable.VARIABLE: value}
    said = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == expected.split()


def test_info_says_so():
    command = [sys.executable, "-m", "lstmkern", "info"]
    for value, expected in (("1", True), ("0", False)):
        environment = {**os.environ, disable.VARIABLE: value}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert (f"{disable.VARIABLE} " in said) == expected


def test_another_value_is_refused():
    with pytest.raises(ValueError, match="LSTMKERN_DISABLE=yes: set it to 1"):
        disable.read("yes")
