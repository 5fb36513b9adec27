"""Layers in fp32 compared with torch.nn: shapes with goals, few rows, and sizes that are no multiple of a register."""

import pytest

from lstmkern.bench.cases import SHAPES, Case

GOALS = [shape for shape in SHAPES if Case("LSTM", *shape).flops() < 2e10]  # `lstmkern bench` measures the largest
STREAMS = [(1, 1, 64, 64, 1), (1, 8, 256, 256, 1), (16, 1, 128, 128, 1), (256, 1, 256, 256, 2)]
UNEVEN = [(50, 13, 37, 77, 1), (33, 7, 100, 201, 2), (20, 50, 300, 500, 1)]


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("shape", [*GOALS, *STREAMS, *UNEVEN], ids=lambda s: ",".join(map(str, s)))
def test_layer(contest, shape, cell, train):
    contest(Case(cell, *shape, train=train))
