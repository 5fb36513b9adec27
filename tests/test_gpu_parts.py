"""The parts of the GPU commands in this process and on the CPU, with wrong results, errors, and tools that are missing,
have no permission or find errors.
"""

import json
import os
import sys
import time
import types

import fake_programs
import pytest
import torch
from clocks import end_time_at
from cuda_reference import torch_nn
from simt import layers as cases

from benchmarks.gpu import (
    bench,
    compare,
    facts,
    layers,
    profile,
    records,
    sanitize,
    session,
    small,
    smoke,
    tables,
    tests,
    tools,
)


@pytest.fixture
def part(tmp_path, monkeypatch):
    """part(module, words): runs a part as a rehearsal and returns its exit code and records."""

    def run(module, *words, device="cpu", until=None):
        told = {
            "path": str(tmp_path / "all.jsonl"),
            "run": "r",
            "part": module.__name__.rpartition(".")[2],
            "until": until,
        }
        monkeypatch.setenv(records.PART, json.dumps(told))
        with pytest.raises(SystemExit) as end:
            module.main(["--device", device, *words])
        return end.value.code, [r for r in records.read(tmp_path / "all.jsonl", "r") if r["part"] == told["part"]]

    monkeypatch.setenv("LSTMKERN_CPU_CAPABILITY", os.environ.get("LSTMKERN_CPU_CAPABILITY", ""))
    return run


def of_kind(found, kind):
    return [record for record in found if record["kind"] == kind]


def test_every_record_can_be_joined_with_its_header(part):
    code, found = part(smoke, "--tier", "best")
    assert code == 0
    header, *rest = found
    assert header["kind"] == "header" and len(rest) == len(layers.smoke(True))
    assert {"commit", "sources", "extension", "torch", "machine", "facts", "date"} <= set(header)
    assert all((r["run"], r["part"], r["process"]) == ("r", "smoke", header["process"]) for r in rest)
    assert all("rehearsal" in r and r["errors"].keys() == set(smoke.NAMES) for r in rest)


def test_a_wrong_result_is_seen(part, monkeypatch, capsys):
    real = layers.Work.modules

    def modules(self, where):
        theirs, ours = real(self, where)
        ours.weight_hh_l0.data[: self.H] += 0.5
        return theirs, ours

    monkeypatch.setattr(layers.Work, "modules", modules)
    code, found = part(smoke, "--tier", "best")
    assert code == 1 and all("out" in r["wrong"] and "dx" in r["wrong"] for r in of_kind(found, "smoke"))
    assert "WRONG (out" in capsys.readouterr().out
    code, found = part(bench, "--tier", "best", "--first")
    assert code == 1 and "WRONG" in capsys.readouterr().out
    far = [r for r in of_kind(found, "bench") if r["distance"]["ours"] > bench.FAR[r["work"]["dtype"]]]
    assert far and all(r["wrong"] == dict.fromkeys(["ours", "ours in a graph"], r["distance"]["ours"]) for r in far)
    text = "\n".join(tables.bench(far))
    assert text.count("best WRONG d=") == text.count("graph WRONG d=") == len(far)


def test_an_error_is_a_line_and_not_the_end(part, monkeypatch, capsys):
    real = layers.Work.input

    def failing(self, where):
        if self.cell == "GRU":
            raise ValueError("no such input\nand more")
        return real(self, where)

    monkeypatch.setattr(layers.Work, "input", failing)
    code, found = part(smoke, "--tier", "best")
    assert code == 1
    assert len(of_kind(found, "failure")) == len(of_kind(found, "smoke")) == len(layers.smoke(True)) / 2
    assert "FAILED smoke best GRU  bf16 5,3,8,16: ValueError: no such input" in capsys.readouterr().out


def test_a_dead_context_ends_the_process(part, monkeypatch, capsys):
    monkeypatch.setattr(layers.Work, "input", lambda self, where: 1 / 0)
    monkeypatch.setattr("benchmarks.gpu.host.Host.alive", lambda self: False)
    monkeypatch.setattr(os, "_exit", sys.exit)
    code, found = part(smoke, "--tier", "best")
    assert code == 1 and len(of_kind(found, "failure")) == 1
    assert "context has ended" in capsys.readouterr().out


