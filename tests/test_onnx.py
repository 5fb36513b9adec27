"""torch.onnx.export(dynamo=True) writes standard nodes, and onnxruntime computes the same results."""

import warnings
from collections import Counter

import numpy as np
import pytest
import torch

import lstmkern

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

KINDS = {
    "LSTM": lstmkern.LSTM,
    "GRU": lstmkern.GRU,
    "RNN-tanh": lambda *a, **k: lstmkern.RNN(*a, nonlinearity="tanh", **k),
    "RNN-relu": lambda *a, **k: lstmkern.RNN(*a, nonlinearity="relu", **k),
}


CELLS = {
    "LSTMCell": lstmkern.LSTMCell,
    "GRUCell": lstmkern.GRUCell,
    "RNNCell-tanh": lstmkern.RNNCell,
    "RNNCell-relu": lambda *a, **k: lstmkern.RNNCell(*a, nonlinearity="relu", **k),
}
OPSETS = range(14, onnx.defs.onnx_opset_version() + 1)  # the operators are written in the form of opset 14
EPS = np.finfo(np.float32).eps


class Ragged(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, lengths, *hx):
        return self.rnn(x, hx or None, lengths=lengths)


class Everything(torch.nn.Module):
    """All kinds of layers and cells, with options from the bits of a number, so that each option has both values."""

    def __init__(self, number: int):
        super().__init__()
        self.layers, self.cells, self.calls = torch.nn.ModuleList(), torch.nn.ModuleList(), []
        for kind, cell, mask in zip(KINDS.values(), CELLS.values(), (0b0000, 0b0101, 0b1010, 0b1111), strict=True):
            both, batch_first, states, ragged = (bool((number ^ mask) >> i & 1) for i in range(4))
            options = {"bias": both ^ batch_first, "bidirectional": both, "batch_first": batch_first}
            self.layers.append(kind(5, 7, num_layers=1 + (both ^ ragged), **options))
            self.cells.append(cell(5, 7, bias=options["bias"]))
            self.calls.append((states, ragged, batch_first ^ states))

    def forward(self, x, lengths, h):
        results = []
        for layer, cell, (states, ragged, unbatched) in zip(self.layers, self.cells, self.calls, strict=True):
            input, state, lengths_ = (x[:, 0], h[:, 0], lengths[0]) if unbatched else (x, h, lengths)
            state = state[: layer.num_layers * (1 + layer.bidirectional)]
            hx = (state, state / 2) if layer.mode == "LSTM" else state
            steps = input.transpose(0, 1) if layer.batch_first and not unbatched else input
            results.append(layer(steps, hx if states else None, lengths=lengths_ if ragged else None))
            hx = (state[0], state[0] / 2) if layer.mode == "LSTM" else state[0]
            results.append(cell(input[0], hx if states else None))
        return results


def flat(results) -> list[np.ndarray]:
    return [t.numpy() for t in torch.utils._pytree.tree_leaves(results)]


def assert_same(got, results, eps=EPS):
    for a, b in zip(got, flat(results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=20 * eps)


def export(path, model, example, **options):
    """The exported model as a proto, checked by onnx.checker."""
    torch.onnx.export(model, example, path, dynamo=True, verbose=False, **options)
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path)


def export_and_run(tmp_path, model, example, args, **options):
    path = tmp_path / "model.onnx"
    proto = export(path, model, example, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return proto, session.run(None, {n: a.numpy() for n, a in zip(names, args, strict=True)})


@pytest.mark.parametrize("version", OPSETS)
@torch.no_grad()
def test_every_opset(tmp_path, version):
    torch.manual_seed(version)
    model = Everything(version).eval()
    n, t = torch.export.Dim("n"), torch.export.Dim("t")
    shapes = ({0: t, 1: n}, {0: n}, {1: n}) if version > 14 else None  # torch cannot write dynamic sizes in opset 14
    example, other = (
        (torch.randn(T, N, 5), torch.randint(T + 1, (N,)), torch.randn(4, N, 7)) for T, N in ((4, 3), (6, 2))
    )
    args = example if shapes is None else other
    proto, got = export_and_run(tmp_path, model, example, args, dynamic_shapes=shapes, opset_version=version)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", version)]
    nodes = Counter(node.op_type for node in proto.graph.node)
    layers = {kind: layer.num_layers for kind, layer in zip(KINDS, model.layers, strict=True)}
    assert nodes["LSTM"] == layers["LSTM"] + 1 and nodes["GRU"] == layers["GRU"] + 1
    assert nodes["RNN"] == layers["RNN-tanh"] + layers["RNN-relu"] + 2
    assert_same(got, model(*args))


class Model(torch.nn.Module):
    """A layer with weight norm between other modules, which computes in ``dtype``; inputs and outputs are fp32."""

    def __init__(self, kind: str, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.before, self.after = dtype, torch.nn.Linear(5, 5), torch.nn.Linear(14, 3)
        self.rnn = KINDS[kind](5, 7, num_layers=2, bidirectional=True, dropout=0.0, dtype=dtype)
        torch.nn.utils.parametrizations.weight_norm(self.rnn, "weight_hh_l0")

    def forward(self, x):
        output, _ = self.rnn(self.before(x).to(self.dtype))
        return self.after(output.float())


@pytest.mark.parametrize(
    ("dtype", "kind", "options"),
    [
        (torch.float32, "GRU", {"external_data": False}),
        (torch.float16, "LSTM", {"optimize": False}),
        (torch.bfloat16, "GRU", {"opset_version": 18}),
        (torch.bfloat16, "RNN-tanh", {"opset_version": 23}),
    ],
)
def test_training_mode_within_a_model(tmp_path, dtype, kind, options):
    torch.manual_seed(0)
    model, x = Model(kind, dtype), torch.randn(4, 3, 5)
    with lstmkern.recompute():
        _, got = export_and_run(tmp_path, model, (x,), (x,), **options)
    assert_same(got, model(x).detach(), torch.finfo(dtype).eps)


@torch.no_grad()
def test_float64(tmp_path):
    """Valid ONNX, but onnxruntime has no fp64 kernels; ONNX's reference evaluator runs it."""
    torch.manual_seed(0)
    model, x = lstmkern.LSTM(5, 7, dtype=torch.float64).eval(), torch.randn(4, 3, 5, dtype=torch.float64)
    proto = export(tmp_path / "model.onnx", model, (x,))
    got = onnx.reference.ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()})
    assert_same(got, model(x), np.finfo(np.float64).eps)


