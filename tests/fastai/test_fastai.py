"""fastai's models and training loop with our modules, in a separate environment (make test-fastai)."""

import pytest
import torch

fastai_text = pytest.importorskip("fastai.text.all", reason="fastai is not installed (make test-fastai)")
from fastai.callback.rnn import ModelResetter, RNNCallback, RNNRegularizer  # noqa: E402
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.data.load import DataLoader  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402
from fastai.text.models.awdlstm import AWD_LSTM, WeightDropout, awd_lstm_lm_config  # noqa: E402
from fastai.text.models.core import get_language_model  # noqa: E402

import lstmkern  # noqa: E402
from lstmkern.lm import LMModel7  # noqa: E402

VOCAB, N, T = 20, 4, 7


class OurAWD(AWD_LSTM):
    """fastai's AWD_LSTM, with the one method that builds a layer changed to our class."""

    def _one_rnn(self, n_in, n_out, bidir, weight_p, l):  # noqa: E741 (their name)
        return WeightDropout(lstmkern.LSTM(n_in, n_out, 1, batch_first=True, bidirectional=bidir), weight_p)


def awd(cls=AWD_LSTM, **kwargs):
    torch.manual_seed(0)
    return cls(VOCAB, 12, 18, 3, **kwargs)


def language_model(arch=AWD_LSTM):
    torch.manual_seed(0)
    config = {**awd_lstm_lm_config, "emb_sz": 12, "n_hid": 17, "n_layers": 2}
    return get_language_model(arch, VOCAB, config)


def swapped(model):
    report = lstmkern.replace_modules(model)
    assert len(report.swapped) > 0 and not report.skipped, report
    return model


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bidir", [False, True])
@pytest.mark.parametrize("make", [lambda **k: awd(OurAWD, **k), lambda **k: swapped(awd(**k))], ids=["class", "swap"])
def test_awd_lstm_trains_alike(make, bidir):
    ours, theirs = make(bidir=bidir), awd(bidir=bidir)
    tokens = torch.randint(2, VOCAB, (N, T), generator=torch.Generator().manual_seed(1))
    results = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        model.reset()
        outputs = [model(tokens), model(tokens)]  # the second batch starts from the state of the first
        loss = sum(o.pow(2).mean() for o in outputs)
        loss.backward()
        results.append((*(o.detach() for o in outputs), {n: p.grad for n, p in model.named_parameters()}))
    (a1, a2, ga), (b1, b2, gb) = results
    assert_same(a1, b1)
    assert_same(a2, b2)
    assert ga.keys() == gb.keys() and any("weight_hh_l0_raw" in name for name in ga)
    for name in ga:
        assert_same(ga[name], gb[name])


def test_a_change_of_batch_size():
    ours, theirs = swapped(awd()).eval(), awd().eval()
    for n in (4, 2, 3):
        tokens = torch.randint(2, VOCAB, (n, T))
        assert_same(ours(tokens), theirs(tokens))


def test_weight_drop_gives_no_warning(recwarn):
    model = swapped(awd())
    model(torch.randint(2, VOCAB, (N, T)))
    assert not [w for w in recwarn if "flatten" in str(w.message) or "contiguous" in str(w.message)]


def loaders(batches=6):
    generator = torch.Generator().manual_seed(2)
    stream = torch.randint(2, VOCAB, (N, batches * T + 1), generator=generator)
    items = [
        (stream[n, b * T : (b + 1) * T], stream[n, b * T + 1 : (b + 1) * T + 1])
        for b in range(batches)
        for n in range(N)
    ]
    make = lambda part: DataLoader(part, bs=N, shuffle=False, num_workers=0)  # noqa: E731
    return DataLoaders(make(items[: 4 * N]), make(items[4 * N :]))


def fit(model, epochs=3):
    callbacks = [ModelResetter, RNNCallback, RNNRegularizer(alpha=2, beta=1)]
    learner = Learner(loaders(), model, loss_func=CrossEntropyLossFlat(), cbs=callbacks)
    torch.manual_seed(7)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(epochs, 1e-2)
    return torch.tensor([list(row) for row in learner.recorder.values])


def test_learner_with_awd_lstm():
    values = fit(swapped(language_model()))
    assert values.isfinite().all()
    torch.testing.assert_close(values, fit(language_model()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("cell", [lstmkern.LSTM, lstmkern.GRU])
def test_learner_with_our_language_model(cell):
    torch.manual_seed(0)
    ours = LMModel7(VOCAB, 16, 2, 0.4, rnn=cell)
    torch.manual_seed(0)
    theirs = LMModel7(VOCAB, 16, 2, 0.4, rnn=getattr(torch.nn, cell.__name__))
    torch.testing.assert_close(fit(ours), fit(theirs), rtol=1e-3, atol=0)


def test_learner_still_sees_a_recurrent_module():
    assert isinstance(swapped(language_model())[0].rnns[0].module, torch.nn.modules.rnn.RNNBase)
