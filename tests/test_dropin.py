"""A program written for torch.nn.LSTM, GRU or RNN cannot tell ours apart."""

import copy
import inspect
import io
import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from pairs import KINDS
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstmkern

FLAGS = ("bias", "batch_first", "bidirectional")
OPTIONS = [
    {"num_layers": layers, **dict(zip(FLAGS, flags, strict=True))}
    for layers in (1, 3)
    for flags in itertools.product((False, True), repeat=3)
]


def close(ours, theirs):
    if isinstance(theirs, PackedSequence):
        assert isinstance(ours, PackedSequence)
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
        return close(ours.data, theirs.data)
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple) and len(ours) == len(theirs)
        return [close(a, b) for a, b in zip(ours, theirs, strict=True)]
    return torch.testing.assert_close(ours, theirs)


# ---- construction ----


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_construction(kind, options):
    name, own = KINDS[kind]
    made = []
    for package in (nn, lstmkern):
        torch.manual_seed(0)
        made.append((getattr(package, name)(4, 5, **own, **options), torch.get_rng_state()))
    (theirs, their_rng), (ours, our_rng) = made
    assert torch.equal(our_rng, their_rng)
    assert repr(ours) == repr(theirs)
    assert [(n, p.shape, p.dtype) for n, p in ours.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in theirs.named_parameters()
    ]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not ours.load_state_dict(theirs.state_dict()).missing_keys
    assert not theirs.load_state_dict(ours.state_dict()).unexpected_keys
    attributes = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "proj_size")
    assert all(getattr(ours, a) == getattr(theirs, a) for a in attributes)
    assert [[p.shape for p in w] for w in ours.all_weights] == [[p.shape for p in w] for w in theirs.all_weights]


