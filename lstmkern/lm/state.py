"""The base class of the language models: a hidden state that is kept, detached, from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import torch
from torch import Tensor, nn

State = Union[Tensor, "tuple[State, ...]"]


def map_state(f: Callable[[Tensor], Tensor], state: State | None) -> State | None:
    """Apply ``f`` to every tensor of ``state``; None stays None."""
    if state is None:
        return None
    return tuple(map_state(f, part) for part in state) if isinstance(state, tuple) else f(state)


def leaves(state: State | None) -> list[Tensor]:
    """The tensors of ``state``, each [..., N, H]."""
    if state is None:
        return []
    return [leaf for part in state for leaf in leaves(part)] if isinstance(state, tuple) else [state]


def join_states(states: Sequence[State | None]) -> State | None:
    """Concatenate the states of several batches along the batch dimension."""
    if states[0] is None:
        return None
    if isinstance(states[0], tuple):
        return tuple(join_states(parts) for parts in zip(*states, strict=True))
    return torch.cat(list(states), dim=-2)


class LanguageModel(nn.Module):
    """A model that reads tokens, int64 [N, T], and predicts the next token.

    The output is logits [N, T, vocab_sz] with a prediction after every token, or logits [N, vocab_sz] with one after
    the last token, or a tuple (logits, raw, out) with the last recurrent layer's output before and after dropout.

    ``state`` is the state of the recurrence: a tensor [..., N, H] or nested tuples of such tensors, and None before the
    first call. It is an ordinary attribute, so it is not in the state_dict. It is reset to zero if the batch size or
    the device of the input changes.

    ``window`` is None for a model that keeps a state. A model without a state is always called with as many tokens as
    it was trained on; ``window`` is that number.
    """

    window: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.state: State | None = None

    def reset(self) -> None:
        """Let the next call start from a zero hidden state."""
        self.state = None

    def carried(self, x: Tensor, dtype: torch.dtype) -> State | None:
        """The state to continue from, or None for zeros.

        Args:
            x: the tokens of this call, [N, T].
            dtype: type in which the state is needed.
        """
        tensors = leaves(self.state)
        if not tensors or tensors[0].size(-2) != x.size(0) or tensors[0].device != x.device:
            return None
        # Under autocast, or after a change of the model's dtype, the kept state has another dtype.
        return map_state(lambda s: s.to(dtype), self.state)

    def carry(self, state: State) -> None:
        """Keep ``state``, detached, for the next call."""
        self.state = map_state(Tensor.detach, state)
