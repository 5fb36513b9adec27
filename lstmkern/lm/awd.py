"""AWD-LSTM: an LSTM language model with dropout on words, embeddings, recurrent weights, layers and output.

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
    """Dropout probabilities of AWD-LSTM.

    Args:
        word: of a word of the vocabulary, in the embedding.
        input: of a feature of the embedding's output.
        hidden: of a feature between two layers.
        weight: of an element of the recurrent weights W_hh.
        output: of a feature before the output layer.
    """

    word: float = 0.05
    input: float = 0.3
    hidden: float = 0.15
    weight: float = 0.25
    output: float = 0.2

    def times(self, factor: float) -> Dropouts:
        """All probabilities multiplied by ``factor``."""
        return Dropouts(*(factor * p for p in (self.word, self.input, self.hidden, self.weight, self.output)))


class WordDropout(nn.Module):
    """Embedding dropout: in training, whole rows of the embedding are zero and the others are scaled by 1 / (1 - p).

    Args:
        embedding: the embedding [vocab_sz, E].
        p: probability that a word is dropped.
    """

    def __init__(self, embedding: nn.Embedding, p: float) -> None:
        super().__init__()
        self.embedding, self.p = embedding, p

    def forward(self, x: Tensor) -> Tensor:
        """Look up tokens.

        Args:
            x: tokens, int64 [N, T].

        Returns:
            Their embeddings, [N, T, E].
        """
        weight = self.embedding.weight
        if self.training and self.p > 0:
            weight = weight * F.dropout(weight.new_ones(weight.size(0), 1), self.p)
        return F.embedding(x, weight)


class LockedDropout(nn.Module):
    """Locked (variational) dropout: one mask [N, 1, H] for all time steps of a sequence.

    Args:
        p: probability that a feature is dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply the dropout.

        Args:
            x: features, [N, T, H].

        Returns:
            The same shape; ``x`` itself in eval mode.
        """
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), self.p)


class Encoder(nn.Module):
    """Embedding and LSTM layers, from tokens to features; shared by the language model and the classifier.

    Args:
        vocab_sz: number of tokens in the vocabulary.
        emb_sz: size of the embedding, and hidden size of the last layer so that weights can be tied.
        n_hidden: hidden size of the other layers.
        n_layers: number of layers. Each is a separate module, with locked dropout between them.
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
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_sz, emb_sz)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.words = WordDropout(self.embedding, drop.word)
        sizes = [emb_sz, *[n_hidden] * (n_layers - 1), emb_sz]
        self.layers = nn.ModuleList(rnn(i, o, batch_first=True) for i, o in zip(sizes[:-1], sizes[1:], strict=True))
        for layer in self.layers:
            # Weight drop: a new mask at every call. This is enough, because the layer reads its weights at every call.
            dropout = nn.Dropout(drop.weight).eval()  # registration calls it once, which should not draw a mask
            register_parametrization(layer, "weight_hh_l0", dropout)
            dropout.train()
        self.drops = nn.ModuleList(LockedDropout(drop.hidden) for _ in self.layers[1:])
        self.drops.insert(0, LockedDropout(drop.input))

    @property
    def width(self) -> int:
        """Number of features per token."""
        return self.embedding.embedding_dim

    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer, from the first to the last; the first group includes the embedding."""
        groups = [list(layer.parameters()) for layer in self.layers]
        groups[0] += self.embedding.parameters()
        return groups

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        """Compute the features of a batch of sequences.

        Args:
            x: tokens, int64 [N, T], padded at the end.
            state: (h, c) for each layer, each [1, N, H], or None for zeros.
            lengths: length of each sequence, int64 [N], or None if all are T.

        Returns:
            The features [N, T, width], zero in the padding, and (h, c) for each layer after each sequence's last token.
        """
        features, states = self.words(x), []
        padding = {} if lengths is None else {"lengths": lengths}
        for k, (drop, layer) in enumerate(zip(self.drops, self.layers, strict=True)):
            features, last = layer(drop(features), None if state is None else state[k], **padding)
            states.append(last)
        return features, tuple(states)


class AWDLSTM(LanguageModel):
    """AWD-LSTM language model: encoder, locked dropout, and an output layer whose weight is the embedding's.

    Args:
        encoder: embedding and LSTM layers.
        p: probability that a feature is dropped before the output layer.
    """

    def __init__(self, encoder: Encoder, p: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.drop = LockedDropout(p)
        self.decoder = nn.Linear(encoder.width, encoder.embedding.num_embeddings)
        self.decoder.weight = encoder.embedding.weight
        nn.init.zeros_(self.decoder.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the next token at every position. The state is kept for the next call.

        Args:
            x: tokens, int64 [N, T].

        Returns:
            Logits [N, T, vocab_sz], the features [N, T, width] before dropout, and after it.
        """
        raw, state = self.encoder(x, self.carried(x, self.decoder.weight.dtype))
        self.carry(state)
        out = self.drop(raw)
        return self.decoder(out), raw, out


class ConcatPooling(nn.Module):
    """Concatenation of the last features, and of the maximum and the mean over time; padding does not count."""

    def forward(self, features: Tensor, last: Tensor, lengths: Tensor) -> Tensor:
        """Pool over time.

        Args:
            features: [N, T, W], zero in the padding.
            last: features at each sequence's last token, [N, W].
            lengths: length of each sequence, int64 [N].

        Returns:
            Pooled features, [N, 3 * W].
        """
        padding = torch.arange(features.size(1), device=features.device) >= lengths.unsqueeze(1)
        highest = features.masked_fill(padding.unsqueeze(2), -torch.inf).amax(1)
        return torch.cat((last, highest, features.sum(1) / lengths.unsqueeze(1)), dim=1)


class TextClassifier(nn.Module):
    """Encoder, concat pooling, and two Linear layers, each after batch normalisation and dropout.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (2018).

    Args:
        encoder: embedding and LSTM layers.
        classes: number of classes.
        n_hidden: width of the first Linear layer.
        drop: dropout probabilities before the two Linear layers.
    """

    def __init__(
        self, encoder: Encoder, classes: int, n_hidden: int = 50, drop: tuple[float, float] = (0.2, 0.1)
    ) -> None:
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
        """The parameters of each of the encoder's layers, then of the head; unfreezing starts with the last group."""
        return [*self.encoder.groups(), list(self.head.parameters())]

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Classify a batch of texts.

        Args:
            x: tokens, int64 [N, T], padded at the end.
            lengths: length of each text, int64 [N].

        Returns:
            Logits, [N, classes].
        """
        features, states = self.encoder(x, lengths=lengths)
        return self.head(self.pool(features, states[-1][0].squeeze(0), lengths))
