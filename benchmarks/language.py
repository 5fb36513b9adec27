"""The full runs of the language models, kept with the machine they are from.

    python -m benchmarks.language ladder     # LMModel1 to 7: benchmarks/results/ladder.json, ladder.png; two minutes
    python -m benchmarks.language text       # docstrings, and which package they come from: docstrings.json

Runs the command line itself and keeps what it printed and the tables that it wrote.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import lstmkern

from .varlen import cpu_name

RESULTS = Path(__file__).parent / "results"


def run(*args: str) -> list[str]:
    """The lines that ``python -m lstmkern args`` prints."""
    print("python -m lstmkern", *args, flush=True)
    process = subprocess.Popen([sys.executable, "-u", "-m", "lstmkern", *args], stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    if process.wait() != 0:
        sys.exit(process.returncode)
    return lines


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def keep(name: str, commands: list[str], commit: str, **content) -> None:
    versions = {"torch": torch.__version__, "lstmkern": lstmkern.__version__, "python": platform.python_version()}
    if name == "docstrings":
        import tokenizers

        versions["tokenizers"] = tokenizers.__version__
    meta = {
        "command": commands,
        "machine": f"{cpu_name()}, {torch.get_num_threads()} threads, {lstmkern._extension.cpu_capability()}",
        "versions": versions,
        "commit": commit,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps({**meta, **content}, indent=1) + "\n", encoding="utf-8")


def ladder(out: Path, commit: str) -> None:
    run("ladder", "--out", str(out / "ladder"))
    keep("ladder", ["python -m lstmkern ladder"], commit, rows=table(out / "ladder" / "ladder.csv"))
    shutil.copyfile(out / "ladder" / "ladder.png", RESULTS / "ladder.png")


def text(out: Path, commit: str) -> None:
    model = run("train", "--model", "awd-lstm", "--out", str(out / "lm"))
    classes = run("classify", "--encoder", str(out / "lm" / "encoder.pt"), "--out", str(out / "classify"))
    keep(
        "docstrings",
        ["python -m lstmkern train --model awd-lstm", "python -m lstmkern classify --encoder <its encoder.pt>"],
        commit,
        result=[line for line in model + classes if line.startswith(("perplexity", "accuracy"))],
        language_model={"corpus": model[1], "epochs": table(out / "lm" / "metrics.csv")},
        classifier={"corpus": classes[0], "epochs": table(out / "classify" / "metrics.csv")},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("ladder", "text"))
    what = {"ladder": ladder, "text": text}[parser.parse_args().what]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    os.environ["COLUMNS"] = "120"
    with tempfile.TemporaryDirectory() as folder:
        what(Path(folder), commit)


if __name__ == "__main__":
    main()
