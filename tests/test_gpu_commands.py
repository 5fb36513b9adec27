"""`make gpu-first`, `gpu-check`, `gpu-bench`: parts, limits, records and tables, with parts that fail or hang."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from benchmarks.gpu import __main__ as commands
from benchmarks.gpu import layers, parts, records, tables, tools

PARTS = {
    "good": "print('fine', flush=True)",
    "bad": "print('about to fail'); raise SystemExit(5)",
    "hang": "import time\nprint('begun', flush=True)\ntime.sleep(600)",
    "stubborn": "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('deaf', flush=True)\ntime.sleep(600)",
    "interrupting": "import os, signal, time\nos.kill(int(os.environ['TEST']), signal.SIGTERM)\ntime.sleep(600)",
    "crash": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "told": "import json, os, time\nfrom benchmarks.gpu import records\n"
    "kept, tier = records.Records.of_this_process('told', 'cuda'), os.environ['LSTMKERN_CUDA_TIER']\n"
    "kept.write('note', left=records.seconds_left(), tier=tier)",
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(groups): runs gpu-first with these groups of (part, limit) and returns its exit code, records and lines."""
    for name, code in PARTS.items():
        (tmp_path / f"part_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{records.ROOT}")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(tools, "gpus", lambda: 1)

    def part(name, limit, **more):
        return parts.Part(name, limit, f"part_{name.partition('-')[0]}", **more)

    def start(groups, *words):
        monkeypatch.setattr(
            parts, "groups", lambda command, device: [[part(*p[:2], **p[2]) for p in g] for g in groups]
        )
        code = commands.main(["first", *words])
        found = records.read(tmp_path / "out" / "gpu-first.jsonl")
        return code, {r["name"]: r for r in found if r["kind"] == "part"}, capsys.readouterr().out.splitlines(), found

    return start


def test_parts_that_fail_or_hang_hide_nothing(run):
    names = [("good", 20, {})], [("bad", 20, {})], [("hang", 5, {}), ("stubborn", 5, {}), ("good-parallel", 20, {})]
    code, found, lines, _ = run([*names, [("crash", 20, {})], [("good-last", 20, {})]])
    assert code == 1
    said = {name: part["status"] for name, part in found.items()}
    assert said["good"] == said["good-parallel"] == said["good-last"] == "ok"
    assert said["bad"] == "failed (exit code 5)"
    assert said["hang"] == said["stubborn"] == "killed at its limit"
    assert said["crash"].startswith("failed")
    assert "[hang] begun" in lines and "[stubborn] deaf" in lines  # their output was kept
    assert re.search("FAILED: bad (hang stubborn|stubborn hang) crash;", lines[-1])
    end = lines[lines.index("== good-last: ok, " + f"{found['good-last']['seconds']:.1f} s") :]
    assert all(any(line.startswith(name) for line in end) for name in found)  # the table


def test_a_part_is_told_its_run_tier_and_time(run):
    code, named, lines, found = run([[("good", 20, {})], [("told", 40, {"start_until": 30, "tier": "grid"})]])
    assert code == 0 and "every part succeeded" in lines[-1]
    (note,) = [r for r in found if r["kind"] == "note"]
    assert 0 < note["left"] <= named["told"]["limit"] * 30 / 40 and note["tier"] == "grid" and note["part"] == "told"
    assert {r["run"] for r in found} == {note["run"]}
    assert "rehearsal" not in note


def test_only_some_parts(run):
    code, found, *_ = run([[("good", 20, {})], [("bad", 20, {})], [("good-2", 20, {})]], "--only", "good-2")
    assert code == 0 and set(found) == {"good", "good-2"}


def test_no_part_takes_another_s_time(run, monkeypatch):
    monkeypatch.setitem(parts.LIMITS, "first", 40)
    code, found, *_ = run([[("good", 4, {})], [("hang", 3, {})], [("good-long", 100, {})], [("good-2", 2, {})]])
    assert code == 1
    assert found["good-long"]["status"] == "left out: no time"
    assert found["hang"]["status"] == "killed at its limit"


