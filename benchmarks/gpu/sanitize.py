"""Part: small layers under compute-sanitizer.

    python -m benchmarks.gpu.sanitize --tool memcheck --tiers cluster,grid

Needs no torch itself: what it starts does.
"""

from __future__ import annotations

import argparse
import sys

from . import records, tools

PORTS = {"memcheck": 49200, "racecheck": 49300, "synccheck": 49400, "initcheck": 49500}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tool", choices=PORTS, default="memcheck")
    parser.add_argument("--tiers", required=True)
    options = parser.parse_args(arguments)
    kept = records.Records.of_this_process("sanitize", options.device)
    program = [sys.executable, "-m", "benchmarks.gpu.small", "--device", options.device, "--tiers", options.tiers]
    command = tools.sanitizer(options.tool, program, PORTS[options.tool]) if options.device == "cuda" else None
    code, lines = tools.stream(command or program)
    found = tools.sanitizer_errors(lines)
    if command is None:
        why = "no compute-sanitizer here" if options.device == "cuda" else "no compute-sanitizer for a CPU"
        status = f"not checked: {why}; the layers ran without it"
    elif refusal := tools.refused(lines):
        status, code = f"not checked: compute-sanitizer is refused: {refusal}", 0
    else:
        status = "clean" if code == 0 else f"errors (exit code {code})"
    kept.write("sanitizer", tool=options.tool, tiers=options.tiers, status=status, found=found[:40], code=code)
    print(f"{options.tool}: {status}", flush=True)
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
