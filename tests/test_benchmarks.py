"""benchmarks/: its files run and write complete results; peers, memory, the guard, limits of a layer, hotspots."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from clocks import printed_under, with_own_clock
from torch.utils.flop_counter import FlopCounterMode

import lstmkern
from benchmarks import (
    bench_models,
    bench_small,
    bounds,
    busy,
    guard,
    hotspots,
    memory,
    peers,
    products_alone,
    small_floor,
    training_parts,
)
from lstmkern.bench import report, roofline
from lstmkern.bench.cases import Case, modules_for

ROOT = Path(lstmkern.__file__).parent.parent


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_benchmark_files_run(tmp_path):
    """One case of each kind through pytest-benchmark, in a separate process, and its result files."""
    ways = ["together", "apart"]
    chosen = [
        "bench_cells.py::test_cell[1,64,64-GRU-train]",
        *(f"bench_models.py::test_train[LMModel6-lstm-{how}]" for how in ways),
    ]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(f"benchmarks/{name}" for name in chosen)]
    command += ["--threads", "1", "--case-seconds", "0.01", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench_cells.json", "bench_models.json"]
    found = json.loads((tmp_path / "bench_models.json").read_text())
    assert {"command", "machine", "commit", "versions", "date", "skipped"} <= set(found)
    assert [case["case"] for case in found["cases"]] == [f"test_train[LMModel6-lstm-{how}]" for how in ways]
    for case, processes in zip(found["cases"], (1, 2), strict=True):
        assert (case["goal"], case["processes"]) == (1.5, processes)
        batches = case["tokens_per_s"] * case["ours_ms"] / 1e3 / (64 * 16)
        assert batches == pytest.approx(round(batches), rel=1e-3) and batches > 1  # an epoch
        assert ("in_layers" in case) == (processes == 1)
    assert 0 < found["cases"][0]["in_layers"] < 1


def test_part_of_an_epoch_in_layers(monkeypatch):
    """An epoch of 1000 us in which layers take 300 us forward and 250 us backward."""
    times = {"epoch": 1000, "LayerFunction": 300, "LayerFunctionBackward": 250, "aten::mm": 400}
    found = mock.MagicMock()
    found.__enter__.return_value.key_averages.return_value = [
        mock.Mock(key=key, cpu_time_total=time) for key, time in times.items()
    ]
    monkeypatch.setattr(bench_models, "profile", lambda **options: found)
    epoch = mock.Mock()
    assert bench_models.in_layers(epoch) == pytest.approx(0.55)
    epoch.assert_called_once_with()


def test_growth_measures_memory_in_a_fresh_process():
    """What a layer keeps for backward, for ours counted by hand: output, every c, and four gates of padded width."""
    case = Case("LSTM", 8, 4, 16, 16, train=True)
    (found,) = memory.measure_memory([case]) or pytest.skip("needs Linux's /proc/self/clear_refs")
    rows = 8 * 4
    kept = 4 * (rows * 16 + rows * 16 + rows * 16 + rows * 4 * 16)  # input, output, cells, gates, in fp32
    assert kept <= found["ours"]["saved"] <= kept + 4 * (2 * 4 * 16)  # h0, c0
    assert found["torch"]["saved"] > 0
    assert found["ours"]["peak"] >= 0


@pytest.mark.parametrize("size", [(64, 16, 128), (16, 16, 512)], ids=["mostly results", "mostly weights"])
def test_training_takes_no_more_memory_than_nn_lstm(size):
    T, N, H = size
    cases = [Case(cell, T, N, H, H, train=True) for cell in ("LSTM", "GRU")]
    found = memory.measure_memory(cases) or pytest.skip("needs Linux's /proc/self/clear_refs")
    assert max(case["ours"]["peak"] for case in found) <= found[0]["torch"]["peak"]


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


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("name", ["onnxruntime", "JAX"])
def test_peers_of_a_cell_start_from_its_state(name, cell):
    torch.manual_seed(0)
    case = Case(cell, 1, 3, 5, 6)
    theirs = getattr(torch.nn, f"{cell}Cell")(5, 6)
    x, state = torch.randn(1, 3, 5), tuple(torch.randn(2 if cell == "LSTM" else 1, 1, 3, 6))
    try:
        run, values = peers.PEERS[name](case, theirs, x, 1, state)
    except peers.Unavailable as reason:
        pytest.skip(str(reason))
    with torch.no_grad():
        wanted = theirs(x[0], tuple(s[0] for s in state) if cell == "LSTM" else state[0][0])
    wanted = wanted if cell == "LSTM" else (wanted,)
    torch.testing.assert_close(values(), wanted[0][None])
    for ours, given in zip(wanted, run(), strict=True):  # every part of the next state
        torch.testing.assert_close(torch.tensor(np.asarray(given)).view(3, 6), ours)


# ---- small networks ----


@pytest.mark.slow
def test_small_networks_are_measured_in_parts(tmp_path):
    """One case of every part, as the documented command; the second command keeps the results of the first."""
    command = [sys.executable, "-m", "benchmarks.bench_small", "--seconds", "0.001", "--out", str(tmp_path)]
    command += ["--peer", "torch.nn", "--peer", "onnxruntime"]
    shown = ""
    for parts in (["sizes", "calls"], ["threads", "busy"]):
        chosen = [word for part in parts for word in ("--part", part)]
        only = "LSTM 1,1,64" if "calls" in parts else "LSTM 100,8,32"
        done = subprocess.run([*command, *chosen, "--only", only], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown += done.stdout
    found = json.loads((tmp_path / "bench_small.json").read_text())
    assert {"machine", "versions", "peers", "skipped"} <= set(found)
    assert list(found["parts"]) == ["sizes", "calls", "threads", "busy"]
    assert all({"command", "date", "commit"} == set(run) for run in found["parts"].values())
    assert found["parts"]["sizes"] != found["parts"]["busy"]
    cases = [c for c in found["cases"] if c["peer"] == "torch.nn"]
    cores = bench_small.CORES
    counts = {part: sorted({c["threads"] for c in cases if c["part"] == part}) for part in found["parts"]}
    assert counts == {"sizes": [1], "calls": [1], "threads": sorted({1, cores, 8 * cores}), "busy": [cores]}
    assert {c["train"] for c in cases} == {False, True}
    for case in found["cases"]:
        assert case["ratio"] > 0 and case["ours_ms"] > 0 and case["peer_ms"] > 0
        assert ("ours_slowdown" in case) == (case["part"] == "busy")
        assert ("floor_ms" in case) == (case["part"] == "sizes")
        assert case["peer"] != "onnxruntime" or not case["train"]
    assert {p.name for p in tmp_path.iterdir()} >= {"bench_small.json", "small-threads.png"}
    assert shown.count("LSTM 1,1,64,64,1 infer") == 2 and "LSTM 100,8,32,32,1 train" in shown


def test_the_floor_of_a_call():
    """The step that computes nothing has the layer's results and gradients; the floor includes it and the GEMMs."""
    x = torch.randn(3, 2, 4, requires_grad=True)
    theirs, grad = torch.nn.LSTM(4, 5), torch.randn(3, 2, 5)
    nothing = training_parts.empty_step(x, list(theirs.parameters()), 3, 5, grad)
    assert [t.shape for t in nothing()] == [t.shape for t in (x, *theirs.parameters())]
    limits = roofline.Roofline(1, dict.fromkeys(roofline.RATES, 1e6), [(2**10, 1e12)])  # a million operations a second
    for train in (False, True):
        case = Case("LSTM", 3, 2, 4, 5, train=train)
        assert small_floor.floor_ms(case, limits, 1e-3) > 1e-3 * case.flops()


