"""Other clocks for C++ code that measures time, so that tests do not depend on the speed or load of the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Replaces the function of the C library that std::chrono::steady_clock calls.
SOURCE = """
#define _GNU_SOURCE
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec* now) {
#ifdef TICKS  // a millisecond later whenever it is read
  static atomic_long reads;
  if (clock == CLOCK_MONOTONIC) {
    const long ms = atomic_fetch_add(&reads, 1);
    now->tv_sec = ms / 1000, now->tv_nsec = ms % 1000 * 1000000;
    return 0;
  }
#else  // only moves while this thread has a core
  if (clock == CLOCK_MONOTONIC) clock = CLOCK_THREAD_CPUTIME_ID;
#endif
  return syscall(SYS_clock_gettime, clock, now);
}
"""

with_own_clock = pytest.mark.skipif(
    sys.platform != "linux" or "libasan" in os.environ.get("LD_PRELOAD", ""), reason="puts a library before others"
)


def printed_under(clock, folder, program):
    """Run the Python code ``program`` in a process with another steady clock, and parse its output as JSON.

    The clock "ticks" advances by a millisecond whenever it is read; "cpu" is the CPU time of the thread.
    """
    library = folder / f"{clock}.so"
    options = ["-shared", "-fPIC", f"-D{clock.upper()}", "-x", "c", "-", "-o", str(library)]
    subprocess.run([os.environ.get("CC", "cc"), *options], input=SOURCE, text=True, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def end_time_at(monkeypatch, mark):
    """Let every time limit on a process expire as soon as the file ``mark`` exists."""
    wait = subprocess.Popen.wait

    def wait_for_mark(process, timeout=None):
        while timeout is not None and not mark.exists():
            try:
                return wait(process, 0.05)
            except subprocess.TimeoutExpired:
                continue
        return wait(process, None if timeout is None else 0)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_mark)
