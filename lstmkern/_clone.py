"""Finds the compiled part when Python is started in a clone.

Python then imports the clone's lstmkern/, which has no compiled part after `pip install .`. The installed package has
one. It is used if it was built from this clone and no source file of the extension has changed since.
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
    """The installed package's compiled part.

    Raises:
        ImportError: no package is installed, or it was not built from these sources.
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
    """Import the module that ``find`` returned as this package's compiled part."""
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = sys.modules["lstmkern"]._C = module
    return module


def installed() -> tuple[ModuleSpec, Path | None] | None:
    """The compiled part of an installed package other than this one, and the folder that it was built from.

    The folder is None if pip did not record it. The result is None if no such package is installed.
    """
    for distribution in distributions(name="lstmkern"):
        package = Path(distribution.locate_file("lstmkern")).resolve()
        if package != ROOT / "lstmkern" and (spec := PathFinder.find_spec(NAME, [str(package)])):
            url = urlsplit(json.loads(distribution.read_text("direct_url.json") or "{}").get("url", ""))
            return spec, Path(url2pathname(url.path)).resolve() if url.scheme == "file" else None
    return None


def is_current(spec: ModuleSpec, built_from: Path | None) -> bool:
    """Whether the compiled part was built from this folder, after the last change to its sources."""
    built = Path(spec.origin).stat().st_mtime
    sources = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*")]
    return built_from == ROOT and all(path.stat().st_mtime <= built for path in sources if path.is_file())