def test_time_that_was_saved_goes_to_later_parts(run, monkeypatch):
    """They get up to twice their limits, but never time that the parts after them may need."""
    monkeypatch.setitem(parts.LIMITS, "first", 300)
    told = [("told", 40, {"start_until": 30, "tier": "grid"}), ("good", 100, {})]
    code, found, _, all_found = run([[("good-first", 200, {})], told, [("good-last", 100, {})]])
    assert code == 0
    (note,) = [r for r in all_found if r["kind"] == "note"]
    assert found["told"]["limit"] == 80 and 30 < note["left"] <= 60
    assert 120 < found["good"]["limit"] <= 300 - 101 - parts.GRACE
    assert found["good-last"]["limit"] == 200
    assert found["good-first"]["limit"] == 200  # of the extension, after which there may be a build


def test_a_process_that_does_not_die(run, monkeypatch, tmp_path):
    """A stand-in for `timeout` that does nothing, as if the driver kept the process alive."""
    (tmp_path / "bin").mkdir()
    fake, real, held = tmp_path / "bin" / "timeout", shutil.which("timeout"), tmp_path / "held"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *part_hang*) echo $$ > {held}; exec sleep 600;; esac\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(commands, "DEATH", 1)
    try:
        code, found, lines, _ = run([[("good", 20, {})], [("hang", 5, {})], [("good-last", 20, {})]])
    finally:
        os.kill(int(held.read_text()), signal.SIGKILL)
    assert code == 1 and found["hang"]["status"] == "does not end" and found["good-last"]["status"] == "ok"
    assert "FAILED: hang;" in lines[-1]


def test_an_extension_that_does_not_die_is_not_built(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        commands.Command, "run_group", lambda self, group, later=0: asked.append(group) or [commands.STUCK]
    )
    run([[("good", 20, {})]])
    assert len(asked) == 1


def test_interrupted(run, monkeypatch):
    monkeypatch.setenv("TEST", str(os.getpid()))
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, found, lines, _ = run([[("good", 20, {})], [("interrupting", 100, {})], [("good-2", 20, {})]])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1 and set(found) == {"good"}  # the command did not wait for the other one
    assert "FAILED" in lines[-1] and not any(line.startswith("[good-2]") for line in lines)


def test_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(tools, "gpus", lambda: 0)
    monkeypatch.setattr(commands, "torch_sees_a_gpu", lambda: False)
    for command in parts.LIMITS:
        assert commands.main([command]) == 2
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("torch finds no usable GPU") and f"make gpu-{command} DEVICE=cpu" in line
    assert list(tmp_path.iterdir()) == []


def test_torch_is_asked_where_the_driver_is_silent():
    assert commands.torch_sees_a_gpu() == torch.cuda.is_available()


def test_torch_that_does_not_answer(monkeypatch, tmp_path):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(commands, "TORCH_TIMEOUT", 0.1)
    assert commands.torch_sees_a_gpu() is False


def test_limits_fit_the_commands():
    assert parts.LIMITS == {"first": 220, "check": 200, "bench": 150}
    for command, limit in parts.LIMITS.items():
        assert parts.longest(command) <= limit
        for part in (part for group in parts.groups(command, "cuda") for part in group):
            assert part.start_until <= part.limit - 3 or not part.start_until
            # A tool that others end at its limit would leave no record.
            assert part.start_until or part.module not in ("benchmarks.gpu.sanitize", "benchmarks.gpu.profile")
    # A first run that has to build has time only for the smoke tests and the first benchmark lines.
    built = sum(max(p.limit for p in group) + parts.GRACE for group in parts.groups("first", "cuda")[:6])
    assert built + parts.BUILD <= 220