POSITIONAL = {
    "LSTM": (4, 5, 2, False, True, 0.5, True, 3),
    "GRU": (4, 5, 2, False, True, 0.5, True),
    "RNN": (4, 5, 2, "relu", False, True, 0.5, True),
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_arguments(name):
    theirs, ours = (getattr(package, name)(*POSITIONAL[name]) for package in (nn, lstmkern))
    assert repr(ours) == repr(theirs)


WRONG = [
    {"input_size": 0},
    {"input_size": 2.0},
    {"hidden_size": -1},
    {"hidden_size": "5"},
    {"num_layers": 0},
    {"bias": 1},
    {"batch_first": None},
    {"dropout": 1.5},
    {"dropout": True},
    {"dropout": "0"},
    {"proj_size": -1},
    {"proj_size": 5},
    {"nonlinearity": "gelu"},
    {"unknown": 3},
    {"dtype": torch.int32},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_constructors_refuse_what_torch_refuses(name, wrong):
    """With the same error, except that Python names our constructor for an unknown keyword."""
    arguments = {"input_size": 4, "hidden_size": 5, **wrong}
    unknown = next((key for key in wrong if key not in inspect.signature(getattr(lstmkern, name)).parameters), None)
    errors = []
    for package in (nn, lstmkern):
        with pytest.raises(Exception) as error:  # noqa: PT011 (the types are compared below)
            getattr(package, name)(**arguments)
        errors.append((error.type, str(error.value)))
    if unknown is not None:
        errors[0] = TypeError, f"{name}.__init__() got an unexpected keyword argument '{unknown}'"
    assert errors[1] == errors[0]


def test_dropout_of_one_layer_warns_as_torch_does():
    texts = []
    for package in (nn, lstmkern):
        with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1") as caught:
            package.LSTM(4, 5, dropout=0.5)
        texts.append([str(w.message) for w in caught])
    assert texts[0] == texts[1]


def test_factory_arguments():
    module = lstmkern.LSTM(4, 5, device="meta", dtype=torch.float64)
    assert all(p.device.type == "meta" and p.dtype == torch.float64 for p in module.parameters())
    output, (h_n, _) = module(torch.empty(3, 2, 4, device="meta", dtype=torch.float64))
    assert output.shape == (3, 2, 5) and output.device.type == "meta" and h_n.shape == (1, 2, 5)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_what_it_is_an_instance_of(name):
    """torch.nn's class: client libraries branch on it. replace_modules() gives the same."""
    ours, theirs = getattr(lstmkern, name), getattr(nn, name)
    swapped = nn.ModuleList([theirs(4, 5)])
    lstmkern.replace_modules(swapped)
    for module in (ours(4, 5), swapped[0]):
        assert isinstance(module, theirs) and type(module) is ours
        assert isinstance(module, nn.RNNBase if hasattr(nn, name + "Cell") else nn.RNNCellBase)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_helpers_that_subclasses_call(name):
    """A subclass that overrides forward checks its arguments by these."""
    results = []
    for module in (
        getattr(nn, name)(3, 4, 2, bidirectional=True),
        getattr(lstmkern, name)(3, 4, 2, bidirectional=True),
    ):
        x, h, order = torch.ones(2, 5, 3), torch.arange(80.0).view(4, 5, 4), torch.tensor([4, 2, 0, 1, 3])
        hx, sizes = ((h, h), "get_expected_cell_size") if name == "LSTM" else (h, "get_expected_hidden_size")
        module.check_forward_args(x, hx, None)
        with pytest.raises(RuntimeError, match="Expected hidden"):
            module.check_forward_args(x[:, :4], hx, None)
        permuted = module.permute_hidden(hx, order)
        results.append((getattr(module, sizes)(x, None), permuted[0].tolist(), permuted[-1].tolist()))
    assert results[0] == results[1]


def test_flat_weights_may_be_assigned(pair):
    """Old recipes for weight dropout and pruning assign the list that torch.nn keeps in addition to the parameters."""
    theirs, ours = pair("lstm", 4, 5, 2)
    x = torch.randn(3, 2, 4)

    def both():
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])
        return ours(x)[0]

    first = both()
    for module in (theirs, ours):
        module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]
    assert torch.equal(both(), first)
    for module in (theirs, ours):  # other tensors replace the parameters
        module._flat_weights = [2 * w.detach() for w in module._flat_weights]
    doubled = both()
    assert not torch.equal(doubled, first)
    assert torch.equal(copy.deepcopy(ours)(x)[0], doubled)
    for module in (theirs, ours):  # until one is set again
        module.weight_hh_l1 = nn.Parameter(torch.zeros(20, 5))
    set_again = both()
    for module in (theirs, ours):  # or all are moved
        module._flat_weights = [2 * w.detach() for w in module._flat_weights]
        module.double().float()
    assert torch.equal(both(), set_again)
    with pytest.raises(ValueError):
        ours._flat_weights = []


# ---- calls ----


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_every_kind_of_input(kind, batch_first, bidirectional, with_state, pair):
    theirs, ours = pair(kind, 4, 5, 2, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn(6, 3, 4)
    lengths = [2, 6, 1] if not batch_first else [3, 1, 2, 1, 1, 3]
    N = len(lengths)
    D = 4 if bidirectional else 2
    h, c = torch.randn(D, N, theirs.proj_size or 5), torch.randn(D, N, 5)
    for rows, input in (
        (slice(None), x),
        (0, x[:, 0] if not batch_first else x[0]),
        (slice(None), pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)),
        (slice(None), pack_padded_sequence(x, sorted(lengths)[::-1], batch_first=batch_first)),
        (slice(0, 0), x[:, :0] if not batch_first else x[:0]),
    ):
        hx = ((h[:, rows], c[:, rows]) if theirs.mode == "LSTM" else h[:, rows]) if with_state else None
        close(ours(input, hx), theirs(input, hx))
        if with_state:
            close(ours(input, hx=hx), theirs(input, hx=hx))


