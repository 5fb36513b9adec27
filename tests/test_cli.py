"""The command line: its output and files, Ctrl-C and --resume, and one sentence with exit code 2 for bad input."""

import csv
import re

import pytest
import torch
from language import assert_one_sentence, listing, run_command, run_python

import lstmkern
from lstmkern import _extension, verify
from lstmkern.command import main
from lstmkern.lm import report
from lstmkern.lm.data import human_numbers

SMALL = ["--batch-size", "8", "--hidden", "12", "--epochs", "3", "--data", "data"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(here):
    """A working directory with nothing but a small corpus in data/."""
    (here / "data").mkdir()
    lines = human_numbers()[0]
    (here / "data" / "train.txt").write_text("\n".join(lines[:300]))
    (here / "data" / "valid.txt").write_text("\n".join(lines[300:400]))
    return here


def test_train_then_generate(here):
    code, out, err = run_command("train", *SMALL, "--model", "LMModel7")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "lm7-lstm on lstmkern and torch.nn"
    assert re.fullmatch(r"[\d,]+ words, vocabulary of \d+", lines[1])
    assert re.fullmatch(r"\d+ training and \d+ validation batches of 8 sequences x 16 tokens", lines[2])
    assert lines[-2:] == [
        "results are in runs/lm7-lstm-1; to generate text from them:",
        '  python -m lstmkern generate --checkpoint runs/lm7-lstm-1 --prompt "TEXT"',
    ]
    head = "epoch  train_loss  valid_loss  accuracy   time | valid_loss  accuracy   time"
    rows = [line.split() for line in lines[lines.index(head) + 1 :][:3]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert max(map(len, lines)) <= 80
    assert "lstmkern compared with torch.nn" in out and "median of 3 epochs" in out
    folder = here / "runs" / "lm7-lstm-1"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "metrics.csv", "metrics.png"]
    assert (folder / "metrics.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    assert [(m["kernels"], m["epoch"]) for m in metrics] == [
        (k, str(e)) for k in ("lstmkern", "torch.nn") for e in range(3)
    ]
    assert [float(m["accuracy"]) for m in metrics[:3]] == pytest.approx([float(row[3]) for row in rows], abs=1e-6)

    code, out, err = run_command(
        "generate", "--checkpoint", str(folder / "checkpoint.pt"), "--prompt", "one . two", "--length", "5"
    )
    assert (code, err) == (0, "")
    assert out.startswith("one . two ")
    assert len(out.split()) == 3 + 5


def test_next_session_gets_its_own_directory(here):
    for _ in range(2):
        assert main(["train", *SMALL, "--epochs", "1", "--no-compare", "--cell", "gru", "--model", "lm6"]) == 0
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["lm6-gru-1", "lm6-gru-2"]
    before = listing(here)
    assert main(["train", *SMALL, "--epochs", "1", "--no-compare", "--out", "runs/lm6-gru-1"]) == 2
    assert listing(here) == before
    assert main(["train", *SMALL, "--epochs", "1", "--no-compare", "--out", "runs/lm6-gru-1", "--force"]) == 0
    assert listing(here) != before


CTRL_C_AFTER_THE_ROW_OF_EPOCH_1 = """
import os, signal, sys
from lstmkern.command import main
from lstmkern.lm.report import EpochTable
row = EpochTable.row
def row_then_ctrl_c(table, epoch):
    row(table, epoch)
    if epoch == 1:
        os.kill(os.getpid(), signal.SIGINT)
EpochTable.row = row_then_ctrl_c
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_then_resume_equals_uninterrupted(here):
    assert run_command("train", *SMALL, "--epochs", "8", "--out", "straight")[0] == 0
    command = ("-c", CTRL_C_AFTER_THE_ROW_OF_EPOCH_1)
    code, _, err = run_python(*command, "train", *SMALL, "--epochs", "8", "--out", "stopped", OMP_NUM_THREADS="1")
    assert code == 130
    assert err == "interrupted; continue with: python -m lstmkern train --resume stopped/checkpoint.pt\n"
    assert sorted(path.name for path in (here / "stopped").iterdir()) == ["checkpoint.pt", "metrics.csv"]

    code, out, err = run_command("train", "--resume", "stopped/checkpoint.pt")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line[:5].strip().isdigit()] == list("01234567")
    straight, stopped = (
        torch.load(here / name / "checkpoint.pt", weights_only=True) for name in ("straight", "stopped")
    )
    for kernels in ("lstmkern", "torch.nn"):
        one, other = straight["runs"][kernels], stopped["runs"][kernels]
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
        for key in ("train_loss", "valid_loss", "accuracy"):
            assert [result[key] for result in one["history"]] == [result[key] for result in other["history"]]


BAD_TRAIN = [
    (["--data", "nowhere"], "no such data directory: .*nowhere"),
    (["--data", "empty"], "the corpus is empty"),
    (["--data", "one-word"], "only one distinct word"),
    (["--data", "data", "--batch-size", "1000"], "does not fill one batch of 1000 sequences"),
    (["--model", "lm8"], "invalid choice: 'lm8'"),
    (["--cell", "LSTMM"], "invalid choice"),
    (["--dtype", "int8"], "invalid choice"),
    (["--epochs", "0"], "'0' is not a whole number of at least 1"),
    (["--lr", "nan"], "'nan' is not a number above 0"),
    (["--dropout", "3.5"], "'3.5' is not a number from 0 to 3"),
    (["--seed", "-1"], "'-1' is not a whole number from 0"),
    (["--device", "tpu9"], "unknown device 'tpu9'"),
    (["--device", "meta"], "device meta is not supported"),
    (["--device", "cuda:99"], "device cuda:99 is not available"),
    (["--out", "data"], "already holds files"),
    (["--out", "data/train.txt"], "is not a directory"),
    (["--out", "data/train.txt/deeper"], "data/train.txt/deeper"),
    (["--resume", "nowhere.pt"], "no such checkpoint: nowhere.pt"),
    (["--resume", "data/train.txt"], "is not a checkpoint"),
    (["--bogus"], "unrecognized arguments: --bogus"),
]


@pytest.mark.parametrize(
    ("args", "message"), BAD_TRAIN, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_to_train(here, capsys, args, message):
    for name, text in (("empty", ""), ("one-word", "one one\none\n")):
        (here / name).mkdir()
        for part in ("train.txt", "valid.txt"):
            (here / name / part).write_text(text)
    before = listing(here)
    assert main(["train", *args]) == 2
    assert assert_one_sentence(capsys, message) == ""
    assert listing(here) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished session of one epoch without comparison."""
    folder = tmp_path_factory.mktemp("trained")
    lines = human_numbers()[0][:400]
    for name in ("train.txt", "valid.txt"):
        (folder / name).write_text("\n".join(lines))
    args = ["--batch-size", "8", "--hidden", "12", "--epochs", "1", "--data", str(folder), "--out", str(folder / "out")]
    assert main(["train", *args, "--no-compare"]) == 0
    return folder / "out" / "checkpoint.pt"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "lm6"], "--model lm6 contradicts checkpoint .*, which was made with lm7"),
        (["--cell", "gru"], "--cell gru contradicts"),
        (["--batch-size", "9"], "--batch-size 9 contradicts"),
        (["--compare"], "--compare contradicts .* holds no comparison"),
        (["--data", "data"], "was trained on another corpus than .*data"),
    ],
)
def test_resume_of_something_else(here, trained, capsys, args, message):
    before = listing(here), listing(trained.parent)
    assert main(["train", "--resume", str(trained), *args]) == 2
    assert assert_one_sentence(capsys, message) == ""
    assert (listing(here), listing(trained.parent)) == before


