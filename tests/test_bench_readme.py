"""The tables of README.md and docs/ come from the result files: benchmarks/readme.py."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

from benchmarks import readme, small_tables
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
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
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
    assert re.search(r"no results for .*bench_small.*bounds.*goals", capsys.readouterr().out)
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
    assert "2 threads" in table and "1 thread;" in table


def small_case(ratio, **fields) -> dict:
    about = {"part": "sizes", "module": "layer", "cell": "GRU", "shape": "10,5,16,16,1", "train": False, "threads": 1}
    about |= {"peer": "torch.nn", "ratio": ratio, "ours_ms": 0.5, "peer_ms": 0.5 * ratio, "floor_ms": 0.1}
    return {**about, **fields}


def test_small_networks_by_hand():
    cases = [
        small_case(4.0, floor_ms=0.4),
        *(small_case(ratio) for ratio in (9.0, 20.0)),
        small_case(0.5, shape="10,5,128,128,1"),
        small_case(0.25, peer="JAX", train=True),
        small_case(3.0, part="calls", shape="1,1,64,64,1", module="cell"),
        *(small_case(2.0, part="threads", threads=n, ours_ms=n / 4) for n in (1, 2)),
        small_case(5.0, part="busy", threads=2, ours_slowdown=2.25),
    ]
    about = {**report.context(1), "cases": cases, "peers": {"onnxruntime": None, "jax": "1.2"}, "commit": "a" * 40}
    about["parts"] = {"sizes": {"commit": "a" * 40}, "busy": {"commit": "b" * 40}}
    read = lambda table: [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]  # noqa: E731
    assert read(small_tables.summary(about))[2:] == [
        ["torch.nn", "-", "-", "9 (4)", "-", "-", "-"],  # H up to 64
        ["JAX", "-", "-", "-", "0.25 (0.25)", "-", "-"],
    ]
    sizes = small_tables.sizes(about)
    assert sizes.splitlines()[0].endswith("; jax 1.2. Measured at another commit: busy at bbbbbbbbb.")
    row = next(row for row in read(sizes) if row[0] == "GRU inference")
    # Of the three with H up to 64, two are at least 8, and one could be at most 5.
    assert row[1:] == ["9 (4)", "0.5 (0.5)", "8", "2 of 3", "1"]
    missed = ["GRU 10,5,16,16", "inference", "500", "400", "4", "5", "8"]
    assert read(small_tables.missed(about))[2:] == [missed]
    assert small_tables.missed({"cases": cases[1:]}) == "Every case reaches its goal."
    head, _, row = read(small_tables.threads(about))
    assert head[1:] == ["1 thread", "2 threads", "2 threads, busy"]
    assert row[1:] == ["0.25 ms: 2", "0.5 ms: 2", "0.5 ms: 5; slowed 2.2 times"]
    assert read(small_tables.calls(about))[2:] == [["GRUCell, H 64, inference", "500", "3"]]
    losses = small_tables.losses(about)
    assert "slower in 2 of 9 comparisons" in losses
    assert [row[-1] for row in read(losses)[2:]] == ["0.25", "0.5"]  # the largest loss first
    assert small_tables.losses({"cases": cases[:1]}) == "lstmkern is slower in 0 of 1 comparisons."


def test_small_networks_are_what_the_file_says():
    """README's table and the list of losses, looked up in the file by hand."""
    cases = json.loads((RESULTS / "bench_small.json").read_text())["cases"]
    table = readme.small("summary")(readme.Results(RESULTS))
    row = next(line for line in table.splitlines() if line.startswith("| torch.nn"))
    wanted = {"part": "sizes", "peer": "torch.nn", "cell": "RNN", "train": True}
    small = [c for c in cases if all(c[k] == v for k, v in wanted.items()) and int(c["shape"].split(",")[3]) <= 64]
    assert row.split("|")[-2].split()[1] == f"({min(c['ratio'] for c in small):.3g})"
    slower = sum(c["ratio"] < 1 for c in cases)
    page = (ROOT / "docs" / "benchmarks" / "small-networks.md").read_text()
    assert f"lstmkern is slower in {slower} of {len(cases)} comparisons" in page
    listed = page.partition("<!-- losses:begin -->")[2].partition("<!-- losses:end -->")[0]
    assert len(re.findall(r"^\| \w+ [\d,]+ +\| \w+ +\| \d+(?:, busy)? +\|", listed, re.M)) == slower
    (case,) = [
        c for c in cases if all(c[k] == v for k, v in {**wanted, "cell": "GRU", "shape": "100,8,32,32,1"}.items())
    ]
    line = next(x for x in readme.claim(readme.Results(RESULTS)).splitlines() if "small layer" in x)
    assert line.split("|")[-2].strip() == f"{case['ratio']:.1f}"


def test_pictures_are_current_and_have_their_alt_text():
    """After a change of docs/pictures/draw.py: python docs/pictures/draw.py"""
    folder = ROOT / "docs" / "pictures"
    page = (ROOT / "docs" / "how-it-is-fast.md").read_text(encoding="utf-8")
    for draw in runpy.run_path(str(folder / "draw.py"))["PICTURES"]:
        picture, name = draw(), f"{draw.__name__}.svg"
        assert picture.svg() == (folder / name).read_text(encoding="utf-8")
        assert f"![{picture.title}](pictures/{name})" in page
