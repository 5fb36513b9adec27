"""Compiles csrc/ against the installed torch: `pip install --no-build-isolation .`"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

VERSION = "0.1.0"
OLDEST_TORCH = (2, 11)
OLDEST_SETUPTOOLS = 77  # as in pyproject.toml
ROOT = Path(__file__).resolve().parent

# Code for A100 and other GPUs of compute capability 8.x, code for H100, and PTX of 8.0, which the driver compiles for
# newer GPUs (PTX of 9.0a would run on H100 only).
CUDA_ARCHS = "8.0+PTX;9.0a"


def cuda_toolkit():
    """The CUDA toolkit's folder, or None. nvcc prints it, as the nvcc on PATH may be a script that runs another."""
    found = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "empty.cu")
            source.touch()
            command = [nvcc, "--dryrun", "-c", source, "-o", source.with_suffix(".o")]
            said = subprocess.run(command, capture_output=True, text=True, check=False)
        found += [top.strip() for top in re.findall(r"\bTOP=(.*)", said.stderr + said.stdout)]
    found.append("/usr/local/cuda")
    return next((os.path.realpath(p) for p in found if p and Path(p, "include", "cuda_runtime.h").is_file()), None)


def refuses(command):
    """``command`` for a Python without torch: it exits with an error message."""

    class WithoutTorch(command):
        def run(self):
            sys.exit(
                "lstmkern is compiled against your torch: install torch first, then run "
                "`pip install --no-build-isolation .` (with isolation pip hides the installed torch)."
            )

    return WithoutTorch


def check(torch, toolkit, requested):
    """Exit with an error message if this torch, toolkit or compiler cannot make the requested build.

    ``requested`` is the value of LSTMKERN_CUDA.
    """
    # A development version such as 2.11.0a0+git1234 counts as the release 2.11.
    if tuple(map(int, re.match(r"(\d+)\.(\d+)", torch.__version__).groups())) < OLDEST_TORCH:
        sys.exit(
            f"lstmkern needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, and torch {torch.__version__} is "
            "installed: install a newer torch, then run `pip install --no-build-isolation .` again."
        )
    if requested == "1" and not toolkit:
        sys.exit(
            f"LSTMKERN_CUDA=1, but torch {torch.__version__} is built without CUDA: install a torch with CUDA or unset "
            "LSTMKERN_CUDA."
            if not torch.version.cuda
            else "LSTMKERN_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME to the folder with "
            "include/cuda_runtime.h."
        )
    if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++"):
        sys.exit(
            "lstmkern needs a C++ compiler: install g++ (or set CXX) and run `pip install --no-build-isolation .` "
            "again."
        )


def torch_requirement():
    """What this distribution requires of torch.

    Compiled code works with one minor version of torch, so a wheel requires the one it was compiled against: otherwise
    pip would install the newest. ``==2.13.*`` also accepts 2.13.0+cpu and development versions such as 2.13.0a0+git1.
    """
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or "sdist" in sys.argv:
        return f"torch>={'.'.join(map(str, OLDEST_TORCH))}"
    return f"torch=={'.'.join(torch.__version__.split('.')[:2])}.*"


