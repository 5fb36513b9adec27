#!/usr/bin/env bash
# Builds the complete extension against the CUDA build of torch. No GPU is needed. It checks that the extension links and
# loads, that it reports its CUDA version, and that a CUDA call raises torch's error.
# PYTHON: the interpreter that makes the environment. CUDA_TORCH: what pip installs (=== because == also accepts a +cpu
# build). CUDA_VENV: the folder of the environment. Compiles for one architecture and without optimisation where the
# compilers allow that, because other tests check the optimised kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} torch=${CUDA_TORCH:-torch===2.13.0} venv=${CUDA_VENV:-build/cuda-venv}
if ! command -v nvcc > /dev/null; then
  echo "nvcc is not on PATH: nothing to build"
  exit 0
fi
start=$SECONDS
if [ ! -e "$venv/.ready" ]; then
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet "$torch" setuptools wheel ninja pybind11 numpy
  touch "$venv/.ready"
fi
echo "environment: $((SECONDS - start)) s"
start=$SECONDS
# In a copy, because an extension for another torch must not be in lstmkern/. The copy is kept, so that ninja can tell
# what has changed.
root=$PWD copy=build/cuda-source
mkdir -p "$copy" && rm -f "$copy"/lstmkern/_C*.so
tar -c --exclude='*.so' --exclude=__pycache__ csrc lstmkern setup.py pyproject.toml README.md LICENSE | tar -x -C "$copy"
cd "$copy"
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a} MAX_JOBS=${MAX_JOBS:-2} CFLAGS=${CFLAGS:--O0}
[[ $(nvcc --help) != *--Ofast-compile* ]] || export NVCC_APPEND_FLAGS="${NVCC_APPEND_FLAGS-} --Ofast-compile=max"
LSTMKERN_CUDA=1 "$root/$venv/bin/python" setup.py --quiet build_ext --inplace
echo "build: $((SECONDS - start)) s"
"$root/$venv/bin/python" - << 'EOF'
import os

import torch

import lstmkern
from lstmkern import _C

info = _C.build_info()
print(info, torch.__version__)
assert info["cuda"] == torch.version.cuda and info["cuda_archs"], info
layer = lstmkern.LSTM(3, 4)
layer(torch.randn(2, 1, 3))[0].sum().backward()  # the CPU part of the same extension runs
for key in ("CUDA", "CPU"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("lstmkern::layer_forward", key), key
    assert torch._C._dispatch_has_kernel_for_dispatch_key("lstmkern::layer_backward", key), key
if torch.cuda.is_available():
    print("a GPU is here: its tests are tests/test_cuda.py")
else:
    try:
        lstmkern.LSTM(3, 4, device="cuda")
    except (RuntimeError, AssertionError) as error:
        print("without a GPU:", str(error).splitlines()[0])
        assert "NVIDIA" in str(error) or "CUDA" in str(error), error
    else:
        raise SystemExit("a CUDA call without a GPU did not fail")
print("the CUDA build loads")
EOF