def test_resume_of_a_copy_goes_to_a_new_directory(here, trained):
    """Only checkpoint.pt of a session is continued in place; the directory of another file is not touched."""
    (here / "mine").mkdir()
    (here / "mine" / "copy.pt").write_bytes(trained.read_bytes())
    before = listing(here / "mine")
    assert main(["train", "--resume", "mine/copy.pt", "--no-compare"]) == 0
    assert listing(here / "mine") == before
    assert (here / "runs" / "lm7-lstm-1" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", "one million"], r"does not know the word 'million', but \d+ words such as 'one', 'two', 'three'"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "one", "--temperature", "-1"], "'-1' is not a number of at least 0"),
        (["--prompt", "one", "--length", "0"], "'0' is not a whole number"),
        ([], "required: --prompt"),
    ],
)
def test_bad_input_to_generate(trained, capsys, args, message):
    assert main(["generate", "--checkpoint", str(trained), *args]) == 2
    assert assert_one_sentence(capsys, message) == ""


def test_checkpoint_whose_model_is_another(trained, tmp_path, capsys):
    content = torch.load(trained, weights_only=True)
    content["config"]["hidden"] = 13
    torch.save(content, tmp_path / "checkpoint.pt")
    before = listing(tmp_path)
    assert main(["generate", "--checkpoint", str(tmp_path / "checkpoint.pt"), "--prompt", "one"]) == 2
    assert_one_sentence(capsys, "is of another model, or damaged")
    assert main(["train", "--resume", str(tmp_path / "checkpoint.pt")]) == 2
    assert_one_sentence(capsys, "is of another model, or damaged")
    assert listing(tmp_path) == before


