"""Features that torch.nn does not have: resets inside a sequence, the cell state of every step, input size zero."""

from itertools import pairwise

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstmkern

T, N, I, H = 7, 3, 4, 5  # noqa: E741
RESETS = torch.zeros(T, N, dtype=torch.bool)
RESETS[0, 0] = RESETS[3, 0] = RESETS[3, 1] = RESETS[6, 1] = RESETS[5, 0] = True  # sequence 2 has no reset


def segments(row):
    """The steps between the resets of one sequence, as slices."""
    starts = [0, *[t for t in range(1, T) if RESETS[t, row]], T]
    return [slice(a, b) for a, b in pairwise(starts)]


@pytest.mark.parametrize("batch_first", [False, True])
def test_resets_start_a_new_sequence(kind, batch_first, pair):
    """Each segment between resets is a separate sequence; the first starts from hx unless step 0 is a reset."""
    theirs, ours = pair(kind, I, H, batch_first=batch_first)
    x = torch.randn(T, N, I)
    h, c = torch.randn(1, N, theirs.proj_size or H), torch.randn(1, N, H)
    lstm = theirs.mode == "LSTM"
    input, resets = (x.transpose(0, 1), RESETS.t()) if batch_first else (x, RESETS)
    output, state = ours(input, (h, c) if lstm else h, resets=resets)
    output = output.transpose(0, 1) if batch_first else output
    for row in range(N):
        for k, part in enumerate(segments(row)):
            single = x[part, row : row + 1]
            hx = (h[:, row : row + 1], c[:, row : row + 1]) if lstm else h[:, row : row + 1]
            hx = None if k or RESETS[0, row] else hx
            expected, final = theirs(single.transpose(0, 1) if batch_first else single, hx)
            expected = expected.transpose(0, 1) if batch_first else expected
            torch.testing.assert_close(output[part, row : row + 1], expected)
        for mine, last in zip(state if lstm else [state], final if lstm else [final], strict=True):
            torch.testing.assert_close(mine[:, row : row + 1], last)


def test_resets_in_the_reverse_direction(kind, pair):
    """In the reverse direction too, the state is set to zero before step t is processed."""
    theirs, ours = pair(kind, I, H, bidirectional=True)
    x = torch.randn(T, N, I)
    output, _ = ours(x, resets=RESETS)
    P = output.size(2) // 2
    for row in range(N):
        ends = [t + 1 for t in range(T - 1) if RESETS[t, row]]
        for a, b in zip([0, *ends], [*ends, T], strict=True):
            expected, _ = theirs(x[a:b, row : row + 1])
            torch.testing.assert_close(output[a:b, row : row + 1, P:], expected[..., P:])


def test_resets_stop_gradients(kind, pair):
    """Gradients do not cross a reset, and neither does inf from a state that overflowed."""
    _, ours = pair(kind, I, H, dtype=torch.float64)
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(T, N, dtype=torch.bool)
    resets[4] = True
    hx = [torch.full((1, N, d), float("inf"), dtype=torch.float64) for d in (ours.proj_size or H, H)]
    assert ours(x, tuple(hx) if ours.mode == "LSTM" else hx[0], resets=resets)[0][4:].isfinite().all()
    (grad,) = torch.autograd.grad(ours(x, resets=resets)[0][4:].sum(), x)
    assert not grad[:4].any() and grad[4:].any()
    grads = torch.autograd.grad(ours(x, resets=resets)[0][4:].sum(), ours.parameters())
    expected = torch.autograd.grad(ours(x[4:])[0].sum(), ours.parameters())
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_resets_with_lengths_and_packed(kind, pair):
    """The three ways to pass the same variable-length batch with resets agree."""
    _, ours = pair(kind, I, H, 2, bidirectional=True)
    x, lengths = torch.randn(T, N, I), torch.tensor([4, 7, 5])
    padded, state = ours(x, lengths=lengths, resets=RESETS)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    marks = pack_padded_sequence(RESETS.unsqueeze(-1), lengths, enforce_sorted=False).data.squeeze(-1)
    output, final = ours(packed, resets=marks)
    torch.testing.assert_close(pad_packed_sequence(output, total_length=T)[0], padded)
    torch.testing.assert_close(final, state)


def test_no_reset_is_no_change(kind, pair):
    _, ours = pair(kind, I, H, 2, bidirectional=True)
    x = torch.randn(T, N, I)
    plain, marked = ours(x), ours(x, resets=torch.zeros(T, N, dtype=torch.bool))
    torch.testing.assert_close(marked[0], plain[0])
    torch.testing.assert_close(marked[1], plain[1])


