"""The kernel tests, run once for each instruction set that this machine supports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KERNEL_TESTS = [
    f"tests/test_{name}.py" for name in ("elementwise", "parity", "hidden_sizes", "gradients", "nonfinite", "subnormal")
]


def python(*args, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, cwd=ROOT)


def used(variant: str) -> tuple[str, str]:
    """The variants that are used if this one is requested: for bf16, and for all other types."""
    code = "from lstmkern import _extension as e; print(e.cpu_capability(), e.cpu_capability(bf16=True))"
    others, bf16 = python("-c", code, LSTMKERN_CPU_CAPABILITY=variant).stdout.split()
    return others, bf16


@pytest.mark.parametrize("variant", ["baseline", "avx2", "avx512", "avx512_bf16", "amx"])
def test_variant(variant):
    in_use, best = used(variant), used("")
    if variant not in in_use:
        pytest.skip(f"this machine has no {variant}: {' and '.join(sorted(set(in_use)))} would run")
    if in_use == best:
        pytest.skip(f"{variant} is what all the other tests run on")
    # A variant whose kernels differ only for bf16 is tested with bf16. Second derivatives are torch's, taken through
    # the reference; the first derivatives that they are compared with have their own tests here.
    only = "bfloat16 or bf16" if in_use[0] == best[0] else "not second_derivatives"
    result = python(
        "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", only, *KERNEL_TESTS, LSTMKERN_CPU_CAPABILITY=variant
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_unknown_name_means_the_best():
    assert used("no-such-set") == used("")
