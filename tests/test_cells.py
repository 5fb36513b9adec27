"""LSTMCell, GRUCell and RNNCell are torch.nn's, results, gradients, construction and errors."""

import copy
import pickle

import pytest
import torch
from pairs import as_tuple, assert_same_error, zero_state
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import lstmkern

CELLS = {
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
    "rnn-tanh": ("RNNCell", {}),
    "rnn-relu": ("RNNCell", {"nonlinearity": "relu"}),
}
NAMES = ("LSTMCell", "GRUCell", "RNNCell")


@pytest.fixture(params=CELLS)
def cells(request):
    """cells(I, H, ...): torch.nn's cell and ours, with the same weights."""
    name, kind_options = CELLS[request.param]

    def make(*sizes, **options):
        theirs = getattr(nn, name)(*sizes, **kind_options, **options)
        ours = getattr(lstmkern, name)(*sizes, **kind_options, **options)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    return make


def state_for(cell, *rows, dtype=torch.float32):
    h, c = torch.randn(2, *rows, cell.hidden_size, dtype=dtype)
    return (h, c) if isinstance(cell, (nn.LSTMCell, lstmkern.LSTMCell)) else h


def leaves_of(x, hx):
    leaves = [t.detach().requires_grad_() for t in (x, *as_tuple(hx))]
    return leaves, (tuple(leaves[1:]) if isinstance(hx, tuple) else leaves[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (3, 5, 17), (64, 33, 40), (2, 0, 8), (9, 0, 40), (5, 3, 0), (4, 0, 0)], ids=str
)
def test_training_step(cells, bias, sizes, as_good_as_torch):
    N, I, H = sizes  # noqa: E741
    theirs, ours = cells(I, H, bias=bias)
    x, hx = torch.randn(N, I), state_for(theirs, N)

    def step(cell, dtype):
        leaves, state = leaves_of(
            x.to(dtype), tuple(h.to(dtype) for h in hx) if isinstance(hx, tuple) else hx.to(dtype)
        )
        results = as_tuple(cell(leaves[0], state))
        loss = sum((k + 1) * r.square().sum() for k, r in enumerate(results))
        return [*results, *torch.autograd.grad(loss, [*leaves, *cell.parameters()])]

    exact = copy.deepcopy(theirs).double()
    as_good_as_torch(step(ours, torch.float32), step(theirs, torch.float32), step(exact, torch.float64))


def test_forms_of_input(cells):
    theirs, ours = cells(4, 5)
    for rows in ((3,), (), (0,)):
        x, hx = torch.randn(*rows, 4), state_for(theirs, *rows)
        for arguments in ((x, hx), (x,), (x, None)):
            torch.testing.assert_close(ours(*arguments), theirs(*arguments))
        with torch.no_grad():
            torch.testing.assert_close(ours(x, hx), theirs(x, hx))


def test_stepping_is_the_layer(cells):
    _, cell = cells(4, 5)
    layer = {"LSTMCell": lstmkern.LSTM, "GRUCell": lstmkern.GRU, "RNNCell": lstmkern.RNN}[type(cell).__name__]
    kind_options = {"nonlinearity": cell.nonlinearity} if isinstance(cell, lstmkern.RNNCell) else {}
    module = layer(4, 5, **kind_options)
    module.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x, state = torch.randn(6, 3, 4), None
    for t in range(6):
        state = cell(x[t], state)
    torch.testing.assert_close(as_tuple(state)[0], module(x)[0][-1])


