"""torch.onnx.export(dynamo=True) writes standard nodes, which onnxruntime runs to the same numbers."""

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


class Ragged(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, lengths, *hx):
        return self.rnn(x, hx or None, lengths=lengths)


def flat(results) -> list[np.ndarray]:
    return [t.numpy() for t in torch.utils._pytree.tree_leaves(results)]


def export_and_run(tmp_path, model, example, args, dynamic_shapes=None):
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, example, path, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return proto, session.run(None, {n: a.numpy() for n, a in zip(names, args, strict=True)})


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layer(tmp_path, kind, batch_first):
    torch.manual_seed(0)
    model = KINDS[kind](5, 7, num_layers=2, bidirectional=batch_first, batch_first=batch_first).eval()
    x = torch.randn(4, 3, 5)
    n, t = torch.export.Dim("n"), torch.export.Dim("t")
    shapes = ({0: n, 1: t} if batch_first else {0: t, 1: n},)
    other = torch.randn(6, 2, 5)  # sizes that the export did not see
    proto, got = export_and_run(tmp_path, model, (x,), (other,), shapes)
    assert [node.op_type for node in proto.graph.node].count(kind.split("-")[0]) == 2
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    for a, b in zip(got, flat(model(other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=20 * np.finfo(np.float32).eps)


@torch.no_grad()
def test_lengths(tmp_path):
    torch.manual_seed(0)
    model = Ragged(lstmkern.LSTM(5, 7, bidirectional=True)).eval()
    args = (torch.randn(6, 3, 5), torch.tensor([2, 6, 4]), torch.randn(2, 3, 7), torch.randn(2, 3, 7))
    _, got = export_and_run(tmp_path, model, args, args)
    for a, b in zip(got, flat(model(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=20 * np.finfo(np.float32).eps)
    args = (args[0], torch.tensor([2, 0, 6]), *args[2:])  # a row without steps
    _, got = export_and_run(tmp_path, model, args, args)
    for a, b in zip(got, flat(model(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=20 * np.finfo(np.float32).eps)


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
    args.update(weights=[torch.zeros(28, 5), torch.zeros(28, 7)], mode="LSTM", batch_first=False, cells=False)
    h0 = torch.zeros(1, 3, 7)
    with pytest.raises(NotImplementedError, match=what):
        lstmkern.onnx.layer(torch.zeros(2, 3, 5), h0, h0, **{**args, **options})


def test_a_refused_export_writes_nothing(tmp_path):
    model = lstmkern.LSTM(5, 7, proj_size=3).eval()
    with pytest.raises(Exception, match="ONNX"):
        torch.onnx.export(model, (torch.randn(4, 3, 5),), tmp_path / "m.onnx", dynamo=True, verbose=False)
    assert not (tmp_path / "m.onnx").exists()
