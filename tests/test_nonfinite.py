"""One inf, NaN or huge value spreads as in torch.nn, forward and backward, and never to another sequence.

Matrix products read past the end of a row: hidden units and columns are padded to whole registers, K to whole words or
tiles. The padding is zero in both operands; 0 * inf at one place in it would make every sum NaN.
"""

from dataclasses import dataclass

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstmkern
from lstmkern import reference

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# One matrix product with these does not overflow, but every nonlinearity is saturated.
HUGE = {torch.float32: 1e30, torch.float64: 1e200, torch.bfloat16: 1e30, torch.float16: 2e3}
RESULTS = ("output", "h_n", "c_n")


@dataclass
class Case:
    T: int
    N: int
    I: int  # noqa: E741
    H: int
    P: int = 0
    D: int = 1
    lengths: tuple[int, ...] | None = None

    def __str__(self):
        return "-".join(
            map(str, [self.T, self.N, self.I, self.H, self.P, self.D, *(["ragged"] if self.lengths else [])])
        )


# Batch sizes for which weights are read in place, the input product is computed ahead, or x and h share one product.
# Sizes that do and do not end at a pair, a register, or an AMX tile (16 words).
CASES = [
    Case(T=3, N=1, I=40, H=5),
    Case(T=6, N=1, I=3, H=33),
    Case(T=1, N=6, I=5, H=17),
    Case(T=4, N=3, I=7, H=17, D=2),
    Case(T=3, N=6, I=17, H=33),
    Case(T=4, N=20, I=16, H=16, D=2, lengths=(4, 1, 3, 2) * 5),
    Case(T=3, N=35, I=33, H=41),
]
PROJECTED = [
    Case(T=4, N=1, I=5, H=17, P=7),
    Case(T=1, N=6, I=5, H=6, P=5),
    Case(T=4, N=6, I=9, H=33, P=17, D=2),
    Case(T=4, N=20, I=3, H=21, P=16, D=2, lengths=(4, 1, 3, 2) * 5),
    Case(T=3, N=35, I=33, H=41, P=3),
]
KINDS = {
    "lstm": ("LSTM", {}, CASES),
    "lstm-proj": ("LSTM", {}, PROJECTED),
    "gru": ("GRU", {}, CASES),
    "rnn-tanh": ("RNN", {}, CASES),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}, CASES),
}


def modules(name, options, case, dtype):
    """torch.nn's module and ours, with the same weights."""
    made = [
        getattr(library, name)(case.I, case.H, bidirectional=case.D == 2, dtype=dtype, **options)
        for library in (torch.nn, lstmkern)
    ]
    made[1].load_state_dict(made[0].state_dict())
    return made


def values_for(name, case, dtype):
    """The inputs of a training step: x, h0, c0 and the gradients of output, h_n, c_n."""
    P, D = case.P or case.H, case.D
    sizes = {"x": (case.T, case.N, case.I), "h0": (D, case.N, P), "grad_output": (case.T, case.N, D * P)}
    sizes["grad_h_n"] = sizes["h0"]
    if name == "LSTM":
        sizes["c0"] = sizes["grad_c_n"] = (D, case.N, case.H)
    return {key: torch.randn(size, dtype=dtype) for key, size in sizes.items()}


def in_torch(module, x, hx, lengths, resets):
    assert resets is None
    if lengths is None:
        return module(x, hx)
    output, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    return pad_packed_sequence(output, total_length=x.size(0))[0], state


def in_ours(module, x, hx, lengths, resets):
    return module(x, hx, lengths=lengths, resets=resets)


def in_reference(module, x, hx, lengths, resets):
    h0, c0 = hx if module.mode == "LSTM" else (hx, None)
    weights = list(module.parameters())
    output, h_n, c_n, _ = reference.layer(x, h0, c0, weights, None, lengths, resets, module.mode, False)
    return output, (h_n, c_n) if module.mode == "LSTM" else h_n


def train(run, module, values, lengths=None, resets=None):
    """Results and gradients, by name, of a training step by ``run`` with the weights of the module."""
    x = values["x"].clone().requires_grad_()
    states = {key: values[key].clone().requires_grad_() for key in ("h0", "c0") if key in values}
    output, state = run(module, x, tuple(states.values()) if len(states) == 2 else states["h0"], lengths, resets)
    results = dict(zip(RESULTS, (output, *(state if isinstance(state, tuple) else (state,))), strict=False))
    inputs = {"x": x, **states, **dict(module.named_parameters())}
    received = [values[f"grad_{key}"] for key in results]
    grads = torch.autograd.grad(list(results.values()), list(inputs.values()), received)
    named = {key: value.detach() for key, value in results.items()}
    return named | {f"grad_{key}": grad for key, grad in zip(inputs, grads, strict=True)}


def sequences(results, case, keep):
    """The parts of the results that belong to the sequences ``keep``, without the gradients of weights."""
    per_sequence = ("output", "h_n", "c_n", "grad_x", "grad_h0", "grad_c0")
    return {key: value[:, keep] for key, value in results.items() if key in per_sequence}


def masks_differ(got, wanted):
    return [key for key in wanted if not torch.equal(got[key].isfinite(), wanted[key].isfinite())]


