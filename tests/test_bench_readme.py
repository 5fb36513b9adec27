"""The tables of README.md and docs/ come from the result files: benchmarks/readme.py."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

from benchmarks import readme
from lstmkern.bench import report

ROOT = readme.ROOT
RESULTS = ROOT / "benchmarks" / "results"
LINE = {
    "cell": "LSTM",
    "shape": "128,128,512,512,1",
    "dtype": "fp32",
    "train": True,
    "threads": 1,
    "ratio": 2.5,
    "share": 0.5,
    "goal": None,
}


@pytest.fixture
def tree(tmp_path):
    """A directory with the pages of the repository and an empty results/."""
    for page in readme.TABLES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    (tmp_path / "results").mkdir()
    return tmp_path


def run(tree: Path, results: Path | None = None) -> int:
    return readme.main(["--root", str(tree), "--results", str(results or tree / "results")])


def texts(tree: Path) -> dict[str, str]:
    return {page: (tree / page).read_text(encoding="utf-8") for page in readme.TABLES}


def test_the_committed_pages_are_current(tree):
    """After a change of a result file or of benchmarks/readme.py: python -m benchmarks.readme"""
    before = texts(tree)
    assert run(tree, RESULTS) == 0
    assert texts(tree) == before


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_tables_change_with_the_results(tree):
    before = texts(tree)
    line = {**LINE, "cell": "LSTM", "token_cost": 1.05, "torch_token_cost": 2.5, "layout": "packed"}
    report.write_json(tree / "results/goals.json", report.context(1), cases=[LINE], peaks=[], roofline=[])
    report.write_json(tree / "results/bench_varlen.json", report.context(1), cases=[line])
    assert run(tree) == 0
    after = texts(tree)
    assert after["README.md"] != before["README.md"]
    assert "| T 128, N 128, I = H = 512 | -              | 2.50 (50%)" in after["README.md"]
    long = after["docs/performance.md"]
    assert "2.50 (50%)" in long and "9.98 / 6" not in long
    costs = next(row for row in long.splitlines() if row.startswith("| LSTM training, T 128, N 128, I = H = 512"))
    assert [cell.strip() for cell in costs.split("|")[2:5]] == ["1.05", "-", "2.50"]
    assert run(tree) == 0
    assert texts(tree) == after


def test_missing_results_leave_their_tables(tree, capsys):
    before = texts(tree)
    assert run(tree) == 1
    assert "no results in" in capsys.readouterr().err
    report.write_json(tree / "results/bench_cells.json", report.context(1), cases=[LINE])
    assert run(tree) == 0
    assert re.search(r"no results for .*bounds.*goals.*growth", capsys.readouterr().out)
    after = texts(tree)
    assert after["README.md"] == before["README.md"]  # its four rows are from other files
    assert "| cells, training | 2.50 to 2.50, median 2.50" in after["docs/performance.md"]
    goals = re.compile("<!-- goals:begin -->.*<!-- goals:end -->", re.DOTALL)
    assert goals.findall(after["docs/performance.md"]) == goals.findall(before["docs/performance.md"])


def test_a_page_without_its_marker_is_named(tree, capsys):
    before = texts(tree)
    page = tree / "docs/performance.md"
    page.write_text(before["docs/performance.md"].replace("<!-- families:end -->", ""))
    assert run(tree, RESULTS) == 1
    assert "docs/performance.md: the page must hold" in capsys.readouterr().err
    assert (tree / "README.md").read_text() == before["README.md"]


def test_the_claim_is_what_the_files_say():
    """Each entry of README's first table, looked up in the files by hand."""
    table = readme.claim(readme.Results(RESULTS))
    found = json.loads((RESULTS / "bench_varlen.json").read_text())["cases"]
    wanted = {"shape": "100,64,128,128,1", "layout": "packed", "cell": "GRU", "train": True}
    (case,) = [c for c in found if all(c[k] == v for k, v in wanted.items())]
    row = next(line for line in table.splitlines() if "variable lengths" in line)
    assert row.split("|")[-2].strip() == f"{case['ratio']:.1f}"
    assert table.count("\n|") == 5  # a header, its rule, four rows
    assert "2 threads" in table


def test_pictures_are_current_and_have_their_alt_text():
    """After a change of docs/pictures/draw.py: python docs/pictures/draw.py"""
    folder = ROOT / "docs" / "pictures"
    page = (ROOT / "docs" / "how-it-is-fast.md").read_text(encoding="utf-8")
    for draw in runpy.run_path(str(folder / "draw.py"))["PICTURES"]:
        picture, name = draw(), f"{draw.__name__}.svg"
        assert picture.svg() == (folder / name).read_text(encoding="utf-8")
        assert f"![{picture.title}](pictures/{name})" in page
