"""Continue a prompt with a trained language model."""

from __future__ import annotations

import torch

from .errors import InputError
from .state import LanguageModel
from .train import logits_of
from .vocabulary import Vocabulary


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


@torch.no_grad()
def generate(
    model: LanguageModel, vocab: Vocabulary, prompt: str, length: int = 40, temperature: float = 0.0, seed: int = 0
) -> str:
    """The ``length`` tokens with which ``model`` continues ``prompt``.

    Temperature 0 takes the most likely token each time; above, tokens are drawn from softmax(logits / temperature) with
    random numbers from ``seed``. The model's mode is kept; its hidden state is zero afterwards. A model that carries a
    state reads the prompt once and then token by token; any other reads its window anew for every token.

    Raises:
        InputError: see encode_prompt; or the model gives nan or inf.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = encode_prompt(prompt, vocab, model.window)
    start, new = len(ids), ids
    training = model.training
    model.eval()
    model.reset()
    try:
        while len(ids) - start < length:
            seen = new if model.window is None else ids[-model.window :]
            logits = logits_of(model(torch.tensor([seen], device=device)))[0, -1].double().cpu()
            if not logits.isfinite().all():
                raise InputError("the model gives no numbers (nan or inf): its training has diverged")
            if temperature > 0:
                # Subtract the largest first: a temperature near zero must sharpen, not overflow.
                probabilities = torch.softmax((logits - logits.max()) / temperature, -1)
                token = torch.multinomial(probabilities, 1, generator=generator)
            else:
                token = logits.argmax(keepdim=True)
            new = token.tolist()
            ids = ids + new
    finally:
        model.reset()
        model.train(training)
    return vocab.decode(ids[start:])
