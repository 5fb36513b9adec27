"""Language models end to end: training, optimizer and all, on our layers and on torch.nn's; tokens per second.

Each pair of runs an epoch each in turn in one process, as `lstmkern train` compares them, and once each in a process of
its own: what the allocator has learnt from one of them then does not serve the other. Of all the other models models.py
measures forward and backward.
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
    """epochs(kernels, cell): a function that trains an epoch, on kernels OURS or PEER. layer: the model's recurrent
    work in it. goal: the tokens per second that we aim at, over those on torch.nn."""

    epochs: Callable[[str, str], Callable[[], object]]
    layer: Callable[[str], Case]
    goal: float


def session(name: str) -> Callable[[str, str], Callable[[], object]]:
    """An epoch of `lstmkern train`, as it trains it: schedule, regularization, random numbers."""

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
    """The layers of an epoch, as if its batches were one long one."""
    steps = Config.seq_len * len(batches())
    return Case(cell.upper(), steps, Config.batch_size, Config.hidden, Config.hidden, Config.layers, train=True)


MODELS = {
    "LMModel6": Model(session("lm6"), lm_layer, goal=1.5),
    "LMModel7": Model(session("lm7"), lm_layer, goal=1.5),
}


def serve(connection, name: str, kernels: str, cell: str, threads: int):
    """Train an epoch for every True that comes, until a False."""
    torch.set_num_threads(threads)
    epoch = MODELS[name].epochs(kernels, cell)
    while connection.recv():
        epoch()
        connection.send(None)


@contextmanager
def apart(name: str, kernels: str, cell: str, threads: int) -> Iterator[Callable[[], object]]:
    """Such an epoch, in a process of its own that sleeps between the calls."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, kernels, cell, threads), daemon=True)
    process.start()
    theirs.close()

    def epoch():
        ours.send(True)
        ours.recv()

    try:
        epoch()  # until its allocator has settled
        yield epoch
        ours.send(False)
    finally:
        ours.close()
        process.join(10)


def in_layers(epoch: Callable[[], object]) -> float:
    """The part of such an epoch, on our kernels, that torch.profiler finds in recurrent layers."""
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
            # What the layers would have to reach of the roofline for the goal, all else as it is: None if it leaves
            # them no time.
            left = result["peer_ms"] / model.goal - result["ours_ms"] * (1 - result["in_layers"])
            result["goal_needs"] = result["share"] * result["ours_ms"] / left if left > 0 else None
    result["tokens_per_s"] = layer.tokens / result["ours_ms"] * 1e3
