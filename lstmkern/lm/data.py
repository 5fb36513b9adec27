"""The corpus HUMAN_NUMBERS, its vocabulary, and batches whose sequences continue from one batch to the next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .corpora import read_file
from .errors import InputError
from .vocabulary import Vocabulary, Words

SEPARATOR = "."

# fmt: off
_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def number_name(n: int) -> str:
    """English name of a number without hyphens or "and", such as "one thousand two hundred thirty four".

    Args:
        n: 1 to 9999.

    Raises:
        ValueError: ``n`` is out of range.
    """
    if not 1 <= n <= 9999:
        raise ValueError(f"number_name is defined for 1 to 9999, got {n}")
    words = []
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            words += [_ONES[n // size], name]
            n %= size
    if n >= 20:
        words.append(_TENS[n // 10])
        n %= 10
    if n:
        words.append(_ONES[n])
    return " ".join(words)


def human_numbers() -> tuple[list[str], list[str]]:
    """The lines of HUMAN_NUMBERS, those of train.txt (1 to 7999) and of valid.txt (8001 to 9999)."""
    return [number_name(n) for n in range(1, 8000)], [number_name(n) for n in range(8001, 10000)]


@dataclass(frozen=True)
class Corpus:
    """A text as token numbers.

    Args:
        ids: indices into the vocabulary, int64 [tokens].
        vocab: the vocabulary.
    """

    ids: Tensor
    vocab: Vocabulary

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary and tokens, to check whether a checkpoint was trained on this corpus."""
        digest = hashlib.sha256("\n".join(self.vocab).encode())
        digest.update(self.ids.numpy().tobytes())
        return digest.hexdigest()


def make_corpus(lines: list[str]) -> Corpus:
    """Make a corpus of words. Lines are joined by " . ", and words are numbered in the order of first appearance.

    Args:
        lines: lines of text; blank ones are left out.

    Raises:
        InputError: there are fewer than two distinct words.
    """
    tokens = f" {SEPARATOR} ".join(line for line in lines if line.strip()).split()
    vocab = list(dict.fromkeys(tokens))
    words = set(vocab) - {SEPARATOR}
    if not words:
        raise InputError("the corpus is empty")
    if len(words) == 1:
        raise InputError(f"the corpus has only one distinct word, {words.pop()!r}: there is nothing to learn")
    number = {word: i for i, word in enumerate(vocab)}
    return Corpus(torch.tensor([number[token] for token in tokens]), Words(vocab))


def load_corpus(directory: str | Path | None = None) -> Corpus:
    """Read a corpus of words.

    Args:
        directory: contains train.txt and valid.txt, which are joined; None for HUMAN_NUMBERS.

    Raises:
        InputError: a file cannot be read, or there are fewer than two distinct words.
    """
    if directory is None:
        train, valid = human_numbers()
        return make_corpus(train + valid)
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"no such data directory: {directory}")
    lines = []
    for name in ("train.txt", "valid.txt"):
        lines += read_file(directory / name).splitlines()
    return make_corpus(lines)


