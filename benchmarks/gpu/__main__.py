"""`python -m benchmarks.gpu first|check|bench`: what `make gpu-first`, `gpu-check` and `gpu-bench` run. Needs no torch.

Runs the command's parts (parts.py), each as `timeout -k` of a module in a process of its own, shows their lines as they
come, and prints the table of what there is. Leaves gpu-COMMAND.jsonl, to which every process appends, and
gpu-COMMAND.log, all lines, in $OUT or benchmarks/results/ (a rehearsal on the CPU: $OUT or build/gpu-rehearsal/).
Exit code 0: every part succeeded; 1: some did not; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time

from . import extension, parts, records, tables, tools

TORCH_PATIENCE = 60  # seconds for torch to say whether there is a GPU
DEATH = 5  # seconds that a process may take to go after the signal that it cannot refuse: a driver can keep it
STUCK = -1000  # in place of an exit code: it did not go
STATUS = {0: "ok", STUCK: "does not die", **dict.fromkeys((124, 137, -9), "killed at its limit")}


class Command:
    """A run of one command."""

    def __init__(self, name: str, device: str):
        self.name, self.device, self.start = name, device, time.monotonic()
        self.records = records.Records(
            records.folder(device) / f"gpu-{name}.jsonl", records.new_run(), "command", device
        )
        self.log = open(self.records.path.with_suffix(".log"), "a", encoding="utf-8")  # noqa: SIM115
        self.lock, self.running, self.failed = threading.Lock(), [], []

    def say(self, line: str) -> None:
        with self.lock:
            for stream in (sys.stdout, self.log):
                stream.write(line + "\n")
                stream.flush()

    def left(self) -> float:
        """Seconds of the command's time; a rehearsal's parts have limits, but the whole has none."""
        if self.device == "cpu":
            return float("inf")
        return parts.LIMITS[self.name] - (time.monotonic() - self.start)

    def process(self, part: parts.Part, limit: int) -> subprocess.Popen:
        until = time.time() + part.own_time * limit / part.limit if part.own_time and self.device == "cuda" else None
        told = {**self.records.environment(part.name, until), "PYTHONUNBUFFERED": "1"}
        if self.device == "cpu":
            told["OMP_NUM_THREADS"] = "1"
        if part.tier:
            told[parts.VARIABLE[self.device]] = part.tier
        command = ["timeout", "-k", str(parts.GRACE), str(limit), sys.executable, "-m", part.module]
        command += ["--device", self.device, *part.words]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        return subprocess.Popen(command, cwd=records.ROOT, env={**os.environ, **told}, **options)

    def show(self, name: str, process: subprocess.Popen) -> None:
        for line in process.stdout:
            self.say(f"[{name}] {line.rstrip()}")

    def limit(self, part: parts.Part, later: float) -> int:
        """Seconds that a part gets: its limit, at most twice that where the parts before it have saved time, and less
        where little is left. later: what the groups after it may take."""
        if self.device == "cpu":
            return parts.REHEARSAL
        left = int(self.left()) - parts.GRACE
        return min(left, max(part.limit, min(2 * part.limit, left - later)))

    def together(self, group: list[parts.Part], later: float = float("inf")) -> list[int | None]:
        """Runs the parts side by side; their exit codes, None for one that there was no time for."""
        begun, codes = [], []
        for part in group:
            limit = self.limit(part, later)
            if limit < part.limit / 2:
                begun.append((part, limit, None, None, 0.0))
                continue
            process = self.process(part, limit)
            self.running.append(process)
            reader = threading.Thread(target=self.show, args=(part.name, process), daemon=True)
            reader.start()
            begun.append((part, limit, process, reader, time.monotonic()))
        for part, limit, process, reader, start in begun:
            if process is None:
                self.ended(part, None, 0.0, limit)
                codes.append(None)
                continue
            try:
                code = process.wait(max(0.0, start + limit + parts.GRACE + DEATH - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = STUCK
            seconds = time.monotonic() - start
            reader.join(1)  # a process that outlived the part may hold the pipe
            self.running.remove(process)
            self.ended(part, code, seconds, limit)
            codes.append(code)
        return codes

    def ended(self, part: parts.Part, code: int | None, seconds: float, limit: int) -> None:
        status = "left out: no time" if code is None else STATUS.get(code, f"failed (exit code {code})")
        if part.module == "benchmarks.gpu.extension" and code == extension.TO_BUILD:
            status = "has to be built"
        elif code != 0:
            self.failed.append(part.name)
        self.records.write("part", name=part.name, status=status, code=code, seconds=seconds, limit=limit)
        self.say(f"== {part.name}: {status}, {seconds:.1f} s")

    def extension_ready(self, group: list[parts.Part]) -> int:
        """0 when the extension loads, after a build if need be."""
        (part,) = group
        (code,) = self.together(group)
        # A negative code: it crashed as it was loaded.
        if code == extension.TO_BUILD or (code is not None and STUCK < code < 0):
            built = parts.Part("build", parts.BUILD, part.module, ("--build",))
            (code,) = self.together([built])
            if code == 0:
                (code,) = self.together(group)
        return 1 if code is None else code

    def run(self, only: list[str]) -> int:
        first, *rest = parts.groups(self.name, self.device)
        self.say(f"gpu-{self.name} on {self.device}: {self.records.path}")
        code = self.extension_ready(first)
        if code == extension.NO_GPU:  # a GPU, but not for this torch
            return extension.NO_GPU
        # Also where it did not load in its time: the next process may be faster, or say why.
        chosen = [[p for p in group if not only or any(p.name.startswith(name) for name in only)] for group in rest]
        chosen = [group for group in chosen if group]
        for i, group in enumerate(chosen):
            self.together(group, parts.seconds(chosen[i + 1 :]))
        return self.end()

    def end(self) -> int:
        for line in tables.everything(records.read(self.records.path, self.records.run)):
            self.say(line)
            if line.startswith(tables.NO_TABLE):
                self.failed.append("tables")
        failed = f"FAILED: {' '.join(dict.fromkeys(self.failed))}" if self.failed else "every part succeeded"
        self.say(f"gpu-{self.name}: {failed}; {time.monotonic() - self.start:.0f} s; {self.records.path}")
        return 1 if self.failed else 0

    def stop(self) -> None:
        """Ends what runs: `timeout` passes the signal on to its whole group."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            self.failed.append("what was running")
            try:
                process.wait(parts.GRACE + 2)
            except subprocess.TimeoutExpired:
                process.kill()


def torch_sees_a_gpu() -> bool:
    asked = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    process = subprocess.Popen(asked, stderr=subprocess.DEVNULL)
    try:
        return process.wait(TORCH_PATIENCE) == 0
    except subprocess.TimeoutExpired:  # subprocess.run() would then wait for its end
        process.kill()
        return False


def interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=parts.LIMITS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--only", default="", help="parts, by the beginnings of their names: smoke,tests")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not (tools.gpus() or torch_sees_a_gpu()):
        print(f"No GPU here that torch can use; `make gpu-{options.command} DEVICE=cpu` rehearses without one.")
        return extension.NO_GPU
    command = Command(options.command, options.device)
    signal.signal(signal.SIGTERM, interrupted)
    try:
        return command.run([name for name in options.only.split(",") if name])
    except KeyboardInterrupt:
        command.stop()
        return command.end()


if __name__ == "__main__":
    sys.exit(main())