def test_order_of_parts_and_layers():
    names = [part.name for group in parts.groups("bench", "cuda") for part in group]
    assert names.index("peers") > max(i for i, name in enumerate(names) if name.startswith("bench-"))
    for chosen in (layers.smoke(False), layers.first(False)):
        dtypes = [work.dtype for work in chosen]
        assert "fp32" not in dtypes or dtypes.index("fp32") == len(dtypes) - dtypes.count("fp32")
    every = layers.every(False)
    assert len(set(every)) == len(every)
    plain, bf16 = dict.fromkeys(("layers", "directions"), 1), {"cell": "LSTM", "dtype": "bf16"}
    order = [
        (layers.MAIN, {**bf16, **plain, "packed": False}),
        (layers.MAIN, {**plain, "cell": "LSTM", "dtype": "fp16"}),
        (layers.BATCHES, {**bf16, **plain}),
        (layers.MAIN, {**bf16, "directions": 2}),
        (layers.MAIN, {**bf16, "layers": 2}),
        (layers.MAIN, {**plain, "cell": "GRU", "dtype": "bf16", "packed": False}),
        (layers.MAIN, {"dtype": "fp32"}),
        (layers.MAIN, {"packed": True}),
    ]
    first = 0
    for shapes, wanted in order:
        these = [
            i for i, w in enumerate(every) if (w.T, w.N, w.I, w.H) in shapes and wanted.items() <= w.record.items()
        ]
        assert len(these) >= len(shapes) and min(these) >= first, wanted
        first = min(these)
    assert all((w.T, w.N, w.I, w.H) in layers.MAIN for w in every if w.dtype == "fp16")
    assert {1, 256} <= {work.N for work in every if work.H == 512}
    for wanted in ({"packed": True}, {"layers": 2}, {"directions": 2}):
        assert any(all(work.record[k] == v for k, v in wanted.items()) for work in every)
    for device in ("cuda", "cpu"):
        tiers = [
            part.tier for group in parts.groups("first", device) for part in group if part.name.startswith("smoke")
        ]
        assert tuple(tiers) == parts.TIERS[device]


def test_files_of_a_command(tmp_path, monkeypatch):
    """Where log and records are written."""
    monkeypatch.delenv("OUT", raising=False)
    assert records.folder("cpu") == records.ROOT / "build" / "gpu-rehearsal"
    assert records.folder("cuda") == records.ROOT / "benchmarks" / "results"
    monkeypatch.setenv("OUT", str(tmp_path))
    assert records.folder("cpu") == records.folder("cuda") == tmp_path


