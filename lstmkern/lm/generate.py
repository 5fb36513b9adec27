"""Continue a prompt with a trained language model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .errors import InputError
from .state import LanguageModel
from .train import Config, logits_of
from .vocabulary import Vocabulary

LONGEST = 100_000  # tokens that the command line writes: a novel, and minutes of work; more is likely a slip of the key


def default_temperature(config: Config) -> float:
    """0, the most likely token each time, for a model that counts, where only that is right; 0.8 for one of texts,
    which would only repeat what is the most frequent, such as blanks."""
    return 0.0 if config.recipe.reads == "words" and config.data is None else 0.8


def encode_prompt(prompt: str, vocab: Vocabulary, window: int | None = None) -> list[int]:
    """Token numbers of ``prompt``.

    Raises:
        InputError: the prompt is empty, is not as long as the ``window`` of the model, or has a token that is not in
            ``vocab``.
    """
    ids = vocab.encode(prompt)
    if not prompt or not ids:
        raise InputError("the prompt is empty")
    if len(ids) < (window or 1):
        raise InputError(f"the model reads {window} {vocab.unit} at a time: the prompt has only {len(ids)}")
    return ids


def generate(
    model: LanguageModel, vocab: Vocabulary, prompt: str, length: int = 40, temperature: float = 0.0, seed: int = 0
) -> str:
    """The text with which ``model`` continues ``prompt``, of ``length`` tokens; see generate_pieces."""
    return "".join(generate_pieces(model, vocab, prompt, length, temperature, seed))


def generate_pieces(
    model: LanguageModel, vocab: Vocabulary, prompt: str, length: int = 40, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """The ``length`` tokens with which ``model`` continues ``prompt``, as pieces of text while they are made.

    Temperature 0 takes the most likely token each time; above, tokens are drawn from softmax(logits / temperature) with
    random numbers from ``seed``. The model's mode is kept; its hidden state is zero afterwards. A model that carries a
    state reads the prompt once and then token by token; any other reads its window anew for every token.

    Raises:
        InputError: see encode_prompt; or the model gives nan or inf.
    """
    return vocab.pieces(_tokens(model, encode_prompt(prompt, vocab, model.window), length, temperature, seed))


def _tokens(model: LanguageModel, ids: list[int], length: int, temperature: float, seed: int) -> Iterator[int]:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    model.reset()
    seen = ids
    try:
        for _ in range(length):
            if model.window is not None:
                seen = seen[-model.window :]
            with torch.no_grad():  # not over the yield, which hands over to the caller
                logits = logits_of(model(torch.tensor([seen], device=device)))[0, -1].double().cpu()
            if not logits.isfinite().all():
                raise InputError("the model gives no numbers (nan or inf): its training has diverged")
            if temperature > 0:
                # Subtract the largest first: a temperature near zero must sharpen, not overflow.
                probabilities = torch.softmax((logits - logits.max()) / temperature, -1)
                token = torch.multinomial(probabilities, 1, generator=generator)
            else:
                token = logits.argmax(keepdim=True)
            yield token.item()
            seen = token.tolist() if model.window is None else [*seen, token.item()]
    finally:
        model.reset()
        model.train(training)
