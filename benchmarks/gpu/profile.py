"""Part: ncu on a tier's kernel, a launch of each pass.

    python -m benchmarks.gpu.profile --tier cluster

All counters go to a file, some to a table. Needs no torch itself.
"""

from __future__ import annotations

import argparse
import sys

from . import records, tools

# kernel, launches to skip, launches to look at: a forward and a backward one of the second training step (small.py; a
# stepwise pass has a launch for each of its 8 time steps)
KERNELS = {
    "cluster": ("cluster_loop", 2, 2),
    "grid": ("grid_loop", 2, 2),
    "stepwise": ("cell_(forward|backward)", 23, 2),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tier", required=True)
    options = parser.parse_args(arguments)
    kept = records.Records.of_this_process("profile", options.device)
    program = [sys.executable, "-m", "benchmarks.gpu.small", "--device", options.device, "--tiers", options.tier]
    program.append("--profile")
    file = kept.path.with_name(f"{kept.path.stem}-ncu-{options.tier}.csv")
    kernel, skip, count = KERNELS.get(options.tier, ("none", 0, 1))
    command = tools.ncu(kernel, skip, count, file, program) if options.device == "cuda" else None
    code, lines = tools.stream(command or program)
    launches = list(tools.counters(file)) if command else []
    if command is None:
        status = f"no counters: no ncu {'here' if options.device == 'cuda' else 'for a CPU'}; the layer ran without it"
    elif not launches and (refusal := tools.refused(lines + tools.lines_of(file))):
        status, code = f"no counters: ncu is refused: {refusal}", 0
    else:
        status = f"{len(launches)} launches in {file.name}"
        code = code or (0 if launches else 1)
    for launch in launches:
        kept.write("counters", tier=options.tier, **launch)
        print(launch["kernel"])
        for name in tools.METRICS:
            if name in launch["metrics"]:
                print(f"  {name}: {' '.join(launch['metrics'][name])}", flush=True)
    kept.write("profile", tier=options.tier, status=status, launches=len(launches), code=code)
    print(f"ncu, {options.tier}: {status}", flush=True)
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
