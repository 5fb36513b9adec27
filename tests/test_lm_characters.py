"""The character models: what each adds to the one before, cells in Python, incomplete batches, reading files."""

from functools import partial

import pytest
import torch
from language import random_tokens, source_text
from torch import nn

import lstmkern
from lstmkern.lm import characters
from lstmkern.lm.corpora import read_text, standard_library_source
from lstmkern.lm.data import InputError, make_batches
from lstmkern.lm.dataset import load_dataset
from lstmkern.lm.generate import generate
from lstmkern.lm.models import RECIPES
from lstmkern.lm.train import Run, config_of, fit
from lstmkern.lm.vocabulary import Characters

VOCAB, FACTORS, HIDDEN = 13, 5, 8
tokens = partial(random_tokens, VOCAB)
NAMES = [name for name in RECIPES if name.startswith("char-")]


def make(model, *args, **how):
    torch.manual_seed(0)
    return model(VOCAB, FACTORS, HIDDEN, *args, **how).double()


def test_the_loop_is_three_characters_unrolled_but_for_its_first_state():
    """The loop adds the first character to a zero state."""
    three, loop = make(characters.Char3), make(characters.CharLoop)
    x = tokens(4, 3)
    assert three(x).shape == (4, VOCAB)
    torch.testing.assert_close(loop(x), three(x), rtol=0, atol=1e-14)


def test_adding_is_a_special_concatenation():
    """CharConcat, computed step by step."""
    model = make(characters.CharConcat)
    x = tokens(4, 5)
    h = torch.zeros(4, HIDDEN, dtype=torch.double)
    from_h, from_x = model.l_in.weight[:, :HIDDEN], model.l_in.weight[:, HIDDEN:]
    for t in range(5):
        mixed = torch.relu(h @ from_h.T + model.e(x[:, t]) @ from_x.T + model.l_in.bias)
        h = torch.tanh(model.l_hidden(mixed))
    torch.testing.assert_close(model(x), model.l_out(h), rtol=0, atol=1e-12)


def test_multi_output():
    one, multi = make(characters.CharRNN), make(characters.CharMultiOutput)
    assert type(one.rnn) is lstmkern.RNN
    x = tokens(4, 6)
    logits = multi(x)
    assert logits.shape == (4, 6, VOCAB)
    for t in range(6):
        torch.testing.assert_close(logits[:, t], one(x[:, : t + 1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("in_python", "cell", "layer"),
    [(characters.RNNCell, "RNNCell", lstmkern.RNN), (characters.GRUCell, "GRUCell", lstmkern.GRU)],
)
def test_in_python_cells_are_our_kernels(in_python, cell, layer):
    """The model with the cell in Python, with our cell and with our layer: equal logits and gradients in two calls."""
    by_hand = make(characters.CharStateful, cell=in_python)
    by_cell = make(characters.CharStateful, cell=getattr(lstmkern, cell))
    by_layer = make(characters.CharGRU, rnn=layer)
    by_cell.load_state_dict(by_hand.state_dict())
    weights = {
        name.replace("cell.", "rnn.") + "_l0" * name.startswith("cell"): value
        for name, value in by_hand.state_dict().items()
    }
    by_layer.load_state_dict(weights)
    results = []
    for model in (by_hand, by_cell, by_layer):
        outputs = [model(tokens(3, 6)) for _ in range(2)]
        weight = torch.linspace(-1, 1, outputs[1].numel(), dtype=torch.double).view_as(outputs[1])
        sum((output * weight).sum() for output in outputs).backward()
        results.append((*outputs, *(p.grad for p in sorted_parameters(model))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def sorted_parameters(model):
    """Parameters in the same order for all three models; names of cells and layers differ in prefix and suffix."""
    named = {name.replace("rnn.", "cell.").removesuffix("_l0"): p for name, p in model.named_parameters()}
    return [named[name] for name in sorted(named)]


@pytest.mark.parametrize("name", ["char-stateful", "char-gru-cell", "char-gru", "char-lstm"])
def test_stateful_models_pick_up_the_state(name):
    model = RECIPES[name].make(VOCAB, config_of(name, hidden=HIDDEN, embedding=FACTORS), nn).double().eval()
    x = tokens(3, 10)
    whole = model(x)
    model.reset()
    torch.testing.assert_close(torch.cat([model(x[:, :4]), model(x[:, 4:])], 1), whole, rtol=0, atol=1e-12)
    model(tokens(2, 10))  # another batch size resets the state
    torch.testing.assert_close(model(x), whole, rtol=0, atol=1e-12)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.py"
    path.write_text(source_text(100))
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns_and_the_last_batch_is_incomplete(file, name):
    """Training lowers the loss, from below that of uniform predictions; the last batch is smaller."""
    pieces = {"seq_len": 8} if "seq_len" in RECIPES[name].options else {}
    config = config_of(name, text=file, batch_size=24, hidden=32, epochs=3, lr=1e-2, **pieces)
    data = load_dataset(config)
    assert len({x.size(0) for x in data.train.x}) == 2
    run = Run(config, len(data.vocab), data.train.steps(config.epochs))
    fit([run], data.train, data.valid)
    losses = [result.valid_loss for result in run.history]
    assert losses[-1] < losses[0] < torch.tensor(float(len(data.vocab))).log()
    prompt = "def f1(x):\n"
    continuation = generate(run.model, data.vocab, prompt, length=20)
    assert len(continuation) == 20
    ids = data.vocab.encode(prompt)
    run.model.eval()
    for character in continuation:  # from the window, or from the whole text without a kept state
        run.model.reset()
        seen = ids if run.model.window is None else ids[-run.model.window :]
        logits = run.model(torch.tensor([seen]))
        assert data.vocab[logits.view(-1, len(data.vocab))[-1].argmax()] == character
        ids += data.vocab.encode(character)


def test_the_corpus_is_read_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("three")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.txt").write_text("two")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".hidden").write_text("no")
    assert read_text(tmp_path) == "one\ntwo\nthree"


def test_the_standard_library_is_the_default_text():
    text = standard_library_source()
    assert len(text) > 1_000_000 and "class ArgumentParser" in text
    config = config_of("char-gru", limit=50_000)
    data = load_dataset(config)
    assert data.tokens == 50_000 and data.source.startswith("the first 50,000 of ")
    assert data.vocab == Characters(sorted(set(text[:50_000])))
    assert data.vocab.decode(data.vocab.encode(text[:100])) == text[:100]


def test_unknown_characters_and_short_prompts(file):
    data = load_dataset(config_of("char-three", text=file, batch_size=8))
    model = make(characters.Char3)
    with pytest.raises(InputError, match="does not know the character 'é'"):
        generate(model, data.vocab, "dé")
    with pytest.raises(InputError, match="reads 3 characters at a time: the prompt has only 2"):
        generate(model, data.vocab, "de")
    with pytest.raises(InputError, match="too short"):
        make_batches(torch.arange(20), 8, 3, keep_last=True)