def test_errors_of_the_process(here):
    """The exit code and one line on stderr, without a traceback."""
    code, out, err = run_command("train", "--data", "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("lstmkern: no such data directory")
    assert err.count("\n") == 1
    assert run_command()[0] == 2


@pytest.mark.slow
def test_demo(here):
    """A table for each model, one comparison, a continuation, and files for both models."""
    code, out, err = run_command("demo", "--epochs", "1")
    assert (code, err) == (0, "")
    for text in (
        "lm6-lstm on lstmkern and torch.nn\n63,095 words, vocabulary of 30\n49 training",
        "lm7-lstm on",
        "speed",
    ):
        assert text in out
    assert out.count("epoch  train_loss  valid_loss  accuracy   time") == 2
    assert "continue 'nine thousand nine hundred ninety eight .'" in out
    for model in ("lm6", "lm7"):
        names = sorted(path.name for path in (here / "runs" / "demo-1" / model).iterdir())
        assert names == ["checkpoint.pt", "metrics.csv", "metrics.png"]


def test_info():
    code, out, err = run_command("info")
    assert (code, err) == (0, "")
    assert f"torch                       {torch.__version__}\n" in out
    assert _extension.cpu_capability() in out


@pytest.mark.parametrize(
    ("cuda", "hip", "built", "said"),
    [
        (None, None, None, "not built: torch is a CPU build\n"),
        ("13.0", None, None, "not built\n"),
        (None, "7.0", None, "not built\n"),
        ("13.0", None, "13.0", "built with CUDA 13.0\n"),
    ],
)
def test_info_says_why_there_are_no_cuda_kernels(monkeypatch, capsys, cuda, hip, built, said):
    info = {**_extension.build_info(), "cuda": built}
    monkeypatch.setattr(_extension, "build_info", lambda: info)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert main(["info"]) == 0
    assert f"CUDA kernels                {said}" in capsys.readouterr().out


def test_verify_passes():
    code, out, err = run_command("verify")
    assert (code, err) == (0, ""), out
    assert "all 10 checks passed" in out or torch.cuda.is_available()
    assert "FAILED" not in out
    assert (
        "gradcheck  fp32 error  torch.nn's fp32 error  result" in out
        and "is at most twice torch.nn's plus 16 eps" in out
    )


def test_verify_notices_a_wrong_kernel(monkeypatch, capsys):
    class WrongGRU(lstmkern.GRU):
        def forward(self, *args):
            output, h = super().forward(*args)
            return output * 1.0001, h

    class WrongGradient(lstmkern.GRU):
        def forward(self, *args):
            output, h = super().forward(*args)
            output.register_hook(lambda grad: grad * 1.01)
            return output, h

    monkeypatch.setattr(verify, "KERNELS", {"GRU": ("GRU", {})})
    assert main(["verify"]) == 0
    for wrong, column in ((WrongGRU, "output"), (WrongGradient, "gradient of")):
        monkeypatch.setattr(lstmkern, "GRU", wrong)
        assert main(["verify"]) == 1
        out = capsys.readouterr().out
        assert "2 of 2 checks failed" in out
        assert column in " ".join(out.split())


def test_comparison_is_the_median_of_pairs():
    class Result:
        def __init__(self, tokens_per_s):
            self.tokens_per_s = tokens_per_s

    class Done:
        def __init__(self, *speeds):
            self.history = [Result(speed) for speed in speeds]

    ours, theirs = Done(20.0, 90.0, 30.0), Done(10.0, 30.0, 30.0)
    assert report.speed_ratio(ours, theirs) == 2.0
    assert report.tokens_per_second(ours) == 30.0
