"""Part: small layers under compute-sanitizer.

    python -m benchmarks.gpu.sanitize --tool memcheck --tiers cluster,grid

Does not need torch itself; the program that it runs does. Each report becomes a record as it comes. A tool that has not
finished shortly before the part's limit is ended, so that a record can say so. Only a finished run without any report,
warnings included, counts as clean.
"""

from __future__ import annotations

import argparse
import sys
import time

from . import records, tools

EARLIER = 4  # seconds before the end of this part at which the layers start nothing new
PORTS = {"memcheck": 49200, "racecheck": 49300, "synccheck": 49400, "initcheck": 49500}


def small_stopped(lines: list[str]) -> bool:
    return "time is up" in lines  # session.py


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tool", choices=PORTS, default="memcheck")
    parser.add_argument("--tiers", required=True)
    options = parser.parse_args(arguments)
    kept = records.Records.of_this_process("sanitize", options.device)
    program = [sys.executable, "-m", "benchmarks.gpu.small", "--device", options.device, "--tiers", options.tiers]
    command = tools.sanitizer(options.tool, program, PORTS[options.tool]) if options.device == "cuda" else None
    # The layers stop a little earlier, so that the tool can print its summary.
    left = records.seconds_left()
    told = {} if left == float("inf") else kept.environment(kept.part, time.time() + left - EARLIER)

    def seen(line: str) -> None:
        for report in tools.sanitizer_errors([line]):
            kept.write("sanitizer report", tool=options.tool, tiers=options.tiers, report=report)

    code, lines = tools.stream(command or program, told, left, seen)
    found = tools.sanitizer_errors(lines)
    reports = sum("SUMMARY" not in line for line in found)
    if code is None or small_stopped(lines):
        status, code = f"not finished; {reports} reports", code or 1
    elif command is None:
        why = "no compute-sanitizer here" if options.device == "cuda" else "no compute-sanitizer for a CPU"
        status = f"not checked: {why}; the layers ran without it"
    elif refusal := tools.refused(lines):
        status, code = f"not checked: compute-sanitizer is refused: {refusal}", 0
    else:
        status = f"errors (exit code {code})" if code else f"{reports} reports" if reports else "clean"
        code = code or reports
    kept.write("sanitizer", tool=options.tool, tiers=options.tiers, status=status, found=found[:40], code=code)
    print(f"{options.tool}: {status}", flush=True)
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
