"""Compiles csrc/ against the torch that is installed. `pip install --no-build-isolation .`"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

VERSION = "0.1.0"

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "lstmkern is compiled against your torch: install torch first, then run "
        "`pip install --no-build-isolation .` (with isolation pip hides the installed torch)."
    )

if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++"):
    sys.exit(
        "lstmkern needs a C++ compiler: install g++ (or set CXX) and run `pip install --no-build-isolation .` again."
    )

ROOT = Path(__file__).resolve().parent

sources = ["csrc/module.cpp", "csrc/ops.cpp", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp"))]
headers = sorted(str(p.relative_to(ROOT)) for suffix in ("h", "inl") for p in ROOT.glob(f"csrc/**/*.{suffix}"))

setup(
    version=VERSION,
    ext_modules=[
        CppExtension(
            "lstmkern._C",
            sources,
            depends=headers,
            define_macros=[("LSTMKERN_VERSION", f'"{VERSION}"')],
            # No -march: each kernel file names its own instruction set. No -std: torch chooses.
            extra_compile_args=["-O2", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"],
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
