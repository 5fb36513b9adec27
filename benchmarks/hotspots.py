"""Where a layer spends its time: the share of samples in each group of our functions, by Linux perf.

    python -m benchmarks.hotspots [--seconds 4] [--out benchmarks/results]

A separate process runs one layer in a loop on one thread. Once it is warm, perf samples it 2000 times a second
(`perf record -e cpu-clock`, which needs no hardware counters). Prints Markdown. With --out, also writes hotspots.json
into that directory; benchmarks.readme makes the table in docs/performance.md of it. Without perf, prints a message and
changes no file.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lstmkern.bench import report
from lstmkern.bench.cases import Case, Contest
from lstmkern.bench.measure import quiet

CASES = [
    Case(cell, *sizes, train=train)
    for sizes in ((128, 128, 512, 512), (128, 32, 256, 256), (16, 64, 64, 64, 2))
    for cell in ("LSTM", "GRU")
    for train in (False, True)
]
RATE = 2000  # samples per second
SYSTEM = "[system] "  # prefix of the symbols of the operating system's kernel
# A symbol belongs to the first group whose pattern matches. Inlined code counts for its caller: the cell for a step.
GROUPS = {
    "microkernel": r"\bkernel<1,",
    "microkernel of dW": r"\bkernel<",
    "packing": r"\bpack(_\w+)?[<(]|Kernel<.*>::prepare\(",
    "adding to dW": r"::(add_product|weight_gradients|add_rows)\b",
    "cell": r"\b(Forward|Backward)Kernel<|\bfinish_(forward|backward)<",
    "system": r"^\[system\]",
    "other": "",
}


def group_of(symbol: str) -> str:
    """The group in GROUPS of a demangled symbol; "other" if it is neither ours nor the operating system's."""
    if not re.search(r"\blstmkern::", symbol):
        return "system" if symbol.startswith(SYSTEM) else "other"
    return next(name for name, pattern in GROUPS.items() if re.search(pattern, symbol))


def grouped(symbols: Iterable[str]) -> dict[str, float]:
    """{group: share of the samples}, in the order of GROUPS. symbols: one per sample."""
    counts = collections.Counter(map(group_of, symbols))
    total = sum(counts.values())
    return {name: counts[name] / total for name in GROUPS}


def loop(case: Case) -> None:
    """Run our layer until the process is killed. Prints "warm" after the first call."""
    with quiet(1):
        run = Contest(case).ours
        run()
        print("warm", flush=True)
        while True:
            run()


def samples(case: Case, seconds: float) -> list[str]:
    """The demangled symbol of each sample taken in ``seconds``."""
    command = [sys.executable, "-m", "benchmarks.hotspots", "--loop", str(CASES.index(case))]
    root = Path(__file__).resolve().parent.parent
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process,
    ):
        try:
            if process.stdout.readline() != b"warm\n":
                raise RuntimeError(f"{' '.join(command)} ended before it was warm")
            data = str(Path(folder, "perf.data"))
            record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(RATE), "-p", str(process.pid), "-o", data]
            subprocess.run([*record, "--", "sleep", str(seconds)], check=True, capture_output=True)
            script = ["perf", "script", "-i", data, "-F", "ip,sym,dso"]
            listed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        finally:
            process.kill()
    return [symbol for line in listed.splitlines() if (symbol := symbol_in(line))]


def symbol_in(line: str) -> str | None:
    """The symbol in a line of `perf script`: "  7f12ab34 some::function(int) (/path/of/library.so)". None if empty."""
    match = re.fullmatch(r"\s*[0-9a-f]+ (.*) \((.*?)\)", line)
    return match and (SYSTEM if match[2].startswith("[") else "") + match[1]


def table(cases: list[dict]) -> str:
    """Markdown: the share of the samples in each group."""
    rows = []
    for case in cases:
        name = f"{case['cell']} {case['shape']} {'train' if case['train'] else 'infer'}"
        rows.append([name, *(f"{case['shares'][group]:.0%}" for group in GROUPS), str(case["samples"])])
    return report.markdown(["fp32: T,N,I,H,layers", *GROUPS, "samples"], rows)


def document(about: dict) -> str:
    """Markdown, from the content of hotspots.json."""
    head = f"{report.machine_line(about)}, one thread; `{about['command']}`"
    return f"{head}\n\nShare of the samples (perf, cpu-clock, {RATE} per second):\n\n{table(about['cases'])}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="how long each layer is sampled")
    parser.add_argument("--out", type=Path, help="write hotspots.json into this directory")
    parser.add_argument("--loop", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.loop is not None:
        loop(CASES[args.loop])
    if not shutil.which("perf"):
        print("no samples: Linux perf is not installed", file=sys.stderr)
        return 0
    about = report.context(1)
    found = []
    for case in CASES:
        try:
            symbols = samples(case, args.seconds)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").decode() if isinstance(error.stderr, bytes) else error.stderr or ""
            print(f"no samples: perf failed: {' '.join(said.split())[:300]}", file=sys.stderr)
            return 0
        common = collections.Counter(symbols).most_common(12)
        found.append(
            {
                "cell": case.cell,
                "shape": case.shape,
                "train": case.train,
                "samples": len(symbols),
                "shares": grouped(symbols),
                "symbols": [[symbol, count / len(symbols)] for symbol, count in common],
            }
        )
    print(document({**about, "cases": found}))
    if args.out:
        report.write_json(args.out / "hotspots.json", about, cases=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
