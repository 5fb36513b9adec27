"""Training reaches the accuracy of fastbook chapter 12, agrees with torch.nn, and resumes with the same bits."""

from dataclasses import replace
from statistics import median

import pytest
import torch

from lstmkern.lm import checkpoint as checkpoints
from lstmkern.lm.checkpoint import load_checkpoint, model_from, restore_run, save_checkpoint
from lstmkern.lm.data import InputError, load_corpus, make_batches
from lstmkern.lm.train import OURS, PEER, RECIPES, Config, Run, fit, losses, train_epoch, train_pass, validate

SMALL = Config(epochs=3, batch_size=8, hidden=12, seed=3)


class Stop(Exception):
    pass


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def full():
    corpus = load_corpus()
    return corpus, *make_batches(corpus.ids)


def make_runs(small, config=SMALL, kernels=(OURS,)):
    corpus, train, _ = small
    return [Run(config, len(corpus.vocab), train.steps(config.epochs), name) for name in kernels]


def results(run):
    """What interruptions must not change: losses and accuracies of all epochs, and the final weights."""
    return [(r.train_loss, r.valid_loss, r.accuracy) for r in run.history], run.model.state_dict()


def assert_same(run, other):
    (numbers, weights), (other_numbers, other_weights) = results(run), results(other)
    assert numbers == other_numbers
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("model", ["lm6", "lm7"])
def test_first_epoch_agrees_with_torch(full, model, cell):
    """With the same seed, all losses of the first epoch agree to a relative 1e-3."""
    _, train, valid = full
    traces = []
    for run in make_runs(full, Config(model=model, cell=cell), (OURS, PEER)):
        sums = [0.0]
        train_pass(run, train, lambda run=run, sums=sums: sums.append(run.loss_sum.item()))
        traces.append(torch.tensor(sums, dtype=torch.float64).diff())
    assert len(traces[0]) == 49
    torch.testing.assert_close(traces[0], traces[1], rtol=1e-3, atol=0)


@pytest.mark.slow
def test_lmmodel7_learns_to_count(full):
    """Accuracy of LMModel7 on our kernels: the median of three seeds is at least 0.82, and none is below 0.78."""
    corpus, train, valid = full
    accuracies = []
    for seed in (0, 1, 2):
        config = Config(model="lm7", seed=seed)
        run = Run(config, len(corpus.vocab), train.steps(config.epochs))
        fit([run], train, valid)
        accuracies.append(run.history[-1].accuracy)
    assert median(accuracies) >= 0.82, accuracies
    assert min(accuracies) >= 0.78, accuracies


def test_one_cycle(small):
    """Warm-up from lr/25 over a quarter of the steps, down to lr/1e5; beta1 mirrors it between 0.95 and 0.85."""
    _, train, valid = small
    config = replace(SMALL, epochs=4)
    (run,) = make_runs(small, config)
    group = run.optimizer.param_groups[0]
    trace = [(group["lr"], group["betas"][0])]
    fit([run], train, valid, lambda: trace.append((group["lr"], group["betas"][0])) if run.model.training else None)
    steps = config.epochs * len(train)
    assert len(trace) == steps + 1
    rates, momenta = zip(*trace[:steps], strict=True)
    peak = max(range(steps), key=rates.__getitem__)
    assert abs(peak - (0.25 * steps - 1)) <= 1
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert rates[peak] == pytest.approx(1e-2, rel=1e-2)
    assert rates[-1] == pytest.approx(1e-2 / 1e5)
    assert (momenta[0], momenta[-1]) == pytest.approx((0.95, 0.95))
    assert momenta[peak] == pytest.approx(0.85, abs=1e-3)
    assert group["betas"][1] == 0.99
    assert group["eps"] == 1e-5
    assert group["weight_decay"] == RECIPES["lm7"].weight_decay == 0.1


