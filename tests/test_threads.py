"""The same bits in every run and with any number of threads, because sums have a fixed order; and no deadlock."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

import lstmkern
from lstmkern import _extension


@contextmanager
def team(threads, division="chosen"):
    """Layers of any size use exactly ``threads`` threads, which divide sequences ("rows") or hidden units ("units")."""
    before = _extension.fix_threads(threads, division)
    try:
        yield
    finally:
        _extension.fix_threads(*before)


def results(cell, shape, threads, dtype, ragged=False, division="chosen", **options):
    torch.manual_seed(0)
    T, N, features, H = shape
    module = getattr(lstmkern, cell)(features, H, dtype=dtype, **options)
    x = torch.randn(T, N, features, dtype=dtype, requires_grad=True)
    lengths = torch.randint(1, T + 1, (N,)) if ragged else None
    with team(threads, division):
        output, state = module(x, lengths=lengths)
        (output.sin().sum() + sum(s.cos().sum() for s in torch.utils._pytree.tree_leaves(state))).backward()
    return [output, *torch.utils._pytree.tree_leaves(state), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 20}], ids=str)
# T, N, I, H. Threads share hidden units, with a barrier per step, and sequences, also if there are fewer of them than
# threads; panels, packed by the thread that uses them; small batches that read the weights in place, also step by step;
# one product of x and h on one thread, but two products where two threads share the sequences (LSTM and GRU); hidden
# units of layers whose weights exceed the caches, where this is the other way round; and layers of one panel.
@pytest.mark.parametrize(
    "shape",
    [
        (60, 1, 70, 110),
        (60, 5, 70, 110),
        (60, 70, 70, 110),
        (1, 70, 70, 110),
        (1, 32, 256, 256),
        (8, 2, 160, 160),
        (5, 16, 256, 256),
        (5, 16, 512, 512),
        (9, 3, 5, 23),
    ],
    ids=lambda shape: ",".join(map(str, shape)),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_same_bits(cell, dtype, shape, options):
    if "proj_size" in options and cell != "LSTM":
        options = {"bias": False}
    same_bits(cell, shape, dtype, **options)


# Threads share sequences, divided by their cost; hidden units; and hidden units of weights that exceed the caches.
# Sequences end early in one direction and begin late in the other.
@pytest.mark.parametrize(
    "shape",
    [(60, 70, 70, 110), (60, 5, 70, 110), (4, 20, 512, 512), (9, 3, 5, 23)],
    ids=lambda shape: ",".join(map(str, shape)),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_same_bits_where_lengths_differ(cell, dtype, shape):
    same_bits(cell, shape, dtype, ragged=True, bidirectional=True)


def same_bits(cell, shape, dtype, **options):
    expected = results(cell, shape, 1, dtype, **options)
    for threads, division in (
        (1, "chosen"),
        (2, "rows"),
        (2, "units"),
        (2, "units"),
        (3, "chosen"),
        (4, "rows"),
        (5, "units"),
    ):
        for a, b in zip(results(cell, shape, threads, dtype, division=division, **options), expected, strict=True):
            assert torch.equal(a, b), (threads, division)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_same_bits_in_a_batch_of_any_size(cell, dtype):
    """The results and gradient of a sequence do not depend on the batch size; tiles have every possible height."""
    torch.manual_seed(0)
    module = getattr(lstmkern, cell)(40, 50, dtype=dtype)
    x, grad = torch.randn(6, 70, 40, dtype=dtype), torch.randn(6, 70, 50, dtype=dtype)

    def first(N):
        rows = x[:, :N].clone().requires_grad_()
        output = module(rows)[0]
        return output, *torch.autograd.grad(output, rows, grad[:, :N])

    expected = first(70)
    for N in range(5, 70):
        for result, whole in zip(first(N), expected, strict=True):
            assert torch.equal(result, whole[:, :N]), N


# With other load on the machine. Programs that may hang run in a process with a time limit.

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
ROOT = Path(lstmkern.__file__).parent.parent
BY_UNITS, BY_ROWS = (60, 1, 40, 50), (30, 40, 40, 50)


@contextmanager
def neighbours():
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(CORES)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def many_short_calls(seconds=2.0, sizes=(2, 3, 2, 5, 1, 4)):
    """Work divided by sequences and by hidden units, with many numbers of threads, gives the bits of one thread."""
    expected = {shape: results("LSTM", shape, 1, torch.float32) for shape in (BY_UNITS, BY_ROWS)}
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        for threads in sizes:
            for shape, one in expected.items():
                assert all(map(torch.equal, results("LSTM", shape, threads, torch.float32), one))


def many_callers(seconds=2.0):
    """Several Python threads call layers at the same time."""
    _extension.fix_threads(2)
    module, x = lstmkern.GRU(60, 60), torch.randn(30, 2, 60)
    failed = []

    def call():
        try:
            with torch.no_grad():
                expected = module(x)[0]
                stop = time.monotonic() + seconds
                while time.monotonic() < stop:
                    assert torch.equal(module(x)[0], expected)
        except BaseException as error:
            failed.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failed, failed


def fork_after_use():
    """After a fork the child uses one thread, as in torch's data loaders: OpenMP's other threads do not exist there."""
    many_short_calls(0.5, sizes=(2, 4 * CORES))
    expected = results("LSTM", BY_ROWS, 1, torch.float32)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        same = all(map(torch.equal, results("LSTM", BY_ROWS, 1, torch.float32), expected))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    many_short_calls(0.5)


def teams_cut_short():
    """OpenMP may start fewer threads than the layer planned for."""
    for shape in (BY_UNITS, BY_ROWS, (5, 16, 256, 256), (5, 40, 256, 256)):
        for ragged in (False, True):
            one, *others = (results("LSTM", shape, n, torch.float32, ragged) for n in (1, 2, 3, 5))
            for other in others:
                assert all(map(torch.equal, other, one))


def run_apart(work, load=False, **environment):
    code = f"from test_threads import *; {work.__name__}()"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    with neighbours() if load else nullcontext():
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=1800,
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("load", [False, True], ids=["no load", "other load"])
@pytest.mark.parametrize("work", [many_short_calls, many_callers, fork_after_use], ids=lambda w: w.__name__)
def test_no_deadlock(work, load):
    run_apart(work, load)


@pytest.mark.parametrize("limit", [1, 2])
def test_openmp_starts_fewer_threads_than_planned(limit):
    run_apart(teams_cut_short, OMP_THREAD_LIMIT=str(limit))