WAYS = {
    "infer": lambda m, x, hx: [m(x, hx)],
    "train": lambda m, x, hx: torch.autograd.grad(of(m(x, hx)).sum(), [x, *m.parameters()]),
    "recompute": lambda m, x, hx: torch.autograd.grad(recomputed(m, x, hx).sum(), [x, *m.parameters()]),
    "twice": lambda m, x, hx: torch.autograd.grad(
        torch.autograd.grad(of(m(x, hx)).square().sum(), x, create_graph=True)[0].square().sum(), [*m.parameters()]
    ),
    "vmap": lambda m, x, hx: [torch.func.vmap(lambda row: of(m(row, hx)), out_dims=1)(torch.stack([x, 2 * x]))],
}


def of(results):
    output = results[0]
    return output.data if isinstance(output, PackedSequence) else output


def recomputed(m, x, hx):
    with lstmkern.recompute():
        return of(m(x, hx))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "name, more",
    [(name, {"batch_first": two, "num_layers": 1 + two}) for name in ("LSTM", "GRU") for two in (False, True)]
    + [("LSTM", {"proj_size": 2})],
    ids=str,
)
def test_no_state_is_a_state_of_zeros(name, more, bidirectional, bias, way):
    options = {"bidirectional": bidirectional, "bias": bias, **more}
    module = getattr(lstmkern, name)(3, 5, dtype=torch.float64, **options)
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=way != "infer")
    N, states = (4 if module.batch_first else 6), module.num_layers * (1 + module.bidirectional)
    h = torch.zeros(states, N, module.proj_size or 5, dtype=torch.float64)
    hx = h if name == "GRU" else (h, torch.zeros(states, N, 5, dtype=torch.float64))
    with torch.set_grad_enabled(way != "infer"):
        close(tuple(WAYS[way](module, x, None)), tuple(WAYS[way](module, x, hx)))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_same_dropout_masks(kind, batch_first, bidirectional, p, pair):
    theirs, ours = pair(kind, 4, 5, 3, dropout=p, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn(6, 5, 4)
    lengths = [5, 3, 2, 2, 1, 1] if batch_first else [5, 3, 2, 2, 1]
    for input in (x, x[0], pack_padded_sequence(x, lengths, batch_first=batch_first)):
        for training in (True, False):
            results = []
            for module in (theirs, ours):
                module.train(training)
                torch.manual_seed(3)
                results.append(module(input))
                results[-1] += (torch.get_rng_state(),)
            close(results[1], results[0])


def test_rng_is_left_alone_without_dropout(kind, pair):
    _, ours = pair(kind, 4, 5, 2)
    before = torch.get_rng_state()
    ours(torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(0)))[0].sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("states", [2, 3])
@pytest.mark.parametrize("form", ["dense", "packed", "cell"])
def test_both_states_in_one_tensor(form, states):
    """A stack of the two states is refused, as a mistake that a batch of two would hide; a list is a pair."""
    name = "LSTMCell" if form == "cell" else "LSTM"
    x, h = torch.randn(3, 2, 4), torch.randn(*(() if form == "cell" else (1,)), 2, 5)
    x = {"dense": x, "packed": pack_padded_sequence(x, [3, 2]), "cell": x[0]}[form]
    for package in (nn, lstmkern):
        module = getattr(package, name)(4, 5)
        with pytest.raises(TypeError, match=r"^lstm(_cell)?\(\)"):
            module(x, torch.stack([h] * states))
        close(module(x, [h, h + 1]), module(x, (h, h + 1)))
        for wrong in ({0: h, 1: h}, iter((h, h))):
            with pytest.raises((TypeError, AttributeError)):  # torch.nn's cells fail later, within
                module(x, wrong)


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_both_states_in_one_tensor_of_one_sequence(name):
    """Without a batch dimension torch.nn takes it apart, and so do we."""
    x, h = (torch.randn(3, 4), torch.randn(2, 1, 5)) if name == "LSTM" else (torch.randn(4), torch.randn(2, 5))
    for package in (nn, lstmkern):
        module = getattr(package, name)(4, 5)
        close(module(x, h), module(x, tuple(h)))


