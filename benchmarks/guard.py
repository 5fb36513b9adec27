"""A guard against regressions that needs no clock: instruction counts of small layers, compared with a baseline.

    python -m benchmarks.guard [--strict] [--update] [--out guard.json]

valgrind's callgrind counts every instruction in the kernels, so the result is the same on a busy and on a slow machine.
callgrind does not know AVX-512, so the AVX2 kernels are counted. Without valgrind, the guard prints ratios to torch.nn
instead, all from one run. A change is reported; the exit code stays 0 unless --strict is given. The baseline
(benchmarks/results/guard.json) names its compiler and torch; others may give other counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lstmkern.bench import report
from lstmkern.bench.cases import Case, Contest
from lstmkern.bench.measure import Pairs, quiet

BASELINE = Path(__file__).parent / "results" / "guard.json"
TOLERANCE = 0.02  # a larger change is marked
CAPABILITY = "avx2"
# T, N, I, H. The last three are small networks: one sequence, a few, and units that do not fill a panel of 16.
SHAPES = ((1, 1, 48, 64), (8, 1, 48, 64), (8, 12, 48, 64), (32, 1, 16, 16), (16, 8, 32, 32), (16, 5, 40, 20))
CASES = [Case(cell, *shape, train=train) for shape in SHAPES for cell in ("LSTM", "GRU") for train in (False, True)]


def child() -> None:
    """The process under valgrind: runs every case once to warm up and once counted, in step with the parent."""
    with quiet(1):
        for case in CASES:
            ours = Contest(case).ours
            ours()
            print("ready", flush=True)
            sys.stdin.readline()
            ours()
            print("done", flush=True)
            sys.stdin.readline()


def count_instructions() -> list[int]:
    """For each of CASES, the instructions in the kernels' entry points and everything that they call."""
    environment = {**os.environ, "LSTMKERN_CPU_CAPABILITY": CAPABILITY, "OMP_NUM_THREADS": "1"}
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--instr-atstart=no"),
            # Count only within the two entry points of the back end (csrc/layer.h), not Python and torch.
            *("--collect-atstart=no", "--toggle-collect=lstmkern::cpu::forward(lstmkern::Forward const&)"),
            "--toggle-collect=lstmkern::cpu::backward(lstmkern::Backward const&)",
            *(sys.executable, "-m", "benchmarks.guard", "--child"),
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
            try:
                for k in range(len(CASES)):
                    _expect(process, "ready")
                    if k == 0:  # instrument from the first counted call on; nothing is collected before
                        _control("--instr=on", process.pid)
                    _control("--zero", process.pid)
                    _answer(process)
                    _expect(process, "done")
                    _control("--dump", process.pid)
                    _answer(process)
                    # The dumps are numbered from 1.
                    text = Path(folder, f"out.{k + 1}").read_text()
                    counts.append(int(re.search(r"^(?:totals|summary): (\d+)", text, re.M)[1]))
            except BaseException:
                process.kill()
                raise
    return counts


def _expect(process: subprocess.Popen, word: str) -> None:
    if (line := process.stdout.readline().strip()) != word:
        process.kill()
        raise RuntimeError(f"under valgrind: {line or process.stderr.read()[-400:]}")


def _answer(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def _control(command: str, pid: int) -> None:
    subprocess.run(["callgrind_control", *command.split("="), str(pid)], check=True, capture_output=True, timeout=60)


def compare(counts: dict[str, int], baseline: dict[str, int]) -> tuple[str, int]:
    """A Markdown table of ``counts`` compared with ``baseline``, and how many exceed it by more than TOLERANCE."""
    rows, worse = [], 0
    for name, now in counts.items():
        known = baseline.get(name)
        change = (now / known - 1) if known else 0
        worse += change > TOLERANCE
        mark = "MORE" if change > TOLERANCE else "less" if change < -TOLERANCE else ""
        rows.append([name, f"{known:,}" if known else "-", f"{now:,}", f"{change:+.1%}" if known else "new", mark])
    return report.markdown(["instructions", "baseline", "now", "change", ""], rows), worse


def ratios() -> str:
    """A Markdown table of ratios to torch.nn, for machines without valgrind."""
    rows = []
    with quiet(1):
        for case in CASES:
            contest = Contest(case)
            result = Pairs(contest.ours, contest.theirs).run(0.3).result()
            rows.append([str(case), *(report.number(result[k]) for k in ("ratio", "ratio_low", "ratio_high"))])
    return report.markdown(["ratio to torch.nn", "median", "low quartile", "high quartile"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a count rose by more than 2 %%")
    parser.add_argument("--update", action="store_true", help="save the current counts as the baseline")
    parser.add_argument("--out", type=Path, help="write the counts to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child()
        return 0
    if not shutil.which("valgrind"):
        print("valgrind is not installed: ratios to torch.nn instead of instruction counts\n")
        print(ratios())
        return 0
    counts = dict(zip(map(str, CASES), count_instructions(), strict=True))
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"instructions": {}}
    table, worse = compare(counts, known["instructions"])
    print(table)
    if known["instructions"]:
        print(f"baseline: {report.machine_line(known)}, {known['versions']['compiler']}")
    for path in (args.out, BASELINE if args.update else None):
        if path:
            about = {**report.context(1), "capability": CAPABILITY, "unit": "instructions in the kernels, one call"}
            report.write_json(path, about, instructions=counts)
    if worse:
        print(f"{worse} of {len(counts)} need over {TOLERANCE:.0%} more instructions than the baseline")
    return 1 if worse and args.strict else 0


if __name__ == "__main__":
    sys.exit(main())
