"""Real text: vocabulary of subwords, documents, the token stream, AWD-LSTM, its encoder, and the classifier on it."""

import math
import shutil
import sys
from dataclasses import astuple, replace
from functools import partial

import pytest
import torch
from language import random_tokens
from torch import nn

import lstmkern
from lstmkern.lm import awd, classify, dataset, vocabulary
from lstmkern.lm.awd import ConcatPooling, Dropouts, Encoder, LockedDropout, TextClassifier, WordDropout
from lstmkern.lm.checkpoint import load_checkpoint, model_from, save_checkpoint
from lstmkern.lm.classify import Texts, load_texts, most_frequent, stages, train_classifier
from lstmkern.lm.corpora import read_documents, standard_library_docstrings
from lstmkern.lm.data import InputError
from lstmkern.lm.dataset import load_dataset
from lstmkern.lm.generate import generate
from lstmkern.lm.models import RECIPES
from lstmkern.lm.pretrained import encoder_of, load_encoder_weights, load_pretrained, save_encoder
from lstmkern.lm.report import perplexity
from lstmkern.lm.stream import TokenStream, split_documents, unigram_perplexity, validation_batches
from lstmkern.lm.throughput import cases
from lstmkern.lm.train import Run, build_model, config_of, fit
from lstmkern.lm.vocabulary import Subwords