@pytest.mark.parametrize("train", [False, True])
def test_products_alone(train):
    """They have as many operations as the layer's GEMMs."""
    case = Case("LSTM", 3, 2, 4, 5, train=train)
    with FlopCounterMode(display=False) as counter:
        products_alone.products(case)()
    assert counter.get_total_flops() == case.flops()
    line = {"shape": case.shape, "train": train, "floor_ms": 1.0, "ours_ms": 2.0, "torch.nn": 3.0, "products": 1.5}
    about = {**report.context(1), "found": [line]}
    row = products_alone.document(about).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")][3:-1] == ["3.00", "1.50", "2.00", "50%"]


def test_a_look_at_small_networks_writes_nothing(monkeypatch, capsys):
    measured = mock.Mock(return_value=([], [{"part": "calls", "case": "a", "peer": "JAX", "reason": "not installed"}]))
    monkeypatch.setattr(bench_small, "measure_apart", measured)
    monkeypatch.setattr(report, "write_json", mock.Mock(side_effect=AssertionError))
    assert bench_small.main(["--part", "calls", "--only", "GRU"]) == 0
    measured.assert_called_once_with("calls", 1, "GRU", bench_small.RIVALS, bench_small.SECONDS)
    assert "skipped: JAX: not installed" in capsys.readouterr().err


