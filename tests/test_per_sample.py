"""Per-sample gradients (call_for_per_sample_grads): the gradient of each sequence in grad_sample, as with torch.nn."""

import itertools

import pytest
import torch
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_padded_sequence

import lstmkern

T, N, I, H = 5, 3, 4, 6  # noqa: E741
LENGTHS = torch.tensor([2, 5, 3])


def summed(results):
    """A loss whose gradient is different for every element of the results."""
    leaves = torch.utils._pytree.tree_leaves(results)
    return sum(t.sin().sum() for t in leaves if t is not None and t.is_floating_point())


def per_sample(module, *args, **options):
    """{name: grad_sample} after backward, which must not set grad."""
    call = call_for_per_sample_grads(module, **options)
    summed(call(*args)).backward()
    assert all(p.grad is None for p in module.parameters())
    samples = {}
    for name, p in module.named_parameters():
        samples[name] = p.grad_sample
        p.grad_sample = None
    return samples


def gradients_of(module, *args, **keywords):
    """{name: gradient} of an ordinary call."""
    grads = torch.autograd.grad(summed(module(*args, **keywords)), [*module.parameters()])
    return dict(zip(dict(module.named_parameters()), grads, strict=True))


OPTIONS = [
    {"batch_first": first, "bidirectional": both, "bias": bias, "num_layers": layers}
    for first, both, bias, layers in itertools.product((False, True), (False, True), (False, True), (1, 2))
]


def make(kind, pair, **options):
    return pair(kind, I, H, dtype=torch.float64, **options)


def states(module, N):
    """hx, and a function that gives its part for sequence n."""
    D = module.num_layers * (1 + module.bidirectional)
    h = torch.randn(D, N, module.proj_size or H, dtype=torch.float64, requires_grad=True)
    c = torch.randn(D, N, H, dtype=torch.float64, requires_grad=True)
    if module.mode != "LSTM":
        return h, lambda n: h[:, n : n + 1]
    return (h, c), lambda n: (h[:, n : n + 1], c[:, n : n + 1])


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_equal_those_of_each_sequence(kind, options, with_state, pair):
    theirs, ours = make(kind, pair, **options)
    x = torch.randn(N, T, I, dtype=torch.float64) if ours.batch_first else torch.randn(T, N, I, dtype=torch.float64)
    dim = 0 if ours.batch_first else 1
    hx, of = states(ours, N) if with_state else (None, lambda n: None)
    samples = per_sample(ours, x, hx, batch_size=N, batch_first=ours.batch_first)
    for n in range(N):
        expected = gradients_of(theirs, x.narrow(dim, n, 1), of(n))
        torch.testing.assert_close({name: s[n] for name, s in samples.items()}, expected)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("options", OPTIONS[:8], ids=str)
def test_packed_sequences(kind, options, sort, pair):
    """In packed order. If the batch is smaller than the expanded weights, the rest is zero."""
    theirs, ours = make(kind, pair, **options)
    x = torch.randn(T, N, I, dtype=torch.float64)
    lengths = LENGTHS.sort(descending=True).values if sort else LENGTHS
    packed = pack_padded_sequence(x, lengths, enforce_sorted=sort)
    hx, of = states(ours, N)
    order = range(N) if sort else packed.sorted_indices.tolist()
    for size in (N, N + 2):
        samples = per_sample(ours, packed, hx, batch_size=size)
        for place, n in enumerate(order):
            expected = gradients_of(theirs, x[: lengths[n], n : n + 1], of(n))
            torch.testing.assert_close({name: s[place] for name, s in samples.items()}, expected)
        assert not any(s[N:].any() for s in samples.values())
        assert all(len(s) == size for s in samples.values())


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("name", ["GRU", "RNN", "LSTM"])
def test_same_as_torch(name, form):
    """grad_sample, and the ordinary gradients of input and states."""
    torch.manual_seed(2)
    data = torch.randn(T, N, I)
    h = torch.randn(2, N, H)
    results = []
    with torch.backends.mkldnn.flags(enabled=False):  # oneDNN's LSTM does not support expanded weights
        for package in (torch.nn, lstmkern):
            torch.manual_seed(0)
            module = getattr(package, name)(I, H, 2)
            x, state = data.clone().requires_grad_(), h.clone().requires_grad_()
            hx = (state, 2 * state) if name == "LSTM" else state
            input = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if form == "packed" else x
            samples = per_sample(module, input, hx, batch_size=N, batch_first=False)
            results.append([*samples.values(), x.grad, state.grad])
    torch.testing.assert_close(results[1], results[0])


