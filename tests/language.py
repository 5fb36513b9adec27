"""Shared by the tests of the command line and of the language models: small texts, subprocesses, checks, faults."""

import functools
import io
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch

import lstmkern
from lstmkern.lm.data import human_numbers, make_batches, make_corpus

ROOT = Path(lstmkern.__file__).parent.parent  # subprocesses run the package that the tests import
# A training of seconds on the file of the fixture text_file.
TRAIN = ["train", "--model", "char-gru", "--text", "text.txt", "--batch-size", "8", "--hidden", "8"]


# ---- texts ----


def source_text(functions):
    """Python source code with this number of short functions."""
    return "".join(f"def f{n}(x):\n    return x + {n}\n\n\n" for n in range(functions))


def write_classes(folder):
    """Make ``folder`` with two classes of 30 short documents each."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for n in range(30):
            (folder / name / f"{n}.txt").write_text(f"{name} and {name} again, {n} times over and over")


def small_corpus():
    """The first 400 lines of HUMAN_NUMBERS as a corpus, and its training and validation batches of 8 x 16 tokens."""
    corpus = make_corpus(human_numbers()[0][:400])
    return corpus, *make_batches(corpus.ids, 8, 16)


def use_few_numbers(monkeypatch):
    """Let HUMAN_NUMBERS be its first 1200 lines, in the test whose ``monkeypatch`` this is."""
    lines = human_numbers()[0][:1200]
    monkeypatch.setattr("lstmkern.lm.data.human_numbers", lambda: (lines, []))


def random_tokens(vocab_sz, *shape, seed=1):
    """Token numbers int64 of ``shape``; the same seed gives the same numbers."""
    return torch.randint(vocab_sz, shape, generator=torch.Generator().manual_seed(seed))


# ---- processes ----


def start_python(*args, **environment):
    """Start Python with ``args`` in a process that finds this package; its output is captured as text."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def run_python(*args, stdin=None, **environment):
    """Exit code, stdout and stderr of Python with ``args``, which reads the text ``stdin``."""
    process = start_python(*args, **environment)
    out, err = process.communicate(stdin)
    return process.returncode, out, err


def run_command(*args):
    """Exit code, stdout and stderr of ``python -m lstmkern`` with ``args`` and one thread."""
    return run_python("-m", "lstmkern", *args, OMP_NUM_THREADS="1")


# ---- checks ----


def listing(directory):
    """Every path under ``directory`` with the content of files: equal listings mean that nothing was changed."""
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def assert_one_sentence(capsys, pattern):
    """One line was printed to stderr and it matches ``pattern``. Returns what was printed to stdout."""
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert re.search(pattern, err), err
    return out


def history(checkpoint):
    """The results of the epochs on our kernels in the file ``checkpoint``."""
    return torch.load(checkpoint, weights_only=True)["runs"]["lstmkern"]["history"]


def terminal():
    """A rich console that behaves like a terminal of 100 columns; ``file.getvalue()`` is what it shows."""
    from rich.console import Console

    return Console(force_terminal=True, color_system=None, file=io.StringIO(), width=100)


# ---- faults ----


def press_ctrl_c(monkeypatch, module, name, *calls):
    """Ctrl-C in the calls of ``module.name`` with the numbers ``calls``, counted from 1."""
    real, count = getattr(module, name), 0

    @functools.wraps(real)
    def pressed(*args, **kwargs):
        nonlocal count
        count += 1
        for _ in range(calls.count(count)):
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, pressed)


def return_nan(monkeypatch, module, name, call):
    """The first value that ``module.name`` returns is nan in the call with this number, counted from 1."""
    real, count = getattr(module, name), 0

    def diverged(*args, **kwargs):
        nonlocal count
        count += 1
        first, *others = real(*args, **kwargs)
        return (math.nan if count == call else first, *others)

    monkeypatch.setattr(module, name, diverged)