# ---- life of a module ----


def roundtrips(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    yield copy.deepcopy(module)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(module, protocol))
    yield torch.load(buffer, weights_only=False)


def test_copies_are_independent_and_equal(kind, pair):
    _, ours = pair(kind, 4, 5, 2, bidirectional=True)
    x = torch.randn(3, 2, 4)
    expected = ours(x)
    for twin in roundtrips(ours):
        close(twin(x), expected)
        with torch.no_grad():
            next(twin.parameters()).zero_()
        assert not torch.equal(twin(x)[0], expected[0])
        close(ours(x), expected)


def test_moving_between_dtypes(kind, pair):
    theirs, ours = pair(kind, 4, 5, 2)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    close(ours.double()(x), theirs.double()(x))
    close(ours.to(torch.float32)(x.float()), theirs.to(torch.float32)(x.float()))


def test_flatten_parameters_is_harmless(kind, pair):
    _, ours = pair(kind, 4, 5)
    before = [p.data_ptr() for p in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert [p.data_ptr() for p in ours.parameters()] == before


def test_data_parallel_replicas_use_their_own_weights(kind, pair):
    _, ours = pair(kind, 4, 5, 2)
    x = torch.randn(3, 2, 4)
    replica = ours._replicate_for_data_parallel()
    for name, parameter in ours.named_parameters():
        setattr(replica, name, parameter * 1)
    close(replica(x), ours(x))
    replica(x)[0].sum().backward()
    assert all(p.grad is not None for n, p in ours.named_parameters())


def test_hooks_run(pair):
    _, ours = pair("lstm", 4, 5)
    seen = []
    ours.register_forward_pre_hook(lambda module, args: seen.append("before"))
    ours.register_forward_hook(lambda module, args, result: seen.append("after"))
    ours(torch.randn(3, 2, 4))
    assert seen == ["before", "after"]


# ---- weights that are not plain parameters ----


def test_weight_drop(kind, pair):
    """A non-leaf tensor takes the parameter's place at each call, as AWD-LSTM's WeightDropout does."""
    theirs, ours = pair(kind, 4, 5)
    x, grads = torch.randn(3, 2, 4), []
    for module in (theirs, ours):
        raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        del module._parameters["weight_hh_l0"]
        results = []
        for step in range(2):
            torch.manual_seed(step)
            module.weight_hh_l0 = F.dropout(raw, 0.5)
            results.append(module(x)[0])
        (results[0].sum() + 2 * results[1].sum()).backward()
        grads.append([*results, raw.grad, module.weight_ih_l0.grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a)


def test_parametrizations(kind, pair):
    theirs, ours = pair(kind, 4, 5)
    x = torch.randn(3, 2, 4)
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh_l0")
        parametrizations.spectral_norm(module.eval(), "weight_ih_l0")
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module(x)[0].sum().backward()
    close(ours(x), theirs(x))
    for (name, a), (other, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(a.grad, b.grad)
    parametrize.remove_parametrizations(ours, "weight_hh_l0")
    close(ours(x), theirs(x))


def test_old_weight_norm(pair):
    theirs, ours = pair("gru", 4, 5)
    x = torch.randn(3, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs, ours = (nn.utils.weight_norm(m, "weight_hh_l0") for m in (theirs, ours))
    with torch.no_grad():
        for module in (theirs, ours):
            module.weight_hh_l0_g.mul_(2)
    close(ours(x), theirs(x))


def test_tied_weights(pair):
    """One parameter in two places gets the sum of both gradients."""
    theirs, ours = pair("gru", 5, 5, 2)
    x = torch.randn(3, 2, 5)
    for module in (theirs, ours):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_hh_l0
        module(x)[0].sum().backward()
    close(ours(x), theirs(x))
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


def test_functional_call(kind, pair):
    theirs, ours = pair(kind, 4, 5, 2)
    x = torch.randn(3, 2, 4)
    weights = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    before = ours(x)
    close(torch.func.functional_call(ours, weights, (x,)), torch.func.functional_call(theirs, weights, (x,)))
    close(ours(x), before)


def test_replaced_parameter_is_used(pair):
    theirs, ours = pair("lstm", 4, 5)
    weight = nn.Parameter(torch.randn(20, 5))
    theirs.weight_hh_l0 = ours.weight_hh_l0 = weight
    x = torch.randn(3, 2, 4)
    close(ours(x), theirs(x))


def test_shared_memory_weights(pair):
    """Weights that are views of one flat buffer, as optimizers and sharding libraries store them."""
    theirs, ours = pair("lstm", 4, 5)
    flat = torch.cat([p.detach().flatten() for p in ours.parameters()])
    offset = 0
    for p in ours.parameters():
        p.data = flat[offset : offset + p.numel()].view_as(p)
        offset += p.numel()
    x = torch.randn(3, 2, 4)
    close(ours(x), theirs(x))


def test_strided_weights(kind, pair):
    theirs, ours = pair(kind, 4, 6, dtype=torch.float64)
    for p in ours.parameters():
        p.data = p.data.repeat_interleave(2, 0)[::2] if p.dim() == 1 else p.data.t().contiguous().t()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    for module in (theirs, ours):
        module(x)[0].square().sum().backward()
    close(ours(x), theirs(x))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# ---- autocast ----


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=["x32", "x16"])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16], ids=["none", "h32", "h16"])
@pytest.mark.parametrize("form", ["dense", "packed", "stack"])
def test_autocast_gives_torchs_dtypes(kind, input_dtype, state_dtype, form, pair):
    theirs, ours = pair(kind, 4, 5, 2 if form == "stack" else 1, bidirectional=form == "stack")
    x = torch.randn(3, 2, 4, dtype=input_dtype)
    hx = None
    if state_dtype is not None:
        D = 4 if form == "stack" else 1
        h, c = torch.randn(D, 2, theirs.proj_size or 5).to(state_dtype), torch.randn(D, 2, 5).to(state_dtype)
        hx = (h, c) if theirs.mode == "LSTM" else h
    if form == "packed":
        x = pack_padded_sequence(x, [3, 2])
    results = []
    for module in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            output, state = module(x, hx)
        output = output.data if form == "packed" else output
        state = state if isinstance(state, tuple) else (state,)
        sum(t.float().sum() for t in (output, *state)).backward()
        assert all(p.grad.dtype == torch.float32 for p in module.parameters())
        results.append((output, *state))
    for a, b in zip(*results, strict=True):
        assert b.dtype == a.dtype
        torch.testing.assert_close(b, a, rtol=0.05, atol=0.02)


def test_autocast_leaves_fp64_alone(kind, pair):
    theirs, ours = pair(kind, 4, 5, dtype=torch.float64)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        close(ours(x), theirs(x))


def test_grad_scaler():
    module = lstmkern.GRU(4, 5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = module.weight_hh_l0.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(torch.randn(3, 2, 4))[0].float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(module.weight_hh_l0, before)


@pytest.mark.parametrize("batch_first", [False, True])
def test_results_may_be_written_into(kind, pair, batch_first):
    """Where nothing wants a gradient through what is overwritten; a result is nobody's view."""
    for module in pair(kind, 4, 5, batch_first=batch_first):
        x = torch.randn(3, 3, 4, requires_grad=True)
        for write in (lambda t: t.mul_(2), lambda t: t[:, 2:].zero_()):
            write(module(x)[0])
        if module.mode != "LSTM" or isinstance(module, lstmkern.LSTM):  # nn.LSTM's is a view where oneDNN computes it
            assert not module(x)[0].detach_().requires_grad
            (grad,) = torch.autograd.grad(module(x)[0].sin().sum(), x, create_graph=True)
            grad.mul_(2)