def test_records(tmp_path):
    kept = records.Records(tmp_path / "x" / "all.jsonl", "one", "part", "cpu")
    threads = [
        threading.Thread(target=lambda i=i: [kept.write("n", i=i, text="x" * 5000) for _ in range(20)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(kept.path, "a") as file:
        file.write('{"run": "one", "kind": "tor')
    found = records.read(kept.path, "one")
    assert len(found) == 80 and all("rehearsal" in record for record in found)
    assert records.read(kept.path, "two") == [] and records.read(tmp_path / "none") == []
    assert records.rounded({"a": [1.23456789, (2, "x")]}) == {"a": [1.2346, [2, "x"]]}


def test_commit_and_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("LSTMKERN_COMMIT", "told")
    if (records.ROOT / ".git").exists() and shutil.which("git"):
        assert re.fullmatch("[0-9a-f]{40}[+]?", records.commit())
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.commit() == "told"
    monkeypatch.delenv("LSTMKERN_COMMIT")
    assert records.commit() is None
    (tmp_path / "carry").mkdir()
    (tmp_path / "carry" / "_C.so").touch()
    for sources, commit in ((records.compiled_digest(), "abc (of carry/about.json)"), ("other", None)):
        notes = {"_C.so": {"sources": sources, "commit": "abc"}, "_gone.so": {"sources": sources, "commit": "x"}}
        (tmp_path / "carry" / "about.json").write_text(json.dumps(notes))
        assert records.commit() == commit
    before = records.digest("*.txt")
    (tmp_path / "a.txt").write_text("b")
    assert records.digest("*.txt") != before


WORK = {"cell": "LSTM", "dtype": "bf16", "T": 5, "N": 3, "I": 8, "H": 16, "layers": 2, "directions": 2, "packed": True}
BENCH = {
    "kind": "bench", "work": WORK, "backward": True, "taken": True, "peer_path": "stepwise", "share_of_floor": None,
    "wrong": {},
    "us_per_step": {"cudnn": 10.0, "ours": 5.0}, "time_over_peer": {"cudnn": 1.0, "ours": 0.5},
}  # fmt: skip
LINES = [
    {**BENCH, "tier": "cluster"},
    {**BENCH, "tier": "grid", "us_per_step": {"cudnn": 10.0, "ours": 4.0}},
    {"kind": "bench", "work": WORK, "taken": False, "tier": "grid", "why": "ran on stepwise"},
    {
        "kind": "smoke",
        "work": WORK,
        "errors": {"dx": 1.0},
        "tier": "grid",
        "ran": ["grid", "stepwise"],
        "wrong": ["dx"],
    },
    {"kind": "test", "test": "test_a", "outcome": "failed", "seconds": 2.0, "error": "assert 1 == 2"},
    {"kind": "test", "test": "test_b", "outcome": "passed", "seconds": 1.0},
    {"kind": "sanitizer", "tool": "racecheck", "tiers": "grid", "status": "errors", "found": ["Race reported"]},
    {"kind": "profile", "tier": "grid", "status": "2 launches"},
    {"kind": "counters", "kernel": "grid_loop", "metrics": {"Duration": ["3", "us"]}},
    {"kind": "compare", "work": WORK, "backward": False, "us_per_step": {"a": 2.0}, "ratio": {"a": 1.0}, "wrong": {}},
    {"kind": "failure", "what": "layer", "error": "RuntimeError: no"},
    {"kind": "time is up", "left_out": 7},
    {"kind": "part", "name": "bench-grid", "status": "killed at its limit", "seconds": 33.0, "limit": 33},
]


def test_tables_of_what_there_is(tmp_path, monkeypatch, capsys):
    kept = records.Records(tmp_path / "gpu-bench.jsonl", "run", "p", "cuda")
    for line in LINES:
        kept.write(line["kind"], **{name: value for name, value in line.items() if name != "kind"})
    monkeypatch.setattr(sys, "argv", ["tables", str(kept.path)])
    tables.main()
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if line.startswith("LSTM bf16 5,3,8,16 packed 2 layers both ways")]
    assert row.endswith("f+b cudnn 10.00 (1.00)  cluster 5.00 (0.50)  grid 4.00 (0.50) [stepwise]")
    for part in [
        "1 layers, 0 on the tier, 1 wrong", "WRONG", "1 failed, 1 passed", "test_a: assert 1 == 2", "Race reported",
        "2 launches", "Duration 3 us", "A/B", "RuntimeError: no", "7 left out", "killed at its limit", "no process",
    ]:  # fmt: skip
        assert part in text, part


def test_tables_show_what_is_wrong():
    """A wrong result has no time; NaN is the largest error; tables are short in both directions."""
    wrong = {**BENCH, "tier": "grid", "wrong": {"ours": float("nan")}}
    row = tables.bench([wrong])[-1]
    assert "cudnn 10.00 (1.00)  grid WRONG d=nan [" in row and "5.00" not in row
    pair = {"us_per_step": {"a": 2.0, "b": 1.0}, "ratio": {"a": 1.0, "b": 0.5}, "wrong": {"b": 0.25}}
    (row,) = tables.compare([{"kind": "compare", "work": WORK, "backward": False, **pair}])
    assert row.endswith("a 2.00 (1.00)  b WRONG d=2.5e-01")
    smoked = {"kind": "smoke", "work": WORK, "tier": "grid", "ran": ["grid", "grid"], "wrong": []}
    for errors in ({"out": 1.0, "dx": float("nan")}, {"out": float("nan"), "dx": 1.0}):
        assert "largest error bf16 inf" in tables.smoke([{**smoked, "errors": errors}])[0]
    many = [{"kind": "failure", "part": "p", "what": "w", "error": "x" * 500}] * 20
    shown = tables.failures(many)
    assert len(shown) == tables.LINES + 1 and "5 more" in shown[-1] and max(map(len, shown)) == tables.WIDTH


def test_tables_of_layers_not_taken():
    left = [{"kind": "bench", "work": {**WORK, "N": n}, "taken": False, "tier": "grid", "why": "W"} for n in range(5)]
    (row,) = tables.bench(left)
    assert row.startswith("grid: not taken: 5 (LSTM bf16 5,0,8,16 packed") and row.endswith(" W, ...)")
    assert row.count(" W,") == 3
    assert tables.bench([]) == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("ERROR SUMMARY: 0 errors", False),
        ("ERROR SUMMARY: 20 errors", True),
        ("ERROR SUMMARY: 1,000 errors", True),
        ("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", False),
        ("RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)", True),
        ("Invalid __global__ read of size 4 bytes", True),
    ],
)
def test_sanitizer_lines_in_the_table(line, shown):
    record = {"kind": "sanitizer", "tool": "racecheck", "tiers": "grid", "status": "s", "found": [line]}
    assert (f"  {line}" in tables.tools([record])) == shown


