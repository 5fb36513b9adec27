"""Without torch, with an old one, without a compiler, without the compiled part: one sentence that says what to do."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

import lstmkern

ROOT = Path(__file__).resolve().parent.parent


def run(*args, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=env, cwd=ROOT)


def one_sentence(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


@pytest.fixture
def no_torch(tmp_path):
    """PYTHONPATH of a Python without torch."""
    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ImportError('no torch')")
    return str(tmp_path / "without")


@pytest.mark.parametrize("command", ["build_ext --build-lib", "build --build-lib", "dist_info --output-dir"])
def test_build_without_torch(tmp_path, no_torch, command):
    """Nor is there metadata of a wheel: pip would go on to download torch, and find out afterwards."""
    (tmp_path / "out").mkdir()
    result = run("setup.py", "-q", *command.split(), tmp_path / "out", PYTHONPATH=no_torch)
    assert result.returncode != 0
    assert "install torch first" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("2.10.1", False),
        ("2.10.0a0+git12ab", False),
        ("1.13.0", False),
        ("2.11.0", True),
        ("2.11.0a0+git12ab", True),
        ("2.13.0+cpu", True),
        ("3.0.0.dev20270101+cu130", True),
    ],
)
def test_an_old_torch_is_refused(tmp_path, version, accepted):
    """Before anything is compiled, and for metadata, too: pip would go on to replace torch."""
    (tmp_path / "torch" / "utils").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text(
        f"__version__ = {version!r}\nclass version: cuda = None"  # all that is read of it
    )
    (tmp_path / "torch" / "utils" / "cpp_extension.py").write_text(
        "from setuptools import Extension\nfrom setuptools.command.build_ext import build_ext as BuildExtension\n"
        "CUDAExtension = None\ndef CppExtension(name, sources, **more): return Extension(name, sources)"
    )
    result = run("setup.py", "--version", PYTHONPATH=str(tmp_path))
    if accepted:
        assert (result.returncode, result.stdout.strip()) == (0, lstmkern.__version__), result.stderr
    else:
        assert result.returncode != 0
        assert f"needs torch 2.11 or newer, and torch {version} is installed" in one_sentence(result.stderr)


def test_build_without_a_compiler(tmp_path):
    environment = {"PATH": str(tmp_path), "CXX": "no-such-compiler"}
    result = run("setup.py", "build_ext", "--build-lib", tmp_path / "out", **environment)
    assert result.returncode != 0
    assert "needs a C++ compiler" in one_sentence(result.stderr)


CELLS = ("gru", "lstm", "rnn")


@pytest.fixture(scope="module")
def units():
    """{a unit of csrc without CUDA: the files of csrc that it includes}, by the preprocessor."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("needs a C++ compiler")

    def included(source: Path) -> set[str]:
        command = [compiler, "-std=c++17", "-MM", "-MG", source]  # -MG: without torch's headers
        rule = subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
        paths = (Path(os.path.abspath(word)) for word in rule.partition(":")[2].split())
        return {str(path.relative_to(ROOT / "csrc")) for path in paths if path.is_relative_to(ROOT / "csrc")}

    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").rglob("*.cpp")]
    return {str(source.relative_to(ROOT / "csrc")): included(source) for source in sources}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_compiled_by_itself(units, cell):
    """A change of one cell compiles one small unit per instruction set, and not the kernels that all cells share."""
    variants = {path.parent.name for path in (ROOT / "csrc" / "cpu").glob("*/target.h")}
    assert len(variants) == 5
    for header in (f"cells/{cell}.h", f"cpu/{cell}.inl"):
        users = {unit for unit, files in units.items() if header in files}
        assert users == {f"cpu/{variant}/{cell}.cpp" for variant in variants}


def test_the_microkernel_is_compiled_once_per_instruction_set(units):
    users = {unit for unit, files in units.items() if "cpu/gemm.h" in files}
    assert users == {unit for unit in units if unit.endswith("/kernels.cpp")} and len(users) == 5


@pytest.fixture
def pretended(tmp_path):
    """PYTHONPATH of a torch whose BuildExtension says what ninja says and compiles nothing."""
    (tmp_path / "torch" / "utils").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '2.13.0'\nclass version: cuda = None")
    said = [
        f"[1/12] c++ -MMD -MF a.o.d -DNDEBUG -c {ROOT}/csrc/ops.cpp -o a.o -O2",
        "csrc/ops.cpp:3:1: warning: something",
        "FAILED: b.o",
        f"c++ -MMD -MF b.o.d -DNDEBUG -c {ROOT}/csrc/results.cpp -o b.o -O2",
        f"[12/12] c++ -c -c {ROOT}/csrc/cpu/avx2/lstm.cpp -o c.o",
    ]
    (tmp_path / "said").write_text("\n".join(said))
    (tmp_path / "torch" / "utils" / "cpp_extension.py").write_text(
        "import subprocess\nfrom setuptools import Extension\nfrom setuptools.command.build_ext import build_ext\n"
        "CUDAExtension = None\nclass BuildExtension(build_ext):\n    def build_extensions(self):\n"
        f"        subprocess.run(['cat', {str(tmp_path / 'said')!r}])\n"
        "def CppExtension(name, sources, **more): return Extension(name, sources)"
    )
    return str(tmp_path)


PROGRESS = ["[ 1/12] csrc/ops.cpp", "[12/12] csrc/cpu/avx2/lstm.cpp"]


