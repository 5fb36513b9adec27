"""Continue a prompt with a trained language model."""

from __future__ import annotations

import torch
from torch import nn

from .data import InputError
from .train import logits_of


def encode_prompt(prompt: str, vocab: list[str]) -> list[int]:
    """Token numbers of the words of ``prompt``.

    Raises:
        InputError: the prompt is empty or has a word that is not in ``vocab``.
    """
    number = {word: i for i, word in enumerate(vocab)}
    words = prompt.split()
    if not words:
        raise InputError("the prompt is empty")
    for word in words:
        if word not in number:
            raise InputError(f"the model does not know the word {word!r} of the prompt")
    return [number[word] for word in words]


@torch.no_grad()
def generate(
    model: nn.Module, vocab: list[str], prompt: str, length: int = 40, temperature: float = 0.0, seed: int = 0
) -> str:
    """The ``length`` words with which ``model`` continues ``prompt``, both separated by spaces.

    Temperature 0 takes the most likely word each time; above, words are drawn from softmax(logits / temperature) with
    random numbers from ``seed``. The model's mode is kept; its hidden state is zero afterwards.

    Raises:
        InputError: see encode_prompt.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor([encode_prompt(prompt, vocab)], device=device)
    words: list[str] = []
    training = model.training
    model.eval()
    model.reset()
    try:
        while len(words) < length:
            logits = logits_of(model(x))[0, -1].double().cpu()
            if temperature > 0:
                # Subtract the largest first: a temperature near zero must sharpen, not overflow.
                probabilities = torch.softmax((logits - logits.max()) / temperature, -1)
                token = torch.multinomial(probabilities, 1, generator=generator)
            else:
                token = logits.argmax(keepdim=True)
            words.append(vocab[token.item()])
            x = token.view(1, 1).to(device)
    finally:
        model.reset()
        model.train(training)
    return " ".join(words)
