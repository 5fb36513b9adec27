"""Sequences of different lengths, packed or padded: each has the results that it has in a batch of one."""

import copy

import pytest
import torch
from pairs import as_tuple, random_state
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstmkern

T, I, H = 6, 4, 5  # noqa: E741
LENGTHS = {
    "unsorted": [2, 6, 1, 4, 4],
    "sorted": [6, 4, 4, 2, 1],
    "rising": [1, 2, 4, 4, 6],
    "equal": [6, 6, 6, 6, 6],
    "shorter-than-T": [2, 3, 1, 3, 2],
    "one-step": [1, 1, 1, 1, 1],
    "one-row": [3],
}


@pytest.fixture(params=LENGTHS)
def lengths(request):
    return torch.tensor(LENGTHS[request.param])


def batch(lengths, batch_first, **options):
    x = torch.randn(T, len(lengths), I, **options)
    return x.transpose(0, 1).contiguous() if batch_first else x


def row_of(state, n):
    return tuple(s[:, n : n + 1] for s in state) if isinstance(state, tuple) else state[:, n : n + 1]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_lengths_equal_single_sequences(kind, batch_first, bidirectional, with_state, lengths, pair):
    theirs, ours = pair(kind, I, H, 2, batch_first=batch_first, bidirectional=bidirectional)
    x, N = batch(lengths, batch_first), len(lengths)
    hx = random_state(ours, N) if with_state else None
    output, state = ours(x, hx, lengths=lengths)
    by_row = output if batch_first else output.transpose(0, 1)
    for n, length in enumerate(lengths.tolist()):
        single = x[n : n + 1, :length] if batch_first else x[:length, n : n + 1]
        expected, final = theirs(single, None if hx is None else row_of(hx, n))
        torch.testing.assert_close(by_row[n, :length], expected.squeeze(0 if batch_first else 1))
        assert not by_row[n, length:].any()
        torch.testing.assert_close(row_of(state, n), final)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_training_step_is_torchs(kind, batch_first, bidirectional, lengths, pair, as_good_as_torch):
    theirs, ours = pair(kind, I, H, 2, batch_first=batch_first, bidirectional=bidirectional)
    x, hx = batch(lengths, batch_first), as_tuple(random_state(ours, len(lengths)))

    def step(module, dtype, padded):
        module = module.to(dtype)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *hx)]
        state = tuple(leaves[1:]) if module.mode == "LSTM" else leaves[1]
        if padded:
            output, state = module(leaves[0], state, lengths=lengths)
        else:
            packed = pack_padded_sequence(leaves[0], lengths, batch_first=batch_first, enforce_sorted=False)
            output, state = module(packed, state)
            output, _ = pad_packed_sequence(output, batch_first=batch_first, total_length=T)
        weight = torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype)
        loss = (output * weight).sum() + sum(s.square().sum() for s in as_tuple(state))
        return [output, *as_tuple(state), *torch.autograd.grad(loss, [*leaves, *module.parameters()])]

    packed, padded = step(ours, torch.float32, False), step(ours, torch.float32, True)
    peer, exact = step(theirs, torch.float32, False), step(theirs, torch.float64, False)
    as_good_as_torch(packed, peer, exact)
    as_good_as_torch(padded, peer, exact)


def test_rows_without_steps_keep_their_state(kind, pair, as_good_as_torch):
    """One bidirectional layer with arbitrary padding. The results and gradients are those of a batch without the empty
    sequences; the state of an empty sequence is returned unchanged."""
    _, ours = pair(kind, I, H, bidirectional=True)
    lengths, some = torch.tensor([0, 3, 0, T, 1, 0]), [1, 3, 4]
    x, hx = batch(lengths, False), as_tuple(random_state(ours, len(lengths)))
    output_weight, state_weights = torch.randn(T, 6, 2 * (ours.proj_size or H)), [torch.randn_like(s) for s in hx]

    def step(rows, dtype):
        module = copy.deepcopy(ours).to(dtype)
        leaves = [t.to(dtype).requires_grad_() for t in (x[:, rows], *(s[:, rows] for s in hx))]
        state = tuple(leaves[1:]) if module.mode == "LSTM" else leaves[1]
        output, state = module(leaves[0], state, lengths=lengths[rows])
        loss = (output * output_weight[:, rows]).sum()
        loss = loss + sum((s * w[:, rows]).sum() for s, w in zip(as_tuple(state), state_weights, strict=True))
        dx, *rest = torch.autograd.grad(loss, [*leaves, *module.parameters()])
        return [output, dx, *as_tuple(state), *rest[: len(hx)]], rest[len(hx) :]

    x[:, [0, 2, 5]] = float("nan")
    (results, weights), (expected, expected_weights) = step(slice(None), torch.float32), step(some, torch.float32)
    exact, weights_exact = step(some, torch.float64)
    as_good_as_torch([r[:, some] for r in results], expected, exact)
    as_good_as_torch(list(weights), list(expected_weights), list(weights_exact))
    empty, n = [0, 2, 5], len(hx)
    assert all((r[:, empty] == 0).all() for r in results[:2])
    for given, final, grad, weight in zip(hx, results[2 : 2 + n], results[2 + n :], state_weights, strict=True):
        assert torch.equal(final[:, empty], given[:, empty]) and torch.equal(grad[:, empty], weight[:, empty])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 4])
