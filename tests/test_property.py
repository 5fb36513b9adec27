"""Random shapes, strides, options, lengths and resets, compared with torch.nn and with the reference."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import as_tuple, random_state
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstmkern
from lstmkern import reference

size = st.integers(1, 12)
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def problems(draw):
    """torch.nn's module and ours in fp64, and a batch with random strides."""
    name = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    H = draw(st.integers(1, 20))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if name == "LSTM" and H > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, H - 1))
    if name == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    T, N, I = draw(size), draw(size), draw(size)  # noqa: E741
    torch.manual_seed(draw(st.integers(0, 2**31)))
    theirs = getattr(nn, name)(I, H, **options, dtype=torch.float64)
    ours = getattr(lstmkern, name)(I, H, **options, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    steps = [draw(st.integers(1, 2)) for _ in range(3)]
    order = draw(st.permutations(range(3)))
    sizes = (N, T, I) if options["batch_first"] else (T, N, I)
    memory = torch.randn(*(sizes[d] * steps[d] for d in order), dtype=torch.float64)
    x = memory.permute(*(order.index(d) for d in range(3)))[:: steps[0], :: steps[1], :: steps[2]]
    return theirs, ours, x.requires_grad_(), T, N


def state_for(module, N):
    """A random state in fp64, and its tensors, whose gradients are taken."""
    leaves = tuple(s.requires_grad_() for s in as_tuple(random_state(module, N, torch.float64)))
    return (leaves if module.mode == "LSTM" else leaves[0]), leaves


def results(module, output, state, leaves):
    state = as_tuple(state)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    loss = (output * weight).sum() + sum((k + 1) * s.square().sum() for k, s in enumerate(state))
    return [output, *state, *torch.autograd.grad(loss, [*leaves, *module.parameters()])]


def close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


@examples
@given(problem=problems(), with_state=st.booleans())
def test_dense(problem, with_state):
    theirs, ours, x, _, N = problem
    hx, leaves = state_for(theirs, N) if with_state else (None, ())
    close(*(results(module, *module(x, hx), (x, *leaves)) for module in (ours, theirs)))


@examples
@given(problem=problems(), data=st.data())
def test_ragged(problem, data):
    theirs, ours, x, T, N = problem
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, T), min_size=N, max_size=N)))
    hx, leaves = state_for(theirs, N)

    def packed(module):
        output, state = module(pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False), hx)
        output, _ = pad_packed_sequence(output, module.batch_first, total_length=T)
        return results(module, output, state, (x, *leaves))

    expected = packed(theirs)
    close(packed(ours), expected)
    close(results(ours, *ours(x, hx, lengths=lengths), (x, *leaves)), expected)


@examples
@given(problem=problems(), data=st.data())
def test_one_layer_with_everything(problem, data):
    """Lengths, resets and cell states together, compared with the reference."""
    module, x, T, N = problem[1], *problem[2:]
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=N, max_size=N)))
    resets = torch.tensor(data.draw(st.lists(st.booleans(), min_size=T * N, max_size=T * N))).view(x.shape[:2])
    D = 2 if module.bidirectional else 1
    _, (h, *c) = state_for(module, N)
    h, c = h[:D], c[0][:D] if c else None
    weights = [w for direction in module.all_weights[:D] for w in direction]
    arguments = (x, h, c, weights, None, lengths, resets, module.mode, module.batch_first)
    leaves = [t for t in (x, h, c, *weights) if t is not None]

    def everything(outputs):
        loss = sum(o.sin().sum() for o in outputs)
        return [*outputs, *torch.autograd.grad(loss, leaves)]

    ours = lstmkern.autograd.layer_forward(*arguments, module.mode == "LSTM")
    used = 4 if module.mode == "LSTM" else 2
    close(everything(ours[:used]), everything(reference.layer(*arguments)[:used]))
