"""An infinite or NaN value in the CUDA kernels (on the simulator) reaches the same results as in torch.nn and no other
sequence. No padding, of units, of K or of a ragged batch, turns it into NaN.
"""

import shutil

import pytest
import torch
from simt.layers import Case, flat, make, padding, rows_of, torch_nn
from simt.layers import dtype_name as ids
from simt.simulator import forward_and_backward, simulator

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the simulator")
INF, NAN = float("inf"), float("nan")
# The resident tiers pad units and K to 8, 16 or 32 and sequences to 8.
TIERS = {"stepwise": ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"], "cluster": ["LSTM", "GRU"], "grid": ["LSTM", "GRU"]}
KINDS = [pytest.param(tier, mode, id=f"{tier}-{mode}") for tier, modes in TIERS.items() for mode in modes]


def run(tier, problem):
    return forward_and_backward(simulator(tier), problem)


def check_masks(problem, got):
    for name, wanted in torch_nn(problem, problem.input.dtype).items():
        if wanted is not None:
            mine, wanted = flat(problem, name, got[name]), flat(problem, name, wanted)
            assert torch.equal(mine.isfinite(), wanted.isfinite()), name


def check_padding(problem, got):
    if problem.case.ragged == "lengths":
        for name in ("output", "grad_input"):
            assert padding(problem, got[name]).all_zero(), name


def check_others(problem, got, usual, n):
    """All results of sequences other than n have the same bits."""
    keep = [j for j in range(problem.case.N) if j != n]
    for name in ("h_n", "c_n", "grad_h0", "grad_c0"):
        if got[name].numel():
            assert got[name][:, keep].equal(usual[name][:, keep]), name
    for name in ("output", "grad_input"):
        for mine, wanted in zip(rows_of(problem, got[name]), rows_of(problem, usual[name]), strict=True):
            assert all(mine[j] is None or mine[j].equal(wanted[j]) for j in keep), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=ids)
@pytest.mark.parametrize("ragged", [None, "packed", "lengths"])
@pytest.mark.parametrize("tier, mode", KINDS)
def test_one_value(tier, mode, ragged, dtype):
    P = 5 if tier == "stepwise" and mode == "LSTM" and ragged != "packed" else 0
    case = Case(mode, T=3, N=9, I=3, H=11, P=P, D=2, ragged=ragged)
    usual = run(tier, make(case, dtype))
    n = 0 if ragged == "packed" else case.N // 2  # one that has T steps
    for key, value in (
        ("input", INF),
        ("input", NAN),
        ("h0", INF),
        ("c0", INF),
        ("grad_output", INF),
        ("grad_h_n", NAN),
    ):
        problem = make(case, dtype)
        tensor = getattr(problem, key) if hasattr(problem, key) else problem.grads[key]
        if tensor is None:
            continue
        place = (1, n, 2) if key in ("h0", "c0", "grad_h_n") or ragged != "packed" else (n, 2)
        tensor[place] = value
        got = run(tier, problem)
        check_masks(problem, got)
        check_padding(problem, got)
        check_others(problem, got, usual, n)


@pytest.mark.parametrize("ragged", [None, "lengths"])
@pytest.mark.parametrize("tier, mode", KINDS)
def test_weight(tier, mode, ragged):
    """An infinite weight meets the zeros of every padding."""
    for of in (0, 1):
        problem = make(Case(mode, T=3, N=9, I=3, H=11, ragged=ragged), torch.float32)
        problem.weights[of][-1, -1] = INF
        got = run(tier, problem)
        check_masks(problem, got)
        check_padding(problem, got)


@pytest.mark.parametrize("tier, mode", KINDS)
def test_reset(tier, mode):
    """A reset makes an infinite state zero: the steps after it are those of a run without the value."""
    problem = make(Case(mode, T=4, N=9, I=3, H=11), torch.float32)
    problem.resets = torch.zeros(4, 9, dtype=torch.bool)
    problem.resets[2, 4] = True
    problem.args = (*problem.args[:-1], problem.resets)
    usual = run(tier, problem)
    problem.input[1, 4, 2] = NAN
    got = run(tier, problem)
    check_masks(problem, got)
    assert got["output"][1, 4].isnan().all() and got["output"][2:].equal(usual["output"][2:])