def test_progress_line_for_each_object(tmp_path, pretended):
    """Instead of the compiler's commands; what the compiler says is shown as it is."""
    result = run("setup.py", "build_ext", "--build-lib", tmp_path / "out", PYTHONPATH=pretended)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("[")] == PROGRESS
    assert "csrc/ops.cpp:3:1: warning: something" in lines and "FAILED: b.o" in lines
    assert any(line.startswith("c++ ") and "results.cpp" in line for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("front_end", [True, False])
def test_progress_is_seen_under_a_front_end(tmp_path, pretended, front_end):
    """pip does not show a back end's output, but the terminal shows the progress. Nothing else is written there."""
    code = "import fcntl, os, runpy, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    code += "import setuptools.build_meta\n" * front_end
    code += f"sys.argv = ['setup.py', 'build_ext', '--build-lib', {str(tmp_path / 'out')!r}]\n"
    code += "runpy.run_path('setup.py', run_name='__main__')"
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=theirs,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": pretended},
            start_new_session=True,
        )
        assert done.returncode == 0, done.stderr
        assert all(line in done.stdout.splitlines() for line in PROGRESS)
        os.set_blocking(ours, False)
        try:
            shown = os.read(ours, 10000).decode()
        except BlockingIOError:
            shown = ""
    finally:
        os.close(ours)
        os.close(theirs)
    assert [line for line in shown.splitlines() if line] == (PROGRESS if front_end else [])


@pytest.fixture
def clone(tmp_path):
    """clone(): what `import lstmkern` says in a copy of the sources without a compiled part: its file, or the error.
    Files in site/ are installed."""
    source = tmp_path / "clone"
    shutil.copytree(ROOT / "lstmkern", source / "lstmkern", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (source / "csrc").mkdir()
    (source / "setup.py").touch()
    (source / "csrc" / "some.cpp").touch()
    (tmp_path / "site").mkdir()

    def say():
        code = "try:\n    import lstmkern\n    print(lstmkern._C.__file__, lstmkern.__file__)\n"
        code += "except ImportError as e:\n    print(e)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(tmp_path / "site")])}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, cwd=source, env=environment).stdout

    return say


def install(site, built_from):
    """What pip leaves in ``site``: the package, of which only the compiled part matters, and who it is."""
    (library,) = (ROOT / "lstmkern").glob(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    (site / "lstmkern").mkdir()
    (site / "lstmkern" / library.name).write_bytes(library.read_bytes())
    (site / "lstmkern-0.1.0.dist-info").mkdir()
    (site / "lstmkern-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lstmkern\nVersion: 0.1.0\n"
    )
    if built_from:
        about = {"url": built_from.as_uri(), "dir_info": {}}
        (site / "lstmkern-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(about))
    return site / "lstmkern" / library.name


def test_a_clone_uses_what_was_installed_from_it(tmp_path, clone):
    library = install(tmp_path / "site", tmp_path / "clone")
    assert clone().split() == [str(library), str(tmp_path / "clone" / "lstmkern" / "__init__.py")]
    newer = library.stat().st_mtime + 1
    os.utime(tmp_path / "clone" / "csrc" / "some.cpp", (newer, newer))
    said = one_sentence(clone())
    assert "not built from them as they are now" in said and "pip install --no-build-isolation -e ." in said


@pytest.mark.parametrize("built_from", ["elsewhere", None])
def test_a_clone_uses_nothing_else_that_is_installed(tmp_path, clone, built_from):
    install(tmp_path / "site", built_from and tmp_path / built_from)
    assert f"the sources in {tmp_path / 'clone'} hide the installed lstmkern" in one_sentence(clone())


def test_import_without_the_compiled_part(clone):
    assert "pip install --no-build-isolation ." in one_sentence(clone())


@pytest.mark.parametrize("place", ["clone", "site"])
def test_a_compiled_part_that_does_not_load(tmp_path, clone, place):
    """In the sources themselves, or what was installed from them, such as for another torch."""
    if place == "site":
        install(tmp_path / "site", tmp_path / "clone")
    (tmp_path / place / "lstmkern" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("no library")
    said = one_sentence(clone())
    assert "does not load (" in said and "build it for this Python and torch" in said


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compared with what git knows")
@pytest.mark.parametrize("torch", ["with torch", "without torch"])
def test_source_distribution_is_whole(tmp_path, no_torch, torch):
    """With the CUDA kernels, wherever it is made."""
    environment = {"PYTHONPATH": no_torch} if torch == "without torch" else {}
    result = run("setup.py", "-q", "egg_info", "-e", tmp_path, "sdist", "--formats=tar", "-d", tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    known = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert not [name for name in known if name not in packed and not name.startswith((".ci/", ".gitignore"))]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compared with what git knows")
def test_all_of_the_package_is_installed(tmp_path):
    """The mark that it has types, too."""
    result = run("setup.py", "-q", "egg_info", "-e", tmp_path, "build_py", "--build-lib", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    known = subprocess.run(["git", "ls-files", "lstmkern"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(
        known.stdout.split()
    )
    assert "lstmkern/py.typed" in known.stdout


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("make"), reason="needs make and a checkout")
def test_lint_in_the_active_environment_runs_its_clang_format(tmp_path):
    """`make lint VENV=`, with a Python that has its scripts in a folder of its own."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || echo {tmp_path}/scripts\n')
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "clang-format").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/formatted\n')
    for file in (python, tmp_path / "scripts" / "clang-format"):
        file.chmod(0o755)
    told = ("MAKE", "MFLAGS")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(told)}
    environment["PATH"] = os.pathsep.join([str(python.parent), environment["PATH"]])
    command = ["make", "lint", "VENV=", "PYTHON=python"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "csrc/module.cpp" in (tmp_path / "formatted").read_text()
