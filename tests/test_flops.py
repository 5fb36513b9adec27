"""FlopCounterMode counts our layers like torch.nn's, and dispatch modes see our ops."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import lstmkern

T, N, I, H = 5, 3, 4, 6  # noqa: E741
LENGTHS = [2, 5, 3]


@pytest.fixture(autouse=True)
def without_onednn():
    """Switch oneDNN off: torch counts nothing for its LSTM, and matrix products without it."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def counted(module, input, hx, **keywords):
    """The number of operations in forward and in backward."""
    with FlopCounterMode(display=False) as forward:
        output, _ = module(input, hx, **keywords)
    output = output.data if isinstance(output, PackedSequence) else output
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("with_state", [None, False, True], ids=["no-state", "state", "state-with-grad"])
@pytest.mark.parametrize("input_grad", [False, True])
@pytest.mark.parametrize("form", ["dense", "batch_first", "packed", "sorted"])
@pytest.mark.parametrize("layers,bidirectional", [(1, False), (2, True)])
def test_same_count_as_torch(kind, layers, bidirectional, form, input_grad, with_state, pair):
    modules = pair(kind, I, H, layers, bidirectional=bidirectional, batch_first=form == "batch_first")
    x = torch.randn(*((N, T) if form == "batch_first" else (T, N)), I)
    if form in ("packed", "sorted"):
        x = pack_padded_sequence(x, sorted(LENGTHS, reverse=True), enforce_sorted=form == "sorted")
    (x.data if isinstance(x, PackedSequence) else x).requires_grad_(input_grad)
    hx, D = None, layers * (2 if bidirectional else 1)
    if with_state is not None:
        hx = torch.randn(D, N, modules[0].proj_size or H, requires_grad=with_state)
        hx = (hx, torch.randn(D, N, H, requires_grad=with_state)) if modules[0].mode == "LSTM" else hx
    theirs, ours = (counted(module, x, hx) for module in modules)
    assert ours == theirs and min(ours) > 0


def test_lengths_count_like_packed(kind, pair):
    _, ours = pair(kind, I, H, 2, bidirectional=True)
    x, lengths = torch.randn(T, N, I), torch.tensor(LENGTHS)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    assert counted(ours, x, None, lengths=lengths) == counted(ours, packed, None)
    assert counted(ours, x, None, lengths=torch.full((N,), T)) == counted(ours, x, None)
    assert counted(ours, x, None, lengths=torch.zeros(N, dtype=torch.int64)) == (0, 0)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("grad", [False, True])
def test_cells(name, grad):
    x, h = torch.randn(N, I, requires_grad=grad), torch.randn(N, H, requires_grad=grad)
    counts = []
    for package in (torch.nn, lstmkern):
        module = getattr(package, name)(I, H)
        counts.append(counted(lambda x, h: module(x, (h, h)) if "LSTM" in name else (module(x, h), None), x, h))  # noqa: B023
    assert counts[0] == counts[1] and min(counts[1]) > 0


def test_count_without_data(pair):
    """On the meta device and with fake tensors. A fake batch_sizes has no values, but the number of rows is known."""
    _, ours = pair("lstm", I, H, bidirectional=True)
    dense = counted(ours, torch.randn(T, N, I), None)
    assert (
        counted(lstmkern.LSTM(I, H, bidirectional=True, device="meta"), torch.empty(T, N, I, device="meta"), None)
        == dense
    )
    with torch._subclasses.fake_tensor.FakeTensorMode():
        module = lstmkern.LSTM(I, H, bidirectional=True)
        x, lengths = torch.randn(T, N, I), torch.empty(N, dtype=torch.int64)
        assert counted(module, x, None) == counted(module, x, None, lengths=lengths) == dense


@pytest.mark.parametrize("way", ["plain", "recompute", "checkpoint"])
def test_dispatch_modes_see_the_ops(kind, way, pair):
    """In forward and in backward, which autograd may run in another context."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "lstmkern":
                names.append(func._opname)
            return func(*args, **(kwargs or {}))

    names = []
    _, ours = pair(kind, I, H)
    x = torch.randn(T, N, I, requires_grad=True)
    with Seen():
        if way == "checkpoint":
            output = torch.utils.checkpoint.checkpoint(lambda x: ours(x)[0], x, use_reentrant=False)
        else:
            with lstmkern.recompute(way == "recompute"):
                output = ours(x)[0]
        assert names == ["layer_forward"]
        output.sum().backward()
    assert names[-1] == "layer_backward"
    again = names[1:].count("layer_forward")
    assert again > 0 if way == "checkpoint" or (way == "recompute" and "rnn" not in kind) else again == 0
