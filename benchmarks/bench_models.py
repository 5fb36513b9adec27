"""Language models end to end: a training step, optimizer and all, on our layers and on torch.nn's; tokens per second.

Each pair of runs once in one process, and once each in a process of its own, as `lstmkern train` would run: what the
allocator has learnt from one of them then does not serve the other. Of all the other models models.py measures forward
and backward.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import torch

from lstmkern.bench import measure
from lstmkern.bench.cases import Case
from lstmkern.lm.data import load_corpus, make_batches
from lstmkern.lm.train import OURS, PEER, Config, Run, train_pass


@dataclass(frozen=True)
class Model:
    """steps(kernels, cell): a function that trains one batch, on kernels OURS or PEER. layer: the model's recurrent
    work. goal: the tokens per second that we aim at, over those on torch.nn."""

    steps: Callable[[str, str], Callable[[], object]]
    layer: Callable[[str], Case]
    goal: float | None = None


def session(name: str) -> Callable[[str, str], Callable[[], object]]:
    """A batch of `lstmkern train`, as it trains it: schedule, regularization, random numbers."""

    def steps(kernels, cell):
        config = Config(model=name, cell=cell)
        corpus = load_corpus()
        batches, _ = make_batches(corpus.ids, config.batch_size, config.seq_len)
        one = type(batches)(batches.x[:1], batches.y[:1])
        run = Run(config, len(corpus.vocab), 10**6, kernels)

        def step():
            run.batch = 0
            train_pass(run, one)

        return step

    return steps


def lm_layer(cell: str) -> Case:
    return Case(
        cell.upper(), Config.seq_len, Config.batch_size, Config.hidden, Config.hidden, Config.layers, train=True
    )


MODELS = {
    "LMModel6": Model(session("lm6"), lm_layer, goal=1.5),
    "LMModel7": Model(session("lm7"), lm_layer, goal=1.5),
}


def serve(connection, name: str, kernels: str, cell: str, threads: int):
    """Train a batch for every True that comes, until a False."""
    torch.set_num_threads(threads)
    step = MODELS[name].steps(kernels, cell)
    while connection.recv():
        step()
        connection.send(None)


@contextmanager
def apart(name: str, kernels: str, cell: str, threads: int) -> Iterator[Callable[[], object]]:
    """Such a step, in a process of its own that sleeps between the calls; a call costs some 50 microseconds more."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, kernels, cell, threads), daemon=True)
    process.start()
    theirs.close()

    def step():
        ours.send(True)
        ours.recv()

    try:
        for _ in range(10):  # until its allocator has settled
            step()
        yield step
        ours.send(False)
    finally:
        ours.close()
        process.join(10)


@pytest.mark.parametrize("processes", [1, 2], ids=["together", "apart"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", MODELS)
def test_train_step(contest, threads, name, cell, processes):
    model = MODELS[name]
    layer = model.layer(cell)
    with ExitStack() as stack:
        if processes == 1:
            steps = [model.steps(kernels, cell) for kernels in (OURS, PEER)]
        else:
            steps = [stack.enter_context(apart(name, kernels, cell, threads)) for kernels in (OURS, PEER)]
        block = measure.BLOCK if processes == 1 else 0.3  # a process that begins has cold caches and sleeping threads
        result = contest(layer, *steps, block=block, model=name, goal=model.goal, processes=processes)
    result["tokens_per_s"] = layer.tokens / result["ours_ms"] * 1e3
