"""Three vocabularies, of words, of characters and of subwords: text to token numbers and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .errors import InputError

END = "<|end|>"  # stands in front of every document of a text of subwords


class Vocabulary(list):
    """The tokens (str), a token's number being its place in the list; ``separator`` stands between text and more text.

    ``encode`` turns a text into token numbers and raises InputError if a part of it is not in the vocabulary;
    ``decode`` turns them back. ``state()`` is plain data, from which ``vocabulary_from`` makes the same vocabulary.
    """

    kind = "words"
    unit = "words"
    separator = " "

    def split(self, text: str) -> Sequence[str]:
        return text.split()

    def encode(self, text: str) -> list[int]:
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
        return self.separator.join(self[i] for i in ids)

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """What ``decode`` gives of ``ids``, piece by piece, each as soon as its last token is there."""
        for k, i in enumerate(ids):
            yield self.separator + self[i] if k else self[i]

    def state(self) -> dict[str, Any]:
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
    """Byte-level byte pairs, from the tokenizers package: any text can be encoded, a frequent word is one token.

    A text's encoding begins with END. Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with
    Subword Units" (2016).
    """

    kind = "subwords"
    unit = "subwords"
    separator = ""

    def __init__(self, tokenizer):
        numbers = tokenizer.get_vocab()
        super().__init__(sorted(numbers, key=numbers.__getitem__))
        self.tokenizer, self.end = tokenizer, numbers[END]

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> Subwords:
        """A vocabulary of at most ``size`` tokens for ``texts``: END, the 256 bytes, and the most frequent pairs."""
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
        tokenizer.train_from_iterator((text for text in texts), trainer)  # in a generator, Ctrl-C is seen
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        try:
            return [self.end, *self.tokenizer.encode(text).ids]
        except TypeError:  # the tokenizers package speaks of its own types
            raise InputError(f"{text!r} is not text: it has bytes that are not UTF-8") from None

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        # In parts, between which Ctrl-C is seen.
        parts = (self.tokenizer.encode_batch(texts[k : k + 256]) for k in range(0, len(texts), 256))
        return [[self.end, *encoding.ids] for part in parts for encoding in part]

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        waiting: list[int] = []
        for i in ids:
            waiting.append(i)
            text = self.decode(waiting)
            if not text.endswith("\ufffd"):  # which is in the place of a character whose last bytes are to come
                yield text
                waiting = []
        if waiting:
            yield self.decode(waiting)

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": self.tokenizer.to_str()}


def vocabulary_from(state: dict[str, Any]) -> Vocabulary:
    """The vocabulary whose ``state()`` this is.

    Raises:
        InputError: subwords, and the tokenizers package is missing. KeyError: it is no such state.
    """
    if state["kind"] == Subwords.kind:
        return Subwords(_tokenizers().Tokenizer.from_str(state["tokenizer"]))
    return {"words": Words, "characters": Characters}[state["kind"]](state["tokens"])


def _tokenizers():
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise InputError("subwords need the tokenizers package: run `pip install tokenizers`") from None
    return tokenizers
