"""The suite measures what it says: work counted by hand, ratios of pairs, complete result files, peers, the guard."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import lstmkern
from benchmarks import growth, guard, memory, peers, readme
from lstmkern.__main__ import main
from lstmkern.bench import goals, measure, report, roofline
from lstmkern.bench.cases import COLUMNS, SHAPES, Case, Contest, goal, modules_for, step_of

ROOT = Path(lstmkern.__file__).parent.parent


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the work ----


def multiplications(case):
    """Counted by torch over the reference's products, cell by cell: 2 operations for each multiplication."""
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
    # both directions, then a layer that reads both: 2 * 5280 + 2 * (2 * 15 * 16 * (8 + 4))
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
    # a warm-up, an estimate, then three rounds in which the machine is 1, 10 and 2 times slower
    ours = clock.contestant("ours", [9, 1, 1, 10, 2])
    theirs = clock.contestant("theirs", [9, 3, 3, 20, 8])
    pairs = measure.Pairs(ours, theirs, clock=clock, probe=lambda: clock.now)
    assert (pairs.calls, pairs.round_seconds) == ([1, 1], 4)
    pairs.run(12.5)
    assert clock.calls[4:] == ["theirs", "ours"] * 3
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
    """A machine of 100 operations a second that reads 10 bytes a second from 64 bytes and 1 a second from 640."""
    limits = roofline.Roofline(1, {"fp32": 100, "fp64": 50, "bf16": 0, "amx": 0}, [(64, 10), (640, 1)])
    assert [limits.read_rate(size) for size in (8, 64, 352, 640, 10**9)] == [10, 10, 5.5, 1, 1]
    assert limits.unit("bf16") == limits.unit("fp16") == "fp32"
    case = Case("RNN", 3, 1000, 1, 4)  # 24,000 operations for x, 96,000 for h; memory: (4 + 15,000) * 4 bytes at 1 a s
    assert limits.floor(case) == roofline.Floor(960 + 60016, "bytes")
    assert limits.floor(case, 0.1) == roofline.Floor(960000 + 240000, "operations")
    one = Case("RNN", 3, 1, 1, 4)  # w_hh: 64 bytes, three times at 10 a second, against 0.96 s for its 96 operations
    once = (4 + 3 * (1 + 4)) * 4  # bytes
    assert limits.floor(one).seconds == pytest.approx(19.2 + once / limits.read_rate(once))
    assert limits.floor(one, read=5).seconds == pytest.approx(38.4 + once / limits.read_rate(once))
    twice = limits.floor(Case("RNN", 3, 1, 1, 4, train=True)).seconds
    assert twice == pytest.approx(2 * 19.2 + 3 * once / limits.read_rate(3 * once))


def test_measured_rates():
    fp32, fp64 = (max(roofline.fma_rate(rate, 1) for _ in range(3)) for rate in ("fp32", "fp64"))
    assert 1e9 < fp64 < fp32 < 1e13
    assert fp32 / fp64 == pytest.approx(2, rel=0.6)
    assert roofline.fma_rate("no such rate", 1) == 0
    assert roofline.read_rate(2**16, 1, 0.005) > 1e9
    assert roofline.supported()[-1] == roofline._extension.cpu_capability()


# ---- results ----

TINY = ["--shape", "2,2,4,4", "1,1,4,4,2", "--threads", "1", "--seconds", "60"]


