"""The command that trains a text classifier: Ctrl-C, divergence and progress bar."""

import re

import pytest
from language import assert_one_sentence, press_ctrl_c, return_nan, terminal, write_classes

from lstmkern.command import main
from lstmkern.lm import classify, dataset
from lstmkern.lm.errors import InputError
from lstmkern.lm.output import output_directory
from lstmkern.lm.pretrained import load_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A directory with two classes of documents and a trained language model of them."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("encoder")
    write_classes(folder / "classes")
    args = ["--batch-size", "4", "--seq-len", "12", "--subwords", "280", "--hidden", "8", "--embedding", "6"]
    args = [*args, "--layers", "2", "--epochs", "1", "--text", str(folder / "classes"), "--out", str(folder / "out")]
    assert main(["train", "--model", "awd-lstm", *args]) == 0
    return folder


@pytest.mark.parametrize("name", ["load_texts", "_train_epoch", "evaluate"])
def test_ctrl_c_in_classify(here, encoder, monkeypatch, capsys, name):
    press_ctrl_c(monkeypatch, classify, name, 1)
    args = ["classify", "--encoder", str(encoder / "out"), "--text", str(encoder / "classes"), "--epochs", "1"]
    capsys.readouterr()
    assert main(args) == 130
    assert_one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert not (here / "runs").exists()


def test_ctrl_c_while_subwords_are_learnt(here, encoder, monkeypatch, capsys):
    press_ctrl_c(monkeypatch, dataset.Subwords, "train", 1)
    args = ["train", "--model", "awd-lstm", "--text", str(encoder / "classes"), "--subwords", "280"]
    capsys.readouterr()
    assert main(args) == 130
    assert_one_sentence(capsys, "^interrupted; nothing was kept\n")
    assert not (here / "runs").exists()


def test_a_classifier_that_diverges(here, encoder, monkeypatch, capsys):
    return_nan(monkeypatch, classify, "evaluate", 2)
    args = ["classify", "--encoder", str(encoder / "out"), "--text", str(encoder / "classes"), "--epochs", "1"]
    capsys.readouterr()
    assert main(args) == 1
    assert_one_sentence(capsys, "the classifier diverged: .* nan in epoch 1; .*; nothing was kept\n")
    assert not (here / "runs").exists()


def test_classify_has_a_bar_before_the_first_batch(here, encoder, monkeypatch):
    pretrained = load_pretrained(encoder / "out")
    console, seen, real = terminal(), [], classify._train_epoch
    monkeypatch.setattr(classify, "_train_epoch", lambda *args: seen.append(console.file.getvalue()) or real(*args))
    with output_directory(None, "classify") as output:
        out = classify.classify_session(console, pretrained, str(encoder / "classes"), 1, 20, 0, output.make)
    total = int(re.search(r"classifier.* 0/(\d+)", seen[0])[1])
    assert (out / "classifier.pt").exists()
    train_texts, valid, _ = classify.load_texts(str(encoder / "classes"), pretrained.vocab, 20)
    done = []
    model = classify.TextClassifier(classify.encoder_of(pretrained), 2)
    classify.train_classifier(model, train_texts, valid, 1, after_batch=lambda: done.append(1))
    assert len(done) == total
    groups = len(model.groups())
    assert f"unfrozen: how many of the {groups} groups of layers an epoch trains" in console.file.getvalue()
    with pytest.raises(InputError, match="holds no classifier.pt: give the file of a checkpoint"):
        classify.load_classifier(encoder / "out")
    assert classify.load_classifier(out).classes
