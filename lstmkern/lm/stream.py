"""Documents as one stream of tokens, split into contiguous rows and into pieces of varying length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .data import Batches
from .errors import InputError

T = TypeVar("T")
SHORTEST = 5  # fewest tokens of a piece


@dataclass(frozen=True)
class TokenStream:
    """Documents joined in a new order every epoch, and read in contiguous rows.

    Each row of a batch continues the same row of the batch before. The target is the input shifted by one token. Pieces
    have varying lengths, so that backpropagation is not truncated at the same tokens in every epoch: 95 % have a mean
    length of ``seq_len``, the others of half of that, with a standard deviation of 5 (Merity et al. 2017). At most
    ``rows`` tokens at the end of the stream are left out.

    Args:
        documents: the documents' tokens, each int64 [tokens].
        rows: sequences per batch.
        seq_len: mean length of most pieces, in tokens.
        seed: determines, with the epoch, the order of the documents and the lengths of the pieces.

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
        """The lengths of the pieces of an epoch in tokens; their sum is the length of a row."""
        generator, left, lengths = self._generator(epoch, 0), self._columns, []
        while left > 0:
            mean = self.seq_len if torch.rand((), generator=generator) < 0.95 else self.seq_len / 2
            length = max(SHORTEST, round(torch.normal(mean, 5.0, (), generator=generator).item()))
            lengths.append(left if left - length < SHORTEST else length)
            left -= lengths[-1]
        return lengths

    def steps(self, epochs: int) -> int:
        """The number of batches in the first ``epochs`` epochs."""
        return sum(len(self.cuts(epoch)) for epoch in range(epochs))

    def epoch(self, epoch: int) -> Batches:
        """The batches of one epoch."""
        order = torch.randperm(len(self.documents), generator=self._generator(epoch, 1))
        return _in_rows([self.documents[i] for i in order], self.rows, self.cuts(epoch))


def validation_batches(documents: Sequence[Tensor], rows: int, seq_len: int) -> Batches:
    """Documents in the given order, read in contiguous rows and in pieces of equal length.

    Args:
        documents: the documents' tokens, each int64 [tokens].
        rows: sequences per batch.
        seq_len: tokens per piece; the last piece may be shorter.

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
        f"{rows} sequences of {seq_len} tokens" + (f"; a --batch-size of at most {fits} fits" if fits > 0 else "")
    )


def _in_rows(documents: Sequence[Tensor], rows: int, lengths: Sequence[int]) -> Batches:
    stream, columns = torch.cat(list(documents)), sum(lengths)
    x, y = (stream[start : start + rows * columns].view(rows, columns).split(list(lengths), dim=1) for start in (0, 1))
    return Batches(tuple(t.contiguous() for t in x), tuple(t.contiguous() for t in y))


def split_documents(documents: Sequence[T]) -> tuple[list[T], list[T]]:
    """Split documents into those for training and a random tenth, at least one, for validation.

    The split is the same at every call.
    """
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
    cut = max(1, round(0.1 * len(documents)))
    return [documents[i] for i in sorted(order[cut:])], [documents[i] for i in sorted(order[:cut])]


def unigram_perplexity(train: Tensor, valid: Tensor, vocab_sz: int) -> float:
    """Perplexity of a unigram model, which predicts each token by its frequency in the training text.

    Every count is increased by one.

    Args:
        train: training tokens, int64 [tokens].
        valid: validation tokens, int64 [tokens].
        vocab_sz: number of tokens in the vocabulary.
    """
    counts = torch.bincount(train, minlength=vocab_sz).double() + 1
    return math.exp(-(counts / counts.sum()).log()[valid].mean().item())
