"""Language models end to end: a training step, optimizer and all, on our layers and on torch.nn's; tokens per second.

Of all the other models models.py measures forward and backward.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

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


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", MODELS)
def test_train_step(contest, name, cell):
    model = MODELS[name]
    layer = model.layer(cell)
    result = contest(layer, model.steps(OURS, cell), model.steps(PEER, cell), model=name, goal=model.goal)
    result["tokens_per_s"] = layer.tokens / result["ours_ms"] * 1e3
