"""Bad input: torch.nn's error types and messages where it has them, clear ones where not, and nothing changed."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from pairs import assert_same_error, zero_state
from simt import simulator
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import cpp_extension

import lstmkern

T, N, I, H = 3, 2, 4, 5  # noqa: E741
NAMES = ("LSTM", "GRU", "RNN")


def packed(features, **options):
    return pack_sequence([torch.randn(3, features, **options), torch.randn(2, features, **options)])


BOTH_REFUSE = {  # arguments as a function of the class name
    "rank 1": lambda name: (torch.randn(4),),
    "rank 4": lambda name: (torch.randn(T, N, I, 1),),
    "features": lambda name: (torch.randn(T, N, 9),),
    "features of one sequence": lambda name: (torch.randn(T, 9),),
    "no steps": lambda name: (torch.randn(0, N, I),),
    "fp64 input": lambda name: (torch.randn(T, N, I, dtype=torch.float64),),
    "integer input": lambda name: (torch.ones(T, N, I, dtype=torch.int64),),
    "bool input": lambda name: (torch.ones(T, N, I, dtype=torch.bool),),
    "state rows": lambda name: (torch.randn(T, N, I), zero_state(name, 1, 3, H)),
    "state layers": lambda name: (torch.randn(T, N, I), zero_state(name, 2, N, H)),
    "state features": lambda name: (torch.randn(T, N, I), zero_state(name, 1, N, 6)),
    "state rank 2 for 3": lambda name: (torch.randn(T, N, I), zero_state(name, 1, H)),
    "state rank 3 for 2": lambda name: (torch.randn(T, I), zero_state(name, 1, N, H)),
    "state rank 4": lambda name: (torch.randn(T, N, I), zero_state(name, 2, 1, N, H)),
    "wrong features before wrong state": lambda name: (torch.randn(T, N, 9), zero_state(name, 1, 3, H)),
    "a list": lambda name: ([1, 2],),
    "nothing": lambda name: (None,),
}


@pytest.mark.parametrize("case", BOTH_REFUSE)
@pytest.mark.parametrize("name", NAMES)
def test_refused_as_torch_refuses(name, case):
    assert_same_error(name, (I, H), BOTH_REFUSE[case](name))


def test_cell_state_has_its_own_size():
    for module in (nn.LSTM(I, H, proj_size=2), lstmkern.LSTM(I, H, proj_size=2)):
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 5\), got \[1, 2, 2\]"):
            module(torch.randn(T, N, I), (torch.zeros(1, N, 2), torch.zeros(1, N, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_packed_input(name):
    """torch.nn.LSTM lets these through to a product of matrices that do not fit; its GRU and RNN have the messages."""
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 4, got 9"):
        getattr(lstmkern, name)(I, H)(packed(9))
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float64\) does not match weight dtype"):
        getattr(lstmkern, name)(I, H)(packed(I, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_packed_state_of_another_batch(name):
    with pytest.raises(RuntimeError, match=r"Expected hidden(\[0\])? size \(1, 2, 5\), got \[1, 3, 5\]"):
        getattr(lstmkern, name)(I, H)(packed(I), zero_state(name, 1, 3, H))


ONLY_WE_SEE = {  # keyword arguments and what the message says
    "lengths as a list": ({"lengths": [3, 2]}, ValueError, "lengths: Expected a tensor of torch.int64, got list"),
    "lengths int32": ({"lengths": torch.tensor([3, 2]).int()}, ValueError, "lengths: Expected a tensor of torch.int64"),
    "lengths float": ({"lengths": torch.tensor([3.0, 2.0])}, ValueError, "lengths: Expected a tensor of torch.int64"),
    "too many lengths": ({"lengths": torch.tensor([3, 2, 1])}, ValueError, r"lengths: Expected size \(2,\), got \[3\]"),
    "lengths rank 2": ({"lengths": torch.tensor([[3, 2]])}, ValueError, r"lengths: Expected size \(2,\), got \[1, 2\]"),
    "negative length": ({"lengths": torch.tensor([-1, 2])}, RuntimeError, "lengths must be between 0 and 3, got -1"),
    "length past T": ({"lengths": torch.tensor([3, 4])}, RuntimeError, "lengths must be between 0 and 3, got 4"),
    "resets int": ({"resets": torch.zeros(T, N)}, ValueError, "resets: Expected a tensor of torch.bool"),
    "resets transposed": (
        {"resets": torch.zeros(N, T).bool()},
        ValueError,
        r"resets: Expected size \(3, 2\), got \[2, 3\]",
    ),
    "resets per row": ({"resets": torch.zeros(N).bool()}, ValueError, r"resets: Expected size \(3, 2\), got \[2\]"),
}


@pytest.mark.parametrize("case", ONLY_WE_SEE)
@pytest.mark.parametrize("name", NAMES)
def test_refused_lengths_and_resets(name, case):
    keywords, error, message = ONLY_WE_SEE[case]
    with pytest.raises(error, match=message):
        getattr(lstmkern, name)(I, H)(torch.randn(T, N, I), **keywords)


def test_packed_sequences_have_their_own_lengths():
    with pytest.raises(ValueError, match="a PackedSequence already has its lengths"):
        lstmkern.LSTM(I, H)(packed(I), lengths=torch.tensor([3, 2]))
    with pytest.raises(ValueError, match=r"resets: Expected size \(5,\), got \[3, 2\]"):
        lstmkern.LSTM(I, H)(packed(I), resets=torch.zeros(3, 2).bool())


def test_only_an_lstm_has_cells():
    with pytest.raises(TypeError, match="return_cells"):
        lstmkern.GRU(I, H)(torch.randn(T, N, I), return_cells=True)


def replaced(name, weight):
    module = lstmkern.LSTM(I, H)
    setattr(module, name, nn.Parameter(weight, requires_grad=weight.is_floating_point()))
    return module


WRONG_WEIGHTS = {
    "w_hh columns": ("weight_hh_l0", torch.randn(20, 3)),
    "w_hh rows": ("weight_hh_l0", torch.randn(16, 5)),
    "w_hh rank": ("weight_hh_l0", torch.randn(100)),
    "bias": ("bias_ih_l0", torch.randn(19)),
    "w_hh fp64": ("weight_hh_l0", torch.randn(20, 5, dtype=torch.float64)),
    "w_hh integer": ("weight_hh_l0", torch.ones(20, 5, dtype=torch.int64)),
    "w_ih columns": ("weight_ih_l0", torch.randn(20, 3)),
    "w_ih on another device": ("weight_ih_l0", torch.randn(20, 4, device="meta")),
    "w_hh on another device": ("weight_hh_l0", torch.randn(20, 5, device="meta")),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
@pytest.mark.parametrize("grad", [True, False])
def test_refused_weights(case, grad):
    module = replaced(*WRONG_WEIGHTS[case])
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError):
        module(torch.randn(T, N, I))


def test_integer_first_weight_is_refused_as_in_torch():
    with pytest.raises(ValueError, match="does not match weight dtype"):
        replaced("weight_ih_l0", torch.ones(20, 4, dtype=torch.int64))(torch.randn(T, N, I))


def test_tensors_on_different_devices():
    module = lstmkern.LSTM(I, H)
    with pytest.raises(
        RuntimeError, match="not at the same device, found input tensor at meta and parameter tensor at cpu"
    ):
        module(torch.randn(T, N, I, device="meta"))
    state = torch.zeros(1, N, H, device="meta")
    with pytest.raises(
        RuntimeError, match="not at the same device, found input tensor at cpu and hidden tensor at meta"
    ):
        module(torch.randn(T, N, I), (state, state))


def test_state_of_another_dtype():
    state = torch.zeros(1, N, H, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        lstmkern.GRU(I, H)(torch.randn(T, N, I), state)


def test_packed_batch_sizes_that_do_not_fit():
    data = torch.randn(5, I)
    for sizes in ([2, 2], [2, 2, 2], [1, 2, 2]):
        with pytest.raises(RuntimeError):
            lstmkern.GRU(I, H)(PackedSequence(data, torch.tensor(sizes)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_go_where_they_go_in_torch(name, value):
    x = torch.randn(T, N, I)
    x[1, 0, 2] = value
    module = getattr(nn, name)(I, H)
    expected, state = module(x)
    ours = getattr(lstmkern, name)(I, H)
    ours.load_state_dict(module.state_dict())
    output, final = ours(x)
    torch.testing.assert_close(output, expected, equal_nan=True)
    torch.testing.assert_close(final, state, equal_nan=True)
    assert output[:, 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_nan_in_one_batch_leaves_nothing_for_the_next(name, dtype):
    """Kernels reuse their working memory; what a batch leaves there must not reach the next, whatever the sizes."""
    for H in range(1, 34):
        module = getattr(lstmkern, name)(I, H, dtype=dtype)
        x = torch.randn(T, N, I, dtype=dtype)
        first = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
        poisoned = (x * math.nan).requires_grad_()
        module(poisoned)[0].sum().backward()
        second = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), f"H = {H}"


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_call_leaves_everything_usable(name):
    torch.manual_seed(0)
    module = getattr(lstmkern, name)(I, H, 2, dropout=0.5)
    x, before = torch.randn(T, N, I), torch.get_rng_state()
    weights = {n: p.clone() for n, p in module.state_dict().items()}
    state = zero_state(name, 2, N, H)
    for arguments, keywords in (
        ((torch.randn(T, N, 9, generator=torch.Generator()),), {}),
        ((x, zero_state(name, 2, 7, H)), {}),
        ((x, state), {"lengths": torch.tensor([0, 99])}),
        ((x, state), {"resets": torch.zeros(1, 1).bool()}),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            module(*arguments, **keywords)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, weights[n]) for n, p in module.state_dict().items())
    assert not any(s.any() for s in (state if name == "LSTM" else [state]))
    module(x, state)[0].sum().backward()


def test_functional_forms_refuse_wrong_layers():
    x, module = torch.randn(T, N, I), lstmkern.LSTM(I, H, bidirectional=True)
    forward, reverse = module.all_weights
    with pytest.raises(ValueError, match=r"weights\[0\]: Expected 2 to 5 tensors for each of 2 directions, got 7"):
        lstmkern.functional.lstm(x, None, [forward + reverse[:3]], bidirectional=True)
    state = torch.zeros(1, N, H)
    with pytest.raises(ValueError, match=r"hx\[0\]: Expected \[2, N, features\], got \[1, 2, 5\]"):
        lstmkern.functional.lstm(x, (state, state), [forward + reverse], bidirectional=True)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
        lstmkern.functional.rnn(x, None, [forward], nonlinearity="gelu")


@pytest.mark.parametrize("hx", [lambda h: (None, h), lambda h: (h, None), lambda h: (h,), lambda h: (h, h, h)])
def test_an_lstm_has_two_states(hx):
    h = torch.zeros(N, H)
    with pytest.raises(RuntimeError, match="expects two hidden states"):
        lstmkern.LSTM(I, H)(torch.randn(T, N, I), hx(h.unsqueeze(0)))
    with pytest.raises(RuntimeError, match="expects two hidden states"):
        lstmkern.LSTMCell(I, H)(torch.randn(N, I), hx(h))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_integers_as_they_are(name):
    for module in (getattr(nn, name)(I, H), getattr(lstmkern, name)(I, H)):
        with torch.autocast("cpu"), pytest.raises((RuntimeError, ValueError)):
            module(torch.ones(T, N, I, dtype=torch.int64))


def test_what_has_no_values():
    module, x = lstmkern.GRU(I, H), torch.randn(T, N, I)
    for ragged in ({"lengths": torch.tensor([1, 3])}, {"resets": torch.zeros(T, N, dtype=torch.bool)}):
        with pytest.raises(RuntimeError, match="on the meta device has no values"):
            module(x, **{name: t.to("meta") for name, t in ragged.items()})


KEPT = ["grad_output", "grad_h_n", "grad_c_n", "grad_cells", "output", "cells", "gates"]


@pytest.mark.parametrize("wrong", KEPT)
@pytest.mark.parametrize(
    "how",
    [lambda t: t[..., :-1], lambda t: t[:, :1], lambda t: t.double(), lambda t: t.half(), lambda t: t[0]],
    ids=["columns", "rows", "fp64", "fp16", "rank"],
)
def test_backward_refuses_what_forward_did_not_give(wrong, how):
    x, h, weights = torch.randn(T, N, I), torch.zeros(1, N, H), list(lstmkern.LSTM(I, H).parameters())
    weights = [w.detach() for w in weights]
    ops = torch.ops.lstmkern
    output, h_n, c_n, cells, gates = ops.layer_forward(x, h, h, weights, None, None, None, "LSTM", False, True, True)
    given = dict(zip(KEPT, (output, h_n, c_n, cells, output, cells, gates), strict=True))
    given[wrong] = how(given[wrong])
    grads, kept = list(given.values())[:4], list(given.values())[4:]
    with pytest.raises(RuntimeError, match=f"{wrong} must have"):
        ops.layer_backward(*grads, x, h, h, weights, None, None, None, *kept, "LSTM", False, [True] * 3)


@pytest.mark.skipif(lstmkern._C.build_info()["cuda"] is not None, reason="this build has plans")
def test_no_plans_without_cuda():
    with pytest.raises(RuntimeError, match="lstmkern was built without CUDA"):
        lstmkern._C.cuda_plan("cluster", "LSTM", "bf16", 64, 512)


def test_one_step_takes_no_lengths():
    weights = [torch.randn(4 * H, I), torch.randn(4 * H, H)]
    args = (
        torch.randn(N, I),
        torch.randn(N, H),
        torch.randn(N, H),
        weights,
        None,
        torch.ones(N, dtype=torch.int64),
        None,
    )
    with pytest.raises(RuntimeError, match="one step takes no lengths"):
        torch.ops.lstmkern.layer_forward(*args, "LSTM", False, False, True)


def captured_ops():
    """The operators of captured.cpp."""
    if simulator.compiler() is None:
        pytest.skip("no C++ compiler")
    source = Path(__file__).parent / "captured.cpp"
    text = b"".join(p.read_bytes() for p in simulator.includes(source.resolve(), [])) + torch.__version__.encode()
    library = simulator.ROOT / "build" / "captured" / f"{hashlib.sha256(text).hexdigest()[:16]}.so"
    folders = [f"-I{p}" for p in cpp_extension.include_paths()]
    flags = ["-std=c++20", "-O0", "-g0", "-w", "-shared", "-fPIC", "-fvisibility=hidden"]
    link = [*(f"-L{p}" for p in cpp_extension.library_paths()), "-lc10", "-ltorch_cpu", "-ltorch"]
    torch.ops.load_library(simulator.made(library, [simulator.compiler(), *flags, *folders, source, *link]))
    return torch.ops.lstmkern_captured


def test_lengths_on_the_cpu_are_not_captured():
    """A graph would copy them from memory that is freed before it runs."""
    ops, h = captured_ops(), torch.zeros(1, N, H)
    layer = torch.randn(T, N, I), h, h, [torch.randn(4 * H, I), torch.randn(4 * H, H)], None
    options, lengths = ("LSTM", False), torch.ones(N, dtype=torch.int64)
    _, _, _, cells, gates = ops.layer_forward(*layer, None, None, *options, True, True)
    saved = torch.zeros(T, N, H), cells, gates
    ops.layer_backward(None, None, None, None, *layer, None, None, *saved, *options, [True] * 3)
    with pytest.raises(RuntimeError, match="lengths on the CPU cannot be captured in a CUDA graph"):
        ops.layer_forward(*layer, lengths, None, *options, True, True)
    with pytest.raises(RuntimeError, match="lengths on the CPU cannot be captured in a CUDA graph"):
        ops.layer_backward(None, None, None, None, *layer, lengths, None, *saved, *options, [True] * 3)