def test_small_networks_of_another_machine_are_not_mixed():
    about = {"machine": {"cpu": "a"}, "versions": {}, "peers": {}, "command": "c", "date": "d", "commit": "e"}
    line = {"part": "calls", "ratio": 2.0}
    old = bench_small.merged({}, "calls", about, [line], [])
    assert (old["cases"], old["threads"]) == ([line], [1])
    bench_small.check_same(old, about)
    with pytest.raises(ValueError, match="another machine, so that its other parts cannot be kept: remove it"):
        bench_small.check_same(old, {**about, "machine": {"cpu": "b"}})
    sizes = {"part": "sizes", "ratio": 3.0}
    both = bench_small.merged(old, "sizes", {**about, "command": "f"}, [sizes], [])
    assert both["cases"] == [sizes, line]  # in the order of the parts
    assert [run["command"] for run in both["parts"].values()] == ["f", "c"]
    again = bench_small.merged(both, "calls", about, [], [])
    assert again["cases"] == [sizes]


def test_every_small_case_has_the_work_that_is_documented():
    sizes = bench_small.works("sizes")
    assert {w.case.H for w in sizes} == {8, 16, 32, 64, 128}
    assert {w.case.N for w in sizes} >= {1, 2, 5, 8, 16} and {w.case.T for w in sizes} >= {1, 10, 100, 1000}
    assert all(w.case.I == w.case.H for w in sizes)
    assert {(w.case.cell, w.case.train) for w in sizes} == {
        (c, t) for c in ("LSTM", "GRU", "RNN") for t in (False, True)
    }
    assert bench_small.works("threads") == bench_small.works("busy")
    assert {w.cell for w in bench_small.works("calls")} == {False, True}


def test_busy_cores_end_with_the_block():
    with pytest.raises(KeyError), busy.busy_cores(pinned=True) as started:
        running = [process.poll() for process in started]
        raise KeyError
    assert running and set(running) == {None}
    assert all(process.poll() is not None for process in started)


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
    assert f"1 of {len(names)} need over 2% more instructions" in capsys.readouterr().out


def test_guard_without_valgrind_reports_ratios(monkeypatch, capsys):
    monkeypatch.setattr(guard.shutil, "which", lambda name: None)
    monkeypatch.setattr(guard, "CASES", guard.CASES[:1])
    monkeypatch.setattr(sys, "argv", ["guard", "--strict"])
    assert guard.main() == 0
    assert "ratio to torch.nn" in capsys.readouterr().out


# ---- what limits a layer ----


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16"])
@pytest.mark.parametrize("shape", [(16, 64, 64, 64, 2), (70, 64, 400, 1152, 1), (35, 20, 640, 656, 2)])
def test_products_are_the_work_of_the_layer(cell, train, dtype, shape):
    """With sizes that need no padding, the GEMMs have exactly the operations of the layer."""
    case = Case(cell, *shape, dtype=dtype, train=train)
    work = sum(product.flops() * count for product, count in bounds.products(case).items())
    assert work == pytest.approx(case.flops(), rel=1e-12)


def test_products_by_hand():
    """T 5, N 3: 15 rows at once. GRU, two layers of 4 units: dgates are three planes of 16 columns."""
    found = bounds.products(Case("GRU", 5, 3, 7, 4, layers=2, train=True))
    product = bounds.Product
    assert found == {
        product(15, 7, 4, 3): 1,
        product(15, 4, 4, 3): 1,
        product(3, 4, 4, 3): 10,
        product(3, 48, 4): 10,
        product(15, 48, 7): 1,
        product(15, 48, 4): 1,
        product(12, 15, 7, transposed=True): 1,
        product(12, 15, 4, transposed=True): 3,
    }
    # 600 rows come in chunks of 384 + 60.
    assert bounds.products(Case("LSTM", 10, 60, 8, 4))[product(444, 8, 4, 4)] == pytest.approx(600 / 444)
    with pytest.raises(ValueError, match="without projection"):
        bounds.products(Case("LSTM", 5, 3, 7, 4, proj=2))


