"""Continue a prompt with a trained language model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .errors import InputError
from .state import LanguageModel
from .train import Config, logits_of
from .vocabulary import Vocabulary

LONGEST = 100_000  # most tokens that the command line writes; a larger number is probably a typing error


def default_temperature(config: Config) -> float:
    """The temperature that suits a model.

    0, the most likely token each time, for a model of HUMAN_NUMBERS, where only one continuation is right. 0.8 for
    others, which would otherwise repeat the most frequent tokens, such as blanks.
    """
    return 0.0 if config.recipe.reads == "words" and config.data is None else 0.8


def encode_prompt(prompt: str, vocab: Vocabulary, window: int | None = None) -> list[int]:
    """Encode a prompt as token numbers.

    Args:
        prompt: the text.
        vocab: the vocabulary of the model.
        window: ``LanguageModel.window``, the number of tokens that the model needs, or None.

    Raises:
        InputError: the prompt is empty, is shorter than the window, or has a token that is not in the vocabulary.
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
    """Continue a prompt and return the new text; see ``generate_pieces`` for arguments and errors."""
    return "".join(generate_pieces(model, vocab, prompt, length, temperature, seed))


def generate_pieces(
    model: LanguageModel, vocab: Vocabulary, prompt: str, length: int = 40, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """Continue a prompt, and yield each piece of text as soon as it is known.

    The model's training mode is kept; its hidden state is zero afterwards. A model that keeps a state reads the prompt
    once, then one token at a time. Other models read their whole window for every token.

    Args:
        model: a language model.
        vocab: its vocabulary.
        prompt: the text to continue.
        length: number of tokens to generate.
        temperature: 0 takes the most likely token each time. Otherwise tokens are sampled from
            softmax(logits / temperature).
        seed: seed of the sampling.

    Raises:
        InputError: the prompt cannot be used, see ``encode_prompt``; or the model's output is nan or inf.
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
            with torch.no_grad():  # must not be active at the yield, where the caller's code runs
                logits = logits_of(model(torch.tensor([seen], device=device)))[0, -1].double().cpu()
            if not logits.isfinite().all():
                raise InputError("the model gives no numbers (nan or inf): its training has diverged")
            if temperature > 0:
                # Subtract the maximum first, so that a temperature near zero does not overflow.
                probabilities = torch.softmax((logits - logits.max()) / temperature, -1)
                token = torch.multinomial(probabilities, 1, generator=generator)
            else:
                token = logits.argmax(keepdim=True)
            yield token.item()
            seen = token.tolist() if model.window is None else [*seen, token.item()]
    finally:
        model.reset()
        model.train(training)
