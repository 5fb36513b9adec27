"""The corpus HUMAN_NUMBERS, its vocabulary, and batches whose rows continue from one batch to the next."""

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
    """English name of ``n``, 1 <= n <= 9999, without hyphens or "and": "one thousand two hundred thirty four"."""
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
    """The lines of HUMAN_NUMBERS: train.txt (1 to 7999) and valid.txt (8001 to 9999)."""
    return [number_name(n) for n in range(1, 8000)], [number_name(n) for n in range(8001, 10000)]


@dataclass(frozen=True)
class Corpus:
    """A text as token numbers ``ids`` (int64 [tokens]) into ``vocab``."""

    ids: Tensor
    vocab: Vocabulary

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary and tokens: tells whether a checkpoint was trained on this corpus."""
        digest = hashlib.sha256("\n".join(self.vocab).encode())
        digest.update(self.ids.numpy().tobytes())
        return digest.hexdigest()


def make_corpus(lines: list[str]) -> Corpus:
    """Join ``lines`` with " . " and number the words in the order of first appearance. Blank lines are left out."""
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
    """The corpus of ``directory``/train.txt followed by ``directory``/valid.txt; without a directory, HUMAN_NUMBERS."""
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
    """Inputs ``x`` and targets ``y`` (the input shifted by one token), batch by batch, each int64 [N, T].

    Row j of a batch continues row j of the batch before it, so that a model can carry its hidden state from batch to
    batch; where N changes, it starts anew. On each of several processes ``x`` and ``y`` are its share of the rows, and
    ``rows`` tells how many rows the batches of all processes together have. A process for which there is no row reads
    a row of another, which its ``weight`` of 0 leaves out of every sum.
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
        """Tokens of one pass over all batches of all processes."""
        return sum(self.rows_of(b) * x.size(1) for b, x in enumerate(self.x))

    def rows_of(self, batch: int) -> int:
        """Rows of a batch, on all processes together."""
        return self.x[batch].size(0) if self.rows is None else self.rows[batch]

    def weight(self, batch: int) -> float:
        """The factor that makes the mean over the processes of a loss per token the mean over all their tokens."""
        rows = self.rows_of(batch)
        return self.x[batch].size(0) * self.processes / rows if self.process < rows else 0.0

    def starts(self, batch: int) -> bool:
        """Whether the rows of ``batch`` do not continue those of the batch before."""
        return batch == 0 or self.rows_of(batch) != self.rows_of(batch - 1)

    def epoch(self, epoch: int) -> Batches:
        """The batches of an epoch: these, in every one."""
        return self

    def steps(self, epochs: int) -> int:
        """Batches of ``epochs`` epochs."""
        return epochs * len(self)

    def share(self, process: int, processes: int) -> Batches:
        """The rows of one of several processes; row j is the same process's in all batches of equal N."""
        if processes == 1:
            return self
        mine = [slice(0, 1) if process >= b.size(0) else share(b.size(0), process, processes) for b in self.x]
        x, y = (tuple(b[rows] for b, rows in zip(part, mine, strict=True)) for part in (self.x, self.y))
        return Batches(x, y, tuple(b.size(0) for b in self.x), process, processes)

    def to(self, device: torch.device | str) -> Batches:
        x, y = (tuple(b.to(device) for b in part) for part in (self.x, self.y))
        return Batches(x, y, self.rows, self.process, self.processes)


def share(rows: int, process: int, processes: int) -> slice:
    """Which of ``rows`` rows are those of a process."""
    least, more = divmod(rows, processes)
    start = process * least + min(process, more)
    return slice(start, start + least + (process < more))


def make_batches(
    ids: Tensor,
    rows: int = 64,
    seq_len: int = 16,
    train_fraction: float = 0.8,
    keep_last: bool = False,
    contiguous: bool = True,
) -> tuple[Batches, Batches]:
    """Cut ``ids`` (int64 [tokens]) into sequences and group them into training and validation batches.

    The first ``train_fraction`` of the sequences is for training. Each part is laid out as ``rows`` contiguous
    stretches of text, or, where ``contiguous`` is false, with the sequences in the order of the text: one batch after
    the other, for models that carry no state. The sequences left over at its end, which do not fill a batch, are
    dropped, or with ``keep_last`` make a last batch of fewer rows.

    Raises:
        InputError: a part is too short for a single batch.
    """
    count = max(len(ids) - 1, 0) // seq_len
    x = ids[: count * seq_len].view(count, seq_len)
    y = ids[1 : count * seq_len + 1].view(count, seq_len)
    cut = int(count * train_fraction)
    parts = []
    for name, part in (("training", slice(0, cut)), ("validation", slice(cut, count))):
        batches, left = divmod(part.stop - part.start, rows)
        if batches == 0:
            fits = min(cut, count - cut)
            raise InputError(
                f"the corpus of {len(ids)} tokens is too short: its {name} part does not fill one batch of "
                f"{rows} rows of {seq_len} tokens" + (f"; a --batch-size of at most {fits} fits" if fits else "")
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