def test_derivatives(cells):
    theirs, ours = cells(2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    h, c = torch.randn(2, 2, 3, dtype=torch.float64)
    lstm = isinstance(ours, lstmkern.LSTMCell)
    state = (h.requires_grad_(), *([c.requires_grad_()] if lstm else []))
    names = [name for name, _ in ours.named_parameters()]

    def function(x, *rest):
        hx = rest[: len(state)] if lstm else rest[0]
        return torch.func.functional_call(ours, dict(zip(names, rest[len(state) :], strict=True)), (x, hx))

    leaves = (x, *state, *(p.detach().clone().requires_grad_() for p in ours.parameters()))
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_the_next_state_may_be_written_into(cells):
    """Where torch.nn allows it: backward of GRUCell and LSTMCell does not look at what the caller has."""
    theirs, ours = cells(4, 5)
    if isinstance(ours, lstmkern.RNNCell):
        pytest.skip("torch.nn keeps h for backward")
    x, hx, grads = torch.randn(3, 4), state_for(theirs, 3), []
    for cell in (theirs, ours):
        state = as_tuple(cell(x, hx))
        for part in state:
            part.mul_(torch.tensor([[1.0], [0.0], [1.0]]))  # as a decoder does where a sequence has ended
        loss = sum((k + 1) * part.sin().sum() for k, part in enumerate(state))
        grads.append(torch.autograd.grad(loss, list(cell.parameters())))
    torch.testing.assert_close(*grads)


def test_partial_gradients(cells):
    theirs, ours = cells(4, 5)
    x, hx, results = torch.randn(3, 4), state_for(theirs, 3), []
    for cell in (theirs, ours):
        for k in range(len(as_tuple(hx))):  # one state after the other wants a gradient, and nothing else
            state = [h.clone().requires_grad_(i == k) for i, h in enumerate(as_tuple(hx))]
            cell.requires_grad_(False)
            out = as_tuple(cell(x, tuple(state) if isinstance(hx, tuple) else state[0]))
            results.append(torch.autograd.grad(sum(o.sin().sum() for o in out), state[k])[0])
    torch.testing.assert_close(results[len(results) // 2 :], results[: len(results) // 2])


class Named(torch.Tensor):
    """A subclass with torch's own __torch_function__: results are of the subclass."""


def test_subclasses_pass_through(cells):
    theirs, ours = cells(4, 5)
    x = torch.randn(3, 4).as_subclass(Named)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            results = as_tuple(theirs(x)), as_tuple(ours(x))
        assert all(type(b) is type(a) and b.requires_grad == a.requires_grad for a, b in zip(*results, strict=True))
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("bias", [True, False])
def test_same_construction(cells, bias):
    made = []
    torch.manual_seed(0)
    theirs, _ = cells(4, 5, bias=bias)
    _, ours = cells(4, 5, bias=bias)
    for cls in (type(theirs), type(ours)):
        torch.manual_seed(0)
        kind_options = {"nonlinearity": ours.nonlinearity} if isinstance(ours, lstmkern.RNNCell) else {}
        made.append((cls(4, 5, bias=bias, **kind_options), torch.get_rng_state()))
    (theirs, their_rng), (ours, our_rng) = made
    assert repr(ours) == repr(theirs) and torch.equal(our_rng, their_rng)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.randn(3, 4)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(twin(x), ours(x))


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_torchs_dtypes(cells, input_dtype, state_dtype):
    theirs, ours = cells(4, 5)
    x = torch.randn(3, 4).to(input_dtype)
    hx = state_for(theirs, 3)
    hx = tuple(h.to(state_dtype) for h in hx) if isinstance(hx, tuple) else hx.to(state_dtype)
    for arguments in ((x, hx), (x,)):
        with torch.autocast("cpu", torch.bfloat16):
            expected, actual = theirs(*arguments), ours(*arguments)
        for a, b in zip(as_tuple(actual), as_tuple(expected), strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


BOTH_REFUSE = {
    "rank 0": lambda name: (torch.tensor(1.0),),
    "rank 3": lambda name: (torch.randn(2, 2, 4),),
    "features": lambda name: (torch.randn(2, 9),),
    "state rows": lambda name: (torch.randn(2, 4), zero_state(name, 3, 5)),
    "state features": lambda name: (torch.randn(2, 4), zero_state(name, 2, 6)),
    "state rank 1 for 2": lambda name: (torch.randn(2, 4), zero_state(name, 5)),
    "state rank 2 for 1": lambda name: (torch.randn(4), zero_state(name, 2, 5)),
    "state rank 3": lambda name: (torch.randn(2, 4), zero_state(name, 1, 2, 5)),
    "no tensor": lambda name: (None,),
}


@pytest.mark.parametrize("case", BOTH_REFUSE)
@pytest.mark.parametrize("name", NAMES)
def test_refused_as_torch_refuses(name, case):
    assert_same_error(name, (4, 5), BOTH_REFUSE[case](name))


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_that_differ_are_refused(name):
    cell = getattr(lstmkern, name)(4, 5)
    with pytest.raises(RuntimeError):
        cell(torch.randn(2, 4, dtype=torch.float64))
    h = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        cell(torch.randn(2, 4), (h, h) if name == "LSTMCell" else h)


def test_unknown_nonlinearity():
    for package in (nn, lstmkern):
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: gelu"):
            package.RNNCell(4, 5, nonlinearity="gelu")(torch.randn(2, 4))