def test_command_end_to_end(tmp_path, capsys):
    out = tmp_path / "deep" / "er"
    assert main(["bench", "--quick", *TINY, "--dtype", "fp32", "bf16", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| fp32: T,N,I,H,layers | threads | LSTM infer" in printed
    assert "fp32 FMA" in printed
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
        assert case["ratio_low"] <= case["ratio"] <= case["ratio_high"]
        assert case["rounds"] >= 3
        assert 0 < case["share"] < 1.5
        assert case["gflops"] > 0


def test_what_does_not_fit_the_time_is_left_out_and_named(capsys):
    now = iter(range(0, 10**6, 50))  # every look at the clock costs 50 seconds
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


def test_readme_is_filled_between_its_markers(tmp_path):
    text = "# top\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\n<!-- varlen:begin -->\n<!-- varlen:end -->\nend\n"
    path = tmp_path / "README.md"
    path.write_text(text)
    args = ["--readme", str(path), "--results", str(tmp_path)]
    assert readme.main(args) == 1
    assert path.read_text() == text
    line = {"cell": "LSTM", "shape": "5,3,4,4,1", "dtype": "fp32", "train": True, "ratio": 2.5, "share": 0.5}
    line |= {"goal": None, "threads": 1, "token_cost": 1.05, "torch_token_cost": 2.5, "layout": "packed"}
    report.write_json(tmp_path / "goals.json", report.context(1), cases=[line], peaks=[], roofline=[])
    report.write_json(tmp_path / "bench_varlen.json", report.context(1), cases=[line])
    assert readme.main(args) == 0
    filled = path.read_text()
    assert filled.startswith("# top\n\n<!-- bench:begin -->\n")
    assert "old" not in filled
    assert "2.50 (50%)" in filled
    ragged = next(row for row in filled.splitlines() if row.startswith("| LSTM T 5, N 3, H 4, training "))
    assert [cell.strip() for cell in ragged.split("|")[2:5]] == ["1.05", "-", "2.50"]
    assert readme.main(args) == 0
    assert path.read_text() == filled
    path.write_text(text.replace("<!-- bench:end -->", ""))
    assert readme.main(args) == 1


# ---- the benchmark files, peers and guard ----


@pytest.mark.slow
def test_benchmark_files_run(tmp_path):
    """One case of each kind through pytest-benchmark, in a process of its own, and what it leaves."""
    chosen = ["bench_cells.py::test_cell[1,64,64-GRU-train]", "bench_models.py::test_train_step[LMModel6-lstm]"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(f"benchmarks/{name}" for name in chosen)]
    command += ["--threads", "1", "--case-seconds", "0.01", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench_cells.json", "bench_models.json"]
    found = json.loads((tmp_path / "bench_models.json").read_text())
    assert {"command", "machine", "commit", "versions", "date", "skipped"} <= set(found)
    (case,) = found["cases"]
    assert case["case"] == "test_train_step[LMModel6-lstm]"
    assert case["goal"] == 1.5
    assert case["tokens_per_s"] == pytest.approx(1024 / case["ours_ms"] * 1e3, rel=1e-3)


def test_growth_measures_memory_in_a_fresh_process():
    """What nn.LSTM and ours keep for backward, by hand for ours: output, every c, and four gates of padded width."""
    case = Case("LSTM", 8, 4, 16, 16, train=True)
    (found,) = memory.measure_memory([case]) or pytest.skip("needs Linux's /proc/self/clear_refs")
    rows = 8 * 4
    kept = 4 * (rows * 16 + rows * 16 + rows * 16 + rows * 4 * 16)  # input, output, cells, gates, in fp32
    assert kept <= found["ours"]["saved"] <= kept + 4 * (2 * 4 * 16)  # h0, c0
    assert found["torch"]["saved"] > 0
    assert found["ours"]["peak"] >= 0


def test_plots_of_growth(tmp_path):
    """Both figures from results with and without memory; sizes and cells as the real ones."""
    line = {"shape": "4,2,8,8,1", "ratio": 1.5, "share": 0.5, "ours_ms": 1.0, "peer_ms": 2.0}
    results = [
        {**line, "size": size, "value": value, "cell": cell, "train": train}
        for size, value, case, _ in growth.points({"T": (growth.CURVES["T"][0], (4, 8))}, 2)
        for cell, train in [(case.cell, case.train)]
    ]
    assert len(results) == 2 * 4 + 2 * 4
    growth.plot(results, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["growth-time.png"]
    for result in results[:8]:
        result["memory"] = {"ours": {"peak": 2**20, "saved": 0}, "torch": {"peak": 2**21, "saved": 5}}
    growth.plot(results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth-memory.png", "growth-time.png"]


@pytest.mark.parametrize("name", [p for p in peers.PEERS if p != "torch without oneDNN"])
def test_a_missing_peer_gives_its_reason(monkeypatch, name):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler")

    for module in ("onnx", "onnxruntime", "jax"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(torch, "compile", lambda f: broken)
    case = Case("LSTM", 2, 2, 4, 4)
    reason = "torch.compile failed: RuntimeError: no compiler" if name == "compiled cell" else "is not installed"
    with pytest.raises(peers.Unavailable, match=reason):
        peers.PEERS[name](case, modules_for(case)[1], torch.zeros(2, 2, 4), 1)
    with pytest.raises(peers.Unavailable, match="does not run"):
        projected = Case("LSTM", 2, 2, 4, 4, proj=2)
        peers.PEERS[name](projected, modules_for(projected)[1], torch.zeros(2, 2, 4), 1)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("name", ["onnxruntime", "JAX", "torch without oneDNN"])
def test_peers_compute_the_same(name, cell):
    case = Case(cell, 4, 3, 5, 6, layers=2)
    ours, theirs = modules_for(case)
    x = torch.randn(4, 3, 5)
    try:
        _, values = peers.PEERS[name](case, theirs, x, 1)
    except peers.Unavailable as reason:
        pytest.skip(str(reason))
    with torch.no_grad():
        torch.testing.assert_close(values(), ours(x)[0])


def test_guard_marks_what_rose():
    table, worse = guard.compare({"a": 1030, "b": 900, "c": 1010, "d": 7}, {"a": 1000, "b": 1000, "c": 1000})
    assert worse == 1
    rows = {row.split("|")[1].strip(): row for row in table.splitlines()[2:]}
    assert "+3.0%" in rows["a"] and "MORE" in rows["a"]
    assert "-10.0%" in rows["b"] and "less" in rows["b"]
    assert "MORE" not in rows["c"] and "new" in rows["d"]


@pytest.mark.parametrize(("strict", "code"), [([], 0), (["--strict"], 1)])
def test_guard_only_fails_when_asked(monkeypatch, tmp_path, capsys, strict, code):
    names = [str(case) for case in guard.CASES]
    baseline = tmp_path / "guard.json"
    report.write_json(baseline, report.context(1), instructions=dict.fromkeys(names, 100))
    monkeypatch.setattr(guard, "BASELINE", baseline)
    monkeypatch.setattr(guard.shutil, "which", lambda name: "/usr/bin/valgrind")
    monkeypatch.setattr(guard, "count_instructions", lambda: [200] + [100] * (len(names) - 1))
    monkeypatch.setattr(sys, "argv", ["guard", *strict])
    assert guard.main() == code
    assert "1 of 12 take more than 2% more instructions" in capsys.readouterr().out


def test_guard_without_valgrind_reports_ratios(monkeypatch, capsys):
    monkeypatch.setattr(guard.shutil, "which", lambda name: None)
    monkeypatch.setattr(guard, "CASES", guard.CASES[:1])
    monkeypatch.setattr(sys, "argv", ["guard", "--strict"])
    assert guard.main() == 0
    assert "ratio to torch.nn" in capsys.readouterr().out
