"""A process of a part: its device, records, time limit, and cases whose errors do not end the process."""

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
    """One process of a command. `say` prints a line at once, `case` runs something that may fail."""

    def __init__(self, part: str, options: argparse.Namespace):
        self.options, self.device = options, device.named(options.device)
        if missing := self.device.missing():
            sys.exit(f"{missing}; for a rehearsal on the CPU run `make gpu-first DEVICE=cpu`.")
        self.rehearsal = self.device.name == "cpu"
        self.records = records.Records.of_this_process(part, self.device.name)
        self.failed = 0
        self.say(f"{part}: torch {torch.__version__}, {self.records.write('header', **about(self.device))['device']}")

    def say(self, *words) -> None:
        print(*words, flush=True)

    def out_of_time(self, **where) -> bool:
        """Whether no time is left to start anything new; if so, prints and records it."""
        if records.seconds_left() > 0:
            return False
        self.records.write("time is up", **where)
        self.say("time is up")
        return True

    def case(self, what: str, function) -> object:
        """Returns function()'s result, or None after an error, which is printed and recorded.

        An error that ended the CUDA context ends the process, because everything after it would fail too.
        """
        try:
            return function()
        except Exception as error:
            self.failed += 1
            first = (str(error).strip() or "without a message").splitlines()[0]
            self.say(f"FAILED {what}: {type(error).__name__}: {first}")
            self.records.write("failure", what=what, error=f"{type(error).__name__}: {error}"[:2000])
            if not self.device.alive():
                self.say("the CUDA context has ended, and with it this process")
                self.finish()
            return None

    def plan(self, tier: str, work) -> dict | None:
        """The tier's plan for both passes of a layer: {"forward": ..., "backward": ...}."""
        plans = {}
        for name, backward in (("forward", False), ("backward", True)):
            try:
                asked = (tier, work.cell, work.dtype, work.N, work.H, work.directions, backward)
                plans[name] = self.device.plan(*asked)
            except Exception as error:  # an error in a plan must not end a measurement
                plans[name] = f"{type(error).__name__}: {error}"
        return plans if any(plans.values()) else None

    def finish(self) -> None:
        sys.stdout.flush()
        if self.failed and not self.device.alive():
            os._exit(1)  # without cleaning up: that can hang after an error in the context
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
