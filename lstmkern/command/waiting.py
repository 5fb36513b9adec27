"""Let the threads of a training command sleep while they wait for each other, so that a busy machine stays usable.

By default torch's OpenMP threads spin for milliseconds while they wait. If other processes use the same cores, a
spinning thread occupies the core that the thread it waits for needs, and training takes many times as long. OpenMP
reads OMP_WAIT_POLICY when its library is loaded, and importing lstmkern has loaded it before a command runs. The
process is therefore started once more, with the variable set.
"""

from __future__ import annotations

import os
import sys

import torch

# If one of these is set, the user has chosen how threads wait.
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting(threads: int | None) -> None:
    """Replace this process by a new one with OMP_WAIT_POLICY=passive, unless that is useless or not wanted.

    Args:
        threads: number of threads that the command is to use, or None for torch's.
    """
    if any(os.environ.get(name) for name in CHOICES) or (threads or torch.get_num_threads()) == 1:
        return
    if os.name != "posix" or not sys.executable:  # on Windows, execv returns to the shell at once
        return
    if sys.argv[0] in ("", "-"):  # Python reads the program from stdin, which cannot be read again
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
