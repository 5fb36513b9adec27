"""The number of threads that a layer chooses by its cost model (csrc/cpu/cost.h)."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lstmkern
from benchmarks import thread_choice
from lstmkern import _extension
from lstmkern.bench.cases import Case

MODES, DTYPES, PASSES = ("LSTM", "GRU", "RNN_TANH"), ("fp32", "fp64", "bf16", "fp16"), ("infer", "forward", "backward")
SIZES = [
    (1, 1, 64, 64),
    (1000, 1, 16, 16),
    (100, 8, 32, 32),
    (500, 5, 510, 32),
    (100, 64, 256, 256),
    (20, 128, 512, 512),
]
MACHINES = (8, 16, 64, 192)  # threads of pretended machines

# With the kernels of an instruction set, for each of MACHINES: threads, and r where they divide rows, u where units.
TABLE = {
    "avx512": """
LSTM 1,1,64,64 infer: 1 1 1 1
LSTM 1,1,64,64 backward: 1 1 1 1
LSTM 1000,1,16,16 infer: 1 1 1 1
LSTM 1000,1,16,16 backward: 1 1 1 1
LSTM 100,8,32,32 infer: 8r 8r 8r 8r
LSTM 100,8,32,32 backward: 8r 16r 16r 16r
LSTM 500,5,510,32 infer: 5r 5r 5r 5r
LSTM 500,5,510,32 backward: 8r 16r 18r 18r
LSTM 100,64,256,256 infer: 8r 16r 64r 64r
LSTM 100,64,256,256 backward: 8r 16r 64r 128r
LSTM 20,128,512,512 infer: 8u 16u 32u 32u
LSTM 20,128,512,512 backward: 8u 16r 64u 128u
GRU 1,1,64,64 infer: 1 1 1 1
GRU 1,1,64,64 backward: 1 1 1 1
GRU 1000,1,16,16 infer: 1 1 1 1
GRU 1000,1,16,16 backward: 1 1 1 1
GRU 100,8,32,32 infer: 8r 8r 8r 8r
GRU 100,8,32,32 backward: 8r 12r 12r 12r
GRU 500,5,510,32 infer: 5r 5r 5r 5r
GRU 500,5,510,32 backward: 8r 14r 14r 14r
GRU 100,64,256,256 infer: 8r 16r 64r 64r
GRU 100,64,256,256 backward: 8r 16r 64r 96r
GRU 20,128,512,512 infer: 8u 15r 32u 32u
GRU 20,128,512,512 backward: 8u 16r 64u 96u
RNN_TANH 1,1,64,64 infer: 1 1 1 1
RNN_TANH 1,1,64,64 backward: 1 1 1 1
RNN_TANH 1000,1,16,16 infer: 1 1 1 1
RNN_TANH 1000,1,16,16 backward: 1 1 1 1
RNN_TANH 100,8,32,32 infer: 8r 8r 8r 8r
RNN_TANH 100,8,32,32 backward: 4r 4r 4r 4r
RNN_TANH 500,5,510,32 infer: 5r 5r 5r 5r
RNN_TANH 500,5,510,32 backward: 5r 5r 5r 5r
RNN_TANH 100,64,256,256 infer: 8r 16r 64r 64r
RNN_TANH 100,64,256,256 backward: 8r 16r 32r 32r
RNN_TANH 20,128,512,512 infer: 8r 16r 64r 128r
RNN_TANH 20,128,512,512 backward: 8u 16r 64r 64r
""",
    "avx2": """
