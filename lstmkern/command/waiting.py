"""How the threads of a command that trains wait for each other: asleep, so that a busy machine does not stall them.

torch's OpenMP threads spin while they wait, by default for milliseconds. Where other processes want the same cores, a
thread that spins holds the core which the thread it waits for needs, and training takes many times as long. OpenMP
reads OMP_WAIT_POLICY when its library is loaded, which importing lstmkern has done by the time a command runs: the
process therefore starts again, once, with the variable set.
"""

from __future__ import annotations

import os
import sys

import torch

# Whoever has set one of these has chosen.
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting(threads: int | None) -> None:
    """Start this process again with OMP_WAIT_POLICY=passive, unless that is chosen already or changes nothing.

    threads: the number that the command is to use, or None for torch's.
    """
    if any(os.environ.get(name) for name in CHOICES) or (threads or torch.get_num_threads()) == 1:
        return
    if os.name != "posix" or not sys.executable:  # elsewhere a program that replaces itself leaves the terminal
        return
    if sys.argv[0] in ("", "-"):  # a program on standard input, which cannot be read once more
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