def test_a_record_that_cannot_be_read_costs_its_table_alone():
    counters = {"kind": "counters", "tier": "grid", "kernel": "k", "metrics": {"Duration": [None, "us"]}}
    part = {"kind": "part", "name": "ncu-grid", "status": "ok", "seconds": 1.0, "limit": 2}
    text = "\n".join(tables.everything([{**BENCH, "tier": "grid"}, counters, part, {"no": "kind"}]))
    assert "no table of tools: TypeError" in text and "grid 5.00 (0.50)" in text and "ncu-grid" in text


def test_plot(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from benchmarks.gpu import plot

    kept = records.Records(tmp_path / "gpu-bench.jsonl", "run", "p", "cpu")
    monkeypatch.setattr(sys, "argv", ["plot", str(kept.path)])
    with pytest.raises(SystemExit, match="no results"):
        plot.main()
    work = {**WORK, "layers": 1, "directions": 1, "packed": False}
    kept.write(**{**BENCH, "work": work, "tier": "grid"})
    assert plot.series(records.read(kept.path), "bf16") == {"cudnn": {"5,3,8,16": 10.0}, "grid": {"5,3,8,16": 5.0}}
    plot.main()
    assert (tmp_path / "gpu-bench.png").stat().st_size > 1000


TESTS = """
import pytest, time
def test_good(): pass
def test_bad(): assert 1 == 2
def test_left_out(): pytest.skip("for a reason")
@pytest.fixture
def broken(): raise ValueError("broken fixture")
def test_error(broken): pass
"""


@pytest.mark.parametrize("spread", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_outcomes_are_kept_at_once(tmp_path, spread):
    if spread:
        pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS)
    outcomes = {}
    for name, until in (("in time", time.time() + 600), ("late", time.time() - 1)):
        told = {"path": str(tmp_path / f"{name}.jsonl"), "run": "r", "part": "tests", "until": until}
        environment = {**os.environ, records.PART: json.dumps(told), "LSTMKERN_TEST_DEVICE": "cpu"}
        command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.outcomes", "-p", "no:cacheprovider", *spread]
        command += ["-c", "pyproject.toml", "--rootdir", str(tmp_path), str(tmp_path)]
        done = subprocess.run(command, cwd=records.ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        found = records.read(told["path"], "r")
        assert found[0]["kind"] == "header" and found[0]["part"] == "tests"
        outcomes[name] = {r["test"]: r for r in found if r["kind"] == "test"}
    assert {t: r["outcome"] for t, r in outcomes["in time"].items()} == {
        "test_good": "passed", "test_bad": "failed", "test_left_out": "skipped", "test_error": "failed in setup",
    }  # fmt: skip
    assert "assert 1 == 2" in outcomes["in time"]["test_bad"]["error"]
    assert "broken fixture" in outcomes["in time"]["test_error"]["error"]
    assert {r["outcome"] for r in outcomes["late"].values()} == {"not run"} and len(outcomes["late"]) == 4


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_makefile():
    def words(*arguments):
        # An outer make passes its settings on in the environment.
        told = ("MAKE", "MFLAGS", "DEVICE", "ONLY", "VENV", "PY", "TORCH")
        of_no_other = {k: v for k, v in os.environ.items() if not k.startswith(told)}
        command = ["make", "--no-print-directory", "-n", *arguments]
        done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, env=of_no_other)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert words("gpu-first", "PYTHON=py") == 'py -m benchmarks.gpu first --device "cuda" --only ""'
    line = words("gpu-check", "DEVICE=cpu", "ONLY=tests,ncu", "PYTHON=py", "VENV=")
    assert line == 'py -m benchmarks.gpu check --device "cpu" --only "tests,ncu"'
    line = words("gpu-build-for", "PY=python3.12", "TORCH=torch==2.11.0", "PYTHON=py")
    assert line == 'py -m benchmarks.gpu.build_for --python "python3.12" --torch "torch==2.11.0"'
