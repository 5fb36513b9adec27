"""The model of a step's cost (benchmarks/floor.py) follows plans and instruction counts, and its tables are current."""

import copy
import json

import pytest
import torch

from benchmarks import floor
from benchmarks.readme import replace_between

CASE = ("cluster", "LSTM", torch.bfloat16, 64, 512)


@pytest.fixture(scope="module")
def before():
    return json.loads(floor.RESULTS.read_text())["before"]["loops"]


def changed(loops, **values):
    loops = copy.deepcopy(loops)
    for loop in loops.values():
        loop.update(values)
    return loops


def test_terms_follow_what_was_measured(before):
    usual = floor.step(before, *CASE, False)
    assert all(v >= 0 for v in usual["seconds"].values())
    assert usual["all"]["H200"] <= usual["all"]["H100"]
    trip = floor.L2_LATENCY / floor.CLOCK
    assert usual["seconds"]["fence"] == trip  # one MEMBAR
    assert floor.step(changed(before, MEMBAR={}), *CASE, False)["seconds"]["fence"] == 0
    assert usual["all"]["H100"] - floor.step(changed(before, MEMBAR={}), *CASE, False)["all"]["H100"] == (
        pytest.approx(trip)
    )
    late = floor.step(changed(before, loads_waited_for=0), *CASE, False)
    assert usual["seconds"]["H100"] - late["seconds"]["H100"] == pytest.approx(floor.HBM_LATENCY / floor.CLOCK)
    more = {name: loop | {"executed_one": loop["executed_one"] + 100} for name, loop in before.items()}
    two_warps = 2 * 100 / floor.CLOCK
    assert floor.step(more, *CASE, False)["all"]["H100"] - usual["all"]["H100"] == pytest.approx(two_warps)


def test_variant_of_a_plan(before):
    """Of several variants of a loop the plan runs on the one that keeps the fewest steps, but enough."""
    name = "grid forward LSTM bfloat16 1"
    per_step = 8  # two HMMAs for each of four gates
    loops = {f"{name} {kept}": before[name] | {"kept": kept * per_step} for kept in (8, 2, 4)}
    kind = ("grid", "LSTM", torch.bfloat16, False)
    for steps, in_shared, expected in ((2, 0, 2), (3, 0, 4), (9, 5, 4), (20, 12, 8), (20, 0, 8)):
        loop, found = floor.loop_of(loops, {"sequences": 8, "steps": steps, "in_shared": in_shared}, *kind)
        assert (loop["kept"], found) == (expected * per_step, per_step)


def test_what_does_not_fit(before):
    assert floor.step(before, "cluster", "LSTM", torch.bfloat16, 64, 4096, False) is None


def test_tables_are_current():
    """After a change of the plans or of results/sass.json: python -m benchmarks.floor --write"""
    text = floor.PAGE.read_text()
    for marker, content in floor.tables().items():
        assert replace_between(text, marker, content) == text, f"{marker}: run python -m benchmarks.floor --write"