def test_regularization_counts_in_the_training_loss_only():
    logits, raw, y = torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randint(5, (2, 3))
    cross_entropy, loss = losses((logits, raw, 2 * raw), y, RECIPES["lm7"])
    expected = torch.nn.functional.cross_entropy(logits.view(6, 5), y.view(6))
    regularization = 2 * (2 * raw).pow(2).mean() + (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    torch.testing.assert_close(cross_entropy, expected)
    torch.testing.assert_close(loss, expected + regularization)
    cross_entropy, loss = losses(logits, y, RECIPES["lm6"])
    torch.testing.assert_close(loss, cross_entropy)


def test_passes_start_from_a_zero_state(small):
    """Training and validation call reset() first, so that earlier input has no effect."""
    _, train, valid = small
    (run,) = make_runs(small)
    run.model.eval()
    fresh = validate(run.model, valid)
    assert validate(run.model, valid) == fresh
    other = make_runs(small)[0]
    run.model(train.x[0])  # the model now has a state
    train_pass(run, train)
    train_pass(other, train)
    assert run.loss_sum == other.loss_sum


def test_validation_counts(small):
    """Loss and accuracy equal those of a single call on the whole text."""
    _, _, valid = small
    (run,) = make_runs(small, replace(SMALL, dtype="fp64"))
    loss, accuracy = validate(run.model, valid)
    run.model.reset()
    with torch.no_grad():
        logits = run.model(torch.cat(valid.x, dim=1))[0]
    y = torch.cat(valid.y, dim=1)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    assert accuracy == pytest.approx((logits.argmax(-1) == y).double().mean().item())


def test_runs_in_turn_do_not_disturb_each_other(small):
    _, train, valid = small
    pair, (single,) = make_runs(small, kernels=(OURS, PEER)), make_runs(small)
    order = []
    torch.manual_seed(99)  # runs do not use or change the caller's random numbers
    expected = torch.rand(1)
    torch.manual_seed(99)
    fit(pair, train, valid, after_epoch=lambda epoch: order.append((epoch, pair[0].epoch, pair[1].epoch)))
    assert torch.equal(torch.rand(1), expected)
    fit([single], train, valid)
    assert order == [(0, 1, 1), (1, 2, 2), (2, 3, 3)]
    assert_same(pair[0], single)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("model", ["lm6", "lm7"])
def test_resume_equals_uninterrupted(small, tmp_path, model, cell):
    """Stopped after some batch of training or validation, saved and loaded: the final bits are the same."""
    corpus, train, valid = small
    config = replace(SMALL, model=model, cell=cell)
    straight = make_runs(small, config, (OURS, PEER))
    fit(straight, train, valid)
    total = 2 * config.epochs * (len(train) + len(valid))
    path = tmp_path / "checkpoint.pt"
    # The first batch; one in training; the last of training; the first of validation; one in the other run; the last.
    for stop in (1, len(train) // 2, len(train), len(train) + 1, total // 2 + 1, total):
        left = stop

        def after_batch():
            nonlocal left
            left -= 1
            if left == 0:
                raise Stop

        stopped = make_runs(small, config, (OURS, PEER))
        with pytest.raises(Stop):
            fit(stopped, train, valid, after_batch)
        save_checkpoint(path, stopped, corpus.vocab, corpus.fingerprint)
        loaded = load_checkpoint(path)
        assert loaded.config == config
        resumed = make_runs(small, config, (OURS, PEER))
        for run in resumed:
            restore_run(run, loaded)
        fit(resumed, train, valid)
        for run, expected in zip(resumed, straight, strict=True):
            assert_same(run, expected)


def test_checkpoint_is_plain_data_and_gives_the_model_back(small, tmp_path):
    corpus, train, valid = small
    (run,) = make_runs(small)
    train_epoch(run, train, valid)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, [run], corpus.vocab, corpus.fingerprint)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(path, weights_only=True)["vocab"] == {"kind": "words", "tokens": corpus.vocab}
    model = model_from(load_checkpoint(path))
    assert validate(model, valid) == validate(run.model, valid)


def test_failed_save_leaves_the_old_checkpoint(small, tmp_path, monkeypatch):
    corpus, _, _ = small
    (run,) = make_runs(small)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, [run], corpus.vocab, corpus.fingerprint)
    before = path.read_bytes()

    def break_off(target, content):
        with open(target, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Path, "write_bytes", break_off)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, [run], corpus.vocab, corpus.fingerprint)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_of_another_model_is_refused(small, tmp_path):
    corpus, _, _ = small
    path = tmp_path / "checkpoint.pt"
    (run,) = make_runs(small)
    save_checkpoint(path, [run], corpus.vocab, corpus.fingerprint)
    loaded = load_checkpoint(path)
    for other in ({"model": "lm6"}, {"cell": "gru"}, {"hidden": 13}, {"layers": 1}):
        (stranger,) = make_runs(small, replace(SMALL, **other))
        before = {key: value.clone() for key, value in stranger.model.state_dict().items()}
        with pytest.raises(InputError, match="is of another model"):
            restore_run(stranger, loaded)
        assert all(torch.equal(value, before[key]) for key, value in stranger.model.state_dict().items())
    with pytest.raises(InputError, match="no run on torch.nn"):
        restore_run(make_runs(small, kernels=(PEER,))[0], loaded)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a checkpoint, or it is damaged"):
        load_checkpoint(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not a checkpoint of an lstmkern language model"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
