"""Loads the compiled part, which registers ``torch.ops.lstmkern.*``."""

import mmap
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import torch  # its libraries must be loaded before ours

COMPILED_FOR = b"lstmkern is compiled for torch "  # in csrc/module.cpp, where the version follows it


def load() -> ModuleType:
    """Import the compiled part: this package's, or in a clone the installed one's (see _clone.py).

    Raises:
        ImportError: there is none, it was compiled for another minor version of torch, or it does not load.
    """
    local = find_spec("lstmkern._C")
    if local is None:
        from . import _clone

        found = _clone.find()
    else:
        found = local
    check_torch(torch_of(str(found.origin)), torch.__version__)
    try:
        return import_module("lstmkern._C") if local else _clone.load(found)
    except ImportError as error:
        raise ImportError(
            f"lstmkern's compiled part does not load ({error}): build it for this Python and torch with "
            "`pip install --no-build-isolation .` in lstmkern's source folder."
        ) from error


def torch_of(library: str) -> str | None:
    """The version of torch that the file was compiled for; None if it does not say so. The file is not loaded."""
    with open(library, "rb") as file:
        if not file.seek(0, 2):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(COMPILED_FOR)
            if start < 0:
                return None
            start += len(COMPILED_FOR)
            return content[start : content.find(b"\0", start)].decode()


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_torch(compiled_for: str | None, running: str) -> None:
    """Raise ImportError if torch ``running`` cannot load what was compiled for another version.

    torch promises no binary compatibility of its C++ interface between minor versions. The extension would fail to
    load, or load and crash.
    """
    if compiled_for is not None and minor(compiled_for) != minor(running):
        raise ImportError(
            f"lstmkern was compiled for torch {compiled_for}, but torch {running} is installed: install torch "
            f"{minor(compiled_for)}, or build lstmkern for torch {minor(running)} with "
            "`pip install --no-build-isolation .` in its source folder."
        )


def other_torch(compiled_for: str, running: str) -> str:
    """One sentence if torch ``running`` is not the one that lstmkern was compiled for, otherwise an empty string."""
    if compiled_for == running:
        return ""
    return f"lstmkern was compiled for torch {compiled_for} and runs with torch {running}."


if TYPE_CHECKING:
    from . import _C
else:
    _C = load()
build_info = _C.build_info
cells = _C.cells  # {mode: (gates in the weights, values that forward saves per unit and step)}
padding = _C.padding  # units of saved values are padded to a multiple of it
cpu_capability = _C.cpu_capability
cpu_peak = _C.cpu_peak
choose_threads = _C.choose_threads  # the cost model of csrc/cpu/cost.h
fix_threads = _C.fix_threads
layer_forward = _C.layer_forward
layer_backward = _C.layer_backward
recorded_forward = _C.recorded_forward
recorded_backward = _C.recorded_backward
results_in_order = _C.results_in_order
run_module = _C.run_module
run_cell = _C.run_cell
run_stack = _C.run_stack
only_calls_forward = _C.only_calls_forward
cpu_product = _C.cpu_product
read_cpus = _C.read_cpus
team_runs = _C.team_runs
add_calls, threads_for = _C.add_calls, _C.threads_for  # for tests of csrc/cpu/calls.h, as are the next three
region_for, team_ended, alone_ended = _C.region_for, _C.team_ended, _C.alone_ended
CPUS = _C.cpus()  # read once; ValueError for a bad LSTMKERN_NUM_THREADS
