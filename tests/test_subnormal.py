"""Subnormal numbers count as zero inside the CPU kernels and nowhere else (csrc/cpu/flush.h).

``tiny`` is the smallest normal number of the type in which a layer computes. Flushing changes an operand or a result by
less than that. For a step's sum of K products of weights w and values v (inputs and states) these are at most K of
each kind: operands v, each times a weight; operands w, each times a value; and partial sums. So a sum changes by at
most

    K * (max |w| + max |v| + 1) * tiny

and each of the few operations of a cell adds at most tiny. The derivatives of a cell's state with respect to its sums
are at most 1 (tanh), 1/4 (sigmoid) or the state, here at most 1.
"""

import ctypes
import platform
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pairs import KINDS, as_tuple
from torch import nn

import lstmkern

ROOT = Path(lstmkern.__file__).resolve().parent.parent
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SUBNORMAL = {torch.float32: 1e-40, torch.float64: 1e-310, torch.bfloat16: 1e-40}
# What makes a visible number of it: 1e-10 in all of them.
LARGE = {torch.float32: 1e30, torch.float64: 1e300, torch.bfloat16: 1e30}
CELL_GAIN, CELL_OPERATIONS = 4, 16  # of a cell's state in the sums (GRU: at most 1/4 |n_h| + 2), and its operations

# T, N, I, H. Weights read in place; packed as they are used (one step); an input GEMM computed ahead; x and h in one
# GEMM; hidden units that are no multiple of a register.
SHAPES = [(1, 1, 40, 33), (3, 1, 64, 64), (1, 40, 64, 64), (6, 3, 64, 64), (6, 64, 100, 70)]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: ",".join(map(str, s)))


def tiny(dtype):
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny


def layer(kind, *sizes, dtype=torch.float32, weight=None, library=lstmkern, bias=False):
    name, options = KINDS[kind]
    module = getattr(library, name)(*sizes, dtype=dtype, bias=bias, **options)
    if weight is not None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(weight)
    return module


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def subnormals_survive(dtype=torch.float32, count=1 << 20):
    """Whether torch's operators keep subnormal numbers, on all their threads."""
    return (torch.full((count,), SUBNORMAL[dtype], dtype=dtype) * 1).ne(0).all().item()


def control_bits():
    """The calling thread's floating-point control: MXCSR without its status flags, or FPCR."""
    environment = (ctypes.c_uint32 * 16)()
    ctypes.CDLL(None).fegetenv(environment)
    return environment[7] & 0xFFC0 if platform.machine() == "x86_64" else environment[0]


@by_dtype
@by_shape
def test_a_subnormal_input_contributes_nothing(kind, shape, dtype):
    T, N, features, H = shape
    if dtype == torch.float16:
        pytest.skip("subnormals of fp16 are normal numbers of the type that a layer computes in")
    module = layer(kind, features, H, dtype=dtype, weight=LARGE[dtype])
    x = torch.full((T, N, features), SUBNORMAL[dtype], dtype=dtype, requires_grad=True)
    unflushed = layer(kind, features, H, dtype=torch.float64, weight=LARGE[dtype], library=nn)
    assert unflushed(x.double())[0].ne(0).all()
    with threads(2):
        output, state = module(x)
        with torch.no_grad():
            inferred, _ = module(x)
    for result in (output, inferred, *as_tuple(state)):
        assert result.eq(0).all()
    assert subnormals_survive(dtype)


@by_shape
def test_a_subnormal_gradient_contributes_nothing(kind, shape):
    T, N, features, H = shape
    module = layer(kind, features, H, weight=1e-3)
    x = torch.full((T, N, features), 1e-3, requires_grad=True)
    output, _ = module(x)
    grads = torch.autograd.grad(output, [x, *module.parameters()], torch.full_like(output, SUBNORMAL[torch.float32]))
    assert all(grad.eq(0).all() for grad in grads)


@pytest.mark.parametrize("rows", [1, 4, 1 << 16], ids=lambda n: f"{n} rows")
def test_every_fp16_number_is_exact(rows):
    """A relu RNN with the weight 1 returns what it gets, and so does its backward pass."""
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = values[values.isfinite() & (values >= 0)]
    # All numbers in one step, or all subnormals in steps of a few rows.
    values = values[: rows * 1024].view(1024, rows, 1) if rows < len(values) else values.view(1, -1, 1)
    module = layer("rnn-relu", 1, 1, dtype=torch.float16, weight=1)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    x = values.clone().requires_grad_()
    output, _ = module(x)
    assert torch.equal(output, values)
    (grad,) = torch.autograd.grad(output, x, values)
    assert torch.equal(grad, values)


def largest(tensors):
    return max(t.detach().abs().max().double().item() for t in tensors)