def test_time_that_is_up(part, capsys):
    code, found = part(bench, "--tier", "best", "--first", until=time.time() - 1)
    assert code == 0 and of_kind(found, "bench") == []
    assert of_kind(found, "time is up")[0]["left_out"] == len(layers.first(True))


def test_benchmark_lines(part, monkeypatch):
    assert part(facts)[0] == 0
    code, found = part(bench, "--peers", "--compiled")
    assert code == 0
    lines = of_kind(found, "bench")
    assert all(low <= high for r in lines for low, high in r["quartiles"].values())
    assert all(r["wrong"] == {} and r["quartiles"].keys() == r["us_per_step"].keys() for r in lines)
    names = ["torch.nn", "torch.nn off", "compiled cell"]
    assert lines and all(sorted(r["us_per_step"]) == sorted(names) for r in lines)
    monkeypatch.setattr(bench.CompiledCell, "forward", lambda self, x: 1 / 0)
    code, found = part(bench, "--peers")
    assert code == 0  # without --compiled
    before = len(of_kind(found, "bench"))
    code, found = part(bench, "--peers", "--compiled")
    assert code == 1  # the missing one is reported, the others are measured
    last = of_kind(found, "bench")[before:]
    assert len(last) == len(lines) and all(sorted(r["us_per_step"]) == sorted(names[:2]) for r in last)


def test_a_layer_that_the_tier_does_not_take(part, monkeypatch, capsys):
    def ran(self, function):
        function()
        return "grid", "stepwise"

    monkeypatch.setattr("benchmarks.gpu.host.Host.ran", ran)
    code, found = part(bench, "--tier", "grid", "--first")
    assert code == 0 and not any(r["taken"] for r in of_kind(found, "bench"))
    assert "not taken: ran on grid/stepwise" in capsys.readouterr().out
    assert f"grid: not taken: {len(layers.first(True))} (LSTM bf16 5,3,8,16 ran on grid/stepwise, LSTM fp16" in (
        "\n".join(tables.bench(found))
    )
    code, found = part(smoke, "--tier", "grid")
    assert code == 0 and "ok on grid/stepwise" in capsys.readouterr().out


def test_a_layer_without_a_plan_is_not_run(part, monkeypatch, capsys):
    def plan(self, tier, mode, dtype, N, H, D, backward):
        return None if backward and mode == "GRU" else {"blocks": 1}

    real, made = layers.Work.modules, []
    monkeypatch.setattr("benchmarks.gpu.host.Host.planned", ("best",))
    monkeypatch.setattr("benchmarks.gpu.host.Host.plan", plan)
    monkeypatch.setattr(layers.Work, "modules", lambda work, where: made.append(work.cell) or real(work, where))
    code, found = part(bench, "--tier", "best", "--first")
    left = [r for r in of_kind(found, "bench") if not r["taken"]]
    assert code == 0 and set(made) == {"LSTM"}
    assert [(r["work"]["cell"], r["why"]) for r in left] == [("GRU", "no plan for backward")] * 2
    assert "GRU  bf16 5,3,8,16" in capsys.readouterr().out
    assert "best: not taken: 2 (GRU  bf16 5,3,8,16 no plan for backward, GRU" in tables.bench(found)[-1]


def test_rounds_of_a_measurement(capsys):
    """As many rounds as fill the time, at least as many as requested, with the names in turn."""
    order, warmed = [], []

    def device_of(ms):
        return types.SimpleNamespace(
            warm_up=lambda: warmed.append(len(order)),
            synchronize=lambda: None,
            milliseconds=lambda function: function() or ms,
        )

    def rounds(ms, rehearsal=False):
        order.clear()
        run = types.SimpleNamespace(device=device_of(ms), rehearsal=rehearsal)
        times = bench.measure(run, {"a": lambda: order.append("a"), "b": lambda: order.append("b")})
        assert "".join(order[4:]) == "ab" * len(times["a"]) and len(times["a"]) == len(times["b"])
        return len(times["a"])

    assert rounds(500.0) == bench.ROUNDS == 7
    assert rounds(1.0) == 1e3 * bench.SECONDS / 2 == 60
    assert rounds(0.0) == bench.MOST and rounds(1.0, rehearsal=True) == 2
    assert warmed == [0] * 4  # before everything else
    assert bench.quartiles({"a": [1.0, 2.0, 3.0, 4.0, 5.0]}, 10) == {"a": [200.0, 400.0]}


