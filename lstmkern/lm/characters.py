"""The character models of the fastai lectures, from three characters, unrolled by hand, to a stateful LSTM.

Each consists of an embedding of size ``n_fac``, a recurrence with ``n_hidden`` hidden units, and a Linear layer. Input
is tokens, int64 [N, T]; ``LanguageModel`` describes the output. ``rnn`` is the recurrent class: lstmkern's by default;
torch.nn's works too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import GRU, LSTM, RNN
from .state import LanguageModel

RNNClass = Callable[..., nn.Module]


class _Characters(LanguageModel):
    """Embedding ``e`` and output layer ``l_out``, which all character models have."""

    def __init__(self, vocab_sz: int, n_fac: int, n_hidden: int) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.e = nn.Embedding(vocab_sz, n_fac)
        self.l_out = nn.Linear(n_hidden, vocab_sz)

    def zeros(self, embedded: Tensor) -> Tensor:
        """A hidden state of zeros [N, n_hidden] for ``embedded`` [N, T, n_fac]."""
        return embedded.new_zeros(embedded.size(0), self.n_hidden)


class Char3(_Characters):
    """Predicts the character after three; every character goes through the same input layer, unrolled by hand."""

    window = 3

    def __init__(self, vocab_sz: int, n_fac: int, n_hidden: int) -> None:
        super().__init__(vocab_sz, n_fac, n_hidden)
        self.l_in = nn.Linear(n_fac, n_hidden)
        self.l_hidden = nn.Linear(n_hidden, n_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, 3] -> logits [N, vocab_sz]."""
        in1 = F.relu(self.l_in(self.e(x[:, 0])))
        in2 = F.relu(self.l_in(self.e(x[:, 1])))
        in3 = F.relu(self.l_in(self.e(x[:, 2])))
        h = torch.tanh(self.l_hidden(in1))
        h = torch.tanh(self.l_hidden(h + in2))
        h = torch.tanh(self.l_hidden(h + in3))
        return self.l_out(h)


class CharLoop(Char3):
    """Char3 as a loop over eight characters."""

    window = 8

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, vocab_sz]."""
        embedded = self.e(x)
        h = self.zeros(embedded)
        for character in embedded.unbind(1):
            h = torch.tanh(self.l_hidden(h + F.relu(self.l_in(character))))
        return self.l_out(h)


class CharConcat(_Characters):
    """CharLoop, but the hidden state and the character are concatenated instead of added."""

    window = 8

    def __init__(self, vocab_sz: int, n_fac: int, n_hidden: int) -> None:
        super().__init__(vocab_sz, n_fac, n_hidden)
        self.l_in = nn.Linear(n_hidden + n_fac, n_hidden)
        self.l_hidden = nn.Linear(n_hidden, n_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, vocab_sz]."""
        embedded = self.e(x)
        h = self.zeros(embedded)
        for character in embedded.unbind(1):
            h = torch.tanh(self.l_hidden(F.relu(self.l_in(torch.cat((h, character), dim=1)))))
        return self.l_out(h)


class CharRNN(_Characters):
    """The loop as a recurrent layer, with one prediction after the last character."""

    window = 8

    def __init__(self, vocab_sz: int, n_fac: int, n_hidden: int, *, rnn: RNNClass = RNN) -> None:
        super().__init__(vocab_sz, n_fac, n_hidden)
        self.rnn = rnn(n_fac, n_hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, vocab_sz]."""
        return self.l_out(self.rnn(self.e(x))[0][:, -1])


class CharMultiOutput(CharRNN):
    """CharRNN with a prediction after every character."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, T, vocab_sz]."""
        return self.l_out(self.rnn(self.e(x))[0])


class RNNCell(nn.Module):
    r"""``torch.nn.RNNCell`` written in Python, with the same parameter names.

    .. math:: h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        ni: input size.
        nh: hidden size.
    """

    gates = 1

    def __init__(self, ni: int, nh: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(self.gates * nh, ni))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * nh, nh))
        self.bias_ih = nn.Parameter(torch.empty(self.gates * nh))
        self.bias_hh = nn.Parameter(torch.empty(self.gates * nh))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(nh**-0.5), nh**-0.5)

    def products(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix products W_ih x + b_ih and W_hh h + b_hh, each [N, gates * nh]."""
        return F.linear(x, self.weight_ih, self.bias_ih), F.linear(h, self.weight_hh, self.bias_hh)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One time step: x [N, ni] and h [N, nh] give the next h [N, nh]."""
        from_x, from_h = self.products(x, h)
        return torch.tanh(from_x + from_h)


class GRUCell(RNNCell):
    """``torch.nn.GRUCell`` written in Python, with the same parameter names; gates in the order r, z, n."""

    gates = 3

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One time step: x [N, ni] and h [N, nh] give the next h [N, nh]."""
        (xr, xz, xn), (hr, hz, hn) = (product.chunk(3, dim=1) for product in self.products(x, h))
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        return (1 - z) * n + z * h


class CharStateful(_Characters):
    """A loop over a cell written in Python; its hidden state [N, n_hidden] is kept, detached, for the next call."""

    def __init__(
        self, vocab_sz: int, n_fac: int, n_hidden: int, *, cell: Callable[[int, int], nn.Module] = RNNCell
    ) -> None:
        super().__init__(vocab_sz, n_fac, n_hidden)
        self.cell = cell(n_fac, n_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, T, vocab_sz]. The state is kept for the next call."""
        embedded = self.e(x)
        h, hidden = self.carried(x, embedded.dtype), []
        h = self.zeros(embedded) if h is None else h
        for character in embedded.unbind(1):
            h = self.cell(character, h)
            hidden.append(h)
        self.carry(h)
        return self.l_out(torch.stack(hidden, dim=1))


class CharGRUCell(CharStateful):
    """CharStateful with the GRU cell written in Python."""

    def __init__(self, vocab_sz: int, n_fac: int, n_hidden: int) -> None:
        super().__init__(vocab_sz, n_fac, n_hidden, cell=GRUCell)


class CharGRU(_Characters):
    """CharStateful with a recurrent layer, by default a GRU."""

    def __init__(self, vocab_sz: int, n_fac: int, n_hidden: int, *, rnn: RNNClass = GRU) -> None:
        super().__init__(vocab_sz, n_fac, n_hidden)
        self.rnn = rnn(n_fac, n_hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, T, vocab_sz]. The state is kept for the next call."""
        embedded = self.e(x)
        output, state = self.rnn(embedded, self.carried(x, embedded.dtype))
        self.carry(state)
        return self.l_out(output)


class CharLSTM(CharGRU):
    """CharGRU with an LSTM of ``n_layers`` layers and dropout ``p`` between them."""

    def __init__(
        self, vocab_sz: int, n_fac: int, n_hidden: int, n_layers: int, p: float, *, rnn: RNNClass = LSTM
    ) -> None:
        _Characters.__init__(self, vocab_sz, n_fac, n_hidden)
        self.rnn = rnn(n_fac, n_hidden, n_layers, batch_first=True, dropout=p if n_layers > 1 else 0.0)
