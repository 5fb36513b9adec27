"""Every .cu file compiles with nvcc for sm_80 and sm_90a, without a warning and without a spilled register."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import nvcc

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")

ARCHS = {"sm_80": "arch=compute_80,code=sm_80", "sm_90a": "arch=compute_90a,code=sm_90a"}
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
SPILLS_ALLOWED = {}  # {part of a kernel's name: the reason}

KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def short(name):
    name = re.sub(r"\(lstmkern::Cell\)(\d)", lambda m: ("rnn_tanh", "rnn_relu", "lstm", "gru")[int(m[1])], name)
    name = re.sub(r"lstmkern::cuda::|\(anonymous namespace\)::|^void ", "", name)
    return name.partition("(")[0]


def compile_and_report(source, arch, tmp_path):
    """[(kernel, registers, shared bytes, stack bytes, spilled bytes)] as ptxas reports them."""
    if (
        arch == nvcc.ARCH and source in SOURCES
    ):  # includes the host code and its warnings; test_sass.py uses the same file
        return report(nvcc.compiled(source)[1])
    command = ["nvcc", "-c" if arch == nvcc.ARCH else "-cubin", "-O3", "-std=c++17", "-Werror", "all-warnings"]
    command += ["-Xcompiler", "-Wall", "-gencode", ARCHS[arch], "-Xptxas", "-v", source, "-o", tmp_path / "out.o"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return report(run.stderr)


def report(log):
    lines, rows, name, stack = log.splitlines(), [], None, (0, 0, 0)
    for line in lines:
        if found := KERNEL.search(line):
            name = found[1]
        elif found := STACK.search(line):
            stack = tuple(map(int, found.groups()))
        elif (found := USED.search(line)) and name:
            shared = SHARED.search(line)
            rows.append((name, int(found[1]), int(shared[1]) if shared else 0, stack[0], stack[1] + stack[2]))
            name = None
    if shutil.which("c++filt"):
        names = subprocess.run(["c++filt"], input="\n".join(r[0] for r in rows), capture_output=True, text=True).stdout
        rows = [(short(n), *r[1:]) for n, r in zip(names.splitlines(), rows, strict=True)]
    return rows


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_compiles_without_warning_or_spill(source, arch, tmp_path, record_property):
    rows = compile_and_report(source, arch, tmp_path)
    assert rows or "LSTMKERN_KERNEL" not in source.read_text(), "no kernel was compiled?"
    table = [" ".join([*(f"{n:6d}" for n in numbers), "", name]) for name, *numbers in sorted(rows)]
    record_property(f"{source.name} for {arch}: registers, shared, stack, spilled bytes", "\n".join(table))
    for name, registers, _, stack, spilled in rows:
        assert (spilled == 0 and stack == 0) or any(part in name for part in SPILLS_ALLOWED), name
        assert registers <= 255


@pytest.mark.parametrize("arch", ["sm_90a"])
def test_primitives_compile(arch, tmp_path):
    """The simulator's self-test kernels compile with nvcc: every name of device.h exists on both sides."""
    assert len(compile_and_report(ROOT / "tests" / "simt" / "selftest.cu", arch, tmp_path)) >= 20


def test_kernels_know_neither_torch_nor_cuda_by_name():
    """A .cu file does not include torch and uses CUDA only through device.h and launch.h."""
    names = r"torch|ATen|c10|cuda_runtime|cudaStream|cudaMalloc|threadIdx|blockIdx|blockDim|__sync|__shfl|__shared__"
    headers = [p for p in (ROOT / "csrc" / "cuda").glob("*.h") if p.name not in ("device.h", "launch.h")]
    for path in [*SOURCES, *headers]:
        code = re.sub(r"//.*", "", path.read_text())
        assert not re.search(names + r"|__global__|<<<|\basm\b", code), path.name
