"""What must notice the faults of mutations.py: small layers in fp32 that together take every path of the kernels.

Imported once, with the references computed, by the server that a process per fault is forked from.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
import torch  # noqa: E402
from simt.layers import Case, check, make, padding, torch_nn  # noqa: E402
from simt.simulator import Simulator, forward_and_backward  # noqa: E402

torch.set_num_threads(1)
PROBLEMS = [
    (problem := make(case, torch.float32), torch_nn(problem, torch.float64), torch_nn(problem, torch.float32))
    for case in (
        Case("LSTM", T=4, N=3, I=3, H=7, P=3, D=2, ragged="lengths", resets=True),
        Case("LSTM", T=4, N=3, I=3, H=5, resets=True, ragged="packed"),
        Case("LSTM", T=3, N=2, I=2, H=9, D=2, ragged="lengths", resets=True, batch_first=True),
        Case("GRU", T=4, N=3, I=3, H=6, D=2, resets=True, ragged="lengths"),
        Case("RNN_TANH", T=3, N=2, I=3, H=515),
        Case("RNN_RELU", T=30, N=9, I=2, H=3),
        Case("GRU", T=2, N=300, I=1, H=1),
    )
]


def run(library, answer):
    """Writes what is wrong with the kernels in `library` to the file `answer`; nothing is: "" """
    simulator = Simulator(library)
    message = ""
    try:
        for problem, exact, theirs in PROBLEMS:
            results = forward_and_backward(simulator, problem)
            check(problem, results, exact, theirs)
            if problem.case.ragged == "lengths":
                assert padding(problem, results["output"]).all_zero(), "output: padding is not zero"
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    Path(answer).write_text(message)
    os._exit(0)