def kinds_differ(got, wanted):
    """Whether finite values, NaN, inf and -inf are at different places."""

    def kind(value):
        return torch.where(value.isfinite(), 0, value)

    return [key for key in wanted if not torch.allclose(kind(got[key]), kind(wanted[key]), 0, 0, equal_nan=True)]


def places(values, module, case):
    """(name, tensor, index, sequence) of the first and the last value of a middle sequence, and of a weight."""
    n = case.N // 2
    for key, value in values.items():
        t = 0 if value.size(0) == 1 or key == "x" else value.size(0) - 1
        yield key, value, (t, n, value.size(2) - 1), n
    yield "x", values["x"], (case.lengths[n] - 1 if case.lengths else case.T - 1, n, 0), n
    for key, weight in module.named_parameters():
        if key.startswith("weight") or key == "bias_hh_l0":
            yield key, weight.data, (-1,) * weight.dim(), None


def spoil_padding(values, lengths):
    """Fill the padding of input and grad_output with NaN, which must not reach any result."""
    if lengths is None:
        return
    past = torch.arange(values["x"].size(0)).unsqueeze(1) >= lengths
    values["x"][past] = NAN
    values["grad_output"][past] = NAN


PARAMETERS = [pytest.param(kind, case, id=f"{kind}-{case}") for kind, (_, _, cases) in KINDS.items() for case in cases]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kind, case", PARAMETERS)
def test_one_value(kind, case, dtype):
    name, options, _ = KINDS[kind]
    theirs, ours = modules(name, options | ({"proj_size": case.P} if case.P else {}), case, dtype)
    values = values_for(name, case, dtype)
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    spoil_padding(values, lengths)
    usual = train(in_ours, ours, values, lengths)
    assert all(value.isfinite().all() for value in usual.values())
    wrong = []
    for key, tensor, index, n in places(values, theirs, case):
        # A huge value in a weight acts like an infinite one after some steps.
        for value in (INF, -INF, NAN) if n is None else (INF, -INF, NAN, HUGE[dtype], -HUGE[dtype]):
            before = tensor[index].clone()
            mine = dict(ours.named_parameters())[key].data if n is None else tensor
            tensor[index] = value
            mine[index] = value
            wanted, got = train(in_torch, theirs, values, lengths), train(in_ours, ours, values, lengths)
            differ = masks_differ(got, wanted)
            # Whether inf, -inf or NaN must agree, unless the value reaches every sequence (inf - inf) or returns
            # through h = n + z (h - n): torch.nn's dh - z dh for dn is inf - inf, ours (1 - z) dh is inf.
            if n is not None:
                wanted = {k: v for k, v in wanted.items() if name != "GRU" or k in RESULTS}
                differ = differ or kinds_differ(got, wanted)
            tensor[index] = before
            mine[index] = before
            if n is not None:
                others = [j for j in range(case.N) if j != n]
                for part, kept in sequences(usual, case, others).items():
                    if not torch.equal(sequences(got, case, others)[part], kept):
                        differ.append(f"{part} of other sequences")
            if differ:
                wrong.append(f"{value} in {key}{list(index)}: {', '.join(differ)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kind", KINDS)
def test_reset(kind, dtype):
    """A reset sets any state to zero: no 0 * inf, forward or backward."""
    name, options, _ = KINDS[kind]
    case = Case(T=5, N=7, I=5, H=17, P=5 if kind == "lstm-proj" else 0, D=2)
    _, ours = modules(name, options | ({"proj_size": case.P} if case.P else {}), case, dtype)
    usual_values = values_for(name, case, dtype)
    resets = torch.zeros(case.T, case.N, dtype=torch.bool)
    resets[2, 3] = True
    usual = train(in_ours, ours, usual_values, resets=resets)
    first = case.P or case.H  # the columns of the first direction
    for value in (INF, -INF, NAN):
        for key, t in (("x", 1), ("grad_output", 3)):
            values = usual_values | {key: usual_values[key].clone()}
            values[key][t, 3, 2] = value
            got = train(in_ours, ours, values, resets=resets)
            assert not masks_differ(got, train(in_reference, ours, values, resets=resets))
            if key == "x":
                assert not got["output"][1, 3, :first].equal(usual["output"][1, 3, :first])
                assert got["output"][2:, :, :first].equal(usual["output"][2:, :, :first])
            else:
                for grad in ("grad_h0", "grad_c0"):
                    assert grad not in got or got[grad][0].equal(usual[grad][0])


@pytest.mark.parametrize("kind", KINDS)
def test_state_past_the_end(kind):
    """The reference computes on padding too; an infinite state there must not reach a gradient."""
    name, options, _ = KINDS[kind]
    case = Case(T=4, N=3, I=5, H=6, P=5 if kind == "lstm-proj" else 0, D=2)
    theirs, ours = modules(name, options | ({"proj_size": case.P} if case.P else {}), case, torch.float32)
    values, lengths = values_for(name, case, torch.float32), torch.tensor([4, 2, 3])
    values["x"][1, 1, 0] = values["h0"][1, 1, 0] = INF
    wanted = train(in_torch, theirs, values, lengths)
    for run in (in_ours, in_reference):
        assert not masks_differ(train(run, ours, values, lengths), wanted)
    assert kind != "rnn-relu" or wanted["h_n"].isinf().any()
