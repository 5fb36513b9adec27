"""lstmkern.bench: operations and bytes counted by hand, ratios of pairs, the roofline, complete result files."""

import itertools
import json
import re
import statistics

import pytest
import torch
from clocks import printed_under, with_own_clock
from rich.console import Console

from lstmkern.bench import goals, measure, report, roofline
from lstmkern.bench.cases import COLUMNS, SHAPES, Case, Contest, goal, modules_for, step_of
from lstmkern.command import main

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- the work ----


def multiplications(case):
    """Operations of the reference's GEMMs, as counted by torch: 2 for each multiplication."""
    from torch.utils.flop_counter import FlopCounterMode

    from lstmkern import reference

    _, theirs = modules_for(case)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"] + (["weight_hr"] if case.proj else [])
    D, P = (2 if case.bidirectional else 1), case.proj or case.H
    x = torch.randn(case.T, case.N, case.I, requires_grad=True)
    leaf = x
    with FlopCounterMode(display=False) as counter:
        for layer in range(case.layers):
            ends = ["", "_reverse"][:D]
            weights = [getattr(theirs, f"{n}_l{layer}{end}") for end in ends for n in names]
            h0 = torch.zeros(D, case.N, P, requires_grad=True)
            c0 = torch.zeros(D, case.N, case.H, requires_grad=True) if case.cell == "LSTM" else None
            mode = "RNN_TANH" if case.cell == "RNN" else case.cell
            x = reference.layer(x, h0, c0, weights, None, None, None, mode, False)[0]
        if case.train:
            torch.autograd.grad(x.sum(), [leaf, *theirs.parameters()])
    return counter.get_total_flops()


def test_flops_by_hand():
    """(5, 3, 7, 4): 15 tokens; LSTM 4 gates: 2 * 15 * 16 * (7 + 4) = 5280; a second layer 2 * 15 * 16 * (4 + 4)."""
    assert Case("LSTM", 5, 3, 7, 4).flops() == 5280
    assert Case("GRU", 5, 3, 7, 4).flops() == 5280 * 3 // 4
    assert Case("RNN", 5, 3, 7, 4).flops() == 5280 // 4
    assert Case("LSTM", 5, 3, 7, 4, layers=2).flops() == 5280 + 3840
    assert Case("LSTM", 5, 3, 7, 4, train=True).flops() == 3 * 5280
    assert Case("LSTM", 5, 3, 7, 4, rows=9).flops() == 5280 * 9 // 15
    # P = 2: 2 * 15 * 16 * (7 + 2) and the projection's 2 * 15 * 4 * 2
    assert Case("LSTM", 5, 3, 7, 4, proj=2).flops() == 4320 + 240
    # two directions, then a layer that reads both: 2 * 5280 + 2 * (2 * 15 * 16 * (8 + 4))
    assert Case("LSTM", 5, 3, 7, 4, layers=2, bidirectional=True).flops() == 2 * 5280 + 2 * 5760


@pytest.mark.parametrize(
    "case",
    [
        Case("LSTM", 5, 3, 7, 4, layers=2),
        Case("GRU", 5, 3, 7, 4, bidirectional=True, layers=2),
        Case("RNN", 5, 3, 7, 4),
        Case("LSTM", 5, 3, 7, 4, proj=2),
    ],
    ids=str,
)
def test_flops_are_those_of_the_reference(case):
    assert multiplications(case) == case.flops()


def test_bytes_by_hand():
    case = Case("GRU", 5, 3, 7, 4, dtype="bf16", train=True)
    assert case.recurrent_bytes() == 3 * 4 * 4 * 2
    assert case.sweeps() == 2 * 5
    assert case.input_bytes() == (3 * 4 * 7 + 15 * (7 + 4)) * 2


def test_goals_are_those_of_the_table():
    assert goal(Case("LSTM", 16, 64, 64, 64, 2)) == 1.6
    assert goal(Case("GRU", 1, 1, 256, 256, dtype="bf16", train=True)) == 1.5
    assert goal(Case("LSTM", 35, 20, 650, 650, 2, dtype="bf16", train=True)) == 2.5
    assert goal(Case("LSTM", 35, 20, 650, 650, 2, dtype="fp16")) == 10
    assert goal(Case("LSTM", 35, 20, 650, 651, 2)) is None
    assert [goal(Case("GRU", 35, 20, 650, 651, dtype=dtype)) for dtype in ("fp64", "fp16")] == [2, 10]
    given = [goal(Case(c, *s, dtype=d, train=t)) for s in SHAPES for c, d, t in COLUMNS]
    assert len(given) == 64
    assert None not in given


