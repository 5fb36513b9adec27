"""The CUDA kernels on a CPU: compiles csrc/cuda/*.cu with g++ against tests/simt/simt.h and calls them like the ops.

layer_forward and layer_backward have the arguments of torch.ops.lstmkern.layer_forward and layer_backward, and a seed
for the order in which the simulated threads run.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock  # a dependency of torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TIERS = {"stepwise": 0, "cluster": 1, "grid": 2, "dispatch": 3}
CELLS = {"RNN_TANH": 0, "RNN_RELU": 1, "LSTM": 2, "GRU": 3}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ENGINE = ["fibers", "scheduler", "primitives", "transactions", "memory", "bounds"]
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
FLAGS = ["-std=c++17", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function"]


class SimulationError(RuntimeError):
    """A fault that the simulator found: deadlock, refused launch, write out of bounds, ..."""


class Arguments(ctypes.Structure):  # the same fields as in arguments.h
    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in [
                "cell",
                "dtype",
                "T",
                "N",
                "I",
                "H",
                "P",
                "D",
                "batch_first",
                "packed",
                "rows",
                "seed",
                "grad_output_columns",
                "spread",
                "tier",
                "multiprocessors",
                "shared_per_block",
                "largest_cluster",
                "device_number",
                "code_version",
            ]
        ],
        *[(name, ctypes.c_void_p) for name in ["batch_sizes", "lengths", "resets", "input", "h0", "c0"]],
        ("weights", ctypes.c_void_p * 10),
        *[(name, ctypes.c_void_p) for name in ["output", "h_n", "c_n", "cells", "gates"]],
        *[(name, ctypes.c_void_p) for name in ["grad_output", "grad_h_n", "grad_c_n", "grad_cells"]],
        *[(name, ctypes.c_void_p) for name in ["grad_input", "grad_h0", "grad_c0"]],
        ("grad_weights", ctypes.c_void_p * 10),
    ]


def compiler():
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def includes(source, seen):
    """The file and all files of ours that it includes."""
    if source not in seen and source.exists():
        seen.append(source)
        for name in re.findall(r'#include "(.*?)"', source.read_text()):
            found = [(folder / name).resolve() for folder in (source.parent, HERE)]
            for path in (p for p in found if p.exists()):
                includes(path, seen)
    return seen


def object_of(source, build, flags):
    """Compiles a file unless the same text was compiled with the same flags before."""
    files = includes(source.resolve(), [])
    text = b"\0".join(p.read_bytes() for p in files) + " ".join([*flags, compiler()]).encode()
    path = build / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}.o"
    defines = ["-DLSTMKERN_SIMT", f"-I{HERE}"]
    return made(path, [compiler(), *flags, *defines, "-x", "c++", "-c", source])


def made(path, command):
    """The file that the command with `-o path` makes. It runs only once, even if several processes need the file at the
    same time."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                part = path.with_name(path.name + ".tmp")
                subprocess.run([*command, "-o", part], check=True)
                part.rename(path)
    return path


