"""Building the extension for another Python, and choosing the extension on a machine with a GPU.

The real build (gigabytes of torch, minutes) is `make gpu-build-for`; here its steps have stand-ins.
"""

import json
import os
import shutil
import stat
import sys

import pytest

from benchmarks.gpu import build_for, extension, records, tools

CUDA, PLAIN = b"\x7fELF .nv_fatbin ", b"\x7fELF "


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small checkout."""
    root = tmp_path / "tree"
    for name in ("csrc/cuda/grid.cu", "lstmkern/__init__.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}")
    monkeypatch.setattr(records, "ROOT", root)
    return root


def carried(tree, content, sources=None):
    (tree / "carry").mkdir(exist_ok=True)
    (tree / "carry" / extension.NAME).write_bytes(content)
    about = {extension.NAME: {"sources": sources or records.compiled_digest()}}
    (tree / "carry" / "about.json").write_text(json.dumps(about))


def local(tree, content=None, age=0.0):
    path = tree / "lstmkern" / extension.NAME
    if content is not None:
        path.write_bytes(content)
        newest = max(p.stat().st_mtime for p in tree.rglob("*"))
        os.utime(path, (newest - age, newest - age))
    return path


def test_nothing_to_use(tree):
    assert extension.place(tree)[0] is False
    carried(tree, CUDA, sources="others")
    there, reason = extension.place(tree)
    assert not there and "other sources" in reason and not local(tree).exists()


def test_carried_extension_is_used_and_taken_back(tree):
    carried(tree, CUDA + b"1")
    assert extension.place(tree)[0] and local(tree).read_bytes() == CUDA + b"1"
    assert extension.place(tree) == (True, f"lstmkern/{extension.NAME} is built from these sources")
    # A new extension on a machine that has an older carried one, which may be replaced.
    (tree / "csrc/cuda/grid.cu").write_text("changed")
    carried(tree, CUDA + b"2")
    assert extension.place(tree)[0] and local(tree).read_bytes() == CUDA + b"2"
    assert not (tree / "build" / "replaced").exists()
    extension.undo(tree)
    assert not local(tree).exists() and not extension.noted(tree)


def test_an_extension_that_was_built_here_is_kept(tree):
    carried(tree, CUDA + b"carried")
    local(tree, CUDA + b"local")
    assert extension.place(tree)[0] and local(tree).read_bytes() == CUDA + b"local"


@pytest.mark.parametrize(("content", "age"), [(PLAIN, 0), (CUDA, 1000)], ids=["without CUDA", "older than the sources"])
def test_what_is_replaced_can_be_had_again(tree, content, age):
    local(tree, content, age)
    carried(tree, CUDA + b"carried")
    assert extension.place(tree)[0] and local(tree).read_bytes() == CUDA + b"carried"
    assert (tree / "build" / "replaced" / extension.NAME).read_bytes() == content
    extension.undo(tree)
    assert local(tree).read_bytes() == content


def test_loading(capsys, monkeypatch):
    assert extension.load(records.ROOT, "cpu") == 0
    assert "loads" in capsys.readouterr().out
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert extension.load(records.ROOT, "cuda") == extension.NO_GPU
    assert "DEVICE=cpu" in capsys.readouterr().out


def test_loading_with_a_gpu(tree, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert extension.load(tree, "cuda") == extension.TO_BUILD
    carried(tree, CUDA)
    monkeypatch.setattr(tools, "gpus", lambda: 1)
    monkeypatch.setitem(sys.modules, "lstmkern", None)  # importing it fails
    assert extension.load(tree, "cuda") == extension.TO_BUILD
    assert "does not load" in capsys.readouterr().out and not local(tree).exists()


def test_building_on_the_spot(tree, monkeypatch):
    import torch

    (tree / "setup.py").write_text(
        "import os, pathlib, sys\n"
        "archs = os.environ['TORCH_CUDA_ARCH_LIST'].encode()\n"
        f"pathlib.Path('lstmkern', {extension.NAME!r}).write_bytes({CUDA!r} + archs)\n"
        "sys.exit(os.environ['LSTMKERN_CUDA'] != '1')\n"
    )
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    for capability, arch in (((9, 0), b"9.0a"), ((8, 6), b"8.6")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert extension.main(["--build"]) == 0
        assert local(tree).read_bytes() == CUDA + arch
        assert extension.noted(tree)["from"] == "a build here"
    (tree / "csrc" / "new.cu").write_text("new")
    assert not extension.fresh(tree)


# --- make gpu-build-for ---


def test_what_is_wrong_is_a_sentence(tree, monkeypatch, tmp_path):
    def said(*words):
        with pytest.raises(SystemExit) as end:
            build_for.main(list(words))
        assert str(end.value).startswith("gpu-build-for: ")
        return str(end.value)

    assert "TORCH must be what pip installs" in said("--python", "python3", "--torch", "2.11.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert "no nvcc" in said("--python", "python3", "--torch", "torch==2.11.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert "no Python 'python9.9'" in said("--python", "python9.9", "--torch", "torch==2.11.0")
    (tmp_path / "python9.9").write_text("#!/bin/sh\necho /nowhere\n")
    (tmp_path / "python9.9").chmod(0o755)
    assert "no Python.h" in said("--python", "python9.9", "--torch", "torch==2.11.0")


def test_what_may_travel(tree):
    library = tree / "_C.so"
    library.write_bytes(b"x" * 1000)
    folder = tree / "carry"
    assert build_for.carry(library, {"sources": "a"}, 1000 + 2000) == folder / "_C.so"
    other = tree / "_D.so"
    other.write_bytes(b"y" * 2000)
    with pytest.raises(SystemExit, match="more than"):
        build_for.carry(other, {"sources": "b"}, 2500)
    assert not (folder / "_D.so").exists()
    build_for.carry(other, {"sources": "b"}, 5000)
    library.write_bytes(b"z" * 10)  # a new one replaces an old one
    build_for.carry(library, {"sources": "c"}, 3000)
    assert json.loads((folder / "about.json").read_text()) == {"_C.so": {"sources": "c"}, "_D.so": {"sources": "b"}}
    assert build_for.LIMIT == 60 * 2**20


def test_check_before_a_machine_is_started(tree, capsys):
    def refused():
        with pytest.raises(SystemExit) as end:
            build_for.main(["--check"])
        return str(end.value.code)

    assert "no extension" in refused()
    carried(tree, CUDA)
    build_for.main(["--check"])
    assert f"carry/{extension.NAME} is built from these sources" in capsys.readouterr().out
    (tree / "csrc/cuda/grid.cu").write_text("changed")
    assert f"carry/{extension.NAME} is not built from these sources" in refused()


FAKE = """#!/bin/sh
case "$*" in
  *sysconfig*) echo {include};;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
  "-m pip install "*) echo "$*" >> {log};;
  "setup.py --quiet build_ext --inplace")
    echo "$PWD $TORCH_CUDA_ARCH_LIST $LSTMKERN_CUDA" >> {log}
    cp {library} lstmkern/_C.fake.so; chmod u+w lstmkern/_C.fake.so;;
  "-c "*) echo trial "$PWD" >> {log}; echo '{{"torch": "2.11.0", "python": "3.12.1", "built": {{"cuda": "13.0"}}}}';;
  *) echo "unexpected: $*" >&2; exit 3;;
