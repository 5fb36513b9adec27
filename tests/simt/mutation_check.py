"""Runs small layers that together take every path of the kernels; they must fail for the faults of mutations.py.

A server imports it once and computes the references. It is then forked into a process per fault.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
import torch  # noqa: E402
from simt.layers import Case, check, make, plans_in_sequence, torch_nn  # noqa: E402
from simt.simulator import Simulator, forward_and_backward  # noqa: E402

torch.set_num_threads(1)
f32, bf16 = torch.float32, torch.bfloat16
COMPILED = {1: [f32], 2: [f32, bf16]}  # by LSTMKERN_TYPES (csrc/cuda/steps.h)
FAR = {"spread": 2**32}  # additional elements between two steps
CASES = {  # {tier: (case, dtype, options of the simulated device and memory)}
    "stepwise": [
        (Case("LSTM", T=4, N=3, I=3, H=7, P=3, D=2, ragged="lengths", resets=True, empty=1), f32, {}),
        (Case("LSTM", T=4, N=3, I=3, H=5, resets=True, ragged="packed"), f32, {}),
        (Case("LSTM", T=3, N=2, I=2, H=9, D=2, ragged="lengths", resets=True, batch_first=True, empty=1), f32, {}),
        (Case("GRU", T=4, N=3, I=3, H=6, D=2, resets=True, ragged="lengths"), f32, {}),
        (Case("LSTM", T=4, N=3, I=3, H=16, D=2, ragged="lengths", resets=True), bf16, {}),  # a multiple of 16 bytes
        (Case("GRU", T=4, N=3, I=3, H=9, D=2, ragged="packed", resets=True), bf16, {}),
        (Case("RNN_TANH", T=3, N=2, I=3, H=515), f32, {}),
        (Case("RNN_RELU", T=40, N=10, I=2, H=3), f32, {}),  # bias sums in 3 chunks, not of the same size
        (Case("GRU", T=2, N=300, I=1, H=1), f32, {}),
        (Case("LSTM", T=3, N=2, I=2, H=3), f32, FAR),
    ],
    "cluster": [
        (Case("LSTM", T=4, N=9, I=2, H=20, D=2, ragged="lengths", resets=True, empty=1), bf16, {}),
        (Case("GRU", T=4, N=3, I=2, H=18, D=2, ragged="packed", resets=True), bf16, {"largest_cluster": 2}),
        (Case("LSTM", T=3, N=3, I=2, H=35, D=2, resets=True), f32, {"largest_cluster": 4}),
        (Case("GRU", T=2, N=2, I=2, H=190), f32, {"largest_cluster": 8}),  # some weights in shared memory
        (Case("LSTM", T=2, N=20, I=2, H=24, D=2), bf16, {"multiprocessors": 2}),  # two tiles of sequences
        (Case("LSTM", T=2, N=2, I=2, H=121), bf16, {}),  # 16 blocks
        (Case("GRU", T=260, N=2, I=1, H=2, ragged="packed"), bf16, {}),  # tables of steps in two launches
        (Case("LSTM", T=3, N=2, I=2, H=5), f32, FAR),
        (Case("LSTM", T=1, N=2, I=2, H=5), bf16, {}),  # backward without the output
    ],
    "grid": [
        (Case("LSTM", T=4, N=9, I=2, H=20, D=2, ragged="lengths", resets=True), bf16, {"multiprocessors": 1}),
        (Case("GRU", T=5, N=3, I=2, H=40, ragged="packed"), f32, {}),
        (Case("LSTM", T=5, N=20, I=2, H=40, D=2), f32, {}),  # 6 teams in one launch
    ],
}


def endless(problem):
    """The problem with lengths above 2^32 instead of T. On a device they mean the same."""
    if problem.lengths is not None:
        problem.lengths[problem.lengths == problem.case.T] = 2**32
    return problem


PROBLEMS = {
    tier: [
        (problem := endless(make(case, dtype)), options, torch_nn(problem, torch.float64), torch_nn(problem, dtype))
        for case, dtype, options in cases
    ]
    for tier, cases in CASES.items()
}


def check_layers(library, tier, types):
    for problem, options, exact, theirs in PROBLEMS[tier]:
        if problem.input.dtype not in COMPILED[types]:
            continue
        results = forward_and_backward(Simulator(library, tier, **options), problem)
        check(problem, results, exact, theirs)


def check_plans(library, tier):
    for backward in (False, True):
        kept, wanted = plans_in_sequence(lambda *a, **options: Simulator(library, *a, **options), tier, backward)
        for i, (ours, right) in enumerate(zip(kept, wanted, strict=True)):
            assert ours == right, f"plan {i} of those in sequence: {ours}, should be {right}"
        assert wanted[-2] != wanted[-1], "the same plan for a device with more multiprocessors"


def run(library, answer, tier, types):
    """Writes what is wrong with the tier's kernels in `library` to the file `answer`: "" if nothing is."""
    message = ""
    try:
        check_layers(library, tier, types)
        if tier != "stepwise":
            check_plans(library, tier)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    Path(answer).write_text(message)
    os._exit(0)