pytest.importorskip("tokenizers")
tokens = partial(random_tokens, 20)
NO_DROPOUT = Dropouts().times(0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of documents that differ in their words, 60 each."""
    path = tmp_path_factory.mktemp("documents")
    generator = torch.Generator().manual_seed(0)
    for name, words in (
        ("animals", ["cat", "dog", "bird", "fish", "eats", "sleeps", "runs", "the", "a"]),
        ("sums", ["one", "two", "three", "plus", "minus", "is", "the", "a"]),
    ):
        (path / name).mkdir()
        for n in range(60):
            order = torch.randint(len(words), (5 + n % 17,), generator=generator)
            (path / name / f"{n}.txt").write_text(" ".join(words[i] for i in order))
    return str(path)


def documents(count=40):
    """Documents of 3 to 12 tokens; each token encodes its document and its position."""
    return [torch.tensor([0] + [100 * (n + 1) + k for k in range(2 + n % 10)]) for n in range(count)]


def test_subwords_spell_any_text():
    vocab = Subwords.train(["the cat and the dog and the bird"] * 5, 270)
    assert len(vocab) == 270
    for text in ("the cat", "  indented\n\tüñí 漢字 🙂", ""):
        ids = vocab.encode(text)
        assert ids[0] == vocab.end and vocab.decode(ids[1:]) == text
    assert len(vocab.encode("the")) < 1 + 3
    again = vocabulary.vocabulary_from(vocab.state())
    assert again == vocab and again.encode("the zebra") == vocab.encode("the zebra")
    assert vocab.encode_all(["the cat", "a"]) == [vocab.encode("the cat"), vocab.encode("a")]
    with pytest.raises(InputError, match="not UTF-8"):
        vocab.encode("the \udcff cat")
    with pytest.raises(InputError, match="256 bytes"):
        Subwords.train(["a"], 200)


def test_pieces_of_subwords_are_whole_characters():
    """Joined, they equal the decoded text, although a token may be half a character."""
    vocab = Subwords.train(["the cat and the dog and the bird"] * 5, 270)
    text = "the cat 漢字 🙂, ü"
    ids = vocab.encode(text)
    pieces = list(vocab.pieces(ids))
    assert "".join(pieces) == text and "漢" in pieces and "🙂" in pieces
    for seed in range(20):
        ids = torch.randint(len(vocab), (50,), generator=torch.Generator().manual_seed(seed)).tolist()
        assert "".join(vocab.pieces(ids)) == vocab.decode(ids)


def test_without_tokenizers_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="pip install tokenizers"):
        Subwords.train(["a"], 300)


def test_documents_of_a_file_and_of_a_folder(tmp_path, folder):
    (tmp_path / "file.txt").write_text("first\nstill first\n\nsecond\n\n\n\nthird\n")
    assert [d.text.strip() for d in read_documents(tmp_path / "file.txt")] == ["first\nstill first", "second", "third"]
    found = read_documents(folder)
    assert len(found) == 120 and {d.label for d in found} == {"animals", "sums"}


def test_docstrings_of_the_standard_library():
    found = standard_library_docstrings()
    texts = [d.text for d in found]
    assert len(texts) == len(set(texts)) > 2000
    assert min(map(len, texts)) >= 20
    labels = {d.text: d.label for d in found}
    assert labels[__import__("inspect").getdoc(__import__("json").dumps)] == "json"


def test_split_holds_out_every_tenth_and_is_always_the_same():
    train, valid = split_documents(list(range(100)))
    assert len(valid) == 10 and sorted(train + valid) == list(range(100))
    assert split_documents(list(range(100))) == (train, valid)
    assert valid != list(range(90, 100))


def test_stream_is_every_document_once_in_contiguous_rows():
    docs, rows = documents(), 3
    stream = TokenStream(docs, rows, seq_len=16)
    orders, cuts = [], []
    for epoch in range(3):
        batches = stream.epoch(epoch)
        cuts.append([x.size(1) for x in batches.x])
        assert cuts[-1] == stream.cuts(epoch) and min(cuts[-1]) >= 5
        x, y = torch.cat(batches.x, dim=1), torch.cat(batches.y, dim=1)
        assert x.shape == (rows, (sum(map(len, docs)) - 1) // rows)
        assert torch.equal(x[:, 1:], y[:, :-1])  # shifted by one, also across batches
        assert torch.equal(x[1:, 0], y[:-1, -1])  # each row starts where the row before ends
        text = torch.cat((x[0, :1], y.flatten()))
        assert sum(map(len, docs)) - len(text) < rows
        order = []
        for part in text.tolist():
            if part and part % 100 == 0:
                order.append(part // 100 - 1)
        whole = torch.cat([docs[n] for n in order])
        assert torch.equal(text[: len(whole)], whole[: len(text)])
        assert len(set(order)) == len(order) >= len(docs) - 1
        orders.append(order)
        again = TokenStream(docs, rows, seq_len=16).epoch(epoch)
        assert all(torch.equal(a, b) for a, b in zip(again.x, batches.x, strict=True))
    assert orders[0] != orders[1] != orders[2] and cuts[0] != cuts[1]
    assert stream.steps(3) == sum(map(len, cuts))
    assert TokenStream(docs, rows, 16, seed=1).epoch(0).x[0].tolist() != stream.epoch(0).x[0].tolist()


def test_validation_reads_all_documents_in_order():
    docs = documents()
    batches = validation_batches(docs, 2, 16)
    stream = torch.cat(docs)
    assert torch.equal(torch.cat(batches.y, 1).flatten(), stream[1 : 1 + (len(stream) - 1) // 2 * 2])
    assert {x.size(1) for x in batches.x[:-1]} == {16}


def test_unigram_perplexity():
    train, valid = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2])
    p = [4 / 7, 2 / 7, 1 / 7]  # every count is increased by one
    assert unigram_perplexity(train, valid, 3) == pytest.approx(math.prod(p) ** (-1 / 3))


def encoder(drop=NO_DROPOUT, rnn=lstmkern.LSTM, layers=3):
    torch.manual_seed(0)
    return Encoder(20, 6, 9, layers, drop, rnn)


def test_masks_of_the_dropouts():
    locked = LockedDropout(0.5)(torch.ones(4, 7, 30))
    assert torch.equal(locked, locked[:, :1].expand_as(locked))  # the same mask at all steps
    assert set(locked.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(locked[0], locked[1])
    words = WordDropout(nn.Embedding(20, 6), 0.5)
    x = torch.arange(20).repeat(2).unsqueeze(0)
    dropped = words(x)[0]
    assert torch.equal(dropped[:20], dropped[20:])  # a word is dropped at all positions
    gone = (dropped[:20] == 0).all(1)
    assert 0 < gone.sum() < 20
    torch.testing.assert_close(dropped[:20][~gone], 2 * words.embedding.weight[~gone])
    for module, value in ((LockedDropout(0.5).eval(), torch.ones(2, 3, 4)), (words.eval(), x)):
        torch.testing.assert_close(module(value), value if isinstance(module, LockedDropout) else words.embedding(x))


def test_weight_drop_is_on_w_hh_only_and_new_at_every_call():
    drop = Dropouts(word=0, input=0, hidden=0, weight=0.5, output=0)
    model, plain = encoder(drop), encoder()
    x = tokens(3, 5)
    first, second = model(x)[0], model(x)[0]
    assert not torch.equal(first, second)
    assert torch.equal(model(x[:, :1])[0], plain(x[:, :1])[0])  # with a zero state, W_hh has no effect
    torch.testing.assert_close(model.eval()(x)[0], plain(x)[0])
    model.train()(x)[0].sum().backward()
    for layer in model.layers:
        grad = layer.parametrizations.weight_hh_l0.original.grad
        assert 0.3 < (grad == 0).float().mean() < 0.7  # dropped weights have no gradient
        assert layer.weight_ih_l0.grad is not None


@pytest.mark.parametrize("drop", [NO_DROPOUT, Dropouts(weight=0)], ids=["plain", "dropout"])
def test_awd_lstm_is_the_same_on_torch(drop):
    """With the same weights and masks, logits and gradients of two calls agree with torch.nn's LSTM."""
    results = []
    for rnn in (lstmkern.LSTM, nn.LSTM):
        model = awd.AWDLSTM(encoder(drop, rnn), drop.output).double()
        torch.manual_seed(3)
        outputs = [model(tokens(3, 5))[0] for _ in range(2)]
        assert all(not s.requires_grad and s.dtype == torch.double for layer in model.state for s in layer)
        sum(output.pow(2).mean() for output in outputs).backward()
        results.append((*outputs, *(p.grad for p in model.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_weights_are_tied():
    model = awd.AWDLSTM(encoder(), 0.0)
    assert model.decoder.weight is model.encoder.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "decoder.weight" not in names and "decoder.bias" in names


def test_pooling_sees_real_steps_only():
    """Padded texts with lengths have the same results as each text in a batch of one."""
    torch.manual_seed(0)
    model = TextClassifier(encoder(), 3).eval()
    lengths = torch.tensor([7, 1, 4])
    x = tokens(3, 7)
    together = model(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        single = model(x[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row : row + 1], single, rtol=1e-5, atol=1e-6)
    features = -1 - torch.rand(1, 4, 2)  # all below zero, which is the padding
    features[:, 3:] = 0
    pooled = ConcatPooling()(features, features[:, 2], torch.tensor([3]))
    torch.testing.assert_close(pooled, torch.cat((features[:, 2], features[:, :3].amax(1), features[:, :3].mean(1)), 1))


def test_batches_of_texts_are_by_length():
    texts = Texts([torch.arange(1 + 7 * n % 23) for n in range(23)], torch.arange(23))
    seen, shapes = [], []
    for x, lengths, labels in texts.batches(5, seed=0):
        assert x.size(1) == lengths.max() and torch.equal(lengths, lengths.sort(descending=True).values)
        assert [len(texts.ids[i]) for i in labels] == lengths.tolist()
        assert all((row[length:] == 0).all() for row, length in zip(x, lengths, strict=True))
        seen += labels.tolist()
        shapes.append(x.size(1))
    assert sorted(seen) == list(range(23))
    assert shapes != sorted(shapes) and shapes != sorted(shapes, reverse=True)
    ordered = [x.size(1) for x, _, _ in texts.batches(5)]
    assert ordered == sorted(ordered, reverse=True)


def test_gradual_unfreezing_and_discriminative_rates(monkeypatch):
    torch.manual_seed(0)
    model = TextClassifier(encoder(), 2)
    assert {p for group in model.groups() for p in group} == set(model.parameters())
    texts = Texts([torch.randint(1, 20, (3 + n % 4,)) for n in range(16)], torch.arange(16) % 2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    changed, rates = [], []
    real = classify.one_cycle
    monkeypatch.setattr(classify, "one_cycle", lambda o, rate, steps: rates.append(rate) or real(o, rate, steps))

    def after_epoch(_):
        changed.append(
            {name.split(".0.")[0][:16] for name, p in model.named_parameters() if not torch.equal(p, start[name])}
        )

    history = train_classifier(model, texts, texts, epochs=2, rows=8, after_epoch=after_epoch)
    assert [result.unfrozen for result in history] == [1, 2, 3, 4, 4]
    assert not any(name.startswith("encoder") for name in changed[0]) and changed[0]
    assert {n for n in changed[1] if n.startswith("encoder")} == {"encoder.layers.2"}
    assert {n for n in changed[2] if n.startswith("encoder")} == {"encoder.layers.2", "encoder.layers.1"}
    assert "encoder.embeddin" in changed[3]
    assert [len(rate) for rate in rates] == [unfrozen for unfrozen, _, _ in stages(4, 2)] == [1, 2, 3, 4]
    for rate in rates:
        assert all(above / below == pytest.approx(2.6) for below, above in zip(rate[:-1], rate[1:], strict=True))


SMALL = {"batch_size": 8, "seq_len": 16, "hidden": 40, "embedding": 24, "layers": 2, "subwords": 300}


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A trained language model of the two classes: configuration, data set, run, and the folder of its files."""
    config = config_of("awd-lstm", text=folder, epochs=12, lr=1e-2, dropout=0.5, **SMALL)
    data = load_dataset(config)
    run = Run(config, len(data.vocab), data.train.steps(config.epochs))
    fit([run], data.train, data.valid)
    out = tmp_path_factory.mktemp("trained")
    save_checkpoint(out / "checkpoint.pt", [run], data.vocab, data.fingerprint)
    save_encoder(out / "encoder.pt", run.model, config, data.vocab)
    return config, data, run, out


def test_language_model_beats_the_unigram_model(trained):
    _, data, run, _ = trained
    assert 1 < perplexity(run.history[-1]) < 0.9 * data.unigram
    assert perplexity(run.history[-1]) < perplexity(run.history[0])


def test_checkpoint_holds_vocabulary_and_state(trained):
    config, data, run, out = trained
    loaded = load_checkpoint(out / "checkpoint.pt")
    assert loaded.config == config and loaded.vocab == data.vocab
    model = model_from(loaded)
    text = generate(model, loaded.vocab, "the cat", length=12)
    assert text == generate(run.model, data.vocab, "the cat", length=12)
    again = load_dataset(config, loaded.vocab)
    assert again.fingerprint == data.fingerprint == loaded.fingerprint


@pytest.mark.parametrize("name", ["encoder.pt", "checkpoint.pt"])
def test_encoder_comes_back(trained, name):
    config, data, run, out = trained
    pretrained = load_pretrained(out / name)
    run.model.eval()
    x = tokens(2, 9)
    torch.testing.assert_close(encoder_of(pretrained).eval()(x)[0], run.model.encoder(x)[0], rtol=0, atol=0)
    other = RECIPES["awd-lstm"].make(len(data.vocab), config_of("awd-lstm", **{**SMALL, "hidden": 41}), lstmkern)
    with pytest.raises(InputError, match="other layers or sizes"):
        load_encoder_weights(other.encoder, data.vocab, pretrained)
    with pytest.raises(InputError, match="another vocabulary"):
        load_encoder_weights(run.model.encoder, Subwords.train(["something else"], 300), pretrained)


def test_classifier_beats_the_most_frequent_class(trained, folder):
    _, _, _, out = trained
    pretrained = load_pretrained(out / "encoder.pt")
    train, valid, classes = load_texts(folder, pretrained.vocab, most=20)
    assert sorted(classes) == ["animals", "sums"] and len(train.ids) + len(valid.ids) == 120
    torch.manual_seed(0)
    history = train_classifier(TextClassifier(encoder_of(pretrained), 2), train, valid, epochs=4, rows=8)
    assert history[-1].accuracy > most_frequent(train, valid) + 0.2


@pytest.mark.slow
def test_docstrings_language_model_and_classifier(monkeypatch):
    """A small version of `make text`: docstrings of five packages of the standard library, a tenth of them held out.

    The language model must halve the perplexity of the unigram model. The classifier's accuracy must exceed that of the
    most frequent class by 0.1. Results of the full run are in benchmarks/results.
    """
    packages = {"asyncio", "email", "logging", "importlib", "unittest"}
    chosen = tuple(d for d in standard_library_docstrings() if d.label in packages)
    assert len(chosen) > 800
    monkeypatch.setattr(dataset, "standard_library_docstrings", lambda: chosen)
    sizes = {"hidden": 48, "embedding": 32, "layers": 2, "subwords": 800, "batch_size": 16, "seq_len": 32}
    config = config_of("awd-lstm", epochs=3, lr=2e-2, dropout=0.3, **sizes)
    data = load_dataset(config)
    run = Run(config, len(data.vocab), data.train.steps(config.epochs))
    fit([run], data.train, data.valid)
    assert perplexity(run.history[-1]) < data.unigram / 2
    train, valid, classes = load_texts(None, data.vocab, most=20)
    assert set(classes) == packages
    torch.manual_seed(0)
    history = train_classifier(TextClassifier(run.model.encoder, len(classes)), train, valid, epochs=2)
    assert history[-1].accuracy > most_frequent(train, valid) + 0.1


def test_throughput_measures_the_same_model_on_both():
    """With the same seed, steps on lstmkern and on torch.nn have the same loss, also for texts of varying length."""
    every = {case.name: case for case in cases()}
    assert {name.removesuffix("-lstm").removesuffix("-gru") for name in every} >= {"lm1", "lm7", "char-loop", "awd"}
    assert len(every) == len(RECIPES) + 2 + 1  # lm6 and lm7 with either cell; the classifier
    for name in ("lm5", "lm7-gru", "awd-lstm", "classifier"):
        case = every[name]
        assert case.recurrent and case.tokens > 0
        torch.testing.assert_close(case.step(lstmkern)(), case.step(nn)(), rtol=1e-5, atol=1e-5)


def test_an_encoder_from_another_device_in_another_dtype(tmp_path):
    """The encoder comes to the CPU in fp32, whatever it was trained with."""
    vocab = Subwords.train(["the cat and the dog"] * 5, 260)
    config = config_of("awd-lstm", hidden=6, embedding=5, layers=1, dtype="fp64")
    model = build_model(config, len(vocab))
    save_encoder(tmp_path / "encoder.pt", model, replace(config, device="cuda"), vocab)
    encoder = encoder_of(load_pretrained(tmp_path / "encoder.pt"))
    for ours, theirs in zip(encoder.state_dict().values(), model.encoder.state_dict().values(), strict=True):
        assert ours.device.type == "cpu" and ours.dtype == torch.float32 and torch.equal(ours, theirs.float())


def test_texts_outside_the_folders_have_no_class(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "texts")
    for n in range(200):
        (tmp_path / "texts" / f"{n}.txt").write_text(f"a text with number {n}")
    vocab = Subwords.train(["the cat and the dog"] * 5, 260)
    assert set(load_texts(str(tmp_path / "texts"), vocab, 2)[2]) == {"animals", "sums"}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_model_is_reported(temperature):
    vocab = Subwords.train(["the cat and the dog"] * 5, 260)
    model = build_model(config_of("awd-lstm", hidden=6, embedding=5, layers=1), len(vocab))
    for weight in model.parameters():
        torch.nn.init.constant_(weight, torch.nan)
    with pytest.raises(InputError, match="diverged"):
        generate(model, vocab, "the cat", 5, temperature)


def test_the_largest_dropout_is_a_probability():
    """With the largest --dropout, 3, all dropout probabilities are below 1."""
    assert max(astuple(Dropouts().times(3))) < 1
