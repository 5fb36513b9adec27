"""LMModel6 and LMModel7: outputs, the state that is kept, regularisation, generation."""

import copy
from functools import partial

import pytest
import torch
from language import random_tokens
from pairs import as_tuple
from torch import nn

import lstmkern
from lstmkern.lm import LMModel6, LMModel7
from lstmkern.lm.data import InputError
from lstmkern.lm.generate import default_temperature, generate, generate_pieces
from lstmkern.lm.regularize import activation_regularization, temporal_activation_regularization
from lstmkern.lm.train import config_of
from lstmkern.lm.vocabulary import Characters, Words

VOCAB, HIDDEN, LAYERS = 11, 24, 2
tokens = partial(random_tokens, VOCAB)
CLASSES = [lstmkern.LSTM, lstmkern.GRU, nn.LSTM, nn.GRU]


def make(model=LMModel6, seed=0, **how):
    torch.manual_seed(seed)
    return model(VOCAB, HIDDEN, LAYERS, *([0.4] if model is LMModel7 else []), **how)


@pytest.mark.parametrize("rnn", CLASSES)
def test_outputs(rnn):
    x = tokens(3, 7)
    assert make(LMModel6, rnn=rnn)(x).shape == (3, 7, VOCAB)
    model = make(LMModel7, rnn=rnn)
    logits, raw, out = model(x)
    assert logits.shape == (3, 7, VOCAB)
    assert raw.shape == out.shape == (3, 7, HIDDEN)
    kept = out != 0
    torch.testing.assert_close(out[kept], raw[kept] / 0.6)  # dropout p = 0.4
    assert 0.4 < kept.float().mean() < 0.8
    torch.testing.assert_close(logits, out @ model.i_h.weight.T + model.h_o.bias)  # tied
    logits, raw, out = model.eval()(x)
    assert torch.equal(raw, out)


def test_lstmkern_is_the_default():
    assert type(make(LMModel6).rnn) is lstmkern.LSTM
    assert type(make(LMModel7).rnn) is lstmkern.LSTM


@pytest.mark.parametrize("model", [LMModel6, LMModel7])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_same_seed_same_weights_as_torch(model, cell):
    ours = make(model, rnn=getattr(lstmkern, cell)).state_dict()
    theirs = make(model, rnn=getattr(nn, cell)).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("rnn", CLASSES)
def test_state_is_kept(rnn):
    """Calls on two halves equal one call on the whole; reset() starts from zero."""
    model = make(rnn=rnn).double()
    x = tokens(3, 10)
    whole = model(x)
    model.reset()
    halves = torch.cat([model(x[:, :4]), model(x[:, 4:])], dim=1)
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-12)
    carried = model(x)
    assert not torch.allclose(carried, whole)
    model.reset()
    torch.testing.assert_close(model(x), whole, rtol=0, atol=0)


@pytest.mark.parametrize("rnn", CLASSES)
def test_state_is_detached_and_not_saved(rnn):
    model = make(rnn=rnn)
    model(tokens(3, 5)).sum().backward()
    assert all(not s.requires_grad for s in as_tuple(model.state))
    assert all(s.shape == (LAYERS, 3, HIDDEN) for s in as_tuple(model.state))
    assert not any("state" in key for key in model.state_dict())
    model(tokens(3, 5)).sum().backward()  # fails if the graph of the first call is still attached
    assert all(
        torch.equal(a, b) for a, b in zip(as_tuple(copy.deepcopy(model).state), as_tuple(model.state), strict=True)
    )


@pytest.mark.parametrize("rnn", CLASSES)
def test_state_follows_batch_size_and_dtype(rnn):
    model = make(rnn=rnn)
    x = tokens(2, 5)
    fresh = model(x)
    model(tokens(4, 5))  # another batch size resets the state, here and in the next call
    torch.testing.assert_close(model(x), fresh, rtol=0, atol=0)
    model.double()
    assert model(x).dtype == torch.float64
    assert all(s.dtype == torch.float64 for s in as_tuple(model.state))


def test_regularization_formulas():
    raw = torch.tensor([[[1.0, 2.0], [4.0, 2.0], [4.0, 5.0]]])
    assert activation_regularization(raw, alpha=2.0) == 2.0 * (1 + 4 + 16 + 4 + 16 + 25) / 6
    assert temporal_activation_regularization(raw, beta=3.0) == 3.0 * (9 + 0 + 0 + 9) / 4
    assert temporal_activation_regularization(raw[:, :1], beta=3.0) == 0


WORDS = Words(f"w{i}" for i in range(VOCAB))


def test_generate_takes_the_most_likely_word_each_time():
    model = make(LMModel7)
    continuation = generate(model, WORDS, "w1 w2 w3", length=6).split()
    assert model.training  # the mode is restored
    assert model.state is None
    model.eval()
    expected = [1, 2, 3]
    for _ in range(6):  # without a kept state: the whole text again for every word
        model.reset()
        expected.append(model(torch.tensor([expected]))[0][0, -1].argmax().item())
    assert continuation == [WORDS[i] for i in expected[3:]]


def test_generate_temperature():
    model = make()
    drawn = [generate(model, WORDS, "w1", length=50, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = generate(model, WORDS, "w1", length=50)
    assert generate(model, WORDS, "w1", length=50, temperature=1e-300) == greedy


@pytest.mark.parametrize(("prompt", "message"), [("  ", "prompt is empty"), ("w1 w99", "does not know the word 'w99'")])
def test_generate_bad_prompt(prompt, message):
    with pytest.raises(InputError, match=message):
        generate(make(), WORDS, prompt)


def test_pieces_are_the_generated_text():
    for vocab, prompt in ((WORDS, "w1 w2"), (Characters("abcdefghijk"[:VOCAB]), "ab")):
        text = generate(make(), vocab, prompt, length=7, temperature=1.0)
        pieces = list(generate_pieces(make(), vocab, prompt, length=7, temperature=1.0))
        assert len(pieces) == 7 and "".join(pieces) == text
        assert len(vocab.encode(text)) == 7


def test_a_generator_that_is_closed_early_restores_the_model():
    model = make()
    pieces = generate_pieces(model, WORDS, "w1")
    assert next(pieces) and not model.training and torch.is_grad_enabled()
    pieces.close()
    assert model.training and model.state is None


def test_default_temperature():
    assert default_temperature(config_of("lm7")) == default_temperature(config_of("lm1")) == 0
    assert all(
        default_temperature(config) > 0
        for config in (config_of("lm7", data="texts"), config_of("char-gru"), config_of("awd-lstm"))
    )
