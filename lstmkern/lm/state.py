"""What every language model here shares: a hidden state that is carried, detached, from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import torch
from torch import Tensor, nn

State = Union[Tensor, "tuple[State, ...]"]


def map_state(f: Callable[[Tensor], Tensor], state: State | None) -> State | None:
    """``state`` with ``f`` applied to every tensor in it; None stays None."""
    if state is None:
        return None
    return tuple(map_state(f, part) for part in state) if isinstance(state, tuple) else f(state)


def leaves(state: State | None) -> list[Tensor]:
    """The tensors of ``state``, each [..., N, H]."""
    if state is None:
        return []
    return [leaf for part in state for leaf in leaves(part)] if isinstance(state, tuple) else [state]


def join_states(states: Sequence[State | None]) -> State | None:
    """The states of several batches as the state of one that has all their rows."""
    if states[0] is None:
        return None
    if isinstance(states[0], tuple):
        return tuple(join_states(parts) for parts in zip(*states, strict=True))
    return torch.cat(list(states), dim=-2)


class LanguageModel(nn.Module):
    """A model that reads tokens int64 [N, T] and predicts what comes next.

    Its output is either logits [N, T, vocab_sz], a prediction after every token, or logits [N, vocab_sz], one after
    the last; or a tuple (logits, raw, out) with the last recurrent layer's output before and after dropout.

    ``state`` is whatever the model's recurrence hands on, tensors [..., N, H] in tuples, or None before the first call.
    It is an ordinary attribute: never part of a state_dict, made anew when the batch size or the device of the input
    changes. ``window`` is None for a model that keeps such a state; a model that keeps none sees in every call as
    many tokens as it was trained on, and that number is its window.
    """

    window: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.state: State | None = None

    def reset(self) -> None:
        """Start the next call from a zero hidden state."""
        self.state = None

    def carried(self, x: Tensor, dtype: torch.dtype) -> State | None:
        """The state, in ``dtype``, to continue with the tokens ``x`` [N, T] from, or None if none fits them."""
        tensors = leaves(self.state)
        if not tensors or tensors[0].size(-2) != x.size(0) or tensors[0].device != x.device:
            return None
        # Autocast, or a model that changed its type, leaves a state of another type behind.
        return map_state(lambda s: s.to(dtype), self.state)

    def carry(self, state: State) -> None:
        """Continue the next call from ``state``, through which no gradient flows back."""
        self.state = map_state(Tensor.detach, state)