def test_contestants_do_the_same_work():
    contest = Contest(Case("LSTM", 5, 3, 7, 4, layers=2, train=True, bidirectional=True))
    torch.manual_seed(1)
    ours, theirs = (step_of(m, torch.ones(5, 3, 7), False)()[0] for m in contest.modules)
    torch.testing.assert_close(ours, theirs)
    grads = contest.ours(), contest.theirs()
    assert len(grads[0]) == len(grads[1]) == 1 + 16
    assert all(g.shape == p.shape for g, p in zip(grads[0][1:], contest.modules[0].parameters(), strict=True))
    assert grads[0][0].shape == (5, 3, 7)


# ---- the clock ----


class Clock:
    """A clock that only the contestants move."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def contestant(self, name, seconds):
        """A function that takes the next of ``seconds`` (the last one for ever)."""
        left = list(seconds)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_pairs_take_turns_and_give_the_median_of_ratios():
    clock = Clock()
    # A warm-up, an estimate (the better of two), then three rounds on a machine that is 1, 10 and 2 times slower.
    ours = clock.contestant("ours", [9, 7, 1, 1, 10, 2])
    theirs = clock.contestant("theirs", [9, 3, 5, 3, 20, 8])
    pairs = measure.Pairs(ours, theirs, clock=clock, probe=lambda: clock.now)
    assert (pairs.calls, pairs.round_seconds) == ([1, 1], 4)
    pairs.run(12.5)
    assert clock.calls[6:] == ["theirs", "ours"] * 3
    assert pairs.ratios == [3, 2, 4]
    assert len(pairs.probed) == 3
    result = pairs.result()
    assert (result["ratio"], result["ratio_low"], result["ratio_high"]) == (3, 2.5, 3.5)
    assert (result["rounds"], result["ours_ms"], result["peer_ms"]) == (3, 2000, 8000)
    # The ratio of medians would be 4.
    assert statistics.median(pairs.theirs) / statistics.median(pairs.ours) == 4


def test_short_calls_are_repeated_and_long_ones_are_not():
    clock = Clock()
    pairs = measure.Pairs(clock.contestant("a", [1e-4]), clock.contestant("b", [5e-3]), clock=clock, block=2e-3)
    assert pairs.calls == [20, 1]
    assert pairs.rounds_within(0) == 3
    assert pairs.rounds_within(1e9) == 40
    clock = Clock()
    long = measure.Pairs(clock.contestant("a", [1]), clock.contestant("b", [2]), clock=clock)
    assert long.rounds_within(0) == 1
    assert long.rounds_within(9.5) == 3
    clock = Clock()
    known = measure.Pairs(
        clock.contestant("a", [1]), clock.contestant("b", [2]), clock=clock, warm_up=lambda: (0.001, 4.0)
    )
    assert (known.calls, clock.calls) == ([2, 1], [])


def test_quiet_leaves_everything_as_it_was():
    import gc

    with pytest.raises(KeyError), measure.quiet(2):
        assert torch.get_num_threads() == 2
        assert not gc.isenabled()
        raise KeyError
    assert torch.get_num_threads() == 1
    assert gc.isenabled()


# ---- the roofline ----


def test_floor_by_hand():
    """100 operations per second. 10 bytes/s are read from a buffer of 64 bytes, and 1 byte/s from one of 640."""
    limits = roofline.Roofline(1, {"fp32": 100, "fp64": 50, "bf16": 0, "amx": 0}, [(64, 10), (640, 1)])
    assert [limits.read_rate(size) for size in (8, 64, 352, 640, 10**9)] == [10, 10, 5.5, 1, 1]
    assert limits.unit("bf16") == limits.unit("fp16") == "fp32"
    case = Case("RNN", 3, 1000, 1, 4)  # 24,000 operations for x, 96,000 for h; (4 + 15,000) * 4 bytes at 1 byte/s
    assert limits.floor(case) == roofline.Floor(960 + 60016, "bytes")
    assert limits.floor(case, 0.1) == roofline.Floor(960000 + 240000, "operations")
    one = Case("RNN", 3, 1, 1, 4)  # w_hh: 64 bytes, three times at 10 bytes/s, against 0.96 s for 96 operations
    once = (4 + 3 * (1 + 4)) * 4  # bytes
    assert limits.floor(one).seconds == pytest.approx(19.2 + once / limits.read_rate(once))
    assert limits.floor(one, read=5).seconds == pytest.approx(38.4 + once / limits.read_rate(once))
    twice = limits.floor(Case("RNN", 3, 1, 1, 4, train=True)).seconds
    assert twice == pytest.approx(2 * 19.2 + 3 * once / limits.read_rate(3 * once))


@with_own_clock
def test_measured_rates(tmp_path):
    """Each loop takes one millisecond, so a rate is the operations or bytes of one loop, times 1000."""
    program = """
