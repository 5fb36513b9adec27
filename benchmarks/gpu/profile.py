"""Part: ncu on the tiers' kernels: all launches of one training step per tier.

    python -m benchmarks.gpu.profile --tiers cluster,grid,stepwise

One process for all tiers, because torch takes seconds to load under ncu. All counters go to the records, some to a
table. The file that ncu writes stays under build/. Does not need torch itself.
"""

from __future__ import annotations

import argparse
import re
import sys

from . import records, tools

KERNELS = {"cluster": "cluster_loop", "grid": "grid_loop", "stepwise": "cell_(forward|backward)"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiers", required=True)
    options = parser.parse_args(arguments)
    kept = records.Records.of_this_process("profile", options.device)
    program = [sys.executable, "-m", "benchmarks.gpu.small", "--device", options.device, "--tiers", options.tiers]
    program.append("--profile")
    file = records.ROOT / "build" / "ncu" / f"{re.sub('[^0-9A-Za-z]+', '-', kept.run)}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    kernels = {tier: KERNELS[tier] for tier in options.tiers.split(",") if tier in KERNELS}
    command = tools.ncu("|".join(kernels.values()), file, program) if options.device == "cuda" else None
    code, lines = tools.stream(command or program, seconds=records.seconds_left())
    launches = list(tools.counters(file)) if command else []
    missing = [tier for tier, kernel in kernels.items() if not any(re.search(kernel, n["kernel"]) for n in launches)]
    if command is None:
        status = f"no counters: no ncu {'here' if options.device == 'cuda' else 'for a CPU'}; the layers ran without it"
    elif not launches and (refusal := tools.refused(lines + tools.lines_of(file))):
        status, code = f"no counters: ncu is refused: {refusal}", 0
    else:
        status = f"{len(launches)} launches" + (f", none of {', '.join(missing)}" if missing else "")
    if code is None:
        status, code = f"not finished; {status}", 1
    elif "is refused" not in status and command and missing:
        code = code or 1
    for launch in launches:
        tier = next((tier for tier, kernel in kernels.items() if re.search(kernel, launch["kernel"])), None)
        kept.write("counters", tier=tier, **launch)
        print(launch["kernel"])
        for name in tools.METRICS:
            if name in launch["metrics"]:
                print(f"  {name}: {' '.join(launch['metrics'][name])}", flush=True)
    kept.write("profile", tier=options.tiers, status=status, launches=len(launches), code=code)
    print(f"ncu, {options.tiers}: {status}", flush=True)
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
