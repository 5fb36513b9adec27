"""How a part begins: its device, its records with their header, its time; and one case after the other, guarded."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time

import torch

import lstmkern
from lstmkern.bench import report

from . import device, records


class Session:
    """One process of a command: `say` prints a line at once, `case` runs something that may fail."""

    def __init__(self, part: str, options: argparse.Namespace):
        self.options, self.device = options, device.named(options.device)
        if missing := self.device.missing():
            sys.exit(f"{missing}: `make gpu-first DEVICE=cpu` rehearses without.")
        self.rehearsal = self.device.name == "cpu"
        self.records = records.Records.of_this_process(part, self.device.name)
        self.failed = 0
        self.say(f"{part}: torch {torch.__version__}, {self.records.write('header', **about(self.device))['device']}")

    def say(self, *words) -> None:
        print(*words, flush=True)

    def out_of_time(self, **where) -> bool:
        """Whether nothing new is to be started; then it says so."""
        if records.seconds_left() > 0:
            return False
        self.records.write("time is up", **where)
        self.say("time is up")
        return True

    def case(self, what: str, function) -> object:
        """function()'s result. An error is a line and a record, not the end; but an error that ended the CUDA context
        ends the process, since everything after it would fail too."""
        try:
            return function()
        except Exception as error:
            self.failed += 1
            first = (str(error).strip() or "without a message").splitlines()[0]
            self.say(f"FAILED {what}: {type(error).__name__}: {first}")
            self.records.write("failure", what=what, error=f"{type(error).__name__}: {error}"[:2000])
            if not self.device.alive():
                self.say("the CUDA context is gone: this process ends here")
                self.finish()
            return None

    def plan(self, tier: str, work) -> dict | None:
        """The tier's plan for both passes of a layer, for the record: {"forward": ..., "backward": ...}."""
        plans = {}
        for name, backward in (("forward", False), ("backward", True)):
            try:
                asked = (tier, work.cell, work.dtype, work.N, work.H, work.directions, backward)
                plans[name] = self.device.plan(*asked)
            except Exception as error:  # a plan is worth a note, never a measurement
                plans[name] = f"{type(error).__name__}: {error}"
        return plans if any(plans.values()) else None

    def finish(self) -> None:
        sys.stdout.flush()
        if self.failed and not self.device.alive():
            os._exit(1)  # at once: tearing down a context that has had an error can hang
        sys.exit(1 if self.failed else 0)


def about(where) -> dict:
    """The header of a process's records."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": report.command(),
        "commit": records.commit(),
        "sources": {
            "compiled": records.compiled_digest(),
            "all": records.digest("csrc/**/*", "setup.py", "lstmkern/**/*.py", "benchmarks/gpu/*.py", "tests/**/*.py"),
        },
        "extension": {**lstmkern._C.build_info(), "file": os.path.basename(lstmkern._C.__file__)},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": report.cpu(),
        "device": where.name,
        "facts": where.facts(),
        "tier": os.environ.get(where.tier_variable),
    }


def arguments(description: str, **more) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    return parser
