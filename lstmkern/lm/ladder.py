"""LMModel1 to LMModel7 of the fastai book's chapter "A Language Model from Scratch".

Each model adds one idea to the one before it. Input is tokens, int64 [N, T]; ``LanguageModel`` describes the output.
The recurrent class of the last three is an argument: lstmkern's by default; torch.nn's works too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import LSTM, RNN
from .state import LanguageModel

RNNClass = Callable[..., nn.Module]


class _Words(LanguageModel):
    """The three layers of LMModel1 to LMModel4: input to hidden, hidden to hidden, hidden to output."""

    def __init__(self, vocab_sz: int, n_hidden: int) -> None:
        super().__init__()
        self.i_h = nn.Embedding(vocab_sz, n_hidden)
        self.h_h = nn.Linear(n_hidden, n_hidden)
        self.h_o = nn.Linear(n_hidden, vocab_sz)

    def _next(self, h: Tensor | int, word: Tensor) -> Tensor:
        return F.relu(self.h_h(h + word))


class LMModel1(_Words):
    """Predicts the word after three words, unrolled by hand.

    Args:
        vocab_sz: number of words in the vocabulary.
        n_hidden: size of the embedding, and number of hidden units.
    """

    window = 3

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, 3] -> logits [N, vocab_sz]."""
        h = F.relu(self.h_h(self.i_h(x[:, 0])))
        h = h + self.i_h(x[:, 1])
        h = F.relu(self.h_h(h))
        h = h + self.i_h(x[:, 2])
        h = F.relu(self.h_h(h))
        return self.h_o(h)


class LMModel2(_Words):
    """LMModel1 as a loop: a recurrent network. Arguments as for LMModel1."""

    window = 3

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, vocab_sz]."""
        h = 0
        for word in self.i_h(x).unbind(1):
            h = self._next(h, word)
        return self.h_o(h)


class LMModel3(_Words):
    """LMModel2, but the hidden state is kept, detached, for the next call: truncated backpropagation through time.

    Arguments as for LMModel1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, vocab_sz]. The state is kept for the next call."""
        return self.h_o(self._hidden(x)[-1])

    def _hidden(self, x: Tensor) -> list[Tensor]:
        """The hidden state [N, n_hidden] after each of the T words."""
        words = self.i_h(x)
        h, hidden = self.carried(x, words.dtype), []
        for word in words.unbind(1):
            h = self._next(0 if h is None else h, word)
            hidden.append(h)
        self.carry(h)
        return hidden


class LMModel4(LMModel3):
    """LMModel3 with a prediction after every word. Arguments as for LMModel1."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, T, vocab_sz]. The state is kept for the next call."""
        return self.h_o(torch.stack(self._hidden(x), dim=1))


class _RecurrentLM(LanguageModel):
    """Embedding, recurrent layers, Linear; the state is what the recurrent class returns, [n_layers, N, H] each."""

    def __init__(self, vocab_sz: int, n_hidden: int, n_layers: int, rnn: RNNClass) -> None:
        super().__init__()
        self.i_h = nn.Embedding(vocab_sz, n_hidden)
        self.rnn = rnn(n_hidden, n_hidden, n_layers, batch_first=True)
        self.h_o = nn.Linear(n_hidden, vocab_sz)

    def _features(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> output of the last recurrent layer [N, T, n_hidden]. The state is kept."""
        embedded = self.i_h(x)
        output, state = self.rnn(embedded, self.carried(x, embedded.dtype))
        self.carry(state)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, T, vocab_sz]. The state is kept for the next call."""
        return self.h_o(self._features(x))


class LMModel5(_RecurrentLM):
    """LMModel4 with a multilayer recurrent network, by default ``lstmkern.RNN``. Arguments as for LMModel6."""

    def __init__(self, vocab_sz: int, n_hidden: int, n_layers: int, *, rnn: RNNClass = RNN) -> None:
        super().__init__(vocab_sz, n_hidden, n_layers, rnn)


class LMModel6(_RecurrentLM):
    """Multilayer LSTM language model.

    Args:
        vocab_sz: number of words in the vocabulary.
        n_hidden: size of the embedding, and number of hidden units of every recurrent layer.
        n_layers: number of recurrent layers.
        rnn: recurrent class, called as ``rnn(n_hidden, n_hidden, n_layers, batch_first=True)``;
            ``lstmkern.LSTM`` by default; ``lstmkern.GRU``, ``torch.nn.LSTM`` and others work too.
    """

    def __init__(self, vocab_sz: int, n_hidden: int, n_layers: int, *, rnn: RNNClass = LSTM) -> None:
        super().__init__(vocab_sz, n_hidden, n_layers, rnn)


class LMModel7(_RecurrentLM):
    """LMModel6 with dropout on the recurrent output, and with the output layer's weight tied to the embedding.

    Args:
        vocab_sz: number of words in the vocabulary.
        n_hidden: size of the embedding, and number of hidden units of every recurrent layer.
        n_layers: number of recurrent layers.
        p: dropout probability.
        rnn: recurrent class, as for LMModel6.
    """

    def __init__(self, vocab_sz: int, n_hidden: int, n_layers: int, p: float, *, rnn: RNNClass = LSTM) -> None:
        super().__init__(vocab_sz, n_hidden, n_layers, rnn)
        self.drop = nn.Dropout(p)
        self.h_o.weight = self.i_h.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the next word at every position. The state is kept for the next call.

        Args:
            x: tokens, int64 [N, T].

        Returns:
            Logits [N, T, vocab_sz], the recurrent output [N, T, n_hidden] before dropout, and after it.
        """
        raw = self._features(x)
        out = self.drop(raw)
        return self.h_o(out), raw, out
