"""Vocabularies of words, characters and subwords: from text to token numbers and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|end|>"  # the token before every document, in a vocabulary of subwords


class Vocabulary(list):
    """A list of tokens (str); a token's number is its index.

    ``kind`` identifies the class in a checkpoint, ``unit`` is the plural of what a token is called, and ``separator``
    is the text between two tokens.
    """

    kind = "words"
    unit = "words"
    separator = " "

    def split(self, text: str) -> Sequence[str]:
        """Split a text into tokens."""
        return text.split()

    def encode(self, text: str) -> list[int]:
        """Turn a text into token numbers.

        Raises:
            InputError: a token is not in the vocabulary.
        """
        number = {token: i for i, token in enumerate(self)}
        try:
            return [number[token] for token in self.split(text)]
        except KeyError as unknown:
            known = [token for token in self if token.isalnum()][:6] or self[:6]
            raise InputError(
                f"the model does not know the {self.unit[:-1]} {unknown.args[0]!r}, but {len(self)} {self.unit} such "
                f"as {', '.join(map(repr, known))}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Turn token numbers into text."""
        return self.separator.join(self[i] for i in ids)

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """Turn token numbers into text piece by piece; joined, the pieces are what ``decode`` returns."""
        for k, i in enumerate(ids):
            yield self.separator + self[i] if k else self[i]

    def state(self) -> dict[str, Any]:
        """Plain data from which ``vocabulary_from`` makes an equal vocabulary."""
        return {"kind": self.kind, "tokens": list(self)}


class Words(Vocabulary):
    """Words between white space."""


class Characters(Vocabulary):
    """Single characters."""

    kind = "characters"
    unit = "characters"
    separator = ""

    def split(self, text: str) -> Sequence[str]:
        return text


class Subwords(Vocabulary):
    """Byte-level byte-pair encoding of the tokenizers package. Any text can be encoded; frequent words are one token.

    The encoding of a text begins with END. Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words
    with Subword Units" (2016).

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
    """

    kind = "subwords"
    unit = "subwords"
    separator = ""

    def __init__(self, tokenizer: Tokenizer) -> None:
        numbers = tokenizer.get_vocab()
        super().__init__(sorted(numbers, key=numbers.__getitem__))
        self.tokenizer, self.end = tokenizer, numbers[END]

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> Subwords:
        """Learn a vocabulary: END, the 256 bytes, and the most frequent pairs.

        Args:
            texts: the texts to learn from.
            size: number of tokens, at most.

        Raises:
            InputError: ``size`` is below 257, or the tokenizers package is missing.
        """
        tokenizers = _tokenizers()
        if size < 257:
            raise InputError(f"a vocabulary of subwords holds at least the 256 bytes and one more: {size} is too few")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=[END],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(
            (text for text in texts), trainer
        )  # Ctrl-C is noticed between the items of a generator
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        try:
            return [self.end, *self.tokenizer.encode(text).ids]
        except TypeError:  # the message of the tokenizers package is about its types
            raise InputError(f"{text!r} is not text: it has bytes that are not UTF-8") from None

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts, on all cores."""
        # In parts: Ctrl-C is noticed between them.
        parts = (self.tokenizer.encode_batch(texts[k : k + 256]) for k in range(0, len(texts), 256))
        return [[self.end, *encoding.ids] for part in parts for encoding in part]

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        pending: list[int] = []
        for i in ids:
            pending.append(i)
            text = self.decode(pending)
            if not text.endswith("\ufffd"):  # in place of a character whose last bytes are still missing
                yield text
                pending = []
        if pending:
            yield self.decode(pending)

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": self.tokenizer.to_str()}


def vocabulary_from(state: dict[str, Any]) -> Vocabulary:
    """Make a vocabulary from its ``state()``.

    Raises:
        InputError: the tokenizers package, which subwords need, is missing.
        KeyError: ``state`` is something else.
    """
    if state["kind"] == Subwords.kind:
        return Subwords(_tokenizers().Tokenizer.from_str(state["tokenizer"]))
    return {"words": Words, "characters": Characters}[state["kind"]](state["tokens"])


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise InputError("subwords need the tokenizers package: run `pip install tokenizers`") from None
    return tokenizers
