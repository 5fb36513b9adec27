"""LSTMKERN_DISABLE=1: the modules run torch.nn's own code, to find out whose fault a problem is.

With this environment variable LSTM, GRU, RNN and the three cells call torch.nn's ``forward`` wherever the call uses
nothing beyond it. Calls with ``lengths``, ``resets`` or ``return_cells`` run lstmkern's kernels all the same, and so do
the functions of ``lstmkern.functional``. Whatever torch.nn refuses or gets wrong, a disabled module does too.

The variable is read once, when lstmkern is imported: a program runs with or without it, and nothing is compiled twice.
"""

import os

VARIABLE = "LSTMKERN_DISABLE"


def read(value: str) -> bool:
    """Whether ``value`` of the variable disables the kernels; ValueError for anything but "1", "0" and ""."""
    if value not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}={value}: set it to 1 for torch.nn's own code, or to 0 or nothing for lstmkern's")
    return value == "1"


DISABLED = read(os.environ.get(VARIABLE, ""))
