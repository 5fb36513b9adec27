"""AWD-LSTM: an LSTM language model regularised by dropout in every place where it does not disturb the recurrence.

Source: Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models" (2017); locked dropout: Gal and
Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks" (2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ..modules import LSTM
from .state import LanguageModel, State


@dataclass(frozen=True)
class Dropouts:
    """Probabilities: of a word, of an embedding's column, between layers, of a weight of W_hh, before the output."""

    word: float = 0.05
    input: float = 0.3
    hidden: float = 0.15
    weight: float = 0.25
    output: float = 0.2

    def times(self, factor: float) -> Dropouts:
        return Dropouts(*(factor * p for p in (self.word, self.input, self.hidden, self.weight, self.output)))


class WordDropout(nn.Module):
    """An embedding that, in training, leaves out whole words of the vocabulary, and scales up the rest."""

    def __init__(self, embedding: nn.Embedding, p: float):
        super().__init__()
        self.embedding, self.p = embedding, p

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> [N, T, E]."""
        weight = self.embedding.weight
        if self.training and self.p > 0:
            weight = weight * F.dropout(weight.new_ones(weight.size(0), 1), self.p)
        return F.embedding(x, weight)


class LockedDropout(nn.Module):
    """Variational dropout: one mask [N, 1, H] for all steps of a sequence."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x [N, T, H] -> the same shape."""
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), self.p)


class Encoder(nn.Module):
    """Embedding and LSTM layers: tokens to features. What language model and classifier share.

    Args:
        vocab_sz: number of tokens.
        emb_sz: width of the embedding, and of the last layer's output so that weights can be tied.
        n_hidden: width of the other layers.
        n_layers: number of layers, each a module of its own, so that dropout stands between them.
        drop: dropout probabilities.
        rnn: recurrent class, called as ``rnn(I, H, batch_first=True)``.
    """

    def __init__(
        self,
        vocab_sz: int,
        emb_sz: int,
        n_hidden: int,
        n_layers: int,
        drop: Dropouts,
        rnn: Callable[..., nn.Module] = LSTM,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_sz, emb_sz)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.words = WordDropout(self.embedding, drop.word)
        sizes = [emb_sz, *[n_hidden] * (n_layers - 1), emb_sz]
        self.layers = nn.ModuleList(rnn(i, o, batch_first=True) for i, o in zip(sizes[:-1], sizes[1:], strict=True))
        for layer in self.layers:
            # Weight drop: a fresh mask at every call. The layer reads its weights at every call, so this is all.
            dropout = nn.Dropout(drop.weight).eval()  # registration, which tries it out, should not draw a mask
            register_parametrization(layer, "weight_hh_l0", dropout)
            dropout.train()
        self.drops = nn.ModuleList(LockedDropout(drop.hidden) for _ in self.layers[1:])
        self.drops.insert(0, LockedDropout(drop.input))

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.embedding.embedding_dim

    def groups(self) -> list[list[nn.Parameter]]:
        """Parameters from the first layer's to the last's; the embedding belongs to the first."""
        groups = [list(layer.parameters()) for layer in self.layers]
        groups[0] += self.embedding.parameters()
        return groups

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        """Tokens int64 [N, T], state as returned or None for zeros, lengths int64 [N] of padded rows or None for T ->
        (features [N, T, width], zero past a row's end, and per layer (h, c), each [1, N, H], at each row's end)."""
        features, states = self.words(x), []
        padding = {} if lengths is None else {"lengths": lengths}
        for k, (drop, layer) in enumerate(zip(self.drops, self.layers, strict=True)):
            features, last = layer(drop(features), None if state is None else state[k], **padding)
            states.append(last)
        return features, tuple(states)


class AWDLSTM(LanguageModel):
    """Encoder, locked dropout, and an output layer whose weight is the embedding's."""

    def __init__(self, encoder: Encoder, p: float):
        super().__init__()
        self.encoder = encoder
        self.drop = LockedDropout(p)
        self.decoder = nn.Linear(encoder.width, encoder.embedding.num_embeddings)
        self.decoder.weight = encoder.embedding.weight
        nn.init.zeros_(self.decoder.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens int64 [N, T] -> (logits [N, T, vocab_sz], features [N, T, width], the same dropped out)."""
        raw, state = self.encoder(x, self.carried(x, self.decoder.weight.dtype))
        self.carry(state)
        out = self.drop(raw)
        return self.decoder(out), raw, out


class ConcatPooling(nn.Module):
    """The last real step's features, their maximum and their mean over the real steps, side by side."""

    def forward(self, features: Tensor, last: Tensor, lengths: Tensor) -> Tensor:
        """features [N, T, W], zero past a row's end; last [N, W]; lengths int64 [N] -> [N, 3 * W]."""
        padding = torch.arange(features.size(1), device=features.device) >= lengths.unsqueeze(1)
        highest = features.masked_fill(padding.unsqueeze(2), -torch.inf).amax(1)
        return torch.cat((last, highest, features.sum(1) / lengths.unsqueeze(1)), dim=1)


class TextClassifier(nn.Module):
    """Encoder, concat pooling, and two Linear layers with batch normalisation and dropout in front of each.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (2018).
    """

    def __init__(self, encoder: Encoder, classes: int, n_hidden: int = 50, drop: tuple[float, float] = (0.2, 0.1)):
        super().__init__()
        self.encoder, self.pool = encoder, ConcatPooling()
        self.head = nn.Sequential(
            nn.BatchNorm1d(3 * encoder.width),
            nn.Dropout(drop[0]),
            nn.Linear(3 * encoder.width, n_hidden),
            nn.ReLU(),
            nn.BatchNorm1d(n_hidden),
            nn.Dropout(drop[1]),
            nn.Linear(n_hidden, classes),
        )

    def groups(self) -> list[list[nn.Parameter]]:
        """Parameters in the order in which they are unfrozen, backwards: the encoder's layers, then the head."""
        return [*self.encoder.groups(), list(self.head.parameters())]

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Tokens int64 [N, T] padded at the end, lengths int64 [N] -> logits [N, classes]."""
        features, states = self.encoder(x, lengths=lengths)
        return self.head(self.pool(features, states[-1][0].squeeze(0), lengths))
