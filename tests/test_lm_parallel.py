"""Training in several processes equals training in one; bf16 autocast, clipping, torch.compile, TensorBoard."""

import functools
import re
import sys
from dataclasses import replace

import pytest
import torch
from language import TRAIN, assert_one_sentence, run_python

from lstmkern.command import main
from lstmkern.lm.train import Config, Run, fit, train_pass

TINY = [*TRAIN, "--epochs", "2"]
SMALL = Config(model="lm6", epochs=2, batch_size=8, hidden=12, seed=3)


pytestmark = pytest.mark.usefixtures("one_thread", "text_file")


def torchrun(processes, *args, run=("-m", "lstmkern")):
    """Exit code, stdout and stderr of ``run``, by default our command, in several processes with one thread each."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return run_python(*start, *run, *args, OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_two_processes_train_like_one(here):
    """The same losses and weights up to rounding. The last batch has an odd number of rows, which two processes cannot
    share evenly. One process can resume the checkpoint of two."""
    args = ["train", "--model", "char-gru", "--text", "text.txt", "--batch-size", "10", "--seq-len", "12"]
    args += ["--hidden", "16", "--clip", "0.5", "--epochs", "2", "--seed", "1"]
    assert main([*args, "--out", "one"]) == 0
    code, out, err = torchrun(2, *args, "--out", "two")
    assert code == 0, err
    assert out.count("results are in two") == 1
    one, two = (torch.load(name + "/checkpoint.pt", weights_only=True)["runs"]["lstmkern"] for name in ("one", "two"))
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(one["history"], two["history"], strict=True):
        for key in ("train_loss", "valid_loss", "accuracy"):
            assert b[key] == pytest.approx(a[key], rel=1e-4)
    assert len(two["rng"]) == 2
    assert main(["train", "--resume", "two/checkpoint.pt", "--out", "again", "--text", "text.txt"]) == 0


COUNTS_THREADS = """
import os, sys
from torch import distributed
from lstmkern.command import main

def threads():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

counts = []
destroy = distributed.destroy_process_group

def counted():
    counts.append(threads())
    destroy()
    counts.append(threads())

distributed.destroy_process_group = counted
assert main(sys.argv[1:]) == 0
print("threads:", *counts, threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are Linux's")
def test_the_group_ends_with_the_training(here):
    """The threads of the group end before the interpreter does, and there is no warning.

    A thread that frees a tensor while the interpreter ends sometimes aborts the process, and one that does so while
    Python's lock is held sometimes blocks it.
    """
    (here / "counts.py").write_text(COUNTS_THREADS)
    code, out, err = torchrun(2, *TINY, "--out", "out", run=["counts.py"])
    assert code == 0 and "Warning" not in err, err
    counts = [tuple(map(int, found)) for found in re.findall(r"threads: (\d+) (\d+) (\d+)", out)]
    assert len(counts) == 2
    for before, after, left in counts:
        assert before > after >= left == 0


@pytest.mark.slow
def test_a_batch_that_two_processes_cannot_share(here):
    code, out, err = torchrun(
        2, "train", "--model", "char-gru", "--text", "text.txt", "--batch-size", "9", "--out", "out"
    )
    assert code != 0
    assert err.count("lstmkern: a batch of 9 sequences cannot be shared evenly by 2 processes") == 1
    assert not (here / "out").exists()


@pytest.mark.slow
def test_two_processes_that_diverge(here):
    code, _, err = torchrun(2, *TINY, "--lr", "1e30", "--out", "out")
    assert code != 0
    assert err.count("lstmkern: the training of char-gru on lstmkern diverged") == 1
    assert not (here / "out").exists()


def trained(small, **how):
    corpus, train, valid = small
    config = replace(SMALL, **how)
    run = Run(config, len(corpus.vocab), train.steps(config.epochs))
    fit([run], train, valid)
    return run


def test_bf16_is_autocast(small):
    """Weights stay fp32 and matrix products are bf16: losses are close to those of fp32, but not equal."""
    seen = []
    plain, run = trained(small), trained(small, dtype="bf16")
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    run.model.h_o.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with run.autocast():
        run.model(small[1].x[0])
    assert seen == [torch.bfloat16]
    assert run.history[-1].train_loss != plain.history[-1].train_loss
    assert run.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, rel=0.02)


def test_gradients_are_clipped(small):
    corpus, train, _ = small
    norms = {}
    for clip in (0.0, 0.01):
        run = Run(replace(SMALL, clip=clip), len(corpus.vocab), train.steps(2))
        norms[clip] = []
        run.optimizer.register_step_pre_hook(
            lambda *_, run=run, clip=clip: norms[clip].append(
                torch.stack([p.grad.norm() for p in run.model.parameters()]).norm().item()
            )
        )
        train_pass(run, train)
    assert min(norms[0.0]) > 0.01
    assert max(norms[0.01]) == pytest.approx(0.01, rel=1e-3) and min(norms[0.01]) == pytest.approx(0.01, rel=1e-3)


def test_compiled_training_is_the_same(small, monkeypatch):
    """Traced and differentiated by torch.compile, without code generation, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, run = trained(small), trained(small, compile=True)
    assert run.network is not run.model
    assert run.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, rel=1e-5)
    assert run.history[-1].valid_loss == pytest.approx(plain.history[-1].valid_loss, rel=1e-5)


def test_tensorboard(here):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main([*TINY, "--tensorboard", "--out", "out"]) == 0
    board = events.EventAccumulator(str(here / "out" / "tensorboard"))
    board.Reload()
    history = torch.load("out/checkpoint.pt", weights_only=True)["runs"]["lstmkern"]["history"]
    assert [event.step for event in board.Scalars("lstmkern/valid_loss")] == [0, 1]
    for name in ("train_loss", "valid_loss", "accuracy", "tokens_per_s"):
        values = [event.value for event in board.Scalars(f"lstmkern/{name}")]
        assert values == pytest.approx([result[name] for result in history])


def test_without_tensorboard_one_sentence(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert main([*TINY, "--tensorboard", "--out", "out"]) == 2
    assert assert_one_sentence(capsys, "pip install tensorboard") == ""
    assert not (here / "out").exists()