def build(where=ROOT / "build" / "simt", flags=("-O1",), main=False, jobs=None, changed=None, names=()):
    """Builds the simulator and the kernels as a shared library, or with `main` as a program.

    Sources whose names begin with one of `names` are taken from `changed`, a copy of csrc.
    """
    kernels = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "csrc" / "cuda" / "dispatch.cpp"]
    # Changed ones first: if several objects have an inline function, the linker keeps the first.
    kernels.sort(key=lambda p: not p.name.startswith(tuple(names)))
    sources = [
        *(changed / "cuda" / p.name if p.name.startswith(tuple(names)) else p for p in kernels),
        *(HERE / f"{n}.cpp" for n in ENGINE),
        HERE / "selftest.cu",
        HERE / "driver.cpp",
    ]
    sources += [HERE / "main.cpp"] if main else []
    flags = [*FLAGS, *flags]
    with ThreadPoolExecutor(jobs or int(os.environ.get("LSTMKERN_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(lambda s: object_of(s, where, flags), sources))
    name = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    path = where / (f"simt-{name}" if main else f"libsimt-{name}.so")
    link = [f for f in flags if f.startswith("-fsanitize")]
    return made(path, [compiler(), *link, *([] if main else ["-shared"]), *objects])


class Simulator:
    """The kernels of a tier on a simulated device.

    device: multiprocessors, shared_per_block, largest_cluster and code_version, if they differ from an H100's. Each
    call uses a device with a new number, about which nothing is remembered, unless device_number (below 1000) is given.
    spread: additional elements between the steps of output, cells, gates and their gradients.
    """

    def __init__(self, library, tier="stepwise", *, spread=0, **device):
        self.library = ctypes.CDLL(str(library))
        self.device = dict(device, tier=TIERS[tier], spread=spread)
        self.message = ctypes.create_string_buffer(4096)

    def _check(self, status):
        if status:
            raise SimulationError(self.message.value.decode())

    def selftest(self, name, seed):
        args = name.encode(), ctypes.c_uint64(seed), self.message, ctypes.c_size_t(4096)
        self._check(self.library.simt_selftest(*args))

    def ran(self):
        """The tier that ran the last layer."""
        return self.message.value.decode()

    def plan(self, mode, dtype, N, H, D=1, backward=False):
        """How this resident tier would run a layer (the fields of resident.h's Plan), or None."""
        a = Arguments(cell=CELLS[mode], dtype=DTYPES[dtype], N=N, H=H, D=D, **self.device)
        self._check(self.library.simt_plan(ctypes.byref(a), int(backward), self.message, ctypes.c_size_t(4096)))
        words = self.message.value.decode().split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True)) or None

    def _arguments(self, input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, seed):
        a = Arguments(cell=CELLS[mode], dtype=DTYPES[input.dtype], seed=seed, **self.device)
        a.D, a.N, a.P = h0.shape
        a.I = input.size(-1)
        a.H = weights[0].size(0) // GATES[mode]
        a.packed = batch_sizes is not None
        a.batch_first = batch_first and not a.packed
        a.T = batch_sizes.numel() if a.packed else input.size(1 if batch_first else 0)
        a.rows = input.size(0) if a.packed else a.T * a.N
        a.grad_output_columns = a.D * a.P
        keep = []

        def point(name, tensor):
            if tensor is not None and tensor.numel():
                keep.append(tensor.contiguous())
                setattr(a, name, keep[-1].data_ptr())

        for name, tensor in (("batch_sizes", batch_sizes), ("lengths", lengths), ("resets", resets)):
            point(name, tensor)
        for name, tensor in (("input", input), ("h0", h0), ("c0", c0)):
            point(name, tensor)
        for i, tensor in zip(slots(len(weights) // a.D, a.D), weights, strict=True):
            keep.append(tensor.contiguous())
            a.weights[i] = keep[-1].data_ptr()
        return a, keep, point

    def layer_forward(
        self, input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, save, cells, *, seed=0
    ):
        a, keep, point = self._arguments(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, seed)
        lstm, lead = mode == "LSTM", input.shape[:-1]
        columns = 4 * (-(-a.H // 16) * 16)
        shapes = {"output": (*lead, a.D * a.P), "h_n": (a.D, a.N, a.P), "c_n": (a.D, a.N, a.H) if lstm else (0,)}
        shapes["cells"] = (*lead, a.D * a.H) if lstm and (save or cells) else (0,)
        shapes["gates"] = (a.D, a.rows, columns) if save and mode in ("LSTM", "GRU") else (0,)
        out = {name: input.new_empty(shape) for name, shape in shapes.items()}
        for name, tensor in out.items():
            point(name, tensor)
        self._check(self.library.simt_layer(ctypes.byref(a), 0, self.message, ctypes.c_size_t(4096)))
        return tuple(out.values())

    def layer_backward(
        self, grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes, lengths, resets,
        output, cells, gates, mode, batch_first, needs, *, seed=0, grad_output_columns=None,
    ):  # fmt: skip
        a, keep, point = self._arguments(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, seed)
        if grad_output is not None and grad_output_columns:  # rows that are further apart than their length
            a.grad_output_columns = grad_output_columns
            wide = grad_output.new_full((*grad_output.shape[:-1], grad_output_columns), float("nan"))
            wide[..., : grad_output.size(-1)] = grad_output
            grad_output = wide
        given = {"grad_output": grad_output, "grad_h_n": grad_h_n, "grad_c_n": grad_c_n, "grad_cells": grad_cells}
        for name, tensor in dict(**given, output=output, cells=cells, gates=gates).items():
            point(name, tensor)
        need_input, need_state, need_weights = needs
        grad_input = torch.empty_like(input) if need_input else input.new_empty(0)
        grad_h0 = torch.empty_like(h0) if need_state else input.new_empty(0)
        grad_c0 = torch.empty_like(c0) if need_state and mode == "LSTM" else input.new_empty(0)
        for name, tensor in (("grad_input", grad_input), ("grad_h0", grad_h0), ("grad_c0", grad_c0)):
            point(name, tensor)
        grad_weights = [torch.empty_like(w) if need_weights else w.new_empty(0) for w in weights]
        for i, tensor in zip(slots(len(weights) // a.D, a.D), grad_weights, strict=True):
            a.grad_weights[i] = tensor.data_ptr() if need_weights else None
        self._check(self.library.simt_layer(ctypes.byref(a), 1, self.message, ctypes.c_size_t(4096)))
        return grad_input, grad_h0, grad_c0, grad_weights


def slots(per, directions):
    """The positions of nn.LSTM's `per` weights of each direction in [direction][w_ih w_hh b_ih b_hh w_hr]."""
    kinds = {2: (0, 1), 3: (0, 1, 4), 4: (0, 1, 2, 3), 5: (0, 1, 2, 3, 4)}[per]
    return [5 * d + k for d in range(directions) for k in kinds]


def forward_and_backward(simulator, problem, *, seed=0, needs=(True, True, True), **options):
    """All results of a problem (layers.py) under the ops' names.

    Backward of one step does not get the output if the cell does not need it, because cells do not keep it.
    """
    mode, batch_first = problem.case.mode, problem.case.batch_first
    results = simulator.layer_forward(*problem.args, mode, batch_first, True, True, seed=seed)
    output, h_n, c_n, cells, gates = results
    grads = [problem.grads.get(f"grad_{k}") for k in ("output", "h_n", "c_n", "cells")]
    kept = None if problem.case.T == 1 and mode in ("LSTM", "GRU") else output
    saved = (kept, cells, gates, mode, batch_first, needs)
    back = simulator.layer_backward(*grads, *problem.args, *saved, seed=seed + 1, **options)
    out = {"output": output, "h_n": h_n, "c_n": c_n, "cells": cells}
    out |= {"grad_input": back[0], "grad_h0": back[1], "grad_c0": back[2]}
    return out | {f"grad_weight_{i}": g for i, g in enumerate(back[3])}


@functools.lru_cache
def simulator(tier="stepwise", **options):
    return Simulator(build(), tier, **options)
