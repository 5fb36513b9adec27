"""A few small layers on a GPU, forward and backward, and nothing else: what compute-sanitizer is run on."""

import os
import sys

import torch
from simt.layers import Case, make

import lstmkern

if not torch.cuda.is_available():
    sys.exit("tests/cuda_small.py needs a GPU")

TIERS = ["stepwise", "cluster", "grid"]
CASES = [
    Case("LSTM", T=3, N=3, I=3, H=7, P=3, D=2, ragged="lengths", resets=True),
    Case("GRU", T=3, N=2, I=5, H=17, batch_first=True, resets=True),
    Case("LSTM", T=3, N=9, I=5, H=40, D=2, ragged="lengths"),
    Case("RNN_TANH", T=3, N=3, I=3, H=5, ragged="packed", D=2),
    Case("RNN_RELU", T=30, N=9, I=3, H=5),
]
WORK = [(case, dtype, tier) for case in CASES for dtype in (torch.float32, torch.bfloat16) for tier in TIERS]
for case, dtype, tier in WORK:
    if tier == "stepwise" or case.mode in ("LSTM", "GRU"):
        os.environ["LSTMKERN_CUDA_TIER"] = tier
        problem = make(case, dtype)
        move = lambda v: v.cuda() if isinstance(v, torch.Tensor) else v  # noqa: E731
        args = [a if i == 4 else [move(w) for w in a] if i == 3 else move(a) for i, a in enumerate(problem.args)]
        mode, batch_first = case.mode, case.batch_first
        output, _, _, cells, gates = torch.ops.lstmkern.layer_forward(*args, mode, batch_first, True, True)
        grads = [move(problem.grads.get(f"grad_{k}")) for k in ("output", "h_n", "c_n", "cells")]
        needs = [True] * 3
        torch.ops.lstmkern.layer_backward(*grads, *args, output, cells, gates, mode, batch_first, needs)
torch.cuda.synchronize()
print(f"{len(CASES)} layers in two dtypes:", lstmkern._C.cuda_tier_runs())