esac
"""


@pytest.mark.skipif(shutil.which("strip") is None, reason="no binutils here")
def test_the_steps_of_a_build(tree, tmp_path, monkeypatch, capsys):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    library, log = shutil.which("true"), tmp_path / "log"
    python = tmp_path / "python3.12"
    python.write_text(FAKE.format(include=tmp_path / "include", log=log, library=library))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(records, "commit", lambda: "abc+")
    (tree / "csrc" / "old.cu").write_text("goes away")
    for words in ((), ("--archs", "8.0")):
        build_for.main(["--python", str(python), "--torch", "torch==2.11.0", *words])
        (tree / "csrc" / "old.cu").unlink(missing_ok=True)
    said = log.read_text().splitlines()
    copy = tree / "build" / "extension" / "python3.12-torch-2.11.0" / "source"
    assert said[0].startswith("-m pip install --quiet torch==2.11.0 setuptools")
    assert said[1:] == [f"{copy} 9.0a 1", f"trial {copy}", f"{copy} 8.0 1", f"trial {copy}"]  # one environment for both
    assert (copy / "csrc/cuda/grid.cu").exists() and not (copy / "csrc/old.cu").exists()
    about = json.loads((tree / "carry" / "about.json").read_text())["_C.fake.so"]
    assert about["sources"] == records.compiled_digest() and about["python"] == "3.12.1" and about["glibc"] != "unknown"
    assert list((tree / "lstmkern").glob("_C*")) == []  # none in lstmkern/ of the sources
    *_, size, line = capsys.readouterr().out.splitlines()
    assert size == "carry/_C.fake.so: 0.0 MiB"
    assert line == "on the machine with the GPU: LSTMKERN_COMMIT=abc+ make gpu-first PYTHON=python3.12"
