"""The CUDA back end on a real GPU: what the simulator cannot show. Skipped if there is no GPU.

With LSTMKERN_TEST_DEVICE=cpu the same lines run on the CPU (`make gpu-first DEVICE=cpu`), so that no Python error is
left for the GPU. benchmarks/gpu/device.py has everything that only a GPU can do, host.py its stand-in.

The references (cuda_reference.py) take 15 seconds of CPU time in all on one core with AVX-512, the longest test 1.9: on
six processes 3 of the 75 seconds that these tests may take.
"""

import copy
import os
import threading

import pytest
import torch
from cuda_reference import torch_nn
from simt.layers import Case, check, make
from simt.layers import dtype_name as ids

import lstmkern
from benchmarks.gpu import device

HERE = device.named(os.environ.get("LSTMKERN_TEST_DEVICE", "cuda"))
DEVICE = HERE.torch_device
REHEARSAL = HERE.name == "cpu"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(HERE.missing()), reason=HERE.missing() or "")]
needs_hopper = pytest.mark.skipif(
    not HERE.missing() and not HERE.resident_tiers(), reason="needs compute capability 9.0"
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MODULES = {"LSTM": {}, "GRU": {}, "RNN": {}}


TIERS = ["stepwise", "cluster"] if REHEARSAL else ["stepwise", "cluster", "grid"]
REPEATS = 3 if REHEARSAL else 200
LONG = 300 if REHEARSAL else 70_000


@pytest.fixture(params=TIERS)
def tier(request, monkeypatch):
    """The first tier to try; what it cannot run falls through to the next (csrc/cuda/dispatch.cpp)."""
    monkeypatch.setenv("LSTMKERN_CUDA_TIER", request.param)
    return request.param


def ran(tier, run):
    """Whether that tier ran run(), forward and backward. Always true on the CPU, which has none of these tiers."""
    return all(tier in (tiers or "").split("+") for tiers in HERE.ran(run)) or REHEARSAL


@pytest.fixture(autouse=True)
def exact_products():
    with HERE.tf32(False):
        yield


def problem_for(case, dtype):
    """Random values; for ReLU, positive values.

    A sum close to 0 may round to either side of ReLU's kink, and then all gradients that depend on it change. The
    weights are smaller, because fp16 would overflow.
    """
    problem = make(case, dtype)
    if case.mode == "RNN_RELU":
        for value in (problem.input, problem.h0, *problem.weights):
            value.abs_()
        for weight in problem.weights:
            weight.mul_(0.25)
    return problem


def to_gpu(value):
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    return [to_gpu(v) for v in value] if isinstance(value, list) else value


def ours(problem):
    """The ops on the GPU; returns the results on the CPU, under the names that layers.check uses."""
    mode, batch_first = problem.case.mode, problem.case.batch_first
    args = [a if i == 4 else to_gpu(a) for i, a in enumerate(problem.args)]  # batch_sizes stays on the host
    results = torch.ops.lstmkern.layer_forward(*args, mode, batch_first, True, True)
    output, h_n, c_n, cells, gates = results
    grads = [to_gpu(problem.grads.get(f"grad_{k}")) for k in ("output", "h_n", "c_n", "cells")]
    needs = [True] * 3
    back = torch.ops.lstmkern.layer_backward(*grads, *args, output, cells, gates, mode, batch_first, needs)
    out = {"output": output, "h_n": h_n, "c_n": c_n, "cells": cells}
    out |= {"grad_input": back[0], "grad_h0": back[1], "grad_c0": back[2]}
    return {k: v.cpu() for k, v in (out | {f"grad_weight_{i}": g for i, g in enumerate(back[3])}).items()}


CASES = [
    Case(mode, T=6, N=5, I=3, H=H, P=3 if mode == "LSTM" else 0, D=2, ragged=ragged, resets=True)
    for mode in ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
    for ragged in (None, "packed", "lengths")
    for H in (7, 64)
]
CASES += [
    Case("LSTM", T=1, N=1, I=1, H=1),
    Case("LSTM", T=50, N=33, I=40, H=129, D=2),
    Case("GRU", T=50, N=33, I=40, H=129, D=2, batch_first=True),
    Case("LSTM", T=20, N=16, I=64, H=256, batch_first=True, ragged="lengths"),
    Case("GRU", T=5, N=4, I=3, H=8, bias=False),
    *(Case(mode, T=6, N=5, I=3, H=7, D=2, ragged="lengths", resets=True, empty=2) for mode in ("LSTM", "GRU")),
]


# For the resident tiers: weights in registers and in shared memory, several tiles of sequences, several launches.
RESIDENT = [
    Case(mode, T=6 if N < 200 else 3, N=N, I=16, H=H, D=D, ragged=ragged, resets=ragged is not None)
    for mode in ("LSTM", "GRU")
    for N, H, D, ragged in [
        (5, 7, 2, "lengths"),
        (33, 64, 2, "packed"),
        (9, 250, 1, "lengths"),
        (64, 320, 2, None),
        (200, 512, 1, None),
    ]
]
RESIDENT += [Case("LSTM", T=40, N=3, I=8, H=H) for H in (48, 200)]  # clusters with blocks that have no units
RESIDENT += [Case(mode, T=6, N=17, I=16, H=40, D=2, ragged="lengths", resets=True, empty=9) for mode in ("LSTM", "GRU")]


if REHEARSAL:  # run every line, but not every case
    DTYPES = [torch.float32, torch.bfloat16]
    CASES, RESIDENT = ([c for c in cases if c.H <= 64] for cases in (CASES, RESIDENT))
LARGEST = [("cluster", 640, torch.bfloat16), ("cluster", 448, torch.float32), ("grid", 1800, torch.float16)]


@needs_hopper
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float64], ids=ids)
@pytest.mark.parametrize("case", RESIDENT, ids=str)
@pytest.mark.parametrize("tier", TIERS[1:], indirect=True)
def test_resident_parity_with_fp64(tier, case, dtype):
    problem, got = problem_for(case, dtype), {}
    mine = ran(tier, lambda: got.update(ours(problem)))
    assert mine or (dtype == torch.float32 and case.H > 256), "the tier did not run the layer"
    check(problem, got, torch_nn(problem, torch.float64), torch_nn(problem, dtype))