LSTM 1,1,64,64 infer: 1 1 1 1
LSTM 1,1,64,64 backward: 4u 4u 4u 4u
LSTM 1000,1,16,16 infer: 1 1 1 1
LSTM 1000,1,16,16 backward: 1 1 1 1
LSTM 100,8,32,32 infer: 8r 8r 8r 8r
LSTM 100,8,32,32 backward: 8r 16r 16r 16r
LSTM 500,5,510,32 infer: 5r 5r 5r 5r
LSTM 500,5,510,32 backward: 8r 16r 32r 32r
LSTM 100,64,256,256 infer: 8r 16r 64r 64r
LSTM 100,64,256,256 backward: 8u 16u 64r 128r
LSTM 20,128,512,512 infer: 8u 16u 64u 64u
LSTM 20,128,512,512 backward: 8u 16u 64u 176u
GRU 1,1,64,64 infer: 1 1 1 1
GRU 1,1,64,64 backward: 1 1 1 1
GRU 1000,1,16,16 infer: 1 1 1 1
GRU 1000,1,16,16 backward: 1 1 1 1
GRU 100,8,32,32 infer: 8r 8r 8r 8r
GRU 100,8,32,32 backward: 8r 12r 12r 12r
GRU 500,5,510,32 infer: 5r 5r 5r 5r
GRU 500,5,510,32 backward: 8r 15r 24r 24r
GRU 100,64,256,256 infer: 8r 16r 64r 64r
GRU 100,64,256,256 backward: 8u 16u 64r 192r
GRU 20,128,512,512 infer: 8u 16u 64u 64u
GRU 20,128,512,512 backward: 8u 16u 64u 192u
RNN_TANH 1,1,64,64 infer: 1 1 1 1
RNN_TANH 1,1,64,64 backward: 1 1 1 1
RNN_TANH 1000,1,16,16 infer: 1 1 1 1
RNN_TANH 1000,1,16,16 backward: 1 1 1 1
RNN_TANH 100,8,32,32 infer: 8r 8r 8r 8r
RNN_TANH 100,8,32,32 backward: 8r 8r 8r 8r
RNN_TANH 500,5,510,32 infer: 5r 5r 5r 5r
RNN_TANH 500,5,510,32 backward: 8r 8r 8r 8r
RNN_TANH 100,64,256,256 infer: 8r 16r 64r 64r
RNN_TANH 100,64,256,256 backward: 8u 16r 64r 64r
RNN_TANH 20,128,512,512 infer: 8r 16r 64r 128r
RNN_TANH 20,128,512,512 backward: 8u 16u 64r 128r
""",
    "baseline": """
