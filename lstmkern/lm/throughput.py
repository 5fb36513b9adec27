"""Training steps of all models for benchmarks, on any module that has the classes LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .awd import TextClassifier
from .models import CELLS, RECIPES
from .train import Config, config_of, losses

VOCABULARY = {"words": 30, "characters": 100, "subwords": 3000}  # sizes as in HUMAN_NUMBERS and the standard library
CLASSIFIER, CLASSES = "classifier", 20


@dataclass(frozen=True)
class Case:
    """A model with a batch of its default size.

    Args:
        name: of the model.
        tokens: number of tokens in the batch.
        recurrent: whether it has a recurrent layer, so that kernels can be compared.
        step: ``step(layers, device)`` builds the model with the classes of ``layers`` (lstmkern or torch.nn), always
            with the same weights. It returns a function that runs forward, loss and backward, and returns the loss.
    """

    name: str
    tokens: int
    recurrent: bool
    step: Callable[..., Callable[[], Tensor]]


class _PackedLSTM(nn.LSTM):
    """torch.nn.LSTM with lstmkern's argument ``lengths``: packs the padded input."""

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if lengths is None:
            return super().forward(input, hx)
        packed = pack_padded_sequence(input, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, state = super().forward(packed, hx)
        return pad_packed_sequence(output, batch_first=True, total_length=input.size(1))[0], state


def cases() -> list[Case]:
    """All models with all their cells, and the text classifier on batches of texts of varying length."""
    configs = [
        config_of(name, **cell)
        for name, recipe in RECIPES.items()
        for cell in ([{"cell": cell} for cell in CELLS] if "cell" in recipe.options else [{}])
    ]
    return [*map(_language_model, configs), _classifier(config_of("awd-lstm"))]


def _language_model(config: Config) -> Case:
    vocab_sz, shape = VOCABULARY[config.recipe.reads], (config.batch_size, config.seq_len)

    def step(layers: Any, device: str = "cpu") -> Callable[[], Tensor]:
        torch.manual_seed(0)
        model = config.recipe.make(vocab_sz, config, layers).to(device)
        torch.manual_seed(1)
        x, y = torch.randint(vocab_sz, (2, *shape), device=device)

        def run() -> Tensor:
            model.zero_grad()
            with cached():  # torch.nn reads a weight several times, but weight drop must run once per step
                loss = losses(model(x), y, config.recipe)[1]
            loss.backward()
            return loss

        return run

    return Case(config.name, shape[0] * shape[1], config.recipe.recurrent, step)


def _classifier(config: Config) -> Case:
    vocab_sz = VOCABULARY["subwords"]
    lengths = torch.linspace(10, 80, 32).long()

    def step(layers: Any, device: str = "cpu") -> Callable[[], Tensor]:
        torch.manual_seed(0)
        padded = SimpleNamespace(LSTM=_PackedLSTM) if layers is nn else layers
        encoder = config.recipe.make(vocab_sz, config, padded).encoder
        model = TextClassifier(encoder, CLASSES).to(device)
        torch.manual_seed(1)
        x = torch.randint(vocab_sz, (len(lengths), int(lengths.max())), device=device)
        labels = torch.randint(CLASSES, (len(lengths),), device=device)
        on_device = lengths.to(device)

        def run() -> Tensor:
            model.zero_grad()
            with cached():
                loss = F.cross_entropy(model(x, on_device), labels)
            loss.backward()
            return loss

        return run

    return Case(CLASSIFIER, int(lengths.sum()), True, step)
