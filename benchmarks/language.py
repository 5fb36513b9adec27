"""Full trainings of the language models, saved together with their machine.

    python -m benchmarks.language ladder     # LMModel1 to 7: benchmarks/results/ladder.json, ladder.png; two minutes
    python -m benchmarks.language text       # an AWD-LSTM on docstrings, and a classifier: docstrings.json

Runs the command line and saves its output and the tables that it wrote.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from lstmkern.bench import report

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


def keep(name: str, commands: list[str], **content) -> None:
    about = {**report.context(torch.get_num_threads()), "command": commands}
    if name == "docstrings":
        import tokenizers

        about["versions"]["tokenizers"] = tokenizers.__version__
    report.write_json(RESULTS / f"{name}.json", about, **content)


def ladder(out: Path) -> None:
    run("ladder", "--out", str(out / "ladder"))
    keep("ladder", ["python -m lstmkern ladder"], rows=table(out / "ladder" / "ladder.csv"))
    shutil.copyfile(out / "ladder" / "ladder.png", RESULTS / "ladder.png")


def text(out: Path) -> None:
    model = run("train", "--model", "awd-lstm", "--out", str(out / "lm"))
    classes = run("classify", "--encoder", str(out / "lm" / "encoder.pt"), "--out", str(out / "classify"))
    keep(
        "docstrings",
        ["python -m lstmkern train --model awd-lstm", "python -m lstmkern classify --encoder <its encoder.pt>"],
        result=[line for line in model + classes if line.startswith(("perplexity", "accuracy"))],
        language_model={"corpus": f"{model[1]}; {model[2]}", "epochs": table(out / "lm" / "metrics.csv")},
        classifier={"corpus": classes[0], "epochs": table(out / "classify" / "metrics.csv")},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=("ladder", "text"), help="the word models on HUMAN_NUMBERS, or the subword models on docstrings"
    )
    what = {"ladder": ladder, "text": text}[parser.parse_args().what]
    os.environ["COLUMNS"] = "120"
    with tempfile.TemporaryDirectory() as folder:
        what(Path(folder))


if __name__ == "__main__":
    main()