def test_lengths_and_resets(kind, pair):
    theirs, ours = make(kind, pair, bidirectional=True)
    x = torch.randn(T, N, I, dtype=torch.float64)
    resets = torch.rand(T, N, generator=torch.Generator().manual_seed(0)) < 0.3
    with_both = per_sample(given(ours, lengths=LENGTHS, resets=resets), x, batch_size=N)
    padded = per_sample(given(ours, lengths=LENGTHS), x, batch_size=N)
    for n in range(N):
        one = x[: LENGTHS[n], n : n + 1]
        torch.testing.assert_close([s[n] for s in padded.values()], [*gradients_of(theirs, one).values()])
        expected = gradients_of(ours, one, resets=resets[: LENGTHS[n], n : n + 1])
        torch.testing.assert_close([s[n] for s in with_both.values()], [*expected.values()])


def given(module, **keywords):
    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            output, hidden = self.inner(x, **keywords)
            return output, hidden

    return Around()


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(name):
    """torch.nn's cells do not support this. The gradients of several steps are summed."""
    cell = getattr(lstmkern, name)(I, H, dtype=torch.float64)

    class Steps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            hx = None
            for step in x:
                hx = self.cell(step, hx)
            return hx

    module, x = Steps(), torch.randn(T, N, I, dtype=torch.float64)
    samples = per_sample(module, x, batch_size=N)
    for n in range(N):
        torch.testing.assert_close({name: s[n] for name, s in samples.items()}, gradients_of(module, x[:, n : n + 1]))


def test_mean_is_scaled_by_the_batch():
    module, x = lstmkern.GRU(I, H, batch_first=True), torch.randn(N, T, I)
    plain, mean = (per_sample(module, x, loss_reduction=reduction) for reduction in ("sum", "mean"))
    torch.testing.assert_close(mean, {name: s * N for name, s in plain.items()})


def test_frozen_parameters_and_several_calls():
    module, x = lstmkern.LSTM(I, H, batch_first=True), torch.randn(N, T, I)
    full = per_sample(module, x)
    module.weight_hh_l0.requires_grad_(False)
    call = call_for_per_sample_grads(module)
    (summed(call(x)) + summed(call(x))).backward()
    assert not hasattr(module.weight_hh_l0, "grad_sample") or module.weight_hh_l0.grad_sample is None
    torch.testing.assert_close(module.bias_ih_l0.grad_sample, 2 * full["bias_ih_l0"])
    with torch.no_grad():
        module.bias_ih_l0.grad_sample = module.weight_ih_l0.grad_sample = module.bias_hh_l0.grad_sample = None
        assert not call_for_per_sample_grads(module)(x)[0].requires_grad


def test_what_torch_refuses():
    """With torch's error messages."""
    from torch.nn.utils._expanded_weights import ExpandedWeight

    def wrong_batch(module, x):
        per_sample(module, x, batch_size=N + 1)

    def too_large_a_packed_batch(module, x):
        per_sample(module, pack_padded_sequence(x, [T] * N, batch_first=True), batch_size=N - 1)

    def unbatched(module, x):
        per_sample(module, x[0])

    def mixture(module, x):
        weights = {"weight_ih_l0": ExpandedWeight(module.weight_ih_l0, N, "sum")}
        summed(torch.func.functional_call(module, weights, (x,))).backward()

    def conflict(module, x):
        weights = {
            name: ExpandedWeight(p, N, "mean" if "bias" in name else "sum") for name, p in module.named_parameters()
        }
        torch.func.functional_call(module, weights, (x,))

    for attempt in (wrong_batch, too_large_a_packed_batch, unbatched, mixture, conflict):
        words = []
        for package in (torch.nn, lstmkern):
            module = package.GRU(I, H, batch_first=True)
            with pytest.raises(RuntimeError) as error:
                attempt(module, torch.randn(N, T, I))
            words.append(str(error.value).replace("onewith", "one with"))
        assert words[1] == words[0]


def test_no_second_derivative():
    """torch.nn's are silently wrong, because they include grad_sample of the first pass."""
    module, x = lstmkern.GRU(I, H, batch_first=True), torch.randn(N, T, I, requires_grad=True)
    (grad,) = torch.autograd.grad(summed(call_for_per_sample_grads(module)(x)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()
    module.weight_ih_l0.grad_sample = None


def test_weights_changed_before_backward_are_detected():
    module = lstmkern.GRU(I, H, batch_first=True)
    loss = summed(call_for_per_sample_grads(module)(torch.randn(N, T, I)))
    with torch.no_grad():
        module.bias_ih_l0.add_(1)  # backward recomputes the layer
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_a_model():
    """Between other layers: grad_sample of the whole model equals the gradient of each sample."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = lstmkern.LSTM(I, H, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
            self.head = torch.nn.Linear(2 * H, 3, dtype=torch.float64)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    model, x = Model(), torch.randn(N, T, I, dtype=torch.float64)
    samples = per_sample(model, x)
    for n in range(N):
        torch.testing.assert_close({name: s[n] for name, s in samples.items()}, gradients_of(model, x[n : n + 1]))