def test_a_program_without_a_file():
    model, x = lstmkern.GRU(5, 7).eval(), torch.randn(4, 3, 5)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert_same([t.detach().numpy() for t in program(x)], [t.detach() for t in model(x)])


@torch.no_grad()
def test_lengths(tmp_path):
    torch.manual_seed(0)
    model = Ragged(lstmkern.LSTM(5, 7, bidirectional=True)).eval()
    args = (torch.randn(6, 3, 5), torch.tensor([2, 6, 4]), torch.randn(2, 3, 7), torch.randn(2, 3, 7))
    _, got = export_and_run(tmp_path, model, args, args)
    assert_same(got, model(*args))
    args = (args[0], torch.tensor([2, 0, 6]), *args[2:])  # a sequence without steps
    _, got = export_and_run(tmp_path, model, args, args)
    assert_same(got, model(*args))


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("a PackedSequence", {"batch_sizes": torch.tensor([3, 3])}),
        ("resets=", {"resets": torch.zeros(2, 3, dtype=torch.bool)}),
        ("return_cells", {"cells": True}),
        ("proj_size", {"weights": [torch.zeros(28, 5), torch.zeros(28, 7), torch.zeros(7, 7)]}),
    ],
)
def test_what_onnx_cannot_say(what, options):
    args = dict.fromkeys(("batch_sizes", "lengths", "resets"), None)
    args.update(
        weights=[torch.zeros(28, 5), torch.zeros(28, 7)], directions=1, mode="LSTM", batch_first=False, cells=False
    )
    h0 = torch.zeros(1, 3, 7)
    with pytest.raises(NotImplementedError, match=what):
        lstmkern.onnx.layer(torch.zeros(2, 3, 5), h0, h0, **{**args, **options})


def test_a_refused_export_writes_nothing(tmp_path):
    model = lstmkern.LSTM(5, 7, proj_size=3).eval()
    with pytest.raises(Exception, match="ONNX"):
        torch.onnx.export(model, (torch.randn(4, 3, 5),), tmp_path / "m.onnx", dynamo=True, verbose=False)
    assert not (tmp_path / "m.onnx").exists()


class Within(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_torchscript_is_refused_in_one_sentence(tmp_path, kind, grad):
    module = {**KINDS, **CELLS}[kind](5, 7)
    x = torch.randn(3, 5) if kind in CELLS else torch.randn(4, 3, 5)
    expected = module(x)
    for model in (module, Within(module)):
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a warning of torch.jit
            with pytest.raises(NotImplementedError, match=r"^lstmkern .* use torch.onnx.export\(dynamo=True\)"):
                torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False)
            with pytest.raises(NotImplementedError, match="^lstmkern"):
                torch.jit.trace(model, (x,))
            with pytest.raises(NotImplementedError, match="^lstmkern"):
                torch.jit.script(model)
    assert not (tmp_path / "m.onnx").exists()
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


class Functional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(5, 7)

    def forward(self, x):
        return lstmkern.functional.lstm(x, None, [list(self.rnn.parameters())])


@pytest.mark.parametrize("grad", [False, True])
def test_torchscript_does_not_trace_functions(grad):
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a warning of torch.jit
        with pytest.raises(NotImplementedError, match="^lstmkern"):
            torch.jit.trace(Functional(), (torch.randn(4, 3, 5),))
