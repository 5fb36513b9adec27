"""torch.compile, torch.export, torch.func and opcheck see ordinary operators."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import lstmkern
from lstmkern import reference

I, H = 4, 5  # noqa: E741
MODES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class Tagger(nn.Module):
    """A model with one of our modules between others."""

    def __init__(self, kind, pair, **options):
        super().__init__()
        _, self.rnn = pair(kind, I, H, 2, bidirectional=True, **options)
        self.head = nn.Linear(2 * (self.rnn.proj_size or H), 3)

    def forward(self, x, lengths=None, resets=None):
        return self.head(torch.relu(self.rnn(x, lengths=lengths, resets=resets)[0]))


def train_step(model, *inputs):
    model.zero_grad()
    output = model(*inputs)
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- torch.compile ----


@pytest.mark.parametrize(
    ("kind", "batch_first"), [("lstm", False), ("lstm-proj", True), ("gru", True), ("rnn-relu", False)]
)
def test_compiled_training_with_any_T_and_N(kind, batch_first, pair):
    model = Tagger(kind, pair, batch_first=batch_first)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    counts = set()
    for sizes in ((3, 2), (7, 4), (4, 7), (5, 5), (12, 3)):
        x = torch.randn(*sizes, I)
        torch.testing.assert_close(train_step(compiled, x), train_step(model, x))
        counts.add(counter.frame_count)
    assert len(counts) == 1, f"compiled again for another length: {counts}"


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compiled_lengths_and_resets(kind, pair):
    model = Tagger(kind, pair)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    counts = set()
    for T, N in ((6, 3), (7, 2), (9, 8)):  # none is a feature size: equal sizes share a symbol
        x, lengths, resets = torch.randn(T, N, I), torch.randint(0, T + 1, (N,)), torch.rand(T, N) < 0.3
        torch.testing.assert_close(train_step(compiled, x, lengths, resets), train_step(model, x, lengths, resets))
        counts.add(counter.frame_count)
    assert len(counts) == 1


def test_compiled_by_inductor():
    """The default back end: our operators called from the code that it writes."""
    module = lstmkern.LSTM(I, H)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for T, N in ((3, 2), (6, 7)):
        x, state = torch.randn(T, N, I), (torch.randn(1, N, H), torch.randn(1, N, H))
        torch.testing.assert_close(compiled(x, state), module(x, state))


def test_compiled_with_state_cells_and_autocast(pair):
    module = lstmkern.LSTM(I, H)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, state = torch.randn(3, 2, I), (torch.randn(1, 2, H), torch.randn(1, 2, H))
    torch.testing.assert_close(compiled(x, state, return_cells=True), module(x, state, return_cells=True))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, state), module(x, state))
        torch.testing.assert_close(compiled(x.bfloat16()), module(x.bfloat16()))


def test_compiled_packed_sequence(kind, pair):
    _, module = pair(kind, I, H, 2)
    packed = pack_padded_sequence(torch.randn(4, 3, I), [2, 4, 1], enforce_sorted=False)
    compiled = torch.compile(lambda p: module(p)[0].data, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed), module(packed)[0].data)


def test_compiled_cell_loop():
    cell = lstmkern.LSTMCell(I, H)

    def roll(x):
        state = None
        for step in x:
            state = cell(step, state)
        return state[0]

    x = torch.randn(3, 2, I)
    torch.testing.assert_close(torch.compile(roll, fullgraph=True, backend="aot_eager")(x), roll(x))


# ---- torch.export ----


@pytest.mark.parametrize(("kind", "strict"), [("lstm", False), ("lstm", True), ("gru", False), ("rnn-tanh", False)])
def test_export_with_dynamic_shapes_saved_and_loaded(kind, strict, pair, tmp_path):
    model = Tagger(kind, pair, batch_first=True).eval()
    T, N = torch.export.Dim("T"), torch.export.Dim("N")
    program = torch.export.export(model, (torch.randn(3, 5, I),), dynamic_shapes=({0: N, 1: T},), strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for sizes in ((1, 1), (4, 9), (8, 2)):
        x = torch.randn(*sizes, I)
        torch.testing.assert_close(loaded(x), model(x))


def test_export_with_lengths(pair):
    model = Tagger("gru", pair).eval()
    T, N = torch.export.Dim("T"), torch.export.Dim("N")
    shapes = {"x": {0: T, 1: N}, "lengths": {0: N}}
    example = (torch.randn(5, 3, I), torch.tensor([2, 5, 3]))
    exported = torch.export.export(model, example, dynamic_shapes=shapes).module()
    x, lengths = torch.randn(8, 4, I), torch.tensor([8, 1, 0, 4])
    torch.testing.assert_close(exported(x, lengths), model(x, lengths))


# ---- the operators ----


def operands(mode, D=2, project=False, bias=True, requires_grad=False):
    P, G = 2 if project else H, MODES[mode]
    sizes = [(G * H, I), (G * H, P), *([(G * H,)] * 2 if bias else []), *([(P, H)] if project else [])]
    weights = [torch.randn(*s) for s in sizes * D]
    state = [torch.randn(D, 3, P), torch.randn(D, 3, H) if mode == "LSTM" else None]
    for t in (*weights, *state):
        if t is not None:
            t.requires_grad_(requires_grad)
    return (*state, weights)


RAGGED = {
    "dense": (None, None, None),
    "lengths": (None, torch.tensor([2, 4, 0]), None),
    "packed": (torch.tensor([3, 2, 1, 1]), None, None),
    "resets": (None, None, torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) < 0.4),
}


ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
OPERATORS = [("LSTM", form) for form in RAGGED] + [(mode, "dense") for mode in MODES if mode != "LSTM"]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("mode", "form"), OPERATORS)
def test_opcheck_forward(mode, form, requires_grad):
    x = torch.randn(*((7,) if form == "packed" else (4, 3)), I, requires_grad=requires_grad)
    save = form == "dense"  # what is saved for rows that have ended is undefined, and opcheck compares everything
    h0, c0, weights = operands(mode, 2, mode == "LSTM", save, requires_grad)
    arguments = (x, h0, c0, weights, *RAGGED[form], mode, False, save, mode == "LSTM")
    torch.library.opcheck(torch.ops.lstmkern.layer_forward, arguments)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("mode", "form"), OPERATORS)
def test_opcheck_backward(mode, form, requires_grad):
    x = torch.randn(*((7,) if form == "packed" else (4, 3)), I, requires_grad=requires_grad)
    h0, c0, weights = operands(mode, 2, mode == "LSTM", True, requires_grad)
    arguments = (x, h0, c0, weights, *RAGGED[form])
    with torch.no_grad():
        output, *state, cells, gates = torch.ops.lstmkern.layer_forward(*arguments, mode, False, True, True)
    grads = [torch.randn_like(t).requires_grad_(requires_grad) if t.numel() else None for t in (output, *state, cells)]
    # torch.compile has no second derivatives: AOT dispatch cannot trace the gradient of this op.
    checks = ALL[:3] if requires_grad else ALL
    partly = ([grads[0], None, None, None], [False, True, False], ALL[:3])
    for received, needs, tests in ((grads, [True, True, True], checks), partly):
        call = (*received, *arguments, output, cells, gates, mode, False, needs)
        torch.library.opcheck(torch.ops.lstmkern.layer_backward, call, test_utils=tests)


def test_opcheck_batch_first():
    h0, c0, weights = operands("LSTM")
    arguments = (torch.randn(3, 4, I), h0, c0, weights, None, None, None, "LSTM", True, True, True)
    torch.library.opcheck(torch.ops.lstmkern.layer_forward, arguments)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_opcheck_one_step(mode, requires_grad):
    """Input [N, I] and state [N, P]: what the cells call."""
    h0, c0, weights = operands(mode, 1, requires_grad=requires_grad)
    x, *state = (
        None if t is None else t.detach()
        for t in (torch.randn(3, I), h0.squeeze(0), c0 if c0 is None else c0.squeeze(0))
    )
    for t in (x, *state):
        if t is not None:
            t.requires_grad_(requires_grad)
    arguments = (x, *state, weights, None, None, None, mode, False)
    torch.library.opcheck(torch.ops.lstmkern.layer_forward, (*arguments, True, True))
    with torch.no_grad():
        output, _, _, cells, gates = torch.ops.lstmkern.layer_forward(*arguments, True, True)
    grads = (torch.randn_like(output), None, None, torch.randn_like(cells) if mode == "LSTM" else None)
    for given_output in (output,) if "RNN" in mode else (output, None):  # gated cells do not read it
        call = (*grads, *arguments[:7], given_output, cells, gates, mode, False, [True, True, True])
        torch.library.opcheck(torch.ops.lstmkern.layer_backward, call, test_utils=ALL[:3] if requires_grad else ALL)


@pytest.mark.parametrize("over", ["x", "state", "both", "weights"])
@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH"])
def test_vmap_of_cells(mode, over):
    """torch.nn's cells do not support vmap, so the results are compared with the reference's step."""
    cell = getattr(lstmkern, f"{mode.split('_')[0]}Cell")(I, H).double()
    weights = {n: p.detach() for n, p in cell.named_parameters()}
    x, h = torch.randn(3, I, dtype=torch.float64), torch.randn(3, H, dtype=torch.float64)
    mapped = [0 if over in (what, "both") else None for what in ("x", "state")] + [0 if over == "weights" else None]
    if over == "weights":
        weights = {n: stacked(w) for n, w in weights.items()}
    x, h = (t if dim is None else stacked(t) for t, dim in zip((x, h), mapped, strict=False))

    def ours(x, h, weights):
        results = functional_call(cell, weights, (x, (h, h + 1) if mode == "LSTM" else h))
        return results if mode == "LSTM" else (results,)

    def plain(x, h, weights):
        results = reference.step(mode, x, h, h + 1 if mode == "LSTM" else None, list(weights.values()))
        return results if mode == "LSTM" else results[:1]

    results = []
    for f in (ours, plain):
        mapped_f = vmap(f, tuple(mapped))
        results.append((mapped_f(x, h, weights), grad(scalar(lambda *a: mapped_f(*a)[0]), 2)(x, h, weights)))  # noqa: B023
    torch.testing.assert_close(*results)


def test_results_do_not_alias():
    """Not each other nor an argument: also with T = 1, where h_n is the output, and N = 0."""
    for T, N in ((1, 2), (3, 1), (3, 0)):
        x, h0 = torch.randn(T, N, I), torch.randn(1, N, H)
        weights = operands("LSTM", 1)[2]
        results = torch.ops.lstmkern.layer_forward(x, h0, h0, weights, None, None, None, "LSTM", False, True, True)
        pointers = [t.untyped_storage().data_ptr() for t in (x, h0, *weights, *results) if t.numel()]
        assert len(set(pointers)) == len(pointers)


# ---- torch.func ----


@pytest.fixture(params=[False, True], ids=["time-major", "batch-first"])
def functions(request):
    """functions(mode): the layer's output as a function of its tensors, ours and the reference's, and the tensors."""

    def make(mode, T=3, N=2):
        batch_first = request.param
        generator = torch.Generator().manual_seed(1)

        def randn(*sizes):
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        G = MODES[mode]
        x = randn(*((N, T) if batch_first else (T, N)), I)
        weights = [randn(G * H, I), randn(G * H, H), randn(G * H), randn(G * H)]
        h0, c0 = randn(1, N, H), randn(1, N, H)

        def ours(x, h0, c0, weights, lengths=None):
            c0 = c0 if mode == "LSTM" else None
            return lstmkern.autograd.layer_forward(x, h0, c0, weights, None, lengths, None, mode, batch_first, False)[0]

        def plain(x, h0, c0, weights, lengths=None):
            c0 = c0 if mode == "LSTM" else None
            return reference.layer(x, h0, c0, weights, None, lengths, None, mode, batch_first)[0]

        return ours, plain, (x, h0, c0, weights)

    return make


def scalar(f):
    return lambda *args: f(*args).sin().sum()


B = 3


def stacked(tensor):
    return torch.stack([tensor * (1 + k) for k in range(B)])


TRANSFORMS = {
    "grad": lambda f, x, h, c, w: grad(scalar(f), (0, 1, 3))(x, h, c, w),
    "grad of grad": lambda f, x, h, c, w: grad(scalar(grad(scalar(f))), (0, 1, 3))(x, h, c, w),
    "vjp": lambda f, x, h, c, w: vjp(lambda x, w: f(x, h, c, w), x, w)[1](torch.ones_like(f(x, h, c, w))),
    "vmap over x": lambda f, x, h, c, w: vmap(f, (0, None, None, None))(stacked(x), h, c, w),
    "vmap over x, dimension 2": lambda f, x, h, c, w: vmap(f, (2, None, None, None))(stacked(x).movedim(0, 2), h, c, w),
    "vmap over h0": lambda f, x, h, c, w: vmap(f, (None, 0, None, None))(x, stacked(h), c, w),
    "vmap over lengths": lambda f, x, h, c, w: vmap(f, (None, None, None, None, 0))(
        x, h, c, w, torch.tensor([[1, 2], [3, 0], [2, 1]])
    ),
    "vmap over weights": lambda f, x, h, c, w: vmap(f, (None, None, None, 0))(x, h, c, [stacked(t) for t in w]),
    "vmap over x and weights": lambda f, x, h, c, w: vmap(f, (0, None, None, 0))(
        stacked(x), h, c, [stacked(t) for t in w]
    ),
    "vmap of vmap": lambda f, x, h, c, w: vmap(lambda x: vmap(lambda h: f(x, h, c, w))(stacked(h)))(stacked(x)),
    "grad of vmap": lambda f, x, h, c, w: grad(lambda x, w: scalar(vmap(f, (0, None, None, None)))(x, h, c, w), (0, 1))(
        stacked(x), w
    ),
    "vmap of grad": lambda f, x, h, c, w: vmap(grad(scalar(f), (0, 1, 3)), (0, None, None, None))(stacked(x), h, c, w),
    "jacrev": lambda f, x, h, c, w: jacrev(f, (0, 1, 3))(x, h, c, w),
    "jacfwd": lambda f, x, h, c, w: jacfwd(f, (0, 3))(x, h, c, w),
    "vmap of jacrev": lambda f, x, h, c, w: vmap(jacrev(f), (0, None, None, None))(stacked(x), h, c, w),
    "jvp": lambda f, x, h, c, w: jvp(lambda x, h: f(x, h, c, w), (x, h), (torch.ones_like(x), -torch.ones_like(h))),
    "jvp of grad": lambda f, x, h, c, w: jvp(lambda x: grad(scalar(f))(x, h, c, w), (x,), (torch.ones_like(x),)),
    "grad of jvp": lambda f, x, h, c, w: grad(
        lambda x: jvp(lambda x: scalar(f)(x, h, c, w), (x,), (torch.ones_like(x),))[1]
    )(x),
    "hessian": lambda f, x, h, c, w: hessian(lambda h: scalar(f)(x, h, c, w))(h),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("mode", MODES)
def test_transforms(mode, transform, functions):
    ours, plain, arguments = functions(mode)
    torch.testing.assert_close(TRANSFORMS[transform](ours, *arguments), TRANSFORMS[transform](plain, *arguments))


def test_transforms_under_no_grad_and_inside_eager_autograd(functions):
    ours, plain, (x, h, c, w) = functions("LSTM")
    with torch.no_grad():
        torch.testing.assert_close(grad(scalar(ours))(x, h, c, w), grad(scalar(plain))(x, h, c, w))
    grads = []
    for f in (ours, plain):
        leaves = [t.clone().requires_grad_() for t in w]
        inner = grad(scalar(f))(x, h, c, leaves)  # differentiated once by torch.func, then once more by autograd
        outer = vmap(f, (0, None, None, None))(stacked(x), h, c, leaves)
        grads.append(torch.autograd.grad(inner.sin().sum() + outer.sin().sum(), leaves))
    torch.testing.assert_close(*grads)


def test_forward_mode_dual_tensors(functions):
    ours, plain, (x, h, c, w) = functions("GRU")
    tangents = []
    for f in (ours, plain):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            tangents.append(forward_ad.unpack_dual(f(dual, h, c, w)).tangent)
    torch.testing.assert_close(*tangents)
    assert tangents[0].abs().max() > 0


def test_per_sample_gradients(kind, pair):
    """vmap(grad(functional_call)) gives each row's gradient, as a loop over the rows does."""
    model = Tagger(kind, pair).double()
    weights, x = dict(model.named_parameters()), torch.randn(6, 3, I, dtype=torch.float64)

    def loss(weights, row):
        return functional_call(model, weights, (row.unsqueeze(1),)).square().sum()

    each = vmap(grad(loss), (None, 1))(weights, x)
    for n in range(3):
        expected = grad(loss)(weights, x[:, n])
        torch.testing.assert_close({name: g[n] for name, g in each.items()}, expected)


def test_ensemble_by_vmap(kind, pair):
    """Stacked weights, one module: torch.func.stack_module_state."""
    modules = [pair(kind, I, H)[1] for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(modules)
    x = torch.randn(4, 2, I)
    together = vmap(lambda w: functional_call(modules[0], (w, buffers), (x,))[0])(weights)
    torch.testing.assert_close(together, torch.stack([m(x)[0] for m in modules]))