def test_no_row_has_a_step(kind, rows, dtype, pair):
    _, ours = pair(kind, I, H, bidirectional=True, dtype=dtype)
    x = torch.full((T, rows, I), float("nan"), dtype=dtype).requires_grad_()
    hx = [s.requires_grad_() for s in as_tuple(random_state(ours, rows, dtype))]
    output, state = ours(x, tuple(hx) if ours.mode == "LSTM" else hx[0], lengths=torch.zeros(rows, dtype=torch.int64))
    assert output.shape[:2] == (T, rows) and not output.any()
    seeds = [torch.randn_like(s) for s in hx]
    loss = output.sum() + sum((s * w).sum() for s, w in zip(as_tuple(state), seeds, strict=True))
    dx, *rest = torch.autograd.grad(loss, [x, *hx, *ours.parameters()])
    assert not dx.any() and not any(g.any() for g in rest[len(hx) :])
    for given, final, grad, seed in zip(hx, as_tuple(state), rest, seeds, strict=False):
        assert torch.equal(final, given) and torch.equal(grad, seed)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_rows_without_steps(threads, pair):
    """Sequences are divided among threads, some of which get only empty ones; backward has several chunks of steps."""
    _, ours = pair("lstm", 8, 48, bidirectional=True)
    lengths = torch.randint(1, 41, (96,)) * (torch.rand(96) < 0.3)
    some = lengths.nonzero().squeeze(1)
    x, before, results = torch.randn(40, 96, 8), torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for rows in (slice(None), some):
            leaf = x[:, rows].requires_grad_()
            output, _ = ours(leaf, lengths=lengths[rows])
            grads = torch.autograd.grad(output.square().sum(), [leaf, *ours.parameters()])
            results.append([output, *grads])
    finally:
        torch.set_num_threads(before)
    (output, dx, *weights), (single, single_dx, *expected_weights) = results
    torch.testing.assert_close([output[:, some], dx[:, some]], [single, single_dx])
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-4)
    assert not output[:, lengths == 0].any() and not dx[:, lengths == 0].any()


def test_padding_is_never_read(kind, lengths, pair):
    """NaN and inf past the end of a sequence reach neither a result nor a gradient."""
    _, ours = pair(kind, I, H, 2, bidirectional=True)
    clean = batch(lengths, False)
    past_end = torch.arange(T).unsqueeze(1) >= lengths
    dirty = clean.masked_fill(past_end.unsqueeze(-1), float("nan"))
    dirty[..., 0] = dirty[..., 0].masked_fill(past_end, float("inf"))
    results = []
    for x in (clean, dirty):
        x = x.requires_grad_()
        output, state = ours(x, lengths=lengths)
        loss = output.square().sum() + sum(s.sum() for s in as_tuple(state))
        results.append([output, *as_tuple(state), *torch.autograd.grad(loss, [x, *ours.parameters()])])
    for a, b in zip(*results, strict=True):
        assert b.isfinite().all()
        torch.testing.assert_close(b, a)


def test_gradient_past_the_end_is_ignored_and_zero(kind, lengths, pair):
    _, ours = pair(kind, I, H, 2, bidirectional=True, dtype=torch.float64)
    x = batch(lengths, False, dtype=torch.float64).requires_grad_()
    output, _ = ours(x, lengths=lengths)
    past_end = (torch.arange(T).unsqueeze(1) >= lengths).unsqueeze(-1)
    seed = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, x, seed, retain_graph=True)
    assert not grad.masked_select(past_end).any()
    (other,) = torch.autograd.grad(output, x, seed.masked_fill(past_end, 1e6))
    torch.testing.assert_close(other, grad)


def test_full_lengths_are_a_dense_batch(kind, pair):
    _, ours = pair(kind, I, H, 2, bidirectional=True)
    x = torch.randn(T, 3, I)
    dense, ragged = ours(x), ours(x, lengths=torch.full((3,), T))
    torch.testing.assert_close(ragged[0], dense[0])
    torch.testing.assert_close(ragged[1], dense[1])


def test_packed_result_keeps_the_order(pair):
    _, ours = pair("lstm", I, H)
    packed = pack_padded_sequence(torch.randn(T, 3, I), [2, 6, 4], enforce_sorted=False)
    output, _ = ours(packed)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    assert torch.equal(output.sorted_indices, packed.sorted_indices)
    assert torch.equal(output.unsorted_indices, packed.unsorted_indices)


def test_one_unbatched_sequence_with_a_length(kind, pair):
    _, ours = pair(kind, I, H)
    x = torch.randn(T, I)
    output, state = ours(x, lengths=torch.tensor(4))
    expected, final = ours(x[:4])
    torch.testing.assert_close(output[:4], expected)
    assert output.shape == (T, expected.size(1)) and not output[4:].any()
    torch.testing.assert_close(state, final)


def test_lengths_of_an_empty_batch(kind, pair):
    _, ours = pair(kind, I, H)
    output, _ = ours(torch.randn(T, 0, I), lengths=torch.zeros(0, dtype=torch.int64))
    assert output.shape[:2] == (T, 0)


def test_dropout_between_layers_leaves_padding_zero(pair):
    _, ours = pair("gru", I, H, 3, dropout=0.5, batch_first=True)
    lengths = torch.tensor([2, 5, 3])
    output, _ = ours(torch.randn(3, T, I), lengths=lengths)
    assert not output[torch.arange(T) >= lengths.unsqueeze(1)].any()


def test_lengths_work_as_functional_argument():
    x, lengths = torch.randn(T, 3, I), torch.tensor([2, 6, 1])
    module = lstmkern.GRU(I, H)
    output, _ = lstmkern.functional.gru(x, None, module.all_weights, lengths=lengths)
    assert torch.equal(output, module(x, lengths=lengths)[0])
