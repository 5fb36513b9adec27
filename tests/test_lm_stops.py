"""Trainings that end early: Ctrl-C at any time, and losses that are nan or inf."""

import math
import signal

import pytest
import torch
from language import TRAIN, assert_one_sentence, history, listing, press_ctrl_c, return_nan, use_few_numbers

from lstmkern.command import main
from lstmkern.lm import climb, session, train
from lstmkern.lm.checkpoint import save

pytestmark = pytest.mark.usefixtures("one_thread", "text_file")


# ---- Ctrl-C ----


@pytest.mark.parametrize(
    ("args", "module", "name"),
    [
        ([*TRAIN, "--epochs", "2"], session, "load_dataset"),
        ([*TRAIN, "--epochs", "2"], session, "Run"),
        ([*TRAIN, "--epochs", "2"], train, "losses"),  # in the first batch, where torch.compile may take minutes
        (["demo", "--epochs", "1"], train, "losses"),
        (["demo", "--epochs", "1"], session, "load_dataset"),
        (["ladder"], climb, "load_dataset"),
        (["ladder"], train, "losses"),
        (["ladder"], train, "validate"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else getattr(value, "__name__", value),
)
def test_ctrl_c_before_there_is_anything_to_keep(here, monkeypatch, capsys, args, module, name):
    before = listing(here)
    press_ctrl_c(monkeypatch, module, name, 1)
    assert main(args) == 130
    assert_one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert listing(here) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_training_keeps_a_checkpoint(here, monkeypatch, capsys):
    press_ctrl_c(monkeypatch, train, "losses", 2)
    assert main([*TRAIN, "--epochs", "2", "--out", "out"]) == 130
    assert_one_sentence(capsys, r"^interrupted; continue with: python -m lstmkern train --resume out/checkpoint.pt\n")
    assert torch.load("out/checkpoint.pt", weights_only=True)["runs"]["lstmkern"]["batch"] == 2


def test_a_second_ctrl_c_interrupts_at_once(here, monkeypatch, capsys):
    press_ctrl_c(monkeypatch, train, "losses", 2, 2)
    assert main([*TRAIN, "--epochs", "2", "--out", "out"]) == 130
    assert_one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert not (here / "out").exists()


def test_ctrl_c_after_a_training_has_diverged_keeps_nothing_of_it(here, monkeypatch, capsys):
    press_ctrl_c(monkeypatch, train, "losses", 3)
    assert main([*TRAIN, "--epochs", "2", "--lr", "1e30", "--out", "out"]) == 130
    assert_one_sentence(capsys, "^interrupted in epoch 0, which is not kept: its loss is nan or inf")
    assert not (here / "out").exists()


# ---- losses of nan or inf ----


def test_a_training_that_diverges(here, capsys):
    assert main([*TRAIN, "--epochs", "2", "--lr", "1e30", "--out", "out"]) == 1
    assert_one_sentence(
        capsys, "char-gru on lstmkern diverged: its training loss is nan in epoch 0; .* --lr 0.003, or .*--clip"
    )
    assert not (here / "out").exists()
    assert main([*TRAIN, "--epochs", "1", "--lr", "1e-3", "--clip", "1", "--out", "out"]) == 0


def test_the_checkpoint_before_a_divergence_stays(here, monkeypatch, capsys):
    assert main([*TRAIN, "--epochs", "3", "--lr", "1e-3", "--out", "straight"]) == 0
    return_nan(monkeypatch, train, "validate", 3)
    assert main([*TRAIN, "--epochs", "3", "--lr", "1e-3", "--out", "out"]) == 1
    assert_one_sentence(
        capsys, "validation loss is nan in epoch 2; .* --lr 0.0001.*; out holds checkpoint.pt, metrics.csv"
    )
    assert [r["epoch"] for r in history("out/checkpoint.pt")] == [0, 1]
    assert main(["train", "--resume", "out"]) == 0  # nothing makes it diverge now
    assert len(history("out/checkpoint.pt")) == 3
    losses = [[r["valid_loss"] for r in history(f"{name}/checkpoint.pt")] for name in ("out", "straight")]
    assert losses[0] == losses[1]


def test_a_checkpoint_that_diverged_is_not_resumed(here, capsys):
    assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 0
    content = torch.load("out/checkpoint.pt", weights_only=True)
    content["runs"]["lstmkern"]["model"]["l_out.weight"][0, 0] = math.nan
    save("out/checkpoint.pt", content)
    before = listing(here)
    assert main(["train", "--resume", "out", "--epochs", "2"]) == 2
    assert_one_sentence(capsys, "out/checkpoint.pt is of a training that diverged")
    assert listing(here) == before


@pytest.mark.parametrize(("args", "message"), [(["ladder"], "lm1"), (["demo", "--epochs", "1"], "lm6-lstm")])
def test_ladder_and_demo_report_divergence(here, monkeypatch, capsys, args, message):
    use_few_numbers(monkeypatch)
    return_nan(monkeypatch, train, "validate", 1)
    assert main(args) == 1
    assert_one_sentence(
        capsys, f"the training of {message} on lstmkern diverged: its validation loss is nan.*nothing was kept"
    )
    assert not (here / "runs").exists()
