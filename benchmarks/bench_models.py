"""Language models end to end: a training step, optimizer and all, on our layers and on torch.nn's; tokens per second.

A model is one more entry in MODELS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

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


class Stack(nn.Module):
    """Embedding, recurrent layers of the given widths, output layer; no state is carried."""

    def __init__(self, rnn: type[nn.Module], vocab: int, widths: list[int]):
        super().__init__()
        self.embedding = nn.Embedding(vocab, widths[0])
        self.layers = nn.ModuleList(rnn(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.output = nn.Linear(widths[-1], vocab)

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)[0]
        return self.output(x)


def plain(T: int, N: int, vocab: int, widths: list[int]) -> Callable[[str, str], Callable[[], object]]:
    """A Stack on random tokens with cross entropy and SGD."""

    def steps(kernels, cell):
        import lstmkern

        torch.manual_seed(0)
        model = Stack(getattr(nn if kernels == PEER else lstmkern, cell.upper()), vocab, widths)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        tokens = torch.randint(vocab, (T + 1, N))

        def step():
            loss = nn.functional.cross_entropy(model(tokens[:-1]).flatten(0, 1), tokens[1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return steps


def lm_layer(cell: str) -> Case:
    return Case(
        cell.upper(), Config.seq_len, Config.batch_size, Config.hidden, Config.hidden, Config.layers, train=True
    )


MODELS = {
    "LMModel6": Model(session("lm6"), lm_layer, goal=1.5),
    "LMModel7": Model(session("lm7"), lm_layer, goal=1.5),
    "characters": Model(
        plain(100, 32, 96, [256, 256, 256]), lambda c: Case(c.upper(), 100, 32, 256, 256, 2, train=True)
    ),
}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", MODELS)
def test_train_step(contest, name, cell):
    model = MODELS[name]
    layer = model.layer(cell)
    result = contest(layer, model.steps(OURS, cell), model.steps(PEER, cell), model=name, goal=model.goal)
    result["tokens_per_s"] = layer.tokens / result["ours_ms"] * 1e3