@by_dtype
@by_shape
@pytest.mark.parametrize("scale", [1, 100, 1e4], ids=lambda s: f"{s:g} tiny")
def test_error_of_one_step(kind, shape, scale, dtype):
    """The module's bound, with gradients: the sums over gates and rows take the place of K."""
    if dtype == torch.float16:
        pytest.skip("subnormals of fp16 are normal numbers of the type that a layer computes in")
    _, N, features, H = shape
    module = layer(kind, features, H, dtype=dtype)
    exact = layer(kind, features, H, dtype=torch.float64, library=nn)
    exact.load_state_dict(module.state_dict())
    small, eps = scale * tiny(dtype), torch.finfo(dtype).eps
    state_size = module.proj_size or H
    x = (torch.rand(1, N, features, dtype=dtype) * small).requires_grad_()
    h0 = (torch.rand(1, N, state_size, dtype=dtype) * small).requires_grad_()
    c0 = torch.zeros(1, N, H, dtype=dtype)
    inputs = [x, h0, *module.parameters()]
    output, _ = module(x, (h0, c0) if module.mode == "LSTM" else h0)
    grad = torch.rand_like(output) * small
    if kind == "rnn-relu":  # its derivative jumps at zero, so a unit whose output was flushed has none
        grad[output == 0] = 0
    grads = torch.autograd.grad(output, inputs, grad)

    x64, h64 = (t.detach().double().requires_grad_() for t in (x, h0))
    expected, _ = exact(x64, (h64, c0.double()) if module.mode == "LSTM" else h64)
    wanted = torch.autograd.grad(expected, [x64, h64, *exact.parameters()], grad.double())

    def bound(K, weights, values):
        flushed = K * (weights + values + 1) * tiny(dtype)
        rounded = K * K * eps * weights * values + 2 * eps * small
        return CELL_GAIN * (flushed + CELL_OPERATIONS * tiny(dtype) + rounded)

    w = max(largest(module.parameters()), 1 if module.proj_size else 0)
    K = features + state_size + (H if module.proj_size else 0)
    assert (output.double() - expected).abs().max() <= bound(K, w, small)
    gates = module.weight_ih_l0.size(0) + (state_size if module.proj_size else 0)
    for name, got, want in zip(["x", "h0", *dict(module.named_parameters())], grads, wanted, strict=True):
        of_weights = name.startswith("weight")
        limit = bound(N, small, small) if of_weights else bound(gates, w * CELL_OPERATIONS, small)
        assert (got.double() - want).abs().max() <= limit, name


@pytest.mark.parametrize("kind", ["rnn-tanh"])
@pytest.mark.parametrize("library", [lstmkern, nn], ids=["ours", "torch.nn"])
def test_error_of_a_state_that_decays(kind, library):
    """Each step's error is at most the bound of one step and, where the weights contract, half of the error before."""
    T, N, H = 300, 8, 32
    module = layer(kind, 4, H, library=library)
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.rand(H, H) - 0.5)
        module.weight_hh_l0 /= 2 * module.weight_hh_l0.abs().sum(1, keepdim=True)
    exact = layer(kind, 4, H, dtype=torch.float64, library=nn)
    exact.load_state_dict(module.state_dict())
    x, h0 = torch.zeros(T, N, 4), torch.rand(1, N, H)
    with torch.no_grad():
        output, _ = module(x, h0)
        expected, _ = exact(x.double(), h0.double())
    assert 0 < expected[-1].abs().max() < 1e-60  # far below the smallest number of fp32
    K, eps, tolerance, before = 4 + H, torch.finfo(torch.float32).eps, 0.0, h0.abs().max().item()
    for t in range(T):
        flushed = (K * (largest(module.parameters()) + before + 1) + CELL_OPERATIONS) * tiny(torch.float32)
        tolerance = tolerance / 2 + K * eps * before + flushed
        assert (output[t].double() - expected[t]).abs().max() <= tolerance, t
        before = expected[t].abs().max().item() + tolerance
    if library is lstmkern:
        assert output[-1].eq(0).all()


def test_a_relu_rnn_can_grow_what_was_flushed():
    """As docs/limits.md says: relu does not bound a state that doubles at each step."""
    T, H = 140, 4
    h0 = torch.full((1, 2, H), SUBNORMAL[torch.float32])
    outputs = []
    for library in (nn, lstmkern):
        module = layer("rnn-relu", 1, H, weight=0, library=library)
        with torch.no_grad():
            module.weight_hh_l0.copy_(2 * torch.eye(H))
            outputs.append(module(torch.zeros(T, 2, 1), h0)[0][-1])
    assert outputs[0].min() > 100 and outputs[1].eq(0).all()


# T, N, I, H for one thread and for a team.
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (60, 70, 70, 110)], ids=["one thread", "team"])
@pytest.mark.parametrize("flushing", [False, True], ids=["kept", "flushed"])
def test_control_register_is_restored(kind, shape, flushing):
    """On the caller, whatever it had set, and on the threads of the team, which torch's operators use too."""
    T, N, features, H = shape
    module = layer(kind, features, H)
    x = torch.randn(T, N, features, requires_grad=True)
    with threads(2):
        assert subnormals_survive()
        if flushing and not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals")
        try:
            before = control_bits()
            output, _ = module(x)
            after_forward = control_bits()
            output.sum().backward()
            assert before == after_forward == control_bits()
            assert subnormals_survive(count=1) is not flushing
        finally:
            torch.set_flush_denormal(False)
        assert subnormals_survive()


def test_control_register_is_restored_after_an_error():
    module = layer("lstm", 8, 8)
    before = control_bits()
    with pytest.raises(RuntimeError):
        module(torch.randn(3, 2, 9))
    assert before == control_bits() and subnormals_survive()


@pytest.mark.parametrize(
    "compiler, runner",
    [(("g++",), ()), (("aarch64-linux-gnu-g++", "-static"), ("qemu-aarch64",))],
    ids=["this processor", "64-bit ARM"],
)
def test_in_cpp(tmp_path, compiler, runner):
    """flush.cpp: scopes within scopes, exceptions, every fp16."""
    for program in (compiler[0], *runner):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    command = [*compiler, "-std=c++17", "-O2", "-Wno-psabi", ROOT / "tests" / "flush.cpp", "-o", tmp_path / "flush"]
    subprocess.run(command, check=True)
    assert subprocess.run([*runner, tmp_path / "flush"]).returncode == 0
