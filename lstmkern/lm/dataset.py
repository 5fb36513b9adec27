"""The data set of a configuration: its vocabulary, and batches for training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import distributed
from .corpora import (
    DOCSTRINGS,
    SOURCE,
    Document,
    read_documents,
    read_text,
    standard_library_docstrings,
    standard_library_source,
)
from .data import Batches, Corpus, load_corpus, make_batches
from .errors import InputError
from .stream import TokenStream, split_documents, unigram_perplexity, validation_batches
from .train import Config
from .vocabulary import Characters, Subwords, Vocabulary, vocabulary_from

HUMAN_NUMBERS = "HUMAN_NUMBERS"  # the default text of models of words


@dataclass(frozen=True)
class Dataset:
    """A text that is ready for training.

    Args:
        source: describes where the text is from.
        vocab: its vocabulary.
        tokens: number of tokens.
        fingerprint: SHA-256 of vocabulary and tokens.
        train: training batches, the same in every epoch or new ones from a stream.
        valid: validation batches.
        unigram: perplexity of a unigram model on the validation text, or None.
    """

    source: str
    vocab: Vocabulary
    tokens: int
    fingerprint: str
    train: Batches | TokenStream
    valid: Batches
    unigram: float | None = None


def load_dataset(
    config: Config, vocab: Vocabulary | None = None, tell: Callable[[str], None] = lambda what: None
) -> Dataset:
    """Read the text of a configuration and split it into batches.

    Args:
        config: names the text.
        vocab: vocabulary of subwords to use; None to learn one from the text.
        tell: called with a description of the work whenever that changes.

    Raises:
        InputError: the text cannot be read, or is too short.
    """
    return {"words": _words, "characters": _characters, "subwords": _subwords}[config.recipe.reads](config, vocab, tell)


def _words(config: Config, *_: object) -> Dataset:
    # As in fastbook chapter 12: the last, incomplete batch is dropped if the model keeps its state.
    keep_last = not config.recipe.stateful
    return _batched(config, config.data or HUMAN_NUMBERS, load_corpus(config.data), keep_last)


def _characters(config: Config, *_: object) -> Dataset:
    text = read_text(config.text) if config.text else standard_library_source()
    source = config.text or SOURCE
    if 0 < config.limit < len(text):
        text, source = text[: config.limit], f"the first {config.limit:,} of {len(text):,} characters of {source}"
    vocab = Characters(sorted(set(text)))
    if len(vocab) == 1:
        raise InputError(f"the text has only one distinct character, {text[0]!r}: there is nothing to learn")
    number = {character: i for i, character in enumerate(vocab)}
    corpus = Corpus(torch.tensor([number[character] for character in text]), vocab)
    return _batched(config, source, corpus, keep_last=True)


def _batched(config: Config, source: str, corpus: Corpus, keep_last: bool) -> Dataset:
    train, valid = make_batches(
        corpus.ids,
        config.batch_size,
        config.seq_len,
        keep_last=keep_last,
        contiguous=config.recipe.stateful,
    )
    return Dataset(source, corpus.vocab, len(corpus.ids), corpus.fingerprint, train, valid)


def documents(path: str | None) -> tuple[list[Document], list[Document]]:
    """Read documents, and split them into those for training and those that are held out.

    Args:
        path: a file or folder, or None for the docstrings of Python's standard library.

    Raises:
        InputError: there are fewer than two documents.
    """
    found = read_documents(path) if path else list(standard_library_docstrings())
    if len(found) < 2:
        raise InputError(
            f"{path} has only one document (text between blank lines, or file of a folder): none to hold out"
        )
    return split_documents(found)


def _subwords(config: Config, vocab: Vocabulary | None, tell: Callable[[str], None]) -> Dataset:
    train, valid = ([document.text for document in part] for part in documents(config.text))
    if vocab is None:
        tell(f"learning {config.subwords:,} subwords from {sum(map(len, train)):,} characters ...")
        # The first process learns it for all, so that they have the same one.
        vocab = vocabulary_from(distributed.from_first(lambda: Subwords.train(train, config.subwords).state()))
    tell(f"splitting {len(train) + len(valid):,} documents into {len(vocab):,} subwords ...")
    train, valid = ([torch.tensor(ids) for ids in vocab.encode_all(part)] for part in (train, valid))
    digest = hashlib.sha256("\n".join(vocab).encode())
    for ids in (*train, *valid):
        digest.update(ids.numpy().tobytes())
    stream = TokenStream(train, config.batch_size, config.seq_len, config.seed)
    batches = validation_batches(valid, config.batch_size, config.seq_len)
    return Dataset(
        config.text or DOCSTRINGS,
        vocab,
        sum(map(len, train)) + sum(map(len, valid)),
        digest.hexdigest(),
        stream,
        batches,
        unigram_perplexity(torch.cat(train), torch.cat([y.flatten() for y in batches.y]), len(vocab)),
    )