import itertools
import json
from lstmkern.bench.roofline import RATES, fma_rate, read_rate, supported
rates = {c: {rate: fma_rate(rate, 1, c) for rate in RATES} for c in supported()}
print(json.dumps({"rates": rates, "read": read_rate(2**16, 1)}))
"""
    found = printed_under("ticks", tmp_path, program)
    vector_bytes = {"baseline": 16, "avx2": 32, "avx512": 64}
    for capability, rates in found["rates"].items():
        lanes = vector_bytes[capability] // 4
        assert rates["fp32"] == pytest.approx(1e3 * 2 * 12 * lanes)  # twelve independent multiply-adds
        assert rates["fp64"] == pytest.approx(1e3 * 2 * 12 * lanes / 2)
        assert rates["bf16"] in (0, pytest.approx(1e3 * 4 * 12 * 16))
        assert rates["amx"] in (0, pytest.approx(1e3 * 4 * 2 * 16 * 16 * 32))
    assert found["read"] == pytest.approx(1e3 * 2**16, rel=0.02)  # rounded to whole blocks of registers


def test_rates_of_this_machine():
    assert roofline.fma_rate("fp32", 1) > 0
    assert roofline.fma_rate("no such rate", 1) == 0
    assert roofline.supported()[-1] == roofline._extension.cpu_capability()


# ---- results ----

TINY = ["--shape", "2,2,4,4", "1,1,4,4,2", "--threads", "1", "--seconds", "60"]


def test_command_end_to_end(tmp_path, capsys, monkeypatch):
    """With a clock that advances 1/256 s at every reading: each block is one call and takes 1/256 s."""
    reads = itertools.count()
    monkeypatch.setattr(measure, "clock", lambda: next(reads) / 256)
    monkeypatch.setattr(roofline, "fma_rate", lambda *args, **more: 1e9)
    monkeypatch.setattr(roofline, "read_rate", lambda *args, **more: 1e9)
    out = tmp_path / "deep" / "er"
    assert main(["bench", "--quick", *TINY, "--dtype", "fp32", "bf16", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| fp32: T,N,I,H,layers | threads | LSTM infer" in printed
    assert "| peak rates measured on this machine" in printed
    assert re.search(r"^\| fp32 multiply-adds, portable code *\| 1 GFLOP/s *\|$", printed, re.MULTILINE)
    assert re.search(r"^\| reading a buffer of 8 MiB *\| 1 GB/s *\|$", printed, re.MULTILINE)
    assert "\nratio to torch.nn (share of the roofline); above 1 is faster\n" in printed  # no goal for these sizes
    assert sorted(path.name for path in out.iterdir()) == ["goals.json", "goals.md"]
    found = json.loads((out / "goals.json").read_text())
    for field in ("command", "date", "commit", "machine", "capability", "threads", "versions", "roofline", "peaks"):
        assert field in found, field
    assert {"cpu", "flags", "caches", "cores"} <= set(found["machine"])
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == [1]
    cases = found["cases"]
    assert len(cases) == 2 * 2 * 2 * 2
    assert not found["left_out"]
    assert {(c["shape"], c["dtype"]) for c in cases} == {
        (s, d) for s in ("2,2,4,4,1", "1,1,4,4,2") for d in ("fp32", "bf16")
    }
    for case in cases:
        assert case["ratio_low"] == case["ratio"] == case["ratio_high"] == 1
        assert case["ours_ms"] == case["peer_ms"] == pytest.approx(1000 / 256, rel=1e-4)
        assert case["rounds"] >= 3
        assert case["share"] > 0
        assert case["gflops"] > 0


def test_what_does_not_fit_the_time_is_left_out_and_named(capsys):
    now = iter(range(0, 10**6, 50))  # every reading of the clock takes 50 seconds
    cases = goals.cases_for([(1, 1, 4, 4, 1)], ["LSTM"], ["fp32"])
    results = goals.run_goals(Console(), cases, [1], 120, clock=lambda: next(now))
    assert len(results["cases"]) == 1
    assert results["left_out"] == [{"threads": 1, "case": str(cases[1])}]
    assert "1.00 / 1.6 (50%)" in goals.goals_table(
        {"cases": [{**results["cases"][0], "ratio": 1, "goal": 1.6, "share": 0.5}]}
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--shape", "1,2"], "'1,2' is not a shape T,N,I,H[,layers]"),
        (["--shape", "1,2,3,0"], "is not a shape"),
        (["--threads", "0"], "'0' is not a whole number"),
        (["--threads", "100000"], "--threads 100000: this process may use"),
        (["--seconds", "-1"], "'-1' is not a number of seconds above 0"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--cell", "lstm"], "invalid choice: 'lstm'"),
        (["--out", "taken"], "--out taken is not a directory"),
    ],
    ids=" ".join,
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    assert main(["bench", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_result_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.json"
    report.write_json(path, report.context(1), cases=[{"ratio": 1.23456789}])
    before = path.read_text()
    assert json.loads(before)["cases"] == [{"ratio": 1.2346}]
    with pytest.raises(TypeError):
        report.write_json(path, {}, cases=[object()])
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