def test_variants(part, monkeypatch):
    code, found = part(compare)
    assert code == 0 and [r["backward"] for r in of_kind(found, "compare")] == [False, True]
    monkeypatch.setenv("VARIANTS", "old: new:LSTMKERN_TRIAL=1,LSTMKERN_OTHER=x")
    code, found = part(compare)
    assert code == 0 and list(of_kind(found, "compare")[-1]["us_per_step"]) == ["old", "new"]
    seen = []
    compare.under({"LSTMKERN_TRIAL": "1"}, lambda: seen.append(os.environ["LSTMKERN_TRIAL"]))()
    assert seen == ["1"] and "LSTMKERN_TRIAL" not in os.environ
    monkeypatch.setenv("VARIANTS", "old:WHAT")
    assert "WHAT" in str(part(compare)[0])


def test_variants_that_disagree(part, monkeypatch, capsys):
    monkeypatch.setenv("VARIANTS", "old: new:LSTMKERN_TRIAL=1")
    real = layers.step_of

    def step_of(*words):
        step = real(*words)
        return lambda: [v * 1.5 if "LSTMKERN_TRIAL" in os.environ else v for v in step()]

    monkeypatch.setattr(layers, "step_of", step_of)
    code, found = part(compare)
    lines = of_kind(found, "compare")
    assert code == 1 and all(r["wrong"] == {"new": pytest.approx(0.5, rel=1e-2)} for r in lines)
    assert len(lines) == 2 and all(r["quartiles"].keys() == {"old", "new"} for r in lines)
    assert all(line.endswith("new WRONG d=5.0e-01") and "old WRONG" not in line for line in tables.compare(found))
    assert "new is 5.0e-01 from old" in capsys.readouterr().out


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """tool(name, script): puts a program of that name on PATH. `mark` in the script is a file in tmp_path."""
    write = fake_programs.on_path(tmp_path / "bin", monkeypatch)
    return lambda name, script: write(name, script.replace("touch mark", f"touch {tmp_path}/mark"))


def test_sanitizer(part, tool, monkeypatch):
    words = ("--tool", "racecheck", "--tiers", "cluster")
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    monkeypatch.setattr(tools, "stream", lambda command, *more: (0, ["layers ran"]))
    code, found = part(sanitize, *words, device="cuda")
    assert code == 0 and "no compute-sanitizer here" in found[-1]["status"]
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("script", "expected", "status"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", 0, "clean"),
        ("echo '========= Error: Race reported'; exit 9", 1, "errors (exit code 9)"),
        ("echo '========= Warning: Race reported between'; echo '========= RACECHECK SUMMARY: 1'", 1, "1 reports"),
        ("echo '========= Invalid read'; touch mark; exec sleep 600", 1, "not finished; 1 reports"),
        ("echo '========= Invalid read'; echo time is up; exit 9", 1, "not finished; 1 reports"),
        ("echo '========= Error: Device not supported'; exit 1", 0, "not checked: compute-sanitizer is refused"),
    ],
    ids=["clean", "errors", "warning", "hangs", "time is up", "refused"],
)
def test_what_a_sanitizer_finds(part, tool, tmp_path, monkeypatch, script, expected, status):
    end_time_at(monkeypatch, tmp_path / "mark")
    tool("compute-sanitizer", f'[ "$1" = --help ] || {{ {script}; }}')
    until = time.time() + 600 if "sleep" in script else None
    code, found = part(sanitize, "--tool", "racecheck", "--tiers", "cluster", device="cuda", until=until)
    assert code == expected and found[-1]["status"].startswith(status)
    assert [r["report"] for r in of_kind(found, "sanitizer report")] == found[-1]["found"]  # each when it was printed
    assert len(found) == script.count("=========") + 1


def test_layers_under_a_sanitizer_end_before_it_is_ended(part, tool, monkeypatch):
    """So that the sanitizer can still print its summary."""
    tool("compute-sanitizer", f'[ "$1" = --help ] || echo "told ${records.PART}"')
    until = 1e9 + 100
    monkeypatch.setattr(time, "time", lambda: 1e9)
    lines, real = [], tools.stream
    monkeypatch.setattr(tools, "stream", lambda *words: (0, lines.extend(real(*words)[1]) or []))
    part(sanitize, "--tool", "memcheck", "--tiers", "cluster", device="cuda", until=until)
    told = json.loads(lines[0].removeprefix("told "))
    assert told["until"] == until - sanitize.EARLIER and told["run"] == "r"


