"""The resident tiers (cluster and grid) on the simulator, compared with torch.nn in fp64: LSTM and GRU, every dtype
that they support, ragged layouts, odd sizes, weights partly in registers and partly in shared memory, in many orders
of threads.
"""

import shutil

import pytest
import torch
from simt import layers
from simt.layers import CHANGES, FEW_MULTIPROCESSORS, SEQUENCE, Case, make, plans_in_sequence
from simt.layers import dtype_name as ids
from simt.simulator import SimulationError, forward_and_backward, simulator

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the simulator")
TIERS = ["cluster", "grid"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LIMIT = 227 * 1024  # most bytes of shared memory in a block


def compare(simulator, case, dtype, **options):
    return layers.compare(lambda problem: forward_and_backward(simulator, problem, **options), case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("ragged", [None, "packed", "lengths"])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("tier", TIERS)
def test_everything_at_once(tier, mode, ragged, dtype):
    case = Case(mode, T=5, N=9, I=3, H=20, D=2, ragged=ragged, resets=True)
    compare(simulator(tier), case, dtype, grad_output_columns=48)


# Units are padded to 8, tiles to 16 units or (fp32) 32 lanes; a block has 1 to 4 groups of units.
@pytest.mark.parametrize("H", [1, 8, 9, 17, 31, 72])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("tier", TIERS)
def test_hidden_sizes(tier, mode, H):
    for dtype in (torch.bfloat16, torch.float32):
        compare(simulator(tier), Case(mode, T=2, N=2, I=3, H=H), dtype)


@pytest.mark.parametrize(
    "case",
    [
        Case("LSTM", T=1, N=1, I=1, H=1),
        Case("LSTM", T=4, N=4, I=3, H=8, bias=False),
        Case("GRU", T=4, N=4, I=3, H=8, bias=False, D=2, batch_first=True),
        Case("LSTM", T=4, N=17, I=8, H=24, D=2, batch_first=True, ragged="lengths"),
        Case("GRU", T=12, N=8, I=2, H=16, ragged="lengths", resets=True),
        Case("LSTM", T=258, N=2, I=1, H=3, ragged="packed"),  # more steps than a launch can upload to the tables
    ],
    ids=str,
)
@pytest.mark.parametrize("tier", TIERS)
def test_shapes(tier, case):
    compare(simulator(tier), case, torch.float32)
    compare(simulator(tier), case, torch.float16)


@pytest.mark.parametrize("empty", [1, 9, 17])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("tier", TIERS)
def test_sequences_without_steps(tier, mode, empty):
    """Their state and its gradient pass through unchanged, also where a whole team has only such sequences."""
    for dtype in (torch.bfloat16, torch.float32):
        case = Case(mode, T=4, N=17, I=3, H=11, D=2, ragged="lengths", resets=True, empty=empty)
        problem, got = compare(simulator(tier), case, dtype)
        states = ("h", "c") if mode == "LSTM" else ("h",)
        for state in states:
            assert torch.equal(got[f"{state}_n"][:, :empty], getattr(problem, f"{state}0")[:, :empty])
            assert torch.equal(got[f"grad_{state}0"][:, :empty], problem.grads[f"grad_{state}_n"][:, :empty])
    problem.grads = {"grad_output": problem.grads["grad_output"]}
    less = forward_and_backward(simulator(tier), problem)
    assert all((less[f"grad_{state}0"][:, :empty] == 0).all() for state in states)


# Layers on small devices: (tier, device, case, dtype, what their plan must have for the test to be useful).
PLANS = [
    ("cluster", {"largest_cluster": 8}, Case("LSTM", T=2, N=3, I=2, H=130), torch.float32, {"blocks": 8}),
    ("cluster", {"multiprocessors": 2}, Case("LSTM", T=3, N=20, I=2, H=24, D=2), torch.bfloat16, {"sequences": 16}),
    ("cluster", {"largest_cluster": 1}, Case("GRU", T=2, N=9, I=2, H=50), torch.bfloat16, {"groups": 4, "blocks": 1}),
    ("cluster", {"largest_cluster": 8}, Case("LSTM", T=2, N=2, I=2, H=250), torch.float32, {"in_shared": 1}),
    ("cluster", {"largest_cluster": 8}, Case("LSTM", T=2, N=1, I=2, H=360), torch.bfloat16, {"in_shared": (1, 9)}),
    # Several launches, of one team each.
    ("grid", {"multiprocessors": 3}, Case("LSTM", T=2, N=40, I=2, H=70), torch.bfloat16, {"sequences": 16}),
    ("grid", {"multiprocessors": 5}, Case("GRU", T=2, N=40, I=2, H=70, D=2), torch.float16, {"blocks": (1, 5)}),
    ("grid", {"multiprocessors": 5}, Case("LSTM", T=2, N=33, I=2, H=70), torch.bfloat16, {"sequences": 32}),
    ("grid", {"multiprocessors": 5}, Case("LSTM", T=2, N=9, I=2, H=140), torch.float32, {"in_shared": 1}),
    ("grid", {"multiprocessors": 6}, Case("LSTM", T=2, N=2, I=2, H=330), torch.bfloat16, {"in_shared": (1, 9)}),
]


@pytest.mark.parametrize(("tier", "device", "case", "dtype", "wanted"), PLANS, ids=ids)
def test_plans(tier, device, case, dtype, wanted):
    s = simulator(tier, **device)
    plans = [s.plan(case.mode, dtype, case.N, case.H, case.D, backward) for backward in (False, True)]
    for name, value in wanted.items():
        least, most = value if isinstance(value, tuple) else (value, value)
        assert least <= plans[0][name] <= most, plans
    compare(s, case, dtype)


@pytest.mark.parametrize("tier", TIERS)
def test_one_layer_after_another(tier):
    """A tier keeps its last plan; the next layer on the same device may need another one."""
    s = simulator(tier, multiprocessors=FEW_MULTIPROCESSORS[tier], device_number=1)
    for mode, dtype, N, H, D in SEQUENCE:
        compare(s, Case(mode, T=2, N=N, I=2, H=H, D=D), dtype)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("tier", TIERS)
def test_plans_one_after_another(tier, backward):
    kept, wanted = plans_in_sequence(simulator, tier, backward)
    assert kept == wanted
    for i in (*range(CHANGES), -2):
        assert wanted[i] != wanted[i + 1], f"plan {i} equals the next one"


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_addresses_beyond_32_bits(tier, mode):
    """Steps, or with batch_first sequences, that are 2^32 elements apart; most of these addresses have no memory."""
    for batch_first in (False, True):
        case = Case(mode, T=3, N=3, I=2, H=20, D=2, batch_first=batch_first, ragged="lengths", resets=True)
        compare(simulator(tier, spread=2**32), case, torch.bfloat16)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_order_of_threads_changes_no_bit(tier, mode):
    s = simulator(tier, multiprocessors=8)
    problem = make(Case(mode, T=4, N=10, I=3, H=35, D=2, ragged="lengths", resets=True), torch.bfloat16)
    first = forward_and_backward(s, problem, seed=1)
    for seed in range(2, 8):
        for name, value in forward_and_backward(s, problem, seed=10 * seed).items():
            assert torch.equal(value, first[name]), (seed, name)


@pytest.mark.parametrize(("H", "blocks"), [(48, 4), (72, 8)])
def test_blocks_without_units(H, blocks):
    """A cluster whose last blocks have no units: in any order of threads, no block may run ahead of the others."""
    s, problem = simulator("cluster"), make(Case("LSTM", T=12, N=2, I=1, H=H), torch.bfloat16)
    plan = s.plan("LSTM", torch.bfloat16, 2, H)
    assert plan["blocks"] == blocks and (blocks - 1) * plan["units"] >= H, plan
    first = None
    for seed in range(1, 13):
        outputs = s.layer_forward(*problem.args, "LSTM", False, True, True, seed=seed * 7919)[:4]
        first = first or outputs
        assert all(torch.equal(a, b) for a, b in zip(outputs, first, strict=True))


@pytest.mark.parametrize("tier", TIERS)
def test_lengths_beyond_the_layer(tier):
    """Lengths on a device are not checked: any length above T means T, and a negative one means 0."""
    problem = make(Case("LSTM", T=4, N=6, I=2, H=9, ragged="lengths", resets=True, empty=1), torch.float32)
    wanted = forward_and_backward(simulator(tier), problem)
    longest, none = problem.lengths == 4, problem.lengths == 0
    assert longest.any() and none.any()
    for large, negative in ((5, -1), (2**31, -(2**31)), (2**32, -(2**32)), (2**63 - 1, -(2**63))):
        problem.lengths[longest], problem.lengths[none] = large, negative
        for name, value in forward_and_backward(simulator(tier), problem).items():
            assert torch.equal(value, wanted[name]), (name, large)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_needed(tier, needs):
    for mode in ("LSTM", "GRU"):
        problem = make(Case(mode, T=3, N=2, I=3, H=5, ragged="lengths"), torch.float32)
        full, part = (forward_and_backward(simulator(tier), problem, needs=n) for n in ((True,) * 3, needs))
        for name in full:
            if part[name].numel():
                assert torch.equal(part[name], full[name]), name
        problem.grads = {}
        none = forward_and_backward(simulator(tier), problem)
        assert all((none[k] == 0).all() for k in none if k.startswith("grad"))


@pytest.mark.parametrize("tier", TIERS)
def test_forward_that_saves_nothing(tier):
    problem = make(Case("LSTM", T=3, N=2, I=3, H=5), torch.float32)
    full = simulator(tier).layer_forward(*problem.args, "LSTM", False, True, True)
    bare = simulator(tier).layer_forward(*problem.args, "LSTM", False, False, False)
    assert all(torch.equal(a, b) for a, b in zip(full[:3], bare[:3], strict=True))


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_plans_stay_within_the_hardware(mode):
    """Every H up to the tiers' limit has a plan: all units belong to a block, and 227 KiB are enough."""
    G = {"LSTM": 4, "GRU": 3}[mode]
    for tier, dtype, most in [
        ("cluster", torch.bfloat16, 640),
        ("cluster", torch.float32, 448),
        ("grid", torch.bfloat16, 1800),
    ]:
        s = simulator(tier)
        for H in [*range(1, 40), *range(40, most + 1, 8)]:
            for backward in (False, True):
                p = s.plan(mode, dtype, 64, H, 1, backward)
                assert p is not None, (tier, H, backward)
                assert p["blocks"] * p["units"] >= H and p["bytes"] <= LIMIT
                assert p["blocks"] <= (16 if tier == "cluster" else 132) and p["groups"] * p["slices"] <= 8
                width, depth = (16, 32) if dtype == torch.bfloat16 else (32, 4)
                assert p["groups"] * width >= p["units"]
                assert p["steps"] * p["slices"] * depth >= (G * H if backward else H)


def test_a_plan_says_what_is_wrong():
    with pytest.raises(SimulationError, match='the tiers with a plan are cluster and grid, got "stepwise"'):
        simulator("stepwise").plan("LSTM", torch.bfloat16, 2, 8)
    for N, H, D in [(0, 8, 1), (2, 0, 1), (2, 8, 3)]:
        with pytest.raises(SimulationError, match="N and H must be at least 1 and D 1 or 2"):
            simulator("grid").plan("LSTM", torch.bfloat16, N, H, D)


@pytest.mark.parametrize("tier", TIERS)
def test_what_a_tier_does_not_take(tier):
    for case, dtype, device in [
        # A device with only older code, in which the tiers' kernels are empty.
        (Case("LSTM", T=2, N=2, I=2, H=8), torch.bfloat16, {"code_version": 80}),
        (Case("LSTM", T=2, N=2, I=2, H=8), torch.float64, {}),
        (Case("LSTM", T=2, N=2, I=2, H=8, P=4), torch.float32, {}),
        (Case("RNN_TANH", T=2, N=2, I=2, H=8), torch.float32, {}),
        (Case("LSTM", T=2, N=2, I=2, H=600), torch.float32, {"multiprocessors": 8, "largest_cluster": 8}),
    ]:
        with pytest.raises(SimulationError, match=f"not for the tier {tier}"):
            problem = make(case, dtype)
            simulator(tier, **device).layer_forward(*problem.args, case.mode, False, False, False)
        assert simulator(tier, **device).plan(case.mode, dtype, case.N, case.H) is None or case.P


def test_dispatch(monkeypatch):
    """By default the stepwise tier runs. LSTMKERN_CUDA_TIER selects where to start in the table; an unknown name lists
    the tiers."""
    monkeypatch.delenv("LSTMKERN_CUDA_TIER", raising=False)

    def tiers(mode, H, dtype=torch.bfloat16, **device):
        s, problem = simulator("dispatch", **device), make(Case(mode, T=2, N=2, I=2, H=H), dtype)
        out = s.layer_forward(*problem.args, mode, False, True, True)
        forward = s.ran()
        s.layer_backward(None, None, None, None, *problem.args, out[0], out[3], out[4], mode, False, (True,) * 3)
        return forward, s.ran()

    assert tiers("LSTM", 20) == ("stepwise", "stepwise")
    monkeypatch.setenv("LSTMKERN_CUDA_TIER", "grid")
    assert tiers("LSTM", 20) == ("grid", "grid")
    monkeypatch.setenv("LSTMKERN_CUDA_TIER", "cluster")
    assert tiers("LSTM", 20) == ("cluster", "cluster")
    assert tiers("RNN_TANH", 20) == ("stepwise", "stepwise")
    assert tiers("LSTM", 20, torch.float64) == ("stepwise", "stepwise")
    assert tiers("LSTM", 20, code_version=80) == ("stepwise", "stepwise")
    # Too large for a cluster of 2 blocks, then for 6 blocks of a grid with so little memory: forward first, which reads
    # four times as many fragments for a step of its depth.
    small = {"largest_cluster": 2, "multiprocessors": 6, "shared_per_block": 60000}
    assert tiers("LSTM", 100, **small) == ("cluster", "cluster")
    assert tiers("LSTM", 250, **small) == ("grid", "grid")
    assert tiers("LSTM", 330, **small) == ("stepwise", "grid")
    assert tiers("LSTM", 400, **small) == ("stepwise", "stepwise")
    monkeypatch.setenv("LSTMKERN_CUDA_TIER", "fast")
    with pytest.raises(
        SimulationError, match='LSTMKERN_CUDA_TIER is "fast", but the tiers are: cluster, grid, stepwise'
    ):
        tiers("LSTM", 20)
