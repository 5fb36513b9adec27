"""The part of the GPU commands that needs a GPU, with stand-ins that have the signatures of the real functions.

Every line of device.py and tools.py is run. A name or keyword that torch does not have fails here.
"""

import inspect
import os
import subprocess
import sys
import threading
import time
import types
from unittest import mock

import fake_programs
import pytest
import torch
from clocks import end_time_at

import lstmkern
from benchmarks.gpu import device, host, records, tools

FILES = {module.__file__ for module in (device, tools)}


def lines_of(code: types.CodeType) -> set[int]:
    """The lines of all functions in a module's code."""
    found = set() if code.co_name in ("<module>", "Gpu") else {line for *_, line in code.co_lines() if line}
    if code.co_name not in ("<module>", "Gpu"):
        found.discard(code.co_firstlineno)  # the line of the def
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= lines_of(inner)
    return found


@pytest.fixture(scope="module", autouse=True)
def every_line():
    """In the process that test_every_line_is_run starts: checks that every line of the two files' functions was run."""
    if "LSTMKERN_TRACE" not in os.environ:
        yield
        return
    seen = {name: set() for name in FILES}

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in seen:
            return None
        seen[frame.f_code.co_filename].add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    threading.settrace(trace)
    yield
    threading.settrace(None)
    sys.settrace(before)
    for name in FILES:
        with open(name, encoding="utf-8") as file:
            missing = sorted(lines_of(compile(file.read(), name, "exec")) - seen[name])
        assert not missing, f"{os.path.basename(name)}: lines {missing} were not run"


@pytest.fixture
def gpu(monkeypatch):
    """Gpu() with the functions of torch.cuda replaced by mocks that check their arguments; each name must exist.

    Tensors are on the CPU.
    """
    replaced = {}

    def replace(owner, name, **options):
        real = getattr(owner, name)
        replaced[name] = mock.create_autospec(real, **options)
        monkeypatch.setattr(owner, name, replaced[name])
        return replaced[name]

    replace(torch.cuda, "is_available", return_value=True)
    replace(torch.cuda, "synchronize")
    replace(torch.cuda, "get_device_capability", return_value=(9, 0))
    replace(torch.cuda, "current_stream")
    replace(torch.cuda, "stream")
    replace(torch.cuda, "Stream")
    replace(torch.cuda, "CUDAGraph")
    replace(torch.cuda, "graph")
    replace(torch.cuda, "_sleep")
    replace(torch.cuda, "set_sync_debug_mode")
    replace(torch.cuda, "memory_stats", return_value={"allocation.all.allocated": 7})
    replace(torch.cuda, "mem_get_info", return_value=(3, 5))
    replace(torch.cuda, "get_arch_list", return_value=["sm_90"])
    replace(torch.backends.cudnn, "version", return_value=91002)
    properties = types.SimpleNamespace(**dict.fromkeys(device.PROPERTIES, 1))
    replace(torch.cuda, "get_device_properties", return_value=properties)
    replace(torch.cuda, "Event").return_value.elapsed_time.return_value = 2.0
    here = device.Gpu()
    monkeypatch.setattr(device.Gpu, "torch_device", torch.device("cpu"))
    here.replaced = replaced
    return here


def built_with(monkeypatch, **built):
    monkeypatch.setattr(lstmkern, "_C", mock.Mock(spec_set=[*dir(lstmkern._C), "cuda_plan"]))
    lstmkern._C.build_info.return_value = {"cuda": "13.0", **built}
    return lstmkern._C


def test_both_devices_have_the_same_names():
    def names(kind):
        return {name: value for name, value in vars(kind).items() if not name.startswith("__")}

    ours, theirs = names(device.Gpu), names(host.Host)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if callable(value):
            mine, other = (list(inspect.signature(f).parameters) for f in (value, theirs[name]))
            assert mine == other, name
    assert isinstance(device.named("cuda"), device.Gpu)
    assert isinstance(device.named("cpu"), host.Host)
    with pytest.raises(SystemExit, match="cuda or cpu"):
        device.named("tpu")


def test_what_is_missing(gpu, monkeypatch):
    built = built_with(monkeypatch)
    assert gpu.missing() is None and gpu.resident_tiers()
    built.build_info.return_value = {"cuda": None}
    assert "without CUDA" in gpu.missing()
    gpu.replaced["is_available"].return_value = False
    assert "no usable GPU" in gpu.missing()


def test_waiting_and_timing(gpu):
    gpu.synchronize()
    assert gpu.alive()
    gpu.replaced["synchronize"].side_effect = RuntimeError("CUDA error: unspecified launch failure")
    assert not gpu.alive()
    gpu.delay(100)
    gpu.replaced["_sleep"].assert_called_once_with(100)


