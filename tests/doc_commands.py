"""The shell commands of the documentation: how they are read from a block, and which test or CI step runs each."""

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 600  # seconds after which a command counts as hanging; none takes a tenth of it

# Commands that test_docs.py does not run, because they install something or take minutes: a pattern for the whole
# command, and what does the same in continuous integration, a target of the Makefile or (on small sizes) a test file.
ELSEWHERE = {
    r"pip install (-v )?--no-build-isolation (-e )?\.": "wheel",
    r"pip install \S*lstmkern\S*\.whl": "wheel",
    r"pip install ['\"]?lstmkern\[\w+\]['\"]?": "wheel",
    r"pip install .*": "demo",
    r"python3? -m venv \S+": "demo",
    r"make build": "demo",
    r"make bench(-\w+)?": "tests/test_benchmarks.py",
    r"make (ladder|text)": "tests/test_lm_text.py",
    r"make (?P<target>[a-z-]+)( [A-Z]+=\S*)*": "{target}",
    r"python -m benchmarks\.\w+( .*)?": "tests/test_benchmarks.py",
    r"python -m pytest benchmarks.*": "tests/test_benchmarks.py",
    r"python -m pytest( .*)?": "test",
    r"\.ci/run": ".ci/run",
    r"lstmkern demo": "demo",
    r"lstmkern ladder( .*)?": "tests/test_lm_ladder.py",
    r"lstmkern bench( .*)?": "tests/test_bench.py",
    r"lstmkern train --model char-gru --text FILE": "tests/test_lm_text.py",
    r"lstmkern generate --checkpoint runs/char-gru-1 .*": "tests/test_lm_text.py",
}
# Commands of other projects that only prepare a machine.
PREPARATION = [r"git clone \S+( \S+)?", r"cd \S+", r"(sudo )?apt-get install .*", r"(source|\.) \S+/bin/activate"]

# What a command may start with to be run, and what it then starts.
PROGRAMS = {"lstmkern": "-m lstmkern", "python": "", "python3": "", "torchrun": "-m torch.distributed.run"}
HARMLESS = {"cat", "echo", "head", "ls", "mkdir"}


def commands(source: str, language: str) -> Iterator[str]:
    """The commands of a block: in ``console`` the lines after "$ ", whose output is not compared; in ``sh`` every line.

    A line that ends with a backslash continues on the next. Comments are left out.
    """
    lines = iter(source.splitlines())
    for line in lines:
        if language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        while line.endswith("\\"):
            line = line[:-1] + next(lines).removeprefix("> ").lstrip()
        command = re.sub(r"(^|\s)#\s.*", "", line).strip()
        if command:
            yield command


def stand_in(command: str) -> str | None:
    """What replaces ``command`` in ELSEWHERE; "" if it only prepares a machine, None if it is to be run here."""
    command = re.sub(r"^(\w+=('[^']*'|\"[^\"]*\"|\S*) )+", "", command).removeprefix(".venv/bin/")
    command = command.replace("python -m lstmkern ", "lstmkern ")
    if any(re.fullmatch(pattern, command) for pattern in PREPARATION):
        return ""
    for pattern, runs in ELSEWHERE.items():
        if match := re.fullmatch(pattern, command):
            return runs.format(**match.groupdict())
    return None


def check_stand_in(command: str, runs: str) -> None:
    """Check that continuous integration has what replaces ``command``.

    Raises:
        AssertionError: there is no such target or file, or continuous integration does not run it.
    """
    file = "/" in runs
    for target in re.findall(r"\bmake ([a-z-]+)", command) + [runs] * (not file):
        assert target in make_targets(), f"{command!r}: the Makefile has no target {target!r}"
    if file:
        assert (ROOT / runs).is_file(), f"{command!r}: there is no {runs}"
    else:
        assert runs in steps_of_ci(), f"{command!r}: neither .ci/run nor `make check-all` runs {runs!r}"


def check(command: str, folder: Path) -> None:
    """Run ``command`` in ``folder``, or check that something replaces each part of it.

    Raises:
        AssertionError: it fails, or it is not a command that the documentation may have.
    """
    parts = re.split(r"\s*&&\s*", command)
    stand_ins = [stand_in(part) for part in parts]
    if None in stand_ins:
        run(command, folder)
        return
    for part, runs in zip(parts, stand_ins, strict=True):
        if runs:
            check_stand_in(part, runs)


def programs(command: str) -> list[str]:
    """The first word of each simple command in ``command``, past assignments to environment variables."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, expecting = [], True
    for word in lexer:
        if expecting and not re.match(r"\w+=", word):
            found.append(word)
            expecting = False
        expecting = expecting or word in ("|", "||", "&&", ";")
    return found


def environment(*paths: Path) -> dict[str, str]:
    """The environment for a page's blocks: this lstmkern and ``paths`` for import, threads that wait without a core."""
    python_path = os.pathsep.join(map(str, (ROOT, *paths)))
    return os.environ | {"PYTHONPATH": python_path, "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "agg"}


def run(command: str, folder: Path) -> None:
    """Run ``command`` in ``folder``, with this Python and this lstmkern.

    Raises:
        AssertionError: it is not a command that the documentation may have, or it fails.
    """
    unknown = [p for p in programs(command) if p not in PROGRAMS and p not in HARMLESS]
    assert not unknown, (
        f"no test runs {command!r}: start it with {', '.join(PROGRAMS)} or add it to ELSEWHERE in tests/doc_commands.py"
    )
    shims = folder / ".bin"
    if not shims.exists():
        shims.mkdir()
        for name, arguments in PROGRAMS.items():
            (shims / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            (shims / name).chmod(stat.S_IRWXU)
    ended = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command],
        cwd=folder,
        env=environment() | {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST,
    )
    assert ended.returncode == 0, f"{command!r} ended with exit code {ended.returncode}:\n{ended.stdout[-4000:]}"


def steps_of_ci() -> set[str]:
    """The make targets that .ci/run runs, and those that `make check-all` runs before a release."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    runs = re.findall(r"\bmake\s(.*)", text)
    rule = re.search(r"^check-all:(.*)\n((?:\t.*\n)*)", makefile, re.MULTILINE)
    if rule:
        runs += ["check-all", rule[1], *re.findall(r"\$\(MAKE\)\s(.*)", rule[2])]
    return {word for run in runs for word in run.split()}


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    rules = re.findall(r"^([a-z][\w -]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}
