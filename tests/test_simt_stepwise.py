"""The stepwise CUDA kernels on the simulator, compared with torch.nn in fp64: every cell, dtype and layout, odd sizes,
forward and backward, in many orders of threads.
"""

import os
import shutil
import subprocess

import pytest
import torch
from simt import layers
from simt.layers import Case, check, make, torch_nn
from simt.layers import dtype_name as ids
from simt.simulator import build, forward_and_backward, simulator

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the simulator")
MODES = ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def ours(problem, spread=0, **options):
    return forward_and_backward(simulator(spread=spread), problem, **options)


def compare(case, dtype, **options):
    return layers.compare(lambda problem: ours(problem, **options), case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("mode", MODES)
def test_plain(mode, dtype):
    compare(Case(mode, T=4, N=3, I=5, H=16), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("ragged", [None, "packed", "lengths"])
@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH"])
def test_everything_at_once(mode, ragged, dtype):
    case = Case(mode, T=6, N=5, I=3, H=7, P=3 if mode == "LSTM" else 0, D=2, ragged=ragged, resets=True)
    compare(case, dtype, grad_output_columns=16)


# 16 bytes are 2, 4 or 8 values: sizes equal to, just below and just above them, and one larger than a block.
@pytest.mark.parametrize("H", [1, 2, 8, 9, 31, 33, 515])
@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_RELU"])
def test_hidden_sizes(mode, H):
    for dtype in (torch.float32, torch.bfloat16):
        compare(Case(mode, T=2 if H > 100 else 3, N=2, I=3, H=H), dtype)


@pytest.mark.parametrize(
    "case",
    [
        Case("LSTM", T=1, N=1, I=1, H=1),
        Case("LSTM", T=5, N=4, I=3, H=8, bias=False),
        Case("GRU", T=5, N=4, I=3, H=8, bias=False, D=2),
        Case("LSTM", T=5, N=4, I=8, H=8, P=4, batch_first=True),
        Case("GRU", T=5, N=4, I=8, H=4, D=2, batch_first=True, ragged="lengths"),
        Case("LSTM", T=5, N=4, I=8, H=4, D=2, batch_first=True, ragged="lengths", resets=True),
        Case("LSTM", T=5, N=4, I=3, H=6, P=5, bias=False, ragged="packed", resets=True),
        Case("RNN_RELU", T=5, N=1, I=3, H=6, D=2, resets=True),
        Case("GRU", T=3, N=150, I=2, H=3, ragged="lengths"),
        Case("LSTM", T=60, N=5, I=2, H=3, ragged="lengths", D=2),
        Case("RNN_TANH", T=2, N=300, I=1, H=1),
    ],
    ids=str,
)
def test_shapes(case):
    compare(case, torch.float32)
    compare(case, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=ids)
@pytest.mark.parametrize("empty", [1, 3, 5])
@pytest.mark.parametrize("mode", MODES)
def test_sequences_without_steps(mode, empty, dtype):
    """Their state and its gradient pass through unchanged, whatever resets their padding has."""
    case = Case(mode, T=4, N=5, I=3, H=7, P=3 if mode == "LSTM" else 0, D=2, ragged="lengths", resets=True, empty=empty)
    problem, got = compare(case, dtype)
    states = ("h", "c") if mode == "LSTM" else ("h",)
    for state in states:
        assert torch.equal(got[f"{state}_n"][:, :empty], getattr(problem, f"{state}0")[:, :empty])
        assert torch.equal(got[f"grad_{state}0"][:, :empty], problem.grads[f"grad_{state}_n"][:, :empty])
    problem.lengths[:empty] = -3  # lengths on a device are not checked
    for name, value in ours(problem).items():
        assert name == "gates" or torch.equal(value, got[name]), name
    problem.grads = {"grad_output": problem.grads["grad_output"]}
    less = ours(problem)
    assert all((less[f"grad_{state}0"][:, :empty] == 0).all() for state in states)


def test_bias_sums_over_many_rows():
    """400 rows in 3 chunks and 900 in 7, so the chunks differ in size."""
    compare(Case("LSTM", T=40, N=10, I=2, H=5), torch.float32)
    compare(Case("RNN_TANH", T=90, N=10, I=1, H=2), torch.float64)
    compare(Case("GRU", T=40, N=10, I=2, H=70), torch.bfloat16)  # also several blocks of columns
    compare(Case("LSTM", T=99, N=5, I=2, H=3, ragged="packed", seed=2), torch.float32)


@pytest.mark.parametrize("mode", MODES)
def test_addresses_beyond_32_bits(mode):
    """Steps, or with batch_first sequences, that are 2^32 elements apart; most of these addresses have no memory."""
    for batch_first in (False, True):
        P = 3 if mode == "LSTM" else 0
        case = Case(mode, T=3, N=4, I=2, H=7, P=P, D=2, batch_first=batch_first, ragged="lengths", resets=True)
        compare(case, torch.float16, spread=2**32)


@pytest.mark.parametrize("mode", MODES)
def test_order_of_threads_changes_no_bit(mode):
    problem = make(Case(mode, T=5, N=4, I=3, H=19, D=2, ragged="lengths", resets=True), torch.float32)
    first = ours(problem, seed=1)
    for seed in range(2, 12):
        for name, value in ours(problem, seed=10 * seed).items():
            assert torch.equal(value, first[name]), (seed, name)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_absent_gradients_count_as_zero(mode):
    problem = make(Case(mode, T=3, N=2, I=3, H=5), torch.float64)
    for kept in [*problem.grads, None]:
        part = make(problem.case, torch.float64)
        for name, grad in part.grads.items():
            if name != kept:
                grad.zero_()
        exact = torch_nn(part, torch.float64)
        part.grads = {k: v for k, v in part.grads.items() if k == kept}
        check(part, ours(part), exact, exact)


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_needed(mode, needs):
    for case in (Case(mode, T=3, N=2, I=3, H=5), Case("LSTM", T=4, N=3, I=3, H=5, P=2, ragged="lengths")):
        problem = make(case, torch.float32)
        full, part = ours(problem), ours(problem, needs=needs)
        for name in full:
            if part[name].numel():
                assert torch.equal(part[name], full[name]), name
        wanted = {"grad_input": needs[0], "grad_h0": needs[1], "grad_weight_0": needs[2]}
        assert all((part[name].numel() > 0) == want for name, want in wanted.items())


def test_forward_that_saves_nothing():
    problem = make(Case("LSTM", T=3, N=2, I=3, H=5, P=2), torch.float32)
    full = simulator().layer_forward(*problem.args, "LSTM", False, True, True)
    bare = simulator().layer_forward(*problem.args, "LSTM", False, False, False)
    assert all(torch.equal(a, b) for a, b in zip(full[:3], bare[:3], strict=True))
    assert bare[3].numel() == bare[4].numel() == 0


def test_seventy_thousand_steps():
    """More steps than the largest grid.y."""
    T = 70_000
    problem = make(Case("RNN_TANH", T=T, N=1, I=1, H=1), torch.float64)
    problem.grads["grad_h_n"].zero_()
    got = ours(problem)
    leaves = [t.detach().requires_grad_() for t in (problem.input, problem.h0, *problem.weights)]
    output = torch.rnn_tanh(leaves[0], leaves[1], leaves[2:], True, 1, 0.0, False, False, False)[0]
    wanted = [output, *torch.autograd.grad(output, leaves, problem.grads["grad_output"])]
    names = ["output", "grad_input", "grad_h0", *(f"grad_weight_{i}" for i in range(4))]
    for name, exact in zip(names, wanted, strict=True):
        assert (got[name] - exact).abs().max() <= 1e-11 * exact.abs().max().clamp(min=1), name


def test_special_values_pass():
    problem = make(Case("RNN_RELU", T=2, N=2, I=1, H=4), torch.float32)
    problem.input[0, 0] = float("nan")
    output = simulator().layer_forward(*problem.args, "RNN_RELU", False, False, False)[0]
    assert output[:, 0].isnan().all() and output[:, 1].isfinite().all()
    problem = make(Case("LSTM", T=2, N=2, I=1, H=4), torch.float32)
    problem.input[:, 0] = 1e30  # saturated gates, not NaN
    output = simulator().layer_forward(*problem.args, "LSTM", False, False, False)[0]
    assert output.isfinite().all()


@pytest.mark.slow
def test_no_access_out_of_bounds(tmp_path):
    """The same kernels as a program under AddressSanitizer and UndefinedBehaviorSanitizer, which also check reads."""
    # -O0 compiles in less than half the time of -O1, and the program runs only seconds.
    flags = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = build(flags=flags, main=True)
    run = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    assert "102 runs" in run.stdout
