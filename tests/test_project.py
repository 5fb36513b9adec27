"""Files agree with each other: commands, versions of tools, forms, a table and the script that writes it."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lstmkern

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="needs the sources")


def load(path: str):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / path).read_text())


def targets() -> set[str]:
    """What make can be asked for."""
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    return {name for rule in rules for name in rule.split()}


def parts() -> list[str]:
    """The targets that .ci/run makes."""
    (command,) = re.findall(r"^make --jobs=2 (.+)", (ROOT / ".ci" / "run").read_text().replace("\\\n", " "), re.M)
    return [word for word in command.split() if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]


def test_ci_runs_targets_that_exist():
    assert len(parts()) > 5 and set(parts()) <= targets()


def test_workflow_runs_every_part_of_ci():
    jobs = load(".github/workflows/ci.yml")["jobs"]
    assert sorted(jobs["part"]["strategy"]["matrix"]["target"]) == sorted(parts())
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for command in commands:
        words = command.replace("${{ matrix.target }}", parts()[0]).split()
        assert words[0] == "make" and words[1] in targets(), command


def test_workflow_covers_the_supported_versions():
    """Those that pyproject.toml and setup.py name, and the newest torch."""
    jobs = load(".github/workflows/ci.yml")["jobs"]
    matrix = jobs["versions"]["strategy"]["matrix"]
    classifiers = re.findall(r"Python :: (3\.\d+)\"", (ROOT / "pyproject.toml").read_text())
    assert matrix["python"] == classifiers
    oldest = ".".join(re.search(r"OLDEST_TORCH = \((\d+), (\d+)\)", (ROOT / "setup.py").read_text()).groups())
    assert matrix["torch"][0].startswith(f"torch=={oldest}.") and matrix["torch"][-1] == "torch"
    pinned = re.search(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert pinned in matrix["torch"]


def test_workflow_pins_its_actions():
    uses = re.findall(r"uses: (.+)", (ROOT / ".github/workflows/ci.yml").read_text())
    assert uses and all(re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", action) for action in uses), uses


def test_pre_commit_uses_the_versions_of_requirements_dev():
    pinned = set(re.findall(r"^\S+==\S+$", (ROOT / "requirements-dev.txt").read_text(), re.M))
    (local,) = load(".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: hook for hook in local["hooks"]}
    assert hooks.keys() == {"ruff-check", "ruff-format", "clang-format", "mypy"}
    wanted = [tool for hook in hooks.values() for tool in hook.get("additional_dependencies", [])]
    assert wanted and set(wanted) <= pinned
    assert {tool.partition("==")[0] for tool in pinned} >= {"ruff", "clang-format", "mypy"}


@pytest.mark.parametrize("form", ["bug", "performance", "feature"])
def test_issue_forms(form):
    content = load(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert content["name"] and content["description"]
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids)
    for field in content["body"]:
        assert field["type"] in ("input", "textarea", "markdown", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
    asks = any("lstmkern info" in field["attributes"]["label"] for field in content["body"])
    assert asks or form == "feature"


def test_citation_names_this_version():
    citation = load("CITATION.cff")
    assert (citation["version"], citation["license"]) == (lstmkern.__version__, "BSD-3-Clause")
    assert f'"{citation["url"]}"' in (ROOT / "pyproject.toml").read_text()
    assert f'"{citation["repository-code"]}"' in (ROOT / "pyproject.toml").read_text()


def test_checkpoints_are_loaded_without_code():
    """As SECURITY.md says: every torch.load in the package has weights_only=True, and nothing unpickles files."""
    found = 0
    for path in (ROOT / "lstmkern").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"pickle\.loads?\(|allow_pickle|weights_only=False", text), path
        for call in re.findall(r"torch\.load\(([^)]*)\)", text):
            found += 1
            assert "weights_only=True" in call, path
    assert found


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_wheels_names_a_missing_python():
    command = ["make", "wheels", "PYTHONS=9.99", f"PYTHON={sys.executable}", "VENV="]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode != 0
    assert "make wheels: python9.99 does not run: put it on PATH or leave it out of PYTHONS" in found.stderr


def test_table_of_tanh():
    """The table is what its script computes."""
    folder = ROOT / "csrc" / "cpu"
    assert runpy.run_path(str(folder / "tanh_table.py"))["header"]() == (folder / "tanh_table.h").read_text()
