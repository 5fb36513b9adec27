"""fp64, bf16 and fp16, projections, and bidirectional layers, compared with torch.nn."""

import pytest

from lstmkern.bench.cases import MIDDLE, Case


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16"])
def test_dtype(contest, dtype, cell, train):
    contest(Case(cell, *MIDDLE, dtype=dtype, train=train))


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(35, 20, 256, 512, 1, 128), (70, 64, 128, 256, 2, 64)], ids=["128of512", "64of256"])
def test_projection(contest, shape, dtype, train):
    *sizes, proj = shape
    contest(Case("LSTM", *sizes, proj=proj, dtype=dtype, train=train))


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_bidirectional(contest, cell, dtype, train):
    contest(Case(cell, 70, 20, 200, 200, 2, bidirectional=True, dtype=dtype, train=train))
