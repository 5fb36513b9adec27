"""How a training session begins and ends: its directory, Ctrl-C, full disks, trainings that diverge, --resume."""

import errno
import functools
import io
import math
import re
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lstmkern.command import main
from lstmkern.lm import classify, climb, session, train
from lstmkern.lm.checkpoint import save
from lstmkern.lm.classify import against_chance
from lstmkern.lm.data import human_numbers, make_batches, make_corpus
from lstmkern.lm.dataset import load_dataset
from lstmkern.lm.errors import Failed, InputError, Interrupted
from lstmkern.lm.output import output_directory
from lstmkern.lm.progress import Bar
from lstmkern.lm.session import against_unigram, enough_epochs
from lstmkern.lm.train import Config, Run, config_of, fit

TEXT = "".join(f"def f{n}(x):\n    return x + {n}\n\n\n" for n in range(80))
TRAIN = ["train", "--model", "char-gru", "--text", "text.txt", "--batch-size", "8", "--hidden", "8"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def listing(directory):
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def one_sentence(capsys, message):
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert re.search(message, err), err


def history(checkpoint):
    return torch.load(checkpoint, weights_only=True)["runs"]["lstmkern"]["history"]


# The directory.


def test_sessions_that_start_at_once_get_directories_of_their_own(here, monkeypatch):
    """Another session takes the directory that was free a moment ago."""
    mkdir, taken = Path.mkdir, []

    def late(path, *args, **kwargs):
        if path.name == "lm7-1" and not taken:
            taken.append(path)
            mkdir(path, parents=True)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    assert output_directory(None, "lm7")() == Path("runs/lm7-2")
    assert taken


def test_an_empty_directory_does_not_stay(here):
    with output_directory(None, "lm7") as place:
        assert place().is_dir()
    assert not (here / "runs").exists()
    with output_directory("a/b", "lm7") as place:
        place.directory("lm6")
        (place.directory("lm7") / "file").write_text("kept")
    assert listing(here / "a") == {here / "a/b": None, here / "a/b/lm7": None, here / "a/b/lm7/file": b"kept"}
    (here / "mine" / "empty").mkdir(parents=True)
    with output_directory("mine", "lm7", force=True) as place:
        place()
    assert (here / "mine" / "empty").is_dir()


def test_what_ended_a_session_is_told_with_what_it_kept(here):
    for error, expected in (
        (KeyboardInterrupt(), Interrupted),
        (OSError(errno.ENOSPC, "No space left on device"), Failed),
        (Failed("it failed"), Failed),
    ):
        with pytest.raises(expected, match="; nothing was kept$"), output_directory("out", "lm7") as place:
            place()
            raise error
        with pytest.raises(expected, match="; out holds a, b/c$"), output_directory("out", "lm7") as place:
            (place() / "a").write_text("")
            (place.directory("b") / "c").write_text("")
            raise error
        with pytest.raises(expected, match="; out is as it was$"), output_directory("out", "lm7", force=True) as place:
            place()
            raise error
        (here / "out" / "b" / "c").unlink()
        (here / "out" / "b").rmdir()
        (here / "out" / "a").unlink()
        (here / "out").rmdir()
    with pytest.raises(BrokenPipeError), output_directory("out", "lm7"):
        raise BrokenPipeError


def test_two_sessions_do_not_share_a_directory(here, capsys):
    pytest.importorskip("fcntl")
    with output_directory("out", "lm7") as place:
        place()
        assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 2
        one_sentence(capsys, "another session is writing into out: choose another directory")
        assert not any((here / "out").iterdir())
    assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 0
    before = listing(here)
    with output_directory("out", "lm7", force=True) as place:
        place()
        assert main(["train", "--resume", "out", "--epochs", "2"]) == 2
        one_sentence(capsys, "another session is writing into out")
    assert listing(here) == before


@pytest.mark.parametrize("command", [["ladder"], ["classify", "--encoder", "none.pt"]])
def test_one_of_several_processes_writes(here, monkeypatch, capsys, command):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    with output_directory(None, "demo") as place:
        assert place() == Path() and place.directory("lm6") == Path("lm6")
    monkeypatch.setenv("RANK", "0")
    assert main(command) == 2
    one_sentence(capsys, f"{command[0]} trains in one process: start it without torchrun")
    assert [path.name for path in here.iterdir()] == ["text.txt"]


# Ctrl-C.


def pressing(monkeypatch, module, name, *calls):
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


@pytest.mark.parametrize(
    ("args", "module", "name"),
    [
        ([*TRAIN, "--epochs", "2"], session, "load_dataset"),
        ([*TRAIN, "--epochs", "2"], session, "Run"),
        ([*TRAIN, "--epochs", "2"], train, "losses"),  # in the first batch, as while it is compiled
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
    pressing(monkeypatch, module, name, 1)
    assert main(args) == 130
    one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert listing(here) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_training_keeps_a_checkpoint(here, monkeypatch, capsys):
    pressing(monkeypatch, train, "losses", 2)
    assert main([*TRAIN, "--epochs", "2", "--out", "out"]) == 130
    one_sentence(capsys, r"^interrupted; continue with: python -m lstmkern train --resume out/checkpoint.pt\n")
    assert torch.load("out/checkpoint.pt", weights_only=True)["runs"]["lstmkern"]["batch"] == 2


def test_a_second_ctrl_c_interrupts_at_once(here, monkeypatch, capsys):
    pressing(monkeypatch, train, "losses", 2, 2)
    assert main([*TRAIN, "--epochs", "2", "--out", "out"]) == 130
    one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert not (here / "out").exists()


def test_ctrl_c_after_a_training_has_diverged_keeps_nothing_of_it(here, monkeypatch, capsys):
    pressing(monkeypatch, train, "losses", 3)
    assert main([*TRAIN, "--epochs", "2", "--lr", "1e30", "--out", "out"]) == 130
    one_sentence(capsys, "^interrupted in epoch 0, which is not kept: its loss is nan or inf")
    assert not (here / "out").exists()


# Trainings that diverge.


def test_a_training_that_diverges(here, capsys):
    assert main([*TRAIN, "--epochs", "2", "--lr", "1e30", "--out", "out"]) == 1
    one_sentence(
        capsys, "char-gru on lstmkern diverged: its training loss is nan in epoch 0; .* --lr 0.003, or .*--clip"
    )
    assert not (here / "out").exists()
    assert main([*TRAIN, "--epochs", "1", "--lr", "1e-3", "--clip", "1", "--out", "out"]) == 0


def diverging(monkeypatch, module, name, call):
    """The first value of what ``module.name`` returns is nan in the call with this number, counted from 1."""
    real, count = getattr(module, name), 0

    def diverged(*args, **kwargs):
        nonlocal count
        count += 1
        first, *others = real(*args, **kwargs)
        return (math.nan if count == call else first, *others)

    monkeypatch.setattr(module, name, diverged)


def test_the_checkpoint_before_a_divergence_stays(here, monkeypatch, capsys):
    assert main([*TRAIN, "--epochs", "3", "--lr", "1e-3", "--out", "straight"]) == 0
    diverging(monkeypatch, train, "validate", 3)
    assert main([*TRAIN, "--epochs", "3", "--lr", "1e-3", "--out", "out"]) == 1
    one_sentence(capsys, "validation loss is nan in epoch 2; .* --lr 0.0001.*; out holds checkpoint.pt, metrics.csv")
    assert [r["epoch"] for r in history("out/checkpoint.pt")] == [0, 1]
    assert main(["train", "--resume", "out"]) == 0  # what made it diverge is gone
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
    one_sentence(capsys, "out/checkpoint.pt is of a training that diverged")
    assert listing(here) == before


@pytest.mark.parametrize(("args", "message"), [(["ladder"], "lm1"), (["demo", "--epochs", "1"], "lm6-lstm")])
def test_ladder_and_demo_tell_of_a_divergence(here, monkeypatch, capsys, small_numbers, args, message):
    diverging(monkeypatch, train, "validate", 1)
    assert main(args) == 1
    one_sentence(
        capsys, f"the training of {message} on lstmkern diverged: its validation loss is nan.*nothing was kept"
    )
    assert not (here / "runs").exists()


# Full disks.


@pytest.fixture
def file_size():
    """file_size(n): files of more than n bytes cannot be written, as on a full disk; None: again without a limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


def test_a_checkpoint_that_does_not_fit(here, capsys, file_size):
    file_size(5_000)
    code = main([*TRAIN, "--epochs", "1", "--out", "out"])
    file_size(None)
    assert code == 1
    one_sentence(capsys, "^lstmkern: cannot write out/checkpoint.pt: .*; nothing was kept\n")
    assert not (here / "out").exists()


def test_a_checkpoint_that_no_longer_fits_leaves_the_one_before(here, capsys, file_size):
    assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 0
    before = listing(here)
    capsys.readouterr()
    file_size(5_000)
    code = main(["train", "--resume", "out", "--epochs", "2"])
    file_size(None)
    assert code == 1
    one_sentence(capsys, "^lstmkern: cannot write out/checkpoint.pt: .*; out is as it was\n")
    assert listing(here) == before


def test_a_plot_that_does_not_fit(here, monkeypatch, capsys, file_size):
    real = session.write_plot

    def full(path, runs):
        file_size(1_000)
        real(path, runs)

    monkeypatch.setattr(session, "write_plot", full)
    code = main([*TRAIN, "--epochs", "1", "--out", "out"])
    file_size(None)
    assert code == 1
    one_sentence(capsys, "^lstmkern: cannot write out/metrics.png: .*; out holds checkpoint.pt, metrics.csv\n")
    assert sorted(path.name for path in (here / "out").iterdir()) == ["checkpoint.pt", "metrics.csv"]


# --resume with more --epochs, and with none left.


def test_more_epochs_have_a_schedule_of_their_own(here, capsys):
    """Interrupted or not; and what is interrupted in them goes on bit for bit."""
    args = [*TRAIN, "--epochs", "2", "--seed", "3"]
    for name in ("straight", "stopped"):
        assert main([*args, "--out", name]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "straight/checkpoint.pt", "--epochs", "5"]) == 0
    assert "\ntraining epochs 2 to 4 with a new one-cycle schedule, warm-up included\n" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        pressing(patch, train, "losses", 7)
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
    one_sentence(capsys, "--epochs 4 contradicts checkpoint .*, which was made with 5")


def test_the_schedule_of_more_epochs(small):
    """From the warm-up's start, lr/25, to lr/1e5, over the batches that are left."""
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


# Small texts, comparisons, bars.


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


def test_comparisons_say_worse():
    assert against_unigram(20.0, 50.0).endswith("a unigram model has 50.0, 2.5 times as much")
    assert "worse" not in against_unigram(20.0, 50.0)
    for reached in (50.0, 80.0):
        assert "worse than" in against_unigram(reached, 50.0) and "times as much" not in against_unigram(reached, 50.0)
    assert "a margin of 0.250" in against_chance(0.75, 0.5, "one")
    assert "no better than that" in against_chance(0.5, 0.5, "one")
    assert "worse than that" in against_chance(0.25, 0.5, "one") and "margin" not in against_chance(0.25, 0.5, "one")


def terminal():
    return Console(force_terminal=True, color_system=None, file=io.StringIO(), width=100)


def test_a_bar_is_there_before_the_first_batch():
    console = terminal()
    with Bar(console, "the model", 7) as bar:
        assert "the model" in console.file.getvalue() and "0/7" in console.file.getvalue()
        bar.advance()
        bar.name("another")
        assert "another" in console.file.getvalue() and "1/7" in console.file.getvalue()


# The ladder.


@pytest.fixture
def small():
    corpus = make_corpus(human_numbers()[0][:400])
    return corpus, *make_batches(corpus.ids, 8, 16)


@pytest.fixture
def small_numbers(monkeypatch):
    """The ladder and the demo on the first few hundred numbers."""
    monkeypatch.setattr("lstmkern.lm.data.human_numbers", lambda: (human_numbers()[0][:1200], []))


def test_the_ladder_shows_the_median_and_a_bar(here, monkeypatch, small_numbers):
    monkeypatch.setattr(climb, "EXPECTED", {"lm1": 0.49, "lm4": 0.64})
    console, seen, real = terminal(), [], climb.fit
    monkeypatch.setattr(climb, "fit", lambda *args: seen.append(console.file.getvalue()) or real(*args))
    with output_directory(None, "ladder") as place:
        out = climb.climb(console, range(3), place)
    assert "LMModel1, seed 0" in seen[0] and "LMModel4, seed 2" in seen[-1] and len(seen) == 6
    text = console.file.getvalue()
    assert "median of seeds 0 to 2" in text
    assert "book: fastbook chapter 12\n" in "\n".join(map(str.strip, text.splitlines())) + "\n"  # in one line
    head, *rows = [line.split(",") for line in (out / "ladder.csv").read_text().splitlines()]
    for row in rows:
        row = dict(zip(head, row, strict=True))
        assert row["seeds"] == "3"
        assert float(row["lowest"]) <= float(row["accuracy"]) <= float(row["highest"])
    assert sorted(path.name for path in out.iterdir()) == ["ladder.csv", "ladder.png"]


def test_the_ladder_says_why_lmmodel6_is_below_the_book():
    class Result:
        def __init__(self, accuracy):
            self.accuracy = accuracy

    class Done:
        def __init__(self, accuracy, model="lm6", seed=0):
            self.config, self.history = config_of(model, seed=seed), [Result(accuracy)]

    note = climb._below_the_book([Done(0.60)])
    assert note.startswith("LMModel6 at seed 0 is 0.12 below the book: its accuracy depends on the seed.\n")
    assert "with torch.nn 0.57 to 0.80" in note and "--seeds 3" in note
    assert max(map(len, note.splitlines())) <= 100
    note = climb._below_the_book([Done(0.60, seed=2), Done(0.65), Done(0.9, seed=1)])
    assert note.startswith("LMModel6 at the median of 3 seeds is 0.07 below") and "--seeds" not in note
    assert climb._below_the_book([Done(0.71)]) == climb._below_the_book([Done(0.4, "lm1")]) == ""


# The classifier.


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A directory with two classes of documents and a session of a language model of them."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("encoder")
    for name in ("one", "two"):
        (folder / "classes" / name).mkdir(parents=True)
        for n in range(30):
            (folder / "classes" / name / f"{n}.txt").write_text(f"{name} and {name} again, {n} times over and over")
    args = ["--batch-size", "4", "--seq-len", "12", "--subwords", "280", "--hidden", "8", "--embedding", "6"]
    args = [*args, "--layers", "2", "--epochs", "1", "--text", str(folder / "classes"), "--out", str(folder / "out")]
    assert main(["train", "--model", "awd-lstm", *args]) == 0
    return folder


@pytest.mark.parametrize("name", ["load_texts", "_train_epoch", "evaluate"])
def test_ctrl_c_in_classify(here, encoder, monkeypatch, capsys, name):
    pressing(monkeypatch, classify, name, 1)
    args = ["classify", "--encoder", str(encoder / "out"), "--text", str(encoder / "classes"), "--epochs", "1"]
    capsys.readouterr()
    assert main(args) == 130
    one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert not (here / "runs").exists()


def test_ctrl_c_while_subwords_are_learnt(here, encoder, monkeypatch, capsys):
    pressing(monkeypatch, session.load_dataset.__globals__["Subwords"], "train", 1)
    args = ["train", "--model", "awd-lstm", "--text", str(encoder / "classes"), "--subwords", "280"]
    capsys.readouterr()
    assert main(args) == 130
    one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert not (here / "runs").exists()


def test_a_classifier_that_diverges(here, encoder, monkeypatch, capsys):
    diverging(monkeypatch, classify, "evaluate", 2)
    args = ["classify", "--encoder", str(encoder / "out"), "--text", str(encoder / "classes"), "--epochs", "1"]
    capsys.readouterr()
    assert main(args) == 1
    one_sentence(capsys, "the classifier diverged: .* nan in epoch 1; .*; nothing was kept\n")
    assert not (here / "runs").exists()


def test_classify_has_a_bar_before_the_first_batch(here, encoder, monkeypatch):
    console, seen, real = terminal(), [], classify._train_epoch
    monkeypatch.setattr(classify, "_train_epoch", lambda *args: seen.append(console.file.getvalue()) or real(*args))
    with output_directory(None, "classify") as place:
        out = classify.classify_session(console, classify_encoder(encoder), str(encoder / "classes"), 1, 20, 0, place)
    total = int(re.search(r"classifier.* 0/(\d+)", seen[0])[1])
    assert (out / "classifier.pt").exists()
    train_texts, valid, _ = classify.load_texts(str(encoder / "classes"), classify_encoder(encoder).vocab, 20)
    done = []
    model = classify.TextClassifier(classify.encoder_of(classify_encoder(encoder)), 2)
    classify.train_classifier(model, train_texts, valid, 1, after_batch=lambda: done.append(1))
    assert len(done) == total
    groups = len(model.groups())
    assert f"unfrozen: how many of the {groups} groups of layers an epoch trains" in console.file.getvalue()
    with pytest.raises(InputError, match="holds no classifier.pt: give the file of a checkpoint"):
        classify.load_classifier(encoder / "out")
    assert classify.load_classifier(out).classes


def classify_encoder(folder):
    from lstmkern.lm.pretrained import load_pretrained

    return load_pretrained(folder / "out")