WROTE = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\\n"0","grid_loop","Duration","us","3"'


@pytest.mark.parametrize(
    ("script", "expected", "status"),
    [
        (f"printf '{WROTE}\\n' > \"$file\"", 0, "1 launches"),
        (f"printf '{WROTE.replace('grid', 'cluster')}\\n' > \"$file\"", 1, "1 launches, none of grid"),
        (f"printf '{WROTE}\\n' > \"$file\"; touch mark; exec sleep 600", 1, "not finished; 1 launches"),
        ("echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1", 0, "no counters: ncu is refused"),
        ("exit 0", 1, "0 launches"),
    ],
    ids=["counters", "another tier", "hangs", "refused", "nothing"],
)
def test_profiler(part, tool, capsys, tmp_path, monkeypatch, script, expected, status):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    tool("ncu", f'while [ "$1" != --log-file ]; do shift; done; file=$2; {script}')
    until = time.time() + 600 if "sleep" in script else None
    end_time_at(monkeypatch, tmp_path / "mark")
    code, found = part(profile, "--tiers", "grid", device="cuda", until=until)
    assert code == expected and found[-1]["status"].startswith(status)
    assert len(of_kind(found, "counters")) == script.count("Duration")
    assert list((tmp_path / "out").iterdir()) == []  # the file stays under build/
    assert ("Duration: 3 us" in capsys.readouterr().out) == (script.startswith("printf"))


def test_without_a_profiler(part, monkeypatch):
    monkeypatch.setattr(tools, "stream", lambda command, **more: (0, ["the layer ran"]))
    code, found = part(profile, "--tiers", "best")
    assert code == 0 and "no ncu for a CPU" in found[-1]["status"]


def test_small_layers(part, capsys):
    assert part(small, "--tiers", "cluster,stepwise")[0] == 0
    assert "3 layers in two dtypes on cluster" in capsys.readouterr().out
    assert part(small, "--tiers", "best", "--profile")[0] == 0


def test_small_layers_must_run_on_their_tier(part, monkeypatch, capsys):
    counts, ran = {"cluster": [5, 5], "stepwise": [0, 0]}, []

    def run_layer(where, case, dtype):
        tier = os.environ[where.tier_variable]
        ran.append((tier, case))
        for i in (0, 1):
            counts["stepwise" if case.P or missed == case and i else tier][i] += 1

    monkeypatch.setattr(small, "run_layer", run_layer)
    monkeypatch.setattr("benchmarks.gpu.host.Host.runs", lambda self: {t: tuple(n) for t, n in counts.items()})
    missed = None
    assert part(small, "--tiers", "cluster,stepwise")[0] == 0
    missed = small.CASES[1]
    code, found = part(small, "--tiers", "cluster")
    assert code == 1 and "cluster ran 4 layers forward and 2 backward, not 4" in of_kind(found, "failure")[-1]["error"]
    for tier in small.RESIDENT:
        assert {case.H for case in small.cases_of(tier, "cuda")} == {7, 17, 40, 48, 250}
        assert {case.H for case in small.cases_of(tier, "cpu")} == {7, 17, 40}
    assert small.cases_of("stepwise", "cuda") == small.CASES


def test_small_layers_without_time(part):
    code, found = part(small, "--tiers", "cluster,stepwise", until=time.time() - 1)
    assert code == 1 and [r["left_out"] for r in of_kind(found, "time is up")] == [3]


def test_only_the_second_step_is_profiled(monkeypatch):
    from benchmarks.gpu import host

    said = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: said.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: said.append("stop"))
    monkeypatch.setattr(host.Host, "synchronize", lambda self: said.append("step"))
    small.profile(host.Host(), "best")
    assert said == ["step", "step"]
    said.clear()
    monkeypatch.setattr(host.Host, "name", "cuda")
    small.profile(host.Host(), "best")
    assert said == ["step", "start", "step", "stop"]