@needs_hopper
@pytest.mark.parametrize(
    ("tier", "H", "dtype"),
    [case for case in LARGEST if case[0] in TIERS],
    indirect=["tier"],
    ids=ids,
)
def test_largest_layers(tier, H, dtype):
    problem, got = make(Case("LSTM", T=2, N=9, I=8, H=H), dtype), {}
    assert ran(tier, lambda: got.update(ours(problem)))
    check(problem, got, torch_nn(problem, torch.float64), torch_nn(problem, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity_with_fp64(case, dtype):
    problem = problem_for(case, dtype)
    check(problem, ours(problem), torch_nn(problem, torch.float64), torch_nn(problem, dtype))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(name, tier):
    """One step on every tier. Backward does not get the output, which cells do not keep."""
    exact = getattr(torch.nn, name)(24, 40, dtype=torch.float64)
    cell = getattr(lstmkern, name)(24, 40, device=DEVICE)
    cell.load_state_dict(exact.state_dict())
    exact.load_state_dict(cell.state_dict())  # the same values, rounded
    results = []
    x = torch.randn(5, 24)
    for module, given in ((exact, x.double()), (cell, x.to(DEVICE))):
        given = given.requires_grad_()
        state = module(given)
        state = state if isinstance(state, tuple) else (state,)
        sum(s.square().sum() for s in state).backward()
        results.append([*state, given.grad, *(p.grad for p in module.parameters())])
    for wanted, got in zip(*results, strict=True):
        assert (got.detach().cpu().double() - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradcheck(name, bidirectional):
    module = getattr(lstmkern, name)(3, 4, bidirectional=bidirectional, dtype=torch.float64, device=DEVICE)
    x = torch.randn(3, 2, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    weights = list(module.parameters())
    names = [n for n, _ in module.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *weights))


def training_step(module, x, lengths=None):
    x = x.detach().requires_grad_()
    output, state = module(x, lengths=lengths)
    (output if output.dtype == torch.float64 else output.float()).square().sum().backward()
    grads = [p.grad for p in module.parameters()]
    for p in module.parameters():
        p.grad = None
    return [output.detach(), x.grad, *grads]


def modules_on(tiers):
    """Modules and the tiers to run them on; nn.RNN's layers run only on the stepwise tier."""
    return [(name, tier) for name in MODULES for tier in tiers if tier == "stepwise" or name != "RNN"]


@pytest.mark.long
@pytest.mark.parametrize(("name", "tier"), modules_on(TIERS), indirect=["tier"])
def test_200_repeats_bit_for_bit(name, tier):
    module = getattr(lstmkern, name)(96, 200, bidirectional=True, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(30, 17, 96, device=DEVICE, dtype=torch.bfloat16)
    lengths = torch.randint(1, 31, (17,), device=DEVICE)
    first = training_step(module, x, lengths)
    for _ in range(REPEATS):
        for a, b in zip(training_step(module, x, lengths), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "tier"), modules_on(TIERS), indirect=["tier"])
def test_own_stream_races_with_the_default_one(name, tier):
    """Work on a side stream sees the values written on that stream, however busy the default stream is."""
    module = getattr(lstmkern, name)(64, 128, device=DEVICE)
    wanted = []
    for i in range(8):
        wanted.append(training_step(module, torch.full((20, 8, 64), 0.1 * i, device=DEVICE)))
    busy = torch.randn(2048, 2048, device=DEVICE) if not REHEARSAL else torch.randn(4, 4)
    x = torch.zeros(20, 8, 64, device=DEVICE)
    HERE.synchronize()
    for i in range(8):
        for _ in range(10):
            busy @ busy  # keeps the default stream busy
        x_default = x + float("nan")  # noqa: F841 (garbage that the allocator may hand on)
        with HERE.side_stream():
            HERE.delay(2_000_000)
            x.fill_(0.1 * i)
            got = training_step(module, x)
        for a, b in zip(got, wanted[i], strict=True):
            assert torch.equal(a, b)


def test_threads_with_streams_of_their_own(tier):
    module = lstmkern.LSTM(32, 64, device=DEVICE)
    x = torch.randn(15, 4, 32, device=DEVICE)
    with torch.no_grad():
        wanted = module(x)[0]
    HERE.synchronize()
    wrong = []

    def work():
        with HERE.side_stream(), torch.no_grad():
            for _ in range(20):
                if not torch.equal(module(x)[0], wanted):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize(("name", "tier"), modules_on(TIERS), indirect=["tier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=ids)
def test_graph_capture_and_replay(name, dtype, tier):
    module = getattr(lstmkern, name)(40, 72, bidirectional=True, device=DEVICE, dtype=dtype)
    x = torch.randn(12, 5, 40, device=DEVICE, dtype=dtype, requires_grad=True)
    lengths = torch.tensor([12, 3, 7, 1, 9], device=DEVICE)
    parameters = list(module.parameters())

    def step():
        output, _ = module(x, lengths=lengths)
        return [output, *torch.autograd.grad(output.float().square().sum(), [x, *parameters])]

    captured, replay = HERE.capture(step)
    for _ in range(3):
        with torch.no_grad():
            x.normal_()
            lengths.copy_(torch.randint(1, 13, (5,)))
        replay()
        HERE.synchronize()
        for a, b in zip(step(), captured, strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif(REHEARSAL, reason="needs a GPU")
def test_lengths_on_the_cpu_are_not_captured(tier):
    module, x = lstmkern.LSTM(8, 16, device="cuda"), torch.randn(5, 3, 8, device="cuda")
    lengths = torch.tensor([5, 2, 4])
    with torch.no_grad():
        wanted = module(x, lengths=lengths)[0]
        assert torch.equal(module(x, lengths=lengths.cuda())[0], wanted)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            with pytest.raises(RuntimeError, match="lengths on the CPU cannot be captured in a CUDA graph"):
                module(x, lengths=lengths)
            x * 2
    graph.replay()


def test_no_synchronisation(tier):
    module = lstmkern.LSTM(8, 16, bidirectional=True, device=DEVICE)
    x, lengths = torch.randn(5, 3, 8, device=DEVICE), torch.tensor([5, 2, 4], device=DEVICE)
    training_step(module, x, lengths)
    with HERE.no_synchronization():
        training_step(module, x, lengths)


def test_no_device_memory_per_step(tier):
    """The workspace is one block: the number of allocations does not depend on T."""
    module = lstmkern.LSTM(8, 16, device=DEVICE)

    def allocations(T):
        x = torch.randn(T, 3, 8, device=DEVICE)
        training_step(module, x)
        before = HERE.allocations()
        training_step(module, x)
        return HERE.allocations() - before

    assert allocations(4) == allocations(64)


@pytest.mark.long
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("tier", TIERS[1:], indirect=True)
def test_seventy_thousand_steps_in_one_launch(name, tier):
    """The resident tiers in fp32: as close to fp64 as the stepwise tier is, with some margin."""
    torch.manual_seed(1)
    module = getattr(lstmkern, name)(4, 8, device=DEVICE)
    x = torch.randn(LONG, 2, 4, device=DEVICE)
    got = training_step(module, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSTMKERN_CUDA_TIER", "stepwise")
        stepwise = training_step(module, x)
    exact = training_step(copy.deepcopy(module).double(), x.double())
    for a, b, e in zip(got, stepwise, exact, strict=True):
        bound = 2 * (b - e).abs().max() + 1e-5 * e.abs().max()
        assert (a - e).abs().max() <= bound


@pytest.mark.long
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_seventy_thousand_steps(name):
    """In fp64, one call equals seven calls that pass their states on; the first steps equal torch.nn's too."""
    module = getattr(lstmkern, name)(4, 8, device=DEVICE, dtype=torch.float64)
    x = torch.randn(LONG, 2, 4, device=DEVICE, dtype=torch.float64)
    got = training_step(module, x)
    x.requires_grad_()
    state, outputs = None, []
    for piece in x.split(-(-LONG // 7)):
        output, state = module(piece, state)
        outputs.append(output)
    wanted = [torch.cat(outputs), *torch.autograd.grad(torch.cat(outputs).square().sum(), [x, *module.parameters()])]
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1)
    reference = getattr(torch.nn, name)(4, 8, dtype=torch.float64)
    reference.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert (reference(x[:200].cpu())[0] - got[0][:200].cpu()).abs().max() <= 1e-12


@pytest.mark.parametrize("name", MODULES)
def test_module_agrees_with_torch_nn(name):
    """A stack of layers, packed, against torch.nn in fp64."""
    ours = getattr(lstmkern, name)(24, 40, 2, bidirectional=True, device=DEVICE)
    theirs = copy.deepcopy(getattr(torch.nn, name)(24, 40, 2, bidirectional=True))
    theirs.load_state_dict(ours.state_dict())
    x, lengths = torch.randn(9, 6, 24), [9, 4, 7, 1, 9, 3]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    wanted = theirs.double()(packed.to(torch.float64))[0]
    got = ours(packed.to(DEVICE))[0]
    assert (got.data.cpu().double() - wanted.data).abs().max() < 1e-5


@pytest.mark.skipif(REHEARSAL, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids)
def test_sums_are_fp32_whatever_torch_allows(dtype, monkeypatch):
    """A sum over 16384 rows, which cuBLAS would split: torch's flags for 16-bit sums change nothing."""
    module = lstmkern.LSTM(64, 64, device="cuda", dtype=dtype)
    x = torch.randn(64, 256, 64, device="cuda", dtype=dtype)
    flags, results = torch.backends.cuda.matmul, []
    for allow in (False, True):
        monkeypatch.setattr(flags, "allow_bf16_reduced_precision_reduction", allow)
        monkeypatch.setattr(flags, "allow_fp16_reduced_precision_reduction", allow)
        results.append(training_step(module, x))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(flags, "allow_fp16_accumulation", True)  # other kernels, but the same exact factors
    exact = training_step(copy.deepcopy(module).double(), x.double())
    for a, b, e in zip(results[0], training_step(module, x), exact, strict=True):
        bound = 2 * (a - e).abs().max() + 8 * torch.finfo(dtype).eps * e.abs().max()
        assert (b - e).abs().max() <= bound


@pytest.mark.skipif(REHEARSAL, reason="needs a GPU")
@pytest.mark.parametrize("tier", TIERS[1:])
def test_plan_of_a_tier(tier):
    got = lstmkern._C.cuda_plan(tier, "LSTM", "bf16", 64, 512)
    if torch.cuda.get_device_capability() < (9, 0):
        assert got is None
    else:
        assert (
            got["blocks"] * got["units"] >= 512
            and got["sequences"] * got["batches"] >= 64
            and got["resident_teams"] >= 1
        )
    assert lstmkern._C.cuda_plan(tier, "LSTM", "fp64", 64, 512) is None
    assert lstmkern._C.cuda_plan(tier, "RNN_TANH", "bf16", 64, 512) is None


def test_tf32_as_torch_says():
    module = lstmkern.LSTM(256, 256, device=DEVICE)
    x = torch.randn(4, 64, 256, device=DEVICE)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())[0]
        errors = []
        for allow in (False, True):
            with HERE.tf32(allow):
                errors.append((module(x)[0].double() - exact).abs().max().item())
    assert errors[0] < 1e-5 and (1e-5 < errors[1] < 1e-2 or not HERE.has_tf32)