LSTM 1,1,64,64 infer: 1 1 1 1
LSTM 1,1,64,64 backward: 4u 4u 4u 4u
LSTM 1000,1,16,16 infer: 2u 2u 2u 2u
LSTM 1000,1,16,16 backward: 2u 2u 2u 2u
LSTM 100,8,32,32 infer: 8r 8r 8r 8r
LSTM 100,8,32,32 backward: 8r 16r 16r 16r
LSTM 500,5,510,32 infer: 5r 5r 5r 5r
LSTM 500,5,510,32 backward: 8r 16r 32r 32r
LSTM 100,64,256,256 infer: 8r 16r 64r 64r
LSTM 100,64,256,256 backward: 8u 16u 64r 128r
LSTM 20,128,512,512 infer: 8u 16u 64u 128u
LSTM 20,128,512,512 backward: 8u 16u 64u 176u
GRU 1,1,64,64 infer: 1 1 1 1
GRU 1,1,64,64 backward: 4u 4u 4u 4u
GRU 1000,1,16,16 infer: 2u 2u 2u 2u
GRU 1000,1,16,16 backward: 1 1 1 1
GRU 100,8,32,32 infer: 8r 8r 8r 8r
GRU 100,8,32,32 backward: 8r 12r 12r 12r
GRU 500,5,510,32 infer: 5r 5r 5r 5r
GRU 500,5,510,32 backward: 8r 15r 24r 24r
GRU 100,64,256,256 infer: 8r 16r 64r 64r
GRU 100,64,256,256 backward: 8u 16u 64r 192r
GRU 20,128,512,512 infer: 8u 16u 64u 128u
GRU 20,128,512,512 backward: 8u 16u 64u 192u
RNN_TANH 1,1,64,64 infer: 1 1 1 1
RNN_TANH 1,1,64,64 backward: 1 1 1 1
RNN_TANH 1000,1,16,16 infer: 1 1 1 1
RNN_TANH 1000,1,16,16 backward: 1 1 1 1
RNN_TANH 100,8,32,32 infer: 8r 8r 8r 8r
RNN_TANH 100,8,32,32 backward: 8r 8r 8r 8r
RNN_TANH 500,5,510,32 infer: 5r 5r 5r 5r
RNN_TANH 500,5,510,32 backward: 8r 8r 8r 8r
RNN_TANH 100,64,256,256 infer: 8r 16r 64r 64r
RNN_TANH 100,64,256,256 backward: 8u 16r 64r 64r
RNN_TANH 20,128,512,512 infer: 8r 16r 64r 128r
RNN_TANH 20,128,512,512 backward: 8u 16u 64u 128u
""",
}


def chosen(mode, sizes, which, threads, dtype="fp32"):
    return _extension.choose_threads(mode, dtype, *sizes, threads, pass_=which)


def table():
    """The lines of TABLE for the instruction set in use."""
    lines = []
    for mode, sizes, which in itertools.product(MODES, SIZES, ("infer", "backward")):
        choices = (chosen(mode, sizes, which, threads) for threads in MACHINES)
        short = " ".join(f"{threads}{division[0] if threads > 1 else ''}" for threads, division, _ in choices)
        lines.append(f"{mode} {','.join(map(str, sizes))} {which}: {short}")
    return lines


@pytest.mark.parametrize("capability", TABLE)
def test_choice_on_pretended_machines(capability):
    """It depends on the sizes, the instruction set and the threads that a layer may use, and on nothing else."""
    code = "import test_thread_choice as t; print(t._extension.cpu_capability(), *t.table(), sep='\\n')"
    path = os.pathsep.join([str(Path(lstmkern.__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "LSTMKERN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    used, *lines = done.stdout.splitlines()
    if used != capability:
        pytest.skip(f"this processor has no {capability}")
    assert lines == TABLE[capability].strip().splitlines()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", PASSES)
def test_choice_is_sensible(mode, dtype, which):
    for sizes in itertools.product((1, 10, 1000), (1, 5, 64), (16, 510), (8, 64, 256)):
        before = None
        for most in (1, 2, 3, 8, 24, 64, 192):
            threads, division, time = chosen(mode, sizes, which, most, dtype)
            assert 1 <= threads <= most and division in ("rows", "units") and time > 0
            assert before is None or time <= before * 1.09, "more threads to choose from, and a slower choice"
            before = min(time, before or time)
    assert chosen(mode, (1, 1, 8, 8), which, 192, dtype)[0] == 1
    assert chosen(mode, (1000, 64, 256, 256), which, 2, dtype)[0] == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_team_that_sleeps_is_woken_for_more_work(mode):
    def choice(sizes, asleep):
        return _extension.choose_threads(mode, "fp32", *sizes, 2, asleep=asleep)

    assert choice((100, 8, 32, 32), asleep=False)[0] == 2 and choice((100, 8, 32, 32), asleep=True)[0] == 1
    assert choice((100, 64, 256, 256), asleep=True)[0] == 2
    for sizes in SIZES:
        awake, asleep = choice(sizes, asleep=False), choice(sizes, asleep=True)
        assert asleep[0] <= awake[0] and asleep[2] >= awake[2]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        chosen("LSTM", (0, 1, 8, 8), "infer", 2)
    with pytest.raises(ValueError, match="pass_ must be one of infer, forward, backward"):
        chosen("LSTM", (1, 1, 8, 8), "sideways", 2)
    before = _extension.fix_threads(0)
    try:
        with pytest.raises(ValueError, match="threads must be at least 0"):
            _extension.fix_threads(-1)
        with pytest.raises(ValueError, match="division must be one of"):
            _extension.fix_threads(2, "columns")
        assert _extension.fix_threads(3, "units") == (0, "chosen")
        assert chosen("LSTM", (1, 1, 8, 8), "infer", 2)[:2] == (3, "units")
        assert _extension.fix_threads(0) == (3, "units")
    finally:
        _extension.fix_threads(*before)


def test_the_sweep_keeps_every_run(tmp_path, monkeypatch, capsys):
    cases = [Case("RNN", 2, 1, 8, 8, train=train) for train in (False, True)]
    monkeypatch.setattr(thread_choice, "sweep", lambda dtype: cases)
    monkeypatch.setattr(thread_choice, "ROUNDS", 1)
    options = ["--threads", "2", "--out", str(tmp_path)]
    for part in (["--part", "1/2"], ["--part", "1/1"], ["--again", "1e-9"]):
        assert thread_choice.main([*part, *options]) == 0
    found = json.loads((tmp_path / "thread_choice.json").read_text())
    assert [line["case"] for line in found["results"]] == [str(case) for case in cases]
    assert all(len(line["ms"]) == 2 and set(line["ms"][0]) == {"1", "2", "default"} for line in found["results"])
    assert [len(line["chosen"]) for line in found["results"]] == [1, 2] and found["summary"]["fp32"]["cases"] == 2
    assert _extension.fix_threads(0) == (0, "chosen"), "it leaves no number of threads behind"
    capsys.readouterr()


def test_summary_of_the_sweep_by_hand():
    def line(name, *runs):
        return {"case": name, "ms": [{"1": one, "2": two, "default": default} for one, two, default in runs]}

    found = thread_choice.summarize(
        [line("a", (4, 2, 2)), line("b", (2, 4, 4), (2, 4, 3)), line("c", (1, 2, 4), (1, 2, 1))]
    )
    assert found["default_over_best"] == pytest.approx(2) and found["worst_of_best_run"] == 1.5  # 1, 2 and 4
    assert found["above_1.15_once"] == 2 and found["above_1.15_in_every_of_several_runs"] == ["b"]
    assert found["speed_over_one_thread"] == pytest.approx(0.25 ** (1 / 3))  # 2, 1/2 and 1/4
    assert found["slower_than_one_thread_by_0.1"] == ["b"]