def test_facts_that_others_need_come_first(part, monkeypatch):
    """And the answer of each program is recorded before the next program runs."""
    kept = []

    def ask(name):
        kept.append(of_kind(records.read(json.loads(os.environ[records.PART])["path"]), "program"))
        return f"{name} 1.0"

    monkeypatch.setattr(tools, "FACTS", {name: lambda name=name: ask(name) for name in ("a", "b", "c")})
    monkeypatch.setattr(session.Session, "plan", lambda self, tier, work: {"forward": {"blocks": 2}})
    code, found = part(facts)
    kinds = list(dict.fromkeys(r["kind"] for r in found))
    assert code == 0 and kinds == ["header", "peaks", "plan", "program"]
    assert [len(before) for before in kept] == [0, 1, 2] and found[-1]["said"] == "c 1.0"


def test_pytest_command(monkeypatch):
    monkeypatch.setattr(tests.importlib.util, "find_spec", lambda name: True)
    words = " ".join(tests.command("cuda", "cuda and not long"))
    assert "-n 6" in words and "--timeout 30 --timeout-method thread" in words and "-m cuda and not long" in words
    monkeypatch.setattr(tests.importlib.util, "find_spec", lambda name: None)
    assert "-p xdist.plugin" in words and "-p pytest_timeout" in words
    plain = tests.command("cuda", "cuda")
    assert "--timeout" not in plain and "xdist.plugin" not in plain and "pytest_timeout" not in plain
    ran = []
    monkeypatch.setattr(os, "execv", lambda *words: ran.append(words))
    monkeypatch.setattr(os, "chdir", lambda folder: None)
    for name in ("LSTMKERN_TEST_DEVICE", "OMP_NUM_THREADS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    tests.main(["--device", "cpu"])
    assert ran[0][1][-1] == "tests/test_cuda.py" and os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] == "1"


def test_session_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no usable GPU"):
        session.Session("smoke", session.arguments("x").parse_args([]))


def test_paths_of_cudnn():
    def path(backward=False, **sizes):
        known = {"cell": "LSTM", "dtype": "fp16", "T": 8, "N": 64, "I": 512, "H": 512}
        return layers.Work(**{**known, **sizes}).cudnn_path(backward)

    assert path() == path(N=8) == path(N=128) == path(H=1024) == path(True) == "persistent"
    for other in ({"dtype": "bf16"}, {"cell": "GRU"}, {"N": 256}, {"N": 1}, {"I": 400}, {"H": 1152}, {"layers": 2}):
        assert path(**other) == "stepwise", other
    assert path(directions=2) == path(packed=True) == path(packed=True, H=64) == "stepwise"
    assert path(H=192, dtype="fp32") == path(True, H=128, cell="GRU") == "small-H"
    assert path(True, H=192, I=100) == "stepwise"


def test_floor():
    work = layers.Work("LSTM", "bf16", 10, 4, 8, 16)
    weights, rows = 4 * 16 * (8 + 16), 40
    assert work.floor(False) == {"bytes": 2 * (rows * 24 + weights), "operations": 2 * rows * weights}
    assert work.floor(True)["operations"] == 6 * rows * weights
    assert work.floor_seconds(False, None) is None
    rates = {"bandwidth": 1e9, "bf16": 1e9}
    assert work.floor_seconds(False, rates) == pytest.approx(2 * rows * weights / 1e9)
    both = layers.Work("LSTM", "bf16", 10, 4, 8, 16, 2, 2).floor(False)["operations"]
    assert both == 2 * rows * 2 * 4 * 16 * ((8 + 16) + (32 + 16))


REFERENCES = [
    cases.Case(
        mode, T=4, N=3, I=3, H=5, P=2 if mode == "LSTM" else 0, D=2, ragged=ragged, resets=True, batch_first=first
    )
    for mode in ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
    for ragged, first in ((None, False), (None, True), ("packed", False), ("lengths", False), ("lengths", True))
]


@pytest.mark.parametrize("case", REFERENCES, ids=str)
def test_batched_reference_is_the_one_by_one(case):
    """The reference of test_cuda.py, which computes all sequences of a step at once, equals that of simt/layers.py."""
    problem = cases.make(case, torch.float64)
    wanted, found = cases.torch_nn(problem, torch.float64), torch_nn(problem, torch.float64)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        if value is None:
            assert found[name] is None
        else:
            a, b = cases.flat(problem, name, value), cases.flat(problem, name, found[name])
            torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
