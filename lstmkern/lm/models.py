"""LMModel6 and LMModel7 of the fastai book: an embedding, a recurrent layer that keeps its state, an output layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..modules import LSTM

State = Tensor | tuple[Tensor, ...]


class _RecurrentLM(nn.Module):
    """Embedding -> recurrent layers -> Linear, with the hidden state carried, detached, from one call to the next.

    ``state`` is what the recurrent class returns beside its output ((h, c) or h, each [n_layers, N, n_hidden]), or
    None before the first call. It is an ordinary attribute: never part of a state_dict, made anew when the batch size
    or the device of the input changes.
    """

    def __init__(self, vocab_sz: int, n_hidden: int, n_layers: int, rnn: Callable[..., nn.Module]):
        super().__init__()
        self.i_h = nn.Embedding(vocab_sz, n_hidden)
        self.rnn = rnn(n_hidden, n_hidden, n_layers, batch_first=True)
        self.h_o = nn.Linear(n_hidden, vocab_sz)
        self.state: State | None = None

    def reset(self) -> None:
        """Start the next call from a zero hidden state."""
        self.state = None

    def _features(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> output of the last recurrent layer [N, T, n_hidden]; moves the state on."""
        embedded = self.i_h(x)
        output, state = self.rnn(embedded, self._state_for(embedded))
        self.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return output

    def _state_for(self, embedded: Tensor) -> State | None:
        if self.state is None:
            return None
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        if parts[0].size(1) != embedded.size(0) or parts[0].device != embedded.device:
            return None
        # Autocast, or a model that changed its type, leaves a state of another type behind.
        parts = tuple(s.to(embedded.dtype) for s in parts)
        return parts if isinstance(self.state, tuple) else parts[0]


class LMModel6(_RecurrentLM):
    """Multilayer recurrent language model.

    Args:
        vocab_sz: number of words.
        n_hidden: width of the embedding and of every recurrent layer.
        n_layers: number of recurrent layers.
        rnn: recurrent class, called as ``rnn(n_hidden, n_hidden, n_layers, batch_first=True)``;
            ``lstmkern.LSTM`` by default, ``lstmkern.GRU``, ``torch.nn.LSTM`` and the like work too.
    """

    def __init__(self, vocab_sz: int, n_hidden: int, n_layers: int, *, rnn: Callable[..., nn.Module] = LSTM):
        super().__init__(vocab_sz, n_hidden, n_layers, rnn)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens int64 [N, T] -> logits [N, T, vocab_sz]."""
        return self.h_o(self._features(x))


class LMModel7(_RecurrentLM):
    """LMModel6 with dropout on the recurrent output and the output layer's weight tied to the embedding's.

    Args:
        vocab_sz, n_hidden, n_layers, rnn: as for LMModel6.
        p: dropout probability.
    """

    def __init__(self, vocab_sz: int, n_hidden: int, n_layers: int, p: float, *, rnn: Callable[..., nn.Module] = LSTM):
        super().__init__(vocab_sz, n_hidden, n_layers, rnn)
        self.drop = nn.Dropout(p)
        self.h_o.weight = self.i_h.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens int64 [N, T] -> (logits [N, T, vocab_sz], recurrent output [N, T, n_hidden], the same dropped out)."""
        raw = self._features(x)
        out = self.drop(raw)
        return self.h_o(out), raw, out