def test_timing_with_the_host_ahead(gpu):
    order = []
    gpu.replaced["_sleep"].side_effect = lambda clocks: order.append(clocks)
    gpu.replaced["Event"].return_value.record.side_effect = lambda *_: order.append("event")
    assert gpu.milliseconds(lambda: order.append("call")) == 2.0
    assert order == [device.AHEAD, "event", "call", "event"]
    gpu.replaced["Event"].assert_called_with(enable_timing=True)


def test_the_clock_is_raised_once(gpu):
    gpu.warm_up(seconds=0.01)
    waited = gpu.replaced["synchronize"].call_count
    assert waited >= 1
    gpu.warm_up(seconds=0.01)
    assert gpu.replaced["synchronize"].call_count == waited


def test_graphs_and_streams(gpu):
    called = []
    captured, replay = gpu.capture(lambda: called.append(1) or "out", warm_up=2)
    assert captured == "out" and len(called) == 3
    replay()
    gpu.replaced["CUDAGraph"].return_value.replay.assert_called_once_with()
    with gpu.side_stream():
        pass
    gpu.replaced["Stream"].return_value.synchronize.assert_called_once_with()


def test_switches(gpu):
    with gpu.no_synchronization():
        gpu.replaced["set_sync_debug_mode"].assert_called_once_with("error")
    gpu.replaced["set_sync_debug_mode"].assert_called_with("default")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        with gpu.tf32(allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    with gpu.peer_enabled(False):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled
    assert gpu.allocations() == 7


def test_tiers_that_ran(gpu, monkeypatch):
    built = built_with(monkeypatch)
    counts = {"cluster": (1, 0), "grid": (0, 0), "stepwise": (5, 5)}
    built.cuda_tier_runs.side_effect = lambda: dict(counts)

    def layer():
        counts.update(cluster=(2, 0), stepwise=(5, 6))

    assert gpu.ran(layer) == ("cluster", "stepwise")
    assert gpu.ran(lambda: None) == (None, None)


def test_plans(gpu, monkeypatch):
    built = built_with(monkeypatch)
    built.cuda_plan.return_value = {"blocks": 16}
    asked = ("cluster", "LSTM", "bf16", 64, 512, 1, True)
    assert gpu.plan(*asked) == {"blocks": 16}
    built.cuda_plan.assert_called_once_with(*asked)
    assert gpu.plan("stepwise", *asked[1:]) is None
    built.build_info.return_value = {"cuda": None}
    assert gpu.plan(*asked) is None


def test_facts_and_peaks(gpu):
    facts = gpu.facts()
    assert set(device.PROPERTIES) < set(facts) and facts["memory"] == 5
    real = getattr(torch._C, "_CudaDeviceProperties", None)  # a CUDA build of torch knows their names
    assert real is None or all(hasattr(real, name) for name in device.PROPERTIES)
    peaks = gpu.peaks(columns=16, numbers=1000)
    assert peaks["bandwidth"] == pytest.approx(8 * 1000 / 2e-3)
    assert peaks["bf16"] == peaks["fp32"] == pytest.approx(2 * 16**3 / 2e-3)


# --- programs ---


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program(name, script): puts a program of that name on PATH."""
    return fake_programs.on_path(tmp_path / "bin", monkeypatch)


def test_facts_of_programs(program, monkeypatch):
    program("nvidia-smi", "echo 'NVIDIA H100, 580.1'")
    program("nvcc", "echo 'release 13.0'; echo 'Build 13.0.88'")
    program("ncu", "exec sleep 20")
    program("c++", "echo 'no files' >&2; exit 1")
    monkeypatch.setattr(tools, "TIMEOUT", 1)
    found = {name: ask() for name, ask in tools.FACTS.items()}
    assert found["nvidia-smi"] == "NVIDIA H100, 580.1" and found["nvcc"] == "Build 13.0.88"
    assert found["compute-sanitizer"].startswith("not to be had")
    assert found["ncu"] == "not to be had (TimeoutExpired)" and found["compiler"] == "no files"
    assert found["glibc"].startswith("glibc")


def test_a_program_that_does_not_die(program, monkeypatch):
    program("ncu", "exec sleep 600")
    monkeypatch.setattr(tools, "TIMEOUT", 0.2)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda self: ended.append(self))
    ended = []
    assert "TimeoutExpired" in tools.FACTS["ncu"]()
    monkeypatch.undo()
    ended[0].kill()
    ended[0].wait()


def test_number_of_gpus(monkeypatch):
    driver = mock.Mock()
    driver.cuInit.return_value = driver.cuDeviceGetCount.return_value = 0
    driver.cuDeviceGetCount.side_effect = lambda count: setattr(count._obj, "value", 2) or 0
    monkeypatch.setattr(tools.ctypes, "CDLL", lambda name: driver)
    assert tools.gpus() == 2
    driver.cuInit.return_value = 100  # no device
    assert tools.gpus() == 0
    monkeypatch.setattr(tools.ctypes, "CDLL", mock.Mock(side_effect=OSError("no libcuda.so.1")))
    assert tools.gpus() == 0


def test_sanitizer_command(program):
    words = [sys.executable, "-c", "print('hello')"]
    assert tools.sanitizer("memcheck", words, 49200) is None
    program("compute-sanitizer", 'case "$1" in --help) echo "  --kernel-name arg";; esac')
    command = tools.sanitizer("racecheck", words, 49200)
    assert command[:3] == ["compute-sanitizer", "--tool", "racecheck"] and command[-3:] == words
    assert command[command.index("--kernel-name") + 1] == "kernel_substring=lstmkern"
    program("compute-sanitizer", "echo options of another kind")
    assert not [word for word in tools.sanitizer("memcheck", words, 1) if "lstmkern" in word]


SAID = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at void grid_loop
========= ERROR SUMMARY: 1 error"""


def test_what_the_sanitizer_says(program, capsys):
    program("compute-sanitizer", f"cat << 'E'\n{SAID}\nE\nexit {tools.ERRORS}")
    code, lines = tools.stream(["compute-sanitizer"], {"SOME": "variable"})
    assert code == tools.ERRORS and "Invalid __global__" in capsys.readouterr().out
    assert tools.sanitizer_errors(lines) == ["Invalid __global__ read of size 4 bytes", "ERROR SUMMARY: 1 error"]
    assert tools.refused(lines) is None
    assert tools.refused(["========= Error: Device not supported"])


def test_a_tool_that_does_not_end(program, tmp_path, monkeypatch):
    """It is ended with the processes that it started, which would otherwise keep the GPU; its lines are kept."""
    program("compute-sanitizer", f"sleep 3600 & echo $!; echo '========= Invalid read'; touch {tmp_path}/mark; wait")
    end_time_at(monkeypatch, tmp_path / "mark")
    seen = []
    code, lines = tools.stream(["compute-sanitizer"], seconds=600, seen=seen.append)
    assert code is None and seen == lines and lines[1] == "========= Invalid read"
    for _ in range(6000):  # it ends once it gets CPU time
        try:
            os.kill(int(lines[0]), 0)
            with open(f"/proc/{lines[0]}/stat") as file:
                if file.read().split()[2] == "Z":  # a zombie: its new parent has not waited for it yet
                    break
        except (ProcessLookupError, FileNotFoundError):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process that the tool started still runs")


COUNTERS = """==PROF== Connected to process 1
==PROF== Disconnected
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","void cluster_loop<A>(B)","GPU Speed Of Light Throughput","Duration","us","12.5"
"0","1","void cluster_loop<A>(B)","GPU Speed Of Light Throughput","DRAM Throughput","%","3.1"
"0","1","void cluster_loop<A>(B)","SpeedOfLight","","",""
"1","1","void cluster_loop<C>(D)","GPU Speed Of Light Throughput","Duration","us","20"
"""


def test_profiler(program, tmp_path):
    file = tmp_path / "counters.csv"
    assert tools.ncu("cluster_loop", file, ["python"]) is None
    assert list(tools.counters(file)) == []
    program("ncu", "exit 0")
    command = tools.ncu("cluster_loop", file, ["python"])
    assert command[command.index("--profile-from-start") + 1] == "off"
    assert command[command.index("--apply-rules") + 1] == "no"
    assert command[command.index("--clock-control") + 1] == "none"  # never changes the GPU's clocks
    assert command[-3:] == ["--log-file", str(file), "python"]
    file.write_text(COUNTERS)
    first, second = tools.counters(file)
    assert first["kernel"] == "void cluster_loop<A>(B)"
    assert first["metrics"] == {"Duration": ("12.5", "us"), "DRAM Throughput": ("3.1", "%")}
    assert second["metrics"] == {"Duration": ("20", "us")}


def test_every_line_is_run():
    """Runs the other tests of this file in one process."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    command += ["-k", "not every_line", "--rootdir", str(records.ROOT)]
    environment = {**os.environ, "LSTMKERN_TRACE": "1"}
    done = subprocess.run(command, cwd=records.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