class Progress:
    """A context that filters stdout: it replaces each command of the compiler by a line `[n/m] file`.

    A build front end such as pip does not show the stdout of a back end. So these lines are also written to the user's
    terminal, if there is one.
    """

    def __init__(self):
        self.terminal = None
        if "setuptools.build_meta" in sys.modules and not os.isatty(1):
            try:
                self.terminal = open("/dev/tty", "w")  # noqa: SIM115
                self.terminal.write("\n")  # the front end may have printed a line without its end
            except OSError:
                self.terminal = None

    def __enter__(self):
        sys.stdout.flush()
        self.stdout = os.dup(1)
        output, into = os.pipe()
        os.dup2(into, 1)
        os.close(into)
        self.thread = threading.Thread(target=self.copy, args=(output,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        sys.stdout.flush()
        os.dup2(self.stdout, 1)
        self.thread.join(10)  # a timeout, because a process that is still running may keep the pipe open
        if self.terminal:
            self.terminal.close()

    def copy(self, output):
        with open(output, errors="replace") as lines, open(self.stdout, "w") as stdout:
            for line in lines:
                short = self.shortened(line)
                print(short or line, end="\n" if short else "", file=stdout, flush=True)
                if short and self.terminal:
                    print(short, file=self.terminal, flush=True)

    @staticmethod
    def shortened(line):
        """`[n/m] file` for ninja's line of the command that compiles a file, else None."""
        command = re.match(r"\[(\d+)/(\d+)\] .* -c (\S+\.(?:cpp|cu)) -o ", line)
        if not command:
            return None
        n, m, source = command.groups()
        return f"[{n:>{len(m)}}/{m}] {os.path.relpath(source, ROOT)}"


def files(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def extension():
    """(the extension module, the setuptools commands that compile it)."""
    sources = files("csrc/*.cpp", "csrc/cpu/**/*.cpp")
    try:
        import torch
    except ImportError:
        # A source distribution needs no torch. With metadata from dist_info, pip would go on and download one.
        return Extension("lstmkern._C", sources), {"build_ext": refuses(build_ext), "dist_info": refuses(dist_info)}
    # Before torch's helpers are imported: at import they search for the toolkit, next to the nvcc on PATH.
    toolkit = cuda_toolkit() if torch.version.cuda else None
    requested = os.environ.get("LSTMKERN_CUDA", "")
    check(torch, toolkit, requested)
    if toolkit:
        os.environ["CUDA_HOME"] = toolkit
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    # The CUDA part is built if there is a toolkit, with or without a GPU. LSTMKERN_CUDA=0 leaves it out, 1 requires it.
    with_cuda = bool(toolkit) and requested != "0"
    macros = [("LSTMKERN_VERSION", f'"{VERSION}"'), ("LSTMKERN_TORCH_VERSION", f'"{torch.__version__}"')]
    # No -march: each kernel file names its instruction set. No -std: torch chooses. CFLAGS may have another -O.
    # -g0: Python's flags include -g, which makes the library five times as large and slower to compile.
    level = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O2"]
    flags = {"cxx": [*level, "-g0", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"]}
    # For `make test-asan`. -fexpensive-optimizations: fused multiply-adds, which -O2 uses and -O1 by itself does not.
    if os.environ.get("LSTMKERN_SANITIZE"):
        flags["cxx"] += [
            "-O1",
            "-fexpensive-optimizations",
            "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ]
    if with_cuda:
        archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS)  # without it torch detects the GPU, if any
        sources += files("csrc/cuda/*.cpp", "csrc/cuda/*.cu")
        macros += [
            ("LSTMKERN_CUDA_VERSION", f'"{torch.version.cuda}"'),
            ("LSTMKERN_CUDA_ARCHS", '"' + ";".join(archs.replace(",", " ").replace(";", " ").split()) + '"'),
        ]
        flags["nvcc"] = ["-O3", "-Xcompiler", "-fvisibility=hidden"]
    module = (CUDAExtension if with_cuda else CppExtension)(
        "lstmkern._C",
        sources,
        depends=files("csrc/**/*.h", "csrc/**/*.inl"),
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
    )

    class Build(BuildExtension):
        def build_extensions(self):
            with Progress():
                super().build_extensions()

    return module, {"build_ext": Build}


def check_setuptools():
    """Exit with an error message if setuptools cannot read pyproject.toml: without isolation pip does not check it."""
    if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
        sys.exit(
            f"lstmkern needs setuptools {OLDEST_SETUPTOOLS} or newer to build, and {setuptools.__version__} is "
            "installed: run `pip install --upgrade setuptools` first."
        )


check_setuptools()
module, commands = extension()
setup(version=VERSION, install_requires=[torch_requirement()], ext_modules=[module], cmdclass=commands)