@dataclass(frozen=True)
class Batches:
    """Inputs and targets, batch by batch.

    Row j of a batch continues row j of the batch before it, so that a model can keep its hidden state from batch to
    batch. Where N changes, the state starts from zero.

    If several processes train together, each has a share of the rows. A process without a row in a batch reads a row of
    another process, and its ``weight`` of 0 excludes that row from every sum.

    Args:
        x: inputs, each int64 [N, T].
        y: targets, the input shifted by one token, each int64 [N, T].
        rows: batch sizes over all processes, or None for one process.
        process: number of this process.
        processes: number of processes.
    """

    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    rows: tuple[int, ...] | None = None
    process: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return len(self.x)

    @property
    def tokens(self) -> int:
        """The number of tokens in all batches of all processes."""
        return sum(self.rows_of(b) * x.size(1) for b, x in enumerate(self.x))

    def rows_of(self, batch: int) -> int:
        """The size of a batch over all processes."""
        return self.x[batch].size(0) if self.rows is None else self.rows[batch]

    def weight(self, batch: int) -> float:
        """The factor of this process's mean loss per token: the mean over processes is then the mean over tokens."""
        rows = self.rows_of(batch)
        return self.x[batch].size(0) * self.processes / rows if self.process < rows else 0.0

    def starts(self, batch: int) -> bool:
        """Whether the hidden state starts from zero in ``batch``, because its rows do not continue any others."""
        return batch == 0 or self.rows_of(batch) != self.rows_of(batch - 1)

    def epoch(self, epoch: int) -> Batches:
        """The batches of an epoch: the same in every epoch."""
        return self

    def steps(self, epochs: int) -> int:
        """The number of batches in ``epochs`` epochs."""
        return epochs * len(self)

    def share(self, process: int, processes: int) -> Batches:
        """The share of one of several processes. In batches of equal size, row j belongs to the same process."""
        if processes == 1:
            return self
        mine = [slice(0, 1) if process >= b.size(0) else share(b.size(0), process, processes) for b in self.x]
        x, y = (tuple(b[rows] for b, rows in zip(part, mine, strict=True)) for part in (self.x, self.y))
        return Batches(x, y, tuple(b.size(0) for b in self.x), process, processes)

    def to(self, device: torch.device | str) -> Batches:
        """The same batches on another device."""
        x, y = (tuple(b.to(device) for b in part) for part in (self.x, self.y))
        return Batches(x, y, self.rows, self.process, self.processes)


def share(rows: int, process: int, processes: int) -> slice:
    """The rows of one process if ``rows`` rows are divided among ``processes`` processes as evenly as possible."""
    least, more = divmod(rows, processes)
    start = process * least + min(process, more)
    return slice(start, start + least + (process < more))


def make_batches(
    ids: Tensor,
    rows: int = 64,
    seq_len: int = 16,
    keep_last: bool = False,
    contiguous: bool = True,
) -> tuple[Batches, Batches]:
    """Split a text into sequences and group these into training and validation batches.

    The first 80 % of the sequences are for training, the others for validation.

    Args:
        ids: the text, int64 [tokens].
        rows: sequences per batch.
        seq_len: tokens per sequence.
        keep_last: whether the sequences that do not fill a batch make a last, smaller batch, or are dropped.
        contiguous: whether row j of each batch continues row j of the batch before. Otherwise sequences are in the
            order of the text, for models that keep no state.

    Returns:
        Training batches and validation batches.

    Raises:
        InputError: a part is too short for a single batch.
    """
    count = max(len(ids) - 1, 0) // seq_len
    x = ids[: count * seq_len].view(count, seq_len)
    y = ids[1 : count * seq_len + 1].view(count, seq_len)
    cut = int(count * 0.8)
    parts = []
    for name, part in (("training", slice(0, cut)), ("validation", slice(cut, count))):
        batches, left = divmod(part.stop - part.start, rows)
        if batches == 0:
            fits = min(cut, count - cut)
            raise InputError(
                f"the corpus of {len(ids)} tokens is too short: its {name} part does not fill one batch of "
                f"{rows} sequences of {seq_len} tokens" + (f"; a --batch-size of at most {fits} fits" if fits else "")
            )
        # [rows * batches, seq_len] -> [batches, rows, seq_len]
        full = (t[part][: rows * batches] for t in (x, y))
        if contiguous:
            full = (t.view(rows, batches, seq_len).transpose(0, 1).contiguous() for t in full)
        grouped = [[*t.view(batches, rows, seq_len)] for t in full]
        if keep_last and left:
            for batch, t in zip(grouped, (x, y), strict=True):
                batch.append(t[part][rows * batches :])
        parts.append(Batches(*map(tuple, grouped)))
    return parts[0], parts[1]
