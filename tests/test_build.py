"""Without torch, without a compiler, without the compiled part: one sentence that says what to do."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*args, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=env, cwd=ROOT)


def one_sentence(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_build_without_torch(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no torch')")
    result = run("setup.py", "build_ext", "--build-lib", tmp_path / "out", PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert "install torch first" in one_sentence(result.stderr)


def test_build_without_a_compiler(tmp_path):
    environment = {"PATH": str(tmp_path), "CXX": "no-such-compiler"}
    result = run("setup.py", "build_ext", "--build-lib", tmp_path / "out", **environment)
    assert result.returncode != 0
    assert "needs a C++ compiler" in one_sentence(result.stderr)


def test_import_without_the_compiled_part(tmp_path):
    shutil.copytree(ROOT / "lstmkern", tmp_path / "lstmkern", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\ntry: import lstmkern\nexcept ImportError as e: print(e)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "pip install --no-build-isolation ." in one_sentence(result.stdout)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compared with what git knows")
def test_source_distribution_is_whole(tmp_path):
    """With the CUDA kernels, wherever it is made."""
    result = run("setup.py", "-q", "egg_info", "-e", tmp_path, "sdist", "--formats=tar", "-d", tmp_path)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    known = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert not [name for name in known if name not in packed and not name.startswith((".ci/", ".gitignore"))]
