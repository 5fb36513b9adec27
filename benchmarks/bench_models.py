"""Tokens per second of training a language model end to end, optimizer included, on our layers and on torch.nn's.

Each model is measured in two ways: both in one process, an epoch each in turn, as `lstmkern train` compares them; and
each in a separate process, so that memory cached by the allocator for one cannot serve the other. models.py measures
forward and backward of all other models.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lstmkern.bench.cases import Case
from lstmkern.lm.data import Batches, load_corpus, make_batches
from lstmkern.lm.train import OURS, PEER, Config, Run, train_pass


@dataclass(frozen=True)
class Model:
    """A model to train.

    epochs(kernels, cell) returns a function that trains one epoch; kernels is OURS or PEER. layer(cell) is the
    recurrent work of an epoch. goal is the intended ratio of our tokens per second to torch.nn's.
    """

    epochs: Callable[[str, str], Callable[[], object]]
    layer: Callable[[str], Case]
    goal: float


def session(name: str) -> Callable[[str, str], Callable[[], object]]:
    """One epoch exactly as `lstmkern train` runs it: schedule, regularization, random numbers."""

    def epochs(kernels, cell):
        config = Config(model=name, cell=cell)
        run = Run(config, len(load_corpus().vocab), 10**6, kernels)

        def epoch():
            run.batch = 0
            train_pass(run, batches())

        return epoch

    return epochs


@cache
def batches() -> Batches:
    return make_batches(load_corpus().ids, Config.batch_size, Config.seq_len)[0]


def lm_layer(cell: str) -> Case:
    """The layers of an epoch, as if its batches were one long sequence."""
    steps = Config.seq_len * len(batches())
    return Case(cell.upper(), steps, Config.batch_size, Config.hidden, Config.hidden, Config.layers, train=True)


MODELS = {
    "LMModel6": Model(session("lm6"), lm_layer, goal=1.5),
    "LMModel7": Model(session("lm7"), lm_layer, goal=1.5),
}


def serve(connection, name: str, kernels: str, cell: str, threads: int):
    """Train an epoch for every True received; return on False."""
    torch.set_num_threads(threads)
    epoch = MODELS[name].epochs(kernels, cell)
    while connection.recv():
        epoch()
        connection.send(None)


@contextmanager
def apart(name: str, kernels: str, cell: str, threads: int) -> Iterator[Callable[[], object]]:
    """The same epoch, in a separate process that sleeps between calls."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, kernels, cell, threads), daemon=True)
    process.start()
    theirs.close()

    def epoch():
        ours.send(True)
        ours.recv()

    try:
        epoch()  # warm up, allocator included
        yield epoch
        ours.send(False)
    finally:
        ours.close()
        process.join(10)


def in_layers(epoch: Callable[[], object]) -> float:
    """The fraction of an epoch on our kernels that torch.profiler attributes to recurrent layers."""
    with profile(activities=[ProfilerActivity.CPU]) as found, record_function("epoch"):
        epoch()
    microseconds = {event.key: event.cpu_time_total for event in found.key_averages()}
    return (microseconds["LayerFunction"] + microseconds["LayerFunctionBackward"]) / microseconds["epoch"]


@pytest.mark.parametrize("processes", [1, 2], ids=["together", "apart"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", MODELS)
def test_train(contest, threads, name, cell, processes):
    model = MODELS[name]
    layer = model.layer(cell)
    with ExitStack() as stack:
        if processes == 1:
            epochs = [model.epochs(kernels, cell) for kernels in (OURS, PEER)]
        else:
            epochs = [stack.enter_context(apart(name, kernels, cell, threads)) for kernels in (OURS, PEER)]
        result = contest(layer, *epochs, model=name, goal=model.goal, processes=processes)
        if processes == 1:
            result["in_layers"] = in_layers(epochs[0])
            # The share of the roofline that the layers would need for the goal, everything else unchanged; None if
            # the rest already takes too long.
            left = result["peer_ms"] / model.goal - result["ours_ms"] * (1 - result["in_layers"])
            result["goal_needs"] = result["share"] * result["ours_ms"] / left if left > 0 else None
    result["tokens_per_s"] = layer.tokens / result["ours_ms"] * 1e3
