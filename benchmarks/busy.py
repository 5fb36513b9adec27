"""A busy machine: other processes that never sleep."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lstmkern.bench import roofline


@contextmanager
def busy_cores(pinned: bool = False) -> Iterator[list[subprocess.Popen]]:
    """Keep every core that this process may use busy with another process. They are yielded, and end with the block.

    Args:
        pinned: bind one to each core. Otherwise the scheduler places them.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = len(cores) or roofline.cores()
    loop = "import os, sys\nif sys.argv[1:]: os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    started = []
    try:
        for k in range(count):
            where = [str(cores[k])] if pinned and cores else []
            started.append(subprocess.Popen([sys.executable, "-S", "-c", loop, *where]))
        time.sleep(0.1)
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
