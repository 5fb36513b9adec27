"""`python -m benchmarks.gpu first|check|bench`, for `make gpu-first`, `gpu-check` and `gpu-bench`. Does not need torch.

Runs the command's parts (parts.py). Each is a module in a process of its own under `timeout -k`. Their output is shown
as it comes, and the final tables are printed at the end. Results go to gpu-COMMAND.jsonl, to which every process
appends, and all output to gpu-COMMAND.log; both are in $OUT or benchmarks/results/ (for a rehearsal on the CPU in $OUT
or build/gpu-rehearsal/). Exit code 0: every part succeeded; 1: some did not; 2: there is no GPU.
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

TORCH_TIMEOUT = 60  # seconds for torch to say whether there is a GPU
DEATH = 5  # seconds that a process may take to end after SIGKILL: a GPU driver can delay it
STUCK = -1000  # in place of an exit code: the process did not end
STATUS = {0: "ok", STUCK: "does not end", **dict.fromkeys((124, 137, -9), "killed at its limit")}


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
        """The seconds that the command has left. A rehearsal has no limit as a whole, only its parts have."""
        if self.device == "cpu":
            return float("inf")
        return parts.LIMITS[self.name] - (time.monotonic() - self.start)

    def process(self, part: parts.Part, limit: int) -> subprocess.Popen:
        until = (
            time.time() + part.start_until * limit / part.limit if part.start_until and self.device == "cuda" else None
        )
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
        """The seconds that a part gets.

        They are the part's limit, or up to twice that if the parts before it have saved time, or less if the command
        runs out of time. later: the seconds that the groups after it may take.
        """
        if self.device == "cpu":
            return parts.REHEARSAL
        left = int(self.left()) - parts.GRACE
        return min(left, max(part.limit, min(2 * part.limit, left - later)))

    def run_group(self, group: list[parts.Part], later: float = float("inf")) -> list[int | None]:
        """Runs the parts side by side. Returns their exit codes; None for a part that there was no time for."""
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
            reader.join(1)  # a process that outlived the part may keep the pipe open
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
        """Returns 0 if the extension loads; builds it first if necessary."""
        (part,) = group
        (code,) = self.run_group(group)
        # A negative code: the extension crashed while it was loaded.
        if code == extension.TO_BUILD or (code is not None and STUCK < code < 0):
            built = parts.Part("build", parts.BUILD, part.module, ("--build",))
            (code,) = self.run_group([built])
            if code == 0:
                (code,) = self.run_group(group)
        return 1 if code is None else code

    def run(self, only: list[str]) -> int:
        first, *rest = parts.groups(self.name, self.device)
        self.say(f"gpu-{self.name} on {self.device}: {self.records.path}")
        code = self.extension_ready(first)
        if code == extension.NO_GPU:  # there is a GPU, but this torch cannot use it
            return extension.NO_GPU
        # Also if it did not load in time: the next process may be faster, or show the reason.
        chosen = [[p for p in group if not only or any(p.name.startswith(name) for name in only)] for group in rest]
        chosen = [group for group in chosen if group]
        for i, group in enumerate(chosen):
            self.run_group(group, parts.seconds(chosen[i + 1 :]))
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
        """Ends all running parts. `timeout` passes the signal on to its whole process group."""
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
        return process.wait(TORCH_TIMEOUT) == 0
    except subprocess.TimeoutExpired:  # unlike subprocess.run(), does not wait for its end
        process.kill()
        return False


def interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=parts.LIMITS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal without a GPU")
    parser.add_argument("--only", default="", help="run only the parts whose names begin so, for example smoke,tests")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not (tools.gpus() or torch_sees_a_gpu()):
        print(f"torch finds no usable GPU. For a rehearsal on the CPU run `make gpu-{options.command} DEVICE=cpu`.")
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
