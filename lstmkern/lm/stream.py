"""Documents as one stream of tokens, cut into contiguous rows and into pieces of varying length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Batches
from .errors import InputError

SHORTEST = 5  # tokens of a piece


@dataclass(frozen=True)
class TokenStream:
    """Documents (each int64 [tokens]) joined in a new order every epoch, and read in ``rows`` contiguous rows.

    A row goes on from batch to batch, and the target is the input shifted by one token. Pieces have varying length,
    so that the gradient is not cut at the same places in every epoch: nineteen in twenty are about ``seq_len`` long,
    the others half of that, with a standard deviation of 5 (Merity et al. 2017). Order and lengths depend only on
    ``seed`` and on the epoch. At most ``rows`` tokens at the end of the stream are left out.

    Raises:
        InputError: there are not enough tokens for one batch.
    """

    documents: Sequence[Tensor]
    rows: int
    seq_len: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self._columns < self.seq_len:
            raise _too_short("training", self.documents, self.rows, self.seq_len)

    @property
    def _columns(self) -> int:
        return (sum(map(len, self.documents)) - 1) // self.rows

    def _generator(self, epoch: int, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed + 1_000_003 * (2 * epoch + purpose)) % 2**63)

    def cuts(self, epoch: int) -> list[int]:
        """The lengths of the pieces of an epoch; their sum is a row's length."""
        generator, left, lengths = self._generator(epoch, 0), self._columns, []
        while left > 0:
            mean = self.seq_len if torch.rand((), generator=generator) < 0.95 else self.seq_len / 2
            length = max(SHORTEST, round(torch.normal(mean, 5.0, (), generator=generator).item()))
            lengths.append(left if left - length < SHORTEST else length)
            left -= lengths[-1]
        return lengths

    def steps(self, epochs: int) -> int:
        """Batches of ``epochs`` epochs."""
        return sum(len(self.cuts(epoch)) for epoch in range(epochs))

    def epoch(self, epoch: int) -> Batches:
        """The batches of an epoch."""
        order = torch.randperm(len(self.documents), generator=self._generator(epoch, 1))
        return _in_rows([self.documents[i] for i in order], self.rows, self.cuts(epoch))


def validation_batches(documents: Sequence[Tensor], rows: int, seq_len: int) -> Batches:
    """``documents`` in their own order, read in ``rows`` contiguous rows and in pieces of ``seq_len`` tokens.

    Raises:
        InputError: there are not enough tokens for one batch.
    """
    columns = (sum(map(len, documents)) - 1) // rows
    if columns < 1:
        raise _too_short("validation", documents, rows, 1)
    return _in_rows(documents, rows, [min(seq_len, columns - k) for k in range(0, columns, seq_len)])


def _too_short(part: str, documents: Sequence[Tensor], rows: int, seq_len: int) -> InputError:
    fits = (sum(map(len, documents)) - 1) // seq_len
    return InputError(
        f"the text is too short: the {sum(map(len, documents))} tokens of its {part} part do not fill one batch of "
        f"{rows} rows of {seq_len} tokens" + (f"; a --batch-size of at most {fits} fits" if fits > 0 else "")
    )


def _in_rows(documents: Sequence[Tensor], rows: int, lengths: Sequence[int]) -> Batches:
    stream, columns = torch.cat(list(documents)), sum(lengths)
    x, y = (stream[start : start + rows * columns].view(rows, columns).split(list(lengths), dim=1) for start in (0, 1))
    return Batches(tuple(t.contiguous() for t in x), tuple(t.contiguous() for t in y))


def split_documents(documents: Sequence, held_out: float = 0.1, seed: int = 0) -> tuple[list, list]:
    """``documents`` for training, and a random ``held_out`` of them (at least one) for validation."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = max(1, round(held_out * len(documents)))
    return [documents[i] for i in sorted(order[cut:])], [documents[i] for i in sorted(order[:cut])]


def unigram_perplexity(train: Tensor, valid: Tensor, vocab_sz: int) -> float:
    """Perplexity on ``valid`` of the model that knows only how often each token occurs in ``train`` (plus one)."""
    counts = torch.bincount(train, minlength=vocab_sz).double() + 1
    return math.exp(-(counts / counts.sum()).log()[valid].mean().item())
