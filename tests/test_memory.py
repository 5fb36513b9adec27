"""Reuse of memory for results: by whom, how much is cached, and that memory in use is never given out again."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import lstmkern

MIB = 1 << 20
# The build with sanitizers does not reuse memory, and its processes load other libraries.
not_sanitized = pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="blocks are watched instead")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def layer():
    """An LSTM and its input; the output has about 0.5 MiB, the saved gates 2 MiB."""
    torch.manual_seed(0)
    return lstmkern.LSTM(128, 128), torch.randn(64, 16, 128)


def printed_by(body: str) -> int:
    """The number that a new process prints, which runs ``body``; ``infer(T)`` is inference of T <= 2048 steps."""
    program = f"""
import torch, lstmkern
torch.set_num_threads(1)
lstm, x = lstmkern.LSTM(256, 256), torch.ones(2048, 32, 256)
def infer(T):
    with torch.no_grad():
        return lstm(x[:T])[0]  # 64 MiB for 2048
{body}
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(run.stdout)


def addresses_of(steps: str) -> int:
    """The number of distinct addresses of results with so many steps; other allocations take freed memory."""
    return printed_by(f"""
import mmap
places, others = set(), []
for T in {steps}:
    places.add(infer(T).data_ptr())
    others.append(mmap.mmap(-1, T << 15))
print(len(places))
""")


def resident_peak_of(body: str) -> int:
    """The increase in bytes of the resident memory of a process that runs ``body``; ``infer(T)`` as in printed_by."""
    return printed_by(f"""
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
infer(1)
before = peak()
{body}
print(peak() - before)
""")


@not_sanitized
def test_a_result_reuses_the_memory_of_an_earlier_one():
    assert addresses_of("[256] * 5") == 1


@not_sanitized
def test_shorter_sequences_reuse_the_memory_of_the_longest():
    assert addresses_of("(256, 100, 256, 72, 65, 200)") == 1


def test_results_in_use_keep_their_values():
    lstm, x = layer()
    wanted, kept = {}, []
    for i in range(12):
        steps = 16 + 4 * (i % 4)  # sizes that can share memory
        x_i = x[:steps].clone().requires_grad_()
        output, (h, c) = lstm(x_i)
        output.sum().backward()
        kept.append((steps, output, h, c, x_i.grad))
        wanted.setdefault(steps, [t.detach().clone() for t in (output, h, c, x_i.grad)])
        if i % 3 == 2:
            kept.pop(0)
    for steps, *results in kept:
        for result, value in zip(results, wanted[steps], strict=True):
            assert torch.equal(result, value)


def test_a_result_is_a_tensor_like_any_other():
    lstm, x = layer()
    output, _ = lstm(x)
    output = output.detach()
    value = output.clone()
    output.resize_(2 * output.size(0), *output.shape[1:])
    assert torch.equal(output[: len(value)], value)
    shared, _ = lstm(x)
    assert torch.equal(shared.detach().share_memory_(), value)
    again = lstm(x)[0].detach().numpy()  # keeps the memory in use
    lstm(x + 1)
    assert torch.equal(torch.from_numpy(again), value)


def test_the_profiler_sees_results():
    lstm, x = layer()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found, torch.no_grad():
        output, _ = lstm(x)
    (used,) = (e.self_cpu_memory_usage for e in found.key_averages() if e.key == "lstmkern::layer_forward")
    assert used >= output.nbytes


@not_sanitized
@on_linux
def test_cached_memory_is_limited_by_the_peak_in_use():
    largest = resident_peak_of("infer(2048)")
    assert largest > 60 * MIB
    most = largest * 4 / 3 + 8 * MIB  # with the workspaces of several sizes
    sizes = "for T in [*range(2048, 32, -96), *range(32, 2048, 96), 2048]: infer(T)"
    assert resident_peak_of(sizes) < most
    for steps, times in ((512, 4), (24, 80)):
        several = resident_peak_of(f"a = [infer({steps}) for _ in range({times})]; del a; infer(2048)")
        assert several < most


@not_sanitized
@on_linux
def test_the_system_may_reclaim_cached_memory():
    offered = printed_by("""
def offered():
    rollup = open("/proc/self/smaps_rollup")
    return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("LazyFree"))
output = infer(1024)  # 32 MiB
wanted = output.clone()
before = offered()
del output
after = offered()
assert torch.equal(infer(1024), wanted)
print(after - before)
""")
    assert offered > 24 * MIB


@not_sanitized
@on_linux
def test_too_large_results_are_refused():
    program = """
import resource, torch, lstmkern
torch.set_num_threads(1)
lstm = lstmkern.LSTM(64, 64)
x = torch.zeros(1, 1, 64).expand(1 << 22, 64, 64)  # its output would be 64 GiB
resource.setrlimit(resource.RLIMIT_AS, (1 << 35, 1 << 35))
try:
    with torch.no_grad():
        lstm(x)
except RuntimeError as error:
    assert "allocate" in str(error), error
else:
    raise SystemExit("64 GiB in 32")
print(lstm(torch.zeros(64, 64, 64))[0].shape)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0 and "[64, 64, 64]" in run.stdout, run.stderr


@not_sanitized
@on_linux
def test_a_fork_waits_for_threads_that_hold_the_lock(tmp_path):
    """Otherwise the pool would stay locked in the child. Here releasing memory, with the lock held, takes 5 ms."""
    slow = tmp_path / "slow.so"
    source = """
#include <unistd.h>
extern "C" int munmap(void*, size_t bytes) { return bytes > 1 << 20 ? usleep(5000) : 0; }
"""
    compile = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(slow)]
    subprocess.run(compile, input=source, text=True, check=True)
    program = """
import os, signal, threading, torch, lstmkern
rnn, x = lstmkern.RNN(1, 16), torch.ones(1, 50000, 1)
def infer(N):
    torch.set_num_threads(1)
    with torch.no_grad():
        return rnn(x[:, :N])[0]  # 64 bytes a row
def grow():
    for N in range(20000, 50000, 50):  # no result fits into the memory of an earlier one
        infer(N)
infer(20000)  # what torch does once and locks
threading.Thread(target=grow, daemon=True).start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        infer(20000)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", program], env={**os.environ, "LD_PRELOAD": str(slow)}, timeout=3600)
    assert run.returncode == 0


def test_small_results_in_use_are_not_given_out_again():
    """Results keep their values while later calls, here and in threads that end, reuse freed blocks of all sizes."""
    layers = [(lstmkern.GRU(4, H), torch.randn(3, 1, 4)) for H in (1, 5, 16, 17, 33, 100, 300)]

    def call(_=None):
        with torch.no_grad():
            return [tensor for layer, x in layers for tensor in layer(x)]

    def call_again(_):
        call()  # its results are freed, and the blocks kept
        return call()

    expected = [tensor.clone() for tensor in call()]
    with ThreadPoolExecutor(3) as threads:
        kept = list(threads.map(call_again, range(60)))
    alive = [tensor for results in [*kept, call()] for tensor in results]
    assert len({tensor.data_ptr() for tensor in alive}) == len(alive)
    assert all(torch.equal(a, b) for a, b in zip(alive, expected * 61, strict=True))
    del alive, kept  # blocks of threads that have ended, freed here
    assert all(torch.equal(a, b) for a, b in zip(call(), expected, strict=True))