def test_one_unbatched_sequence_with_resets(kind, pair):
    _, ours = pair(kind, I, H)
    x = torch.randn(T, I)
    output, _ = ours(x, resets=RESETS[:, 0])
    torch.testing.assert_close(output, ours(x.unsqueeze(1), resets=RESETS[:, :1])[0].squeeze(1))


# ---- cells ----


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_return_cells_gives_c_of_every_step(proj_size, batch_first, layers):
    module = lstmkern.LSTM(I, H, layers, proj_size=proj_size, batch_first=batch_first)
    x = torch.randn(N, T, I) if batch_first else torch.randn(T, N, I)
    output, (h_n, c_n), cells = module(x, return_cells=True)
    plain, _ = module(x)
    assert torch.equal(output, plain)
    assert cells.shape == (*x.shape[:2], H)
    for t in range(T):
        part = x[:, : t + 1] if batch_first else x[: t + 1]
        _, (_, c) = module(part)
        torch.testing.assert_close(cells[:, t] if batch_first else cells[t], c[-1])


def test_cells_of_both_directions():
    module = lstmkern.LSTM(I, H, 2, bidirectional=True)
    _, (_, c_n), cells = module(torch.randn(T, N, I), return_cells=True)
    assert cells.shape == (T, N, 2 * H)
    torch.testing.assert_close(cells[-1, :, :H], c_n[-2])
    torch.testing.assert_close(cells[0, :, H:], c_n[-1])


def test_cells_of_ragged_batches():
    module = lstmkern.LSTM(I, H, bidirectional=True)
    x, lengths = torch.randn(T, N, I), torch.tensor([4, 7, 5])
    _, _, padded = module(x, lengths=lengths, return_cells=True)
    _, _, packed = module(pack_padded_sequence(x, lengths, enforce_sorted=False), return_cells=True)
    assert isinstance(packed, PackedSequence)
    torch.testing.assert_close(pad_packed_sequence(packed, total_length=T)[0], padded)
    assert not padded[4:, 0].any()
    _, _, single = module(x[:, 1], return_cells=True)
    torch.testing.assert_close(padded[:, 1], single)


def test_cells_without_gradients():
    module = lstmkern.LSTM(I, H)
    x = torch.randn(T, N, I)
    with torch.no_grad():
        _, (_, c_n), cells = module(x, return_cells=True)
    torch.testing.assert_close(cells[-1], c_n[0])
    assert torch.equal(cells, module(x, return_cells=True)[2])


def test_training_on_cell_states_only():
    module = lstmkern.LSTM(I, H)
    module(torch.randn(T, N, I), return_cells=True)[2].sum().backward()
    assert all(p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["lstm", "gru", "rnn"])
def test_sequences_without_features(mode, dtype):
    """With input size zero the results are those of an input of zeros. Modules refuse this size, as torch.nn's do."""
    G = {"lstm": 4, "gru": 3, "rnn": 1}[mode]
    function, lengths = getattr(lstmkern.functional, mode), torch.tensor([T, 2, 5])

    def step(features):
        torch.manual_seed(0)
        shapes = 2 * [(G * H, features), (G * H, H), (G * H,), (G * H,)]
        weights = [(torch.randn(s) if features not in s else torch.zeros(s)).to(dtype).requires_grad_() for s in shapes]
        x = torch.zeros(T, N, features, dtype=dtype, requires_grad=True)
        output, state = function(x, None, [weights], bidirectional=True, lengths=lengths)
        return output, *torch.autograd.grad(output.square().sum(), [x, *weights])

    for result, expected in zip(step(0), step(1), strict=True):
        assert torch.equal(result, expected) if expected.shape == result.shape else not result.numel()


def test_input_sizes_that_differ_from_the_weights():
    for features, columns in ((0, 1), (1, 0)):
        weights = [torch.zeros(4 * H, columns), torch.zeros(4 * H, H)]
        with pytest.raises(RuntimeError, match="w_ih must"):
            lstmkern.functional.lstm(torch.zeros(T, N, features), None, [weights])


@pytest.mark.parametrize(("hidden", "projected"), [(0, 5), (H, 0)])
def test_empty_projection_weights(hidden, projected):
    weights = [torch.zeros(4 * hidden, I), torch.zeros(4 * hidden, projected), torch.zeros(projected, hidden)]
    with pytest.raises(RuntimeError, match="w_hr must be at least 1"):
        lstmkern.functional.lstm(torch.zeros(T, N, I), None, [weights])
