"""The package's metadata, and which torch its compiled part works with."""

import os
import platform
import re
import subprocess
import sys
import tarfile
from email import message_from_string
from pathlib import Path

import pytest
import torch
from packaging.metadata import Metadata
from packaging.requirements import Requirement

import lstmkern
from lstmkern import _extension
from lstmkern.command import main

ROOT = Path(__file__).resolve().parent.parent
needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")


def fake_torch(folder: Path, version: str) -> str:
    """PYTHONPATH of a Python with a torch of this version, of which only what setup.py reads is there."""
    (folder / "torch" / "utils").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(f"__version__ = {version!r}\nclass version: cuda = None")
    (folder / "torch" / "utils" / "cpp_extension.py").write_text(
        "from setuptools import Extension\nfrom setuptools.command.build_ext import build_ext as BuildExtension\n"
        "CUDAExtension = None\ndef CppExtension(name, sources, **more): return Extension(name, sources)"
    )
    return str(folder)


def metadata(folder: Path, site: str) -> Metadata:
    """What pip reads of a wheel before it is built, with the torch in ``site``."""
    folder.mkdir()
    command = [sys.executable, "setup.py", "-q", "dist_info", "--output-dir", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": site}, capture_output=True)
    (file,) = folder.glob("*.dist-info/METADATA")
    return Metadata.from_email(file.read_text())  # raises where a field is not valid


@needs_sources
def test_metadata_is_valid_and_complete(tmp_path):
    found = metadata(tmp_path / "out", fake_torch(tmp_path / "site", "2.13.0"))
    assert (found.name, str(found.version)) == ("lstmkern", lstmkern.__version__)
    assert found.license_expression == "BSD-3-Clause" and found.license_files == ["LICENSE"]
    assert found.author == "The lstmkern developers" and found.keywords and found.summary
    assert found.description_content_type == "text/markdown" and found.description
    assert found.project_urls.keys() == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    pythons = {c.rpartition(" ")[2] for c in found.classifiers if re.search(r":: 3\.\d+$", c)}
    assert pythons == {"3.10", "3.11", "3.12", "3.13"} and "3.10" in found.requires_python
    assert not [c for c in found.classifiers if c.startswith("License")]  # not allowed with license_expression
    trove = pytest.importorskip("trove_classifiers")
    assert not set(found.classifiers) - trove.classifiers


@needs_sources
@pytest.mark.parametrize(
    ("compiled_for", "required", "accepted", "refused"),
    [
        ("2.13.0+cpu", "torch==2.13.*", ["2.13.0+cpu", "2.13.0", "2.13.1+cu130"], ["2.12.1", "2.14.0"]),
        ("2.11.0a0+git1", "torch==2.11.*", ["2.11.0a0+git1", "2.11.0"], ["2.12.0.dev1"]),
        ("2.15.0.dev20261101+cu130", "torch==2.15.*", ["2.15.0.dev20261101+cu130", "2.15.0"], ["2.14.0"]),
    ],
)
def test_a_wheel_requires_the_torch_it_was_compiled_for(tmp_path, compiled_for, required, accepted, refused):
    """Otherwise pip would install the newest torch with it, or replace a development version."""
    found = metadata(tmp_path / "out", fake_torch(tmp_path / "site", compiled_for))
    (requirement,) = (r for r in found.requires_dist if r.name == "torch")
    assert requirement == Requirement(required)
    # pip compares installed versions in this way.
    for version in accepted:
        assert requirement.specifier.contains(version, prereleases=True), version
    for version in refused:
        assert not requirement.specifier.contains(version, prereleases=True), version


@needs_sources
@pytest.mark.parametrize("torch_version", ["2.13.0", None])
def test_source_distribution_takes_any_supported_torch(tmp_path, torch_version):
    if torch_version:
        path = fake_torch(tmp_path / "site", torch_version)
    else:
        (tmp_path / "site" / "torch").mkdir(parents=True)
        (tmp_path / "site" / "torch" / "__init__.py").write_text("raise ImportError('no torch')")
        path = str(tmp_path / "site")
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path)]
    command += ["sdist", "--formats=tar", "-d", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as tar:
        (about,) = (name for name in tar.getnames() if re.fullmatch(r"[^/]+/PKG-INFO", name))
        text = tar.extractfile(about).read().decode()
    assert "torch>=2.11" in message_from_string(text).get_all("Requires-Dist")
    Metadata.from_email(text)


@needs_sources
def test_an_old_setuptools_is_named(tmp_path):
    """It would report that pyproject.toml is not valid."""
    code = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.strip() == (
        "lstmkern needs setuptools 77 or newer to build, and 65.5.0 is installed: "
        "run `pip install --upgrade setuptools` first."
    )


def test_build_info_names_what_was_compiled():
    built = _extension.build_info()
    assert built["version"] == lstmkern.__version__
    assert built["torch"] == _extension.torch_of(lstmkern._C.__file__)
    assert _extension.minor(built["torch"]) == _extension.minor(torch.__version__)
    assert built["python"].split(".")[:2] == platform.python_version().split(".")[:2]
    assert built["capabilities"][-1] == "baseline"
    assert {_extension.cpu_capability(), _extension.cpu_capability(bf16=True)} <= set(built["capabilities"])


@pytest.mark.parametrize("running", ["2.13.0", "2.13.0+cpu", "2.13.1+cu130", "2.13.0a0+git1"])
def test_another_patch_release_of_torch_is_accepted(running):
    _extension.check_torch("2.13.0+cpu", running)


@pytest.mark.parametrize("running", ["2.12.1", "2.14.0+cpu", "3.13.0", "2.1.3"])
def test_another_minor_version_of_torch_is_refused(running):
    with pytest.raises(ImportError) as error:
        _extension.check_torch("2.13.0+cpu", running)
    said = str(error.value)
    assert said.startswith(f"lstmkern was compiled for torch 2.13.0+cpu, but torch {running} is installed: ")
    assert "install torch 2.13, or build lstmkern for torch" in said and "\n" not in said


def test_import_refuses_another_minor_version_before_loading(tmp_path):
    """The file holds nothing else, so loading it would fail with another sentence."""
    package = tmp_path / "lstmkern"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_extension.py").write_text(Path(_extension.__file__).read_text())
    library = package / Path(lstmkern._C.__file__).name
    code = "try:\n    import lstmkern._extension\nexcept ImportError as error:\n    print(error)"
    command = [sys.executable, "-c", code]
    for content, said in {
        _extension.COMPILED_FOR + b"1.2.3\0": "lstmkern was compiled for torch 1.2.3, but torch",
        _extension.COMPILED_FOR + torch.__version__.encode() + b"\0": "lstmkern's compiled part does not load",
        b"no library": "lstmkern's compiled part does not load",
        b"": "lstmkern's compiled part does not load",
    }.items():
        library.write_bytes(content)
        found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert found.stdout.startswith(said), found
        assert found.stdout.count("\n") == 1


@pytest.mark.parametrize("other", [True, False])
def test_info_says_what_it_was_built_for(monkeypatch, capsys, other):
    built = _extension.build_info()
    if other:
        built["torch"] = "1.2.3"
        monkeypatch.setattr(_extension, "build_info", lambda: built)
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"torch {built['torch']}, Python {built['python']}\n" in said
    assert f"{', '.join(built['capabilities'])}\n" in said
    sentence = f"lstmkern was compiled for torch 1.2.3 and runs with torch {torch.__version__}.\n"
    assert said.endswith(sentence) if other else sentence not in said