@with_own_clock
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("gates", [1, 3, 4])
def test_a_bare_product_takes_time_with_its_work(tmp_path, gates, dtype):
    """64 times the work takes about 64 times as long, in whichever direction the GEMM grows. Operands that exceed a
    cache can make either several times slower, so only the order of magnitude is checked."""
    program = f"""
import json
from benchmarks import bounds
shapes = [bounds.Product(24, k, 64, {gates}, dtype="{dtype}") for k in (64, 4096)]
shapes += [bounds.Product(r, 64, 64, transposed=True, dtype="{dtype}") for r in (64, 4096)]
times = zip(*([p.seconds(duration=2e-4) for p in shapes] for _ in range(50)), strict=True)
print(json.dumps([min(t) for t in times]))  # the minimum is the least disturbed
"""
    small, deep, short, tall = printed_under("cpu", tmp_path, program)
    assert 8 < deep / small < 512
    assert 8 < tall / short < 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int8", 1, 1, 1), "dtype must be"),
        (("fp32", 0, 1, 1), "at least 1"),
        (("fp32", 1, 1, 1, 2), "gates must be"),
        (("fp64", 1, 1, 1, 4, True), "gates must be"),
    ],
)
def test_no_such_product(arguments, message):
    with pytest.raises(ValueError, match=message):
        lstmkern._extension.cpu_product(*arguments)


def readings(case, peaks):
    """Rounds with these peaks: the GEMMs alone reach 80 % of the peak, the microkernel 90 %."""
    return [
        bounds.Reading(p, 0.9 * p, {q: q.flops() / (0.8 * p) for q in bounds.products(case)}, case.flops() / p)
        for p in peaks
    ]


def test_shares_by_hand():
    case, peaks = Case("LSTM", 128, 128, 512, 512), [1e11, 2e11, 1e10]
    seconds = [case.flops() / p for p in peaks]  # at the peak
    result = bounds.summarize(
        case, [s / 0.6 for s in seconds], [s / 0.5 for s in seconds], readings(case, peaks), "operations"
    )
    shares = {"roofline": 1, "microkernel": 0.9, "products": 0.8, "ours": 0.6, "torch": 0.5}
    assert result["shares"] == pytest.approx(shares)
    assert result["rest"] == pytest.approx(0.25)  # of the time: 1 - 0.6 / 0.8
    assert (result["ratio"], result["goal"], result["verdict"]) == (pytest.approx(1.2), 1.2, "reached")
    assert result["needs"] == pytest.approx(0.6)
    assert result["peak_gflops"] == pytest.approx(100)
    assert all(product["share"] == pytest.approx(0.8) for product in result["products"])
    assert "verdict" not in bounds.summarize(
        Case("LSTM", 5, 16, 16, 16), [1], [1], readings(Case("LSTM", 5, 16, 16, 16), [1]), "operations"
    )


@pytest.mark.parametrize(
    ("torch_share", "verdict", "words"),
    [
        (0.5, "reached", "met"),
        (0.6, "rest", "non-GEMM time 10%"),
        (0.7, "products", "a faster GEMM"),
        (0.9, "machine", "a faster machine"),
    ],
)
def test_what_a_goal_takes(torch_share, verdict, words):
    """A goal of 1.2, with the GEMMs at 80 % and the layer at 60 % of the peak."""
    shares = {"roofline": 1, "products": 0.8, "ours": 0.6, "torch": torch_share}
    result = {"shares": shares, "ratio": 0.6 / torch_share, "goal": 1.2, "needs": 1.2 * torch_share}
    assert bounds.verdict(result) == verdict
    assert bounds.needed({**result, "verdict": verdict}) == words


def test_bounds_end_to_end(tmp_path, capsys):
    args = ["--shape", "2,2,8,8", "3,1,32,32,2", "--seconds", "1", "--out", str(tmp_path)]
    assert bounds.main(args) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bounds.json"]
    found = json.loads((tmp_path / "bounds.json").read_text())
    assert {"command", "machine", "commit", "versions", "date"} <= set(found)
    assert [(c["cell"], c["shape"], c["dtype"], c["train"]) for c in found["cases"]] == [
        (cell, shape, dtype, train)
        for dtypes in (("fp32", "bf16"), ("fp64", "fp16"))
        for shape in ("2,2,8,8,1", "3,1,32,32,2")
        for cell in ("LSTM", "GRU")
        for dtype in dtypes
        for train in (False, True)
    ]
    assert all(c["rounds"] >= 3 and c["shares"]["ours"] > 0 for c in found["cases"])
    printed, text = capsys.readouterr().out, bounds.document(found)  # of measured values, and of values in the file
    assert "| 3,1,32,32,2 " in text and "| H 512, 4 MiB " in text
    assert [len(line.split("|")) for line in printed.splitlines()[:-1]] == [
        len(line.split("|")) for line in text.splitlines()
    ]


