"""Finds the compiled part for a Python that was started in a clone of the repository.

There Python imports the clone's lstmkern/, in which `pip install .` creates no compiled part. The installed package has
one. It is used if it was built from this clone and if no source has changed since.
"""

import json
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import distributions
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "lstmkern._C"
ROOT = Path(__file__).resolve().parents[1]


def find() -> ModuleSpec:
    """The compiled part of the installed package.

    Raises:
        ImportError: there is none, or it was not built from these sources.
    """
    found = installed()
    if found is None:
        raise ImportError(
            "lstmkern has no compiled part for this Python: run `pip install --no-build-isolation .` in lstmkern's "
            "source folder."
        )
    spec, built_from = found
    if not is_current(spec, built_from):
        raise ImportError(
            f"the sources in {ROOT} hide the installed lstmkern, which was not built from them as they are now: start "
            "Python in another folder to use it, or run `pip install --no-build-isolation -e .` here to use these "
            "sources."
        )
    return spec


def load(spec: ModuleSpec) -> ModuleType:
    """Import the result of :func:`find` as this package's compiled part."""
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    setattr(sys.modules["lstmkern"], "_C", module)  # noqa: B010 (a type checker knows no such attribute of a module)
    return module


def installed() -> tuple[ModuleSpec, Path | None] | None:
    """(compiled part, the folder it was built from or None if unknown) of an lstmkern other than this one."""
    for distribution in distributions(name="lstmkern"):
        package = Path(str(distribution.locate_file("lstmkern"))).resolve()
        if package != ROOT / "lstmkern" and (spec := PathFinder.find_spec(NAME, [str(package)])):
            url = urlsplit(json.loads(distribution.read_text("direct_url.json") or "{}").get("url", ""))
            return spec, Path(url2pathname(url.path)).resolve() if url.scheme == "file" else None
    return None


def is_current(spec: ModuleSpec, built_from: Path | None) -> bool:
    """Whether the compiled part was built from this folder, after the last change to its sources."""
    built = Path(str(spec.origin)).stat().st_mtime
    sources = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*")]
    return built_from == ROOT and all(path.stat().st_mtime <= built for path in sources if path.is_file())
