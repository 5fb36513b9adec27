"""Sessions that continue with more epochs, and what a session says about small texts and its results."""

import math
import re
from dataclasses import replace

import pytest
import torch
from language import TRAIN, assert_one_sentence, history, press_ctrl_c, terminal

from lstmkern.command import main
from lstmkern.lm import train
from lstmkern.lm.classify import against_chance
from lstmkern.lm.dataset import load_dataset
from lstmkern.lm.progress import Bar
from lstmkern.lm.session import against_unigram, enough_epochs
from lstmkern.lm.train import Config, Run, config_of, fit

pytestmark = pytest.mark.usefixtures("one_thread", "text_file")


# ---- --resume with more --epochs, or with none left ----


def test_more_epochs_have_a_schedule_of_their_own(here, capsys):
    """The additional epochs have the same bits, interrupted or not."""
    args = [*TRAIN, "--epochs", "2", "--seed", "3"]
    for name in ("straight", "stopped"):
        assert main([*args, "--out", name]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "straight/checkpoint.pt", "--epochs", "5"]) == 0
    assert "\ntraining epochs 2 to 4 with a new one-cycle schedule, warm-up included\n" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        press_ctrl_c(patch, train, "losses", 7)
        assert main(["train", "--resume", "stopped", "--epochs", "5"]) == 130
    assert main(["train", "--resume", "stopped"]) == 0
    one, other = (torch.load(n + "/checkpoint.pt", weights_only=True) for n in ("straight", "stopped"))
    assert one["config"]["epochs"] == other["config"]["epochs"] == 5
    one, other = one["runs"]["lstmkern"], other["runs"]["lstmkern"]
    assert len(one["history"]) == 5
    assert [r["valid_loss"] for r in one["history"]] == [r["valid_loss"] for r in other["history"]]
    assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    capsys.readouterr()
    assert main(["train", "--resume", "straight", "--epochs", "6"]) == 0
    assert "\ntraining epoch 5 with a new one-cycle schedule" in capsys.readouterr().out
    assert main(["train", "--resume", "stopped", "--epochs", "4"]) == 2
    assert_one_sentence(capsys, "--epochs 4 contradicts checkpoint .*, which was made with 5")


def test_the_schedule_of_more_epochs(small):
    """The rate starts at lr/25 and ends at lr/1e5 after the remaining batches."""
    corpus, batches, valid = small
    config = Config(epochs=2, batch_size=8, hidden=12)
    run = Run(config, len(corpus.vocab), batches.steps(2))
    fit([run], batches, valid)
    run.config = replace(config, epochs=5)
    run.new_cycle(batches.steps(3))
    group = run.optimizer.param_groups[0]
    rates = [group["lr"]]
    fit([run], batches, valid, lambda: rates.append(group["lr"]) if run.model.training else None)
    assert len(rates) == batches.steps(3) + 1
    assert rates[0] == pytest.approx(config.lr / 25)
    assert max(rates) == pytest.approx(config.lr, rel=1e-2)
    assert rates[-2] == pytest.approx(config.lr / 1e5)


def test_a_finished_session_has_nothing_left_to_do(here, capsys):
    assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 0
    before = torch.load("out/checkpoint.pt", weights_only=True)["runs"]["lstmkern"]["model"]
    capsys.readouterr()
    assert main(["train", "--resume", "out"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("nothing was left to do: this training ended after 1 epoch, a larger --epochs trains on\n")
    after = torch.load("out/checkpoint.pt", weights_only=True)["runs"]["lstmkern"]["model"]
    assert all(torch.equal(after[key], before[key]) for key in before)


# ---- small texts, comparisons, progress bars ----


def test_a_small_text_gets_more_epochs(here, monkeypatch, capsys):
    config = config_of("char-gru", text="text.txt", batch_size=8, hidden=8)
    data = load_dataset(config)
    enough, why = enough_epochs(config, data)
    per_epoch, least = len(data.train), config.recipe.least_steps
    assert enough.epochs == math.ceil(least / per_epoch) > config.epochs
    assert f"{enough.epochs} epochs instead of {config.epochs}" in why and f"{enough.epochs * per_epoch:,} steps" in why
    assert enough_epochs(enough, data) == (enough, "")
    numbers = config_of("lm7")
    assert enough_epochs(numbers, load_dataset(numbers)) == (numbers, "")

    monkeypatch.setitem(train.RECIPES, "char-gru", replace(config.recipe, least_steps=5 * per_epoch))
    assert main([*TRAIN, "--out", "out"]) == 0
    assert "the text is small: 5 epochs instead of 4" in capsys.readouterr().out
    assert len(history("out/checkpoint.pt")) == 5
    assert main([*TRAIN, "--epochs", "1", "--out", "asked"]) == 0
    assert "the text is small" not in capsys.readouterr().out
    assert len(history("asked/checkpoint.pt")) == 1


def test_a_batch_too_large_for_a_text_names_one_that_fits(here, capsys):
    assert main([*TRAIN[:5], "--epochs", "1"]) == 2
    size = int(re.search(r"a --batch-size of at most (\d+) fits", capsys.readouterr().err)[1])
    args = [*TRAIN[:5], "--hidden", "8", "--epochs", "1", "--batch-size"]
    assert main([*args, str(size + 1)]) == 2
    assert main([*args, str(size)]) == 0


def test_comparisons_say_what_is_worse():
    assert against_unigram(20.0, 50.0).endswith("a unigram model has 50.0, 2.5 times as much")
    assert "worse" not in against_unigram(20.0, 50.0)
    for reached in (50.0, 80.0):
        assert "worse than" in against_unigram(reached, 50.0) and "times as much" not in against_unigram(reached, 50.0)
    assert "a margin of 0.250" in against_chance(0.75, 0.5, "one")
    assert "no better than that" in against_chance(0.5, 0.5, "one")
    assert "worse than that" in against_chance(0.25, 0.5, "one") and "margin" not in against_chance(0.25, 0.5, "one")


def test_the_bar_is_visible_before_the_first_batch():
    console = terminal()
    with Bar(console, "the model", 7) as bar:
        assert "the model" in console.file.getvalue() and "0/7" in console.file.getvalue()
        bar.advance()
        bar.name("another")
        assert "another" in console.file.getvalue() and "1/7" in console.file.getvalue()