def test_digest_of_bounds():
    line = {"goal": 1.2, "dtype": "fp32", "shape": "2,2,8,8,1", "verdict": "machine"}
    cases = [line, line, {**line, "verdict": "rest"}, {**line, "dtype": "fp64"}, {**line, "goal": None}]
    assert bounds.digest({"threads": 1, "cases": cases}).splitlines() == [
        "- fp32 (one thread, without T = N = 1): 0 of 3 goals met; 2 exceed this machine's compute or bandwidth, "
        "1 needs less non-GEMM time.",
        "- fp64 (one thread, without T = N = 1): 0 of 1 goals met; 1 exceeds this machine's compute or bandwidth.",
    ]
    met = {**line, "shape": "1,1,256,256,1", "verdict": "reached"}
    assert bounds.digest({"threads": 2, "cases": [met]}) == "- fp32 (2 threads): 1 of 1 goals met."
    assert bounds.digest({"threads": 1, "cases": [{"goal": None, "shape": "2,2,8,8,1"}]}) == ""


def test_samples_are_grouped_by_function():
    space = "lstmkern::cpu::avx512::"
    names = {
        f"void {space}kernel<1, 6, 4, float, float>(float const* const*, float const*, long, float*)": "microkernel",
        f"void {space}kernel<8, 8, 3, float, float>(float const* const*, float const*, long, float*)":
            "microkernel of dW",
        f"void {space}pack_down<float, float>(float*, float const*, long, long, long)": "packing",
        f"{space}ForwardKernel<(lstmkern::Cell)2, float>::prepare(int, int)": "packing",
        f"void {space}UnitPanels<(lstmkern::Cell)2, float, float>::pack<float>(float*, long)": "packing",
        f"void {space}BackwardKernel<(lstmkern::Cell)2, float>::add_product<Columns<float, 3> >(int)": "adding to dW",
        f"{space}BackwardKernel<(lstmkern::Cell)2, float>::step(long, int, long)": "cell",
        f"{space}ForwardKernel<(lstmkern::Cell)2, float>::step(long, long)": "cell",
        f"void {space}finish_forward<{space}LstmForward, float>({space}ForwardPass<float> const&)": "cell",
        f"{space}run_team(int)": "other",
        "[system] exc_page_fault": "system",
        "kernel<1, 6>": "other",
        "[unknown]": "other",
    }  # fmt: skip
    assert {name: hotspots.group_of(name) for name in names} == names
    shares = hotspots.grouped(names)
    assert list(shares) == list(hotspots.GROUPS)
    assert shares["packing"] == pytest.approx(3 / 13)
    assert sum(shares.values()) == pytest.approx(1)
    lines = {
        "        7f12ab34 void lstmkern::kernel<1, 6>(float const*, long) (/some/lib.so)":
            "void lstmkern::kernel<1, 6>(float const*, long)",
        " ffffffff81b94180 exc_page_fault ([kernel.kallsyms])": "[system] exc_page_fault",
        "     7f12ab34 [unknown] (/some/libc.so.6)": "[unknown]",
        "": None,
    }  # fmt: skip
    assert {line: hotspots.symbol_in(line) for line in lines} == lines


def test_hotspots_without_perf(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(hotspots.shutil, "which", lambda name: None)
    assert hotspots.main(["--out", str(tmp_path)]) == 0
    assert "perf is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parts_of_a_training_step(monkeypatch):
    monkeypatch.setattr(training_parts, "ROUNDS", 2)
    monkeypatch.setattr(training_parts, "SECONDS", 1e-5)
    line = {"cell": "LSTM", "H": 8, **training_parts.parts("LSTM", 8)}
    times = {name: value for name, value in line.items() if name not in ("cell", "H")}
    assert set(times) == {"step", "torch.nn", "forward", "floor", "grad", "forward kernel", "backward kernel"}
    assert all(value > 0 for value in times.values())
    old, jax = {**line, "step": 100.0}, {**line, "step": 50.0, "floor": 40.0, "JAX": 20.0}
    made = {"step": 60.0, "floor": 30.0, "forward kernel": 4.0, "backward kernel": 6.0, "grad": 12.0, "torch.nn": 180.0}
    heads, rows = training_parts.table([{**line, **made}], [old], [jax])
    assert rows == [["LSTM 8", "100.0", "60.0", "3.00", "30.0", "12.0", "10.0", "20.0", "0.40", "0.50"]]
    assert len(heads) == len(rows[0])


def test_floor_has_the_gradients_of_the_layer():
    """As many inputs and outputs as the layer's Function has."""
    for cell, outputs in (("LSTM", 3), ("GRU", 2), ("RNN", 2)):
        ours, _, x, _, floor = training_parts.layers(cell, 8)
        assert [g.shape for g in floor()] == [t.shape for t in (x, *ours.parameters())]
        _, states = ours(x)
        assert outputs == 1 + (len(states) if cell == "LSTM" else 1)
