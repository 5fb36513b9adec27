"""The simulator itself: every primitive of device.h gives its known result in any order of threads, and every kind of
fault that a GPU would punish is found and named.
"""

import re
import shutil

import pytest
from simt import mutations
from simt.simulator import SimulationError, simulator

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the simulator")
SEEDS = range(20)

RIGHT = "where block_sum warp dynamic mma_bf16 mma_f16 load_matrices async atomics relay turns cluster_4 cluster_16"
RIGHT += " unwritten_shared cooperative_fits within_the_bound"
WRONG_SOMETIMES = "block_sum_without_barrier async_waits_too_little async_without_barrier flag_before_data"
WRONG_SOMETIMES += " cluster_does_not_wait cluster_waits_for_the_phase_before"
REPORTED = {
    "unpublished_flag": r"deadlock in relay:\n[\s\S]*wait_flag at selftest.cu:\d+ \(is 0, wanted 1\): thread \(0,0,0\)",
    "cluster_incomplete": r"deadlock in all_gather:\n[\s\S]*cluster barrier at selftest.cu:\d+",
    "cluster_ends_early": "store_async16: (the block has ended to which bytes go|that block has ended), at selftest.cu",
    "bytes_that_do_not_come": r"deadlock in all_gather:\n[\s\S]*mbarrier_wait at selftest.cu:\d+ \(16 bytes missing\)",
    "barrier_for_some": r"deadlock in kernel:\n  63 waiting: sync_block at selftest.cu:\d+.*\n"
    r"  missing, they have left the kernel: 1: thread \(7,0,0\) of block",
    "two_barriers": r"threads of one block at two barriers, selftest.cu:\d+ and selftest.cu:\d+",
    "shuffle_for_some": r"deadlock in kernel:\n  32 waiting: shuffle at selftest.cu:\d+",
    "shuffle_in_odd_block": "no multiple of 32",
    "flag_nobody_sets": r"deadlock .*\n.*wait_flag at selftest.cu:\d+ \(is 0, wanted 1\)",
    "poll_nobody_answers": r"deadlock .*\n.*polling a flag at selftest.cu:\d+",
    "past_shared": r"write past a shared array in kernel, array of selftest.cu:\d+",
    "past_buffer": "write past the end of the buffer buffer",
    "misaligned": "misaligned 16-byte access in kernel, thread",
    "threads": "refused: more than 1024 threads",
    "threads_in_all": "refused: more than 1024 threads",
    "kernel's_bound": "refused: block larger than the kernel's bound, 96",
    "kernel's_bound_in_all": "refused: block larger than the kernel's bound, 96",
    "no_kernel": "refused: not a kernel",
    "empty_grid": "refused: empty grid",
    "grid_y": "refused: grid.y or grid.z above 65535",
    "shared_memory": "refused: more shared memory",
    "cluster_too_large": "refused: cluster larger",
    "cluster_uneven": "refused: grid.x is no multiple of the cluster",
    "cooperative_too_large": "refused: cooperative grid larger than can be resident, 132 blocks",
}


@pytest.mark.parametrize("name", RIGHT.split())
def test_primitive(name):
    for seed in SEEDS:
        simulator().selftest(name, seed)


def test_rounding_of_halves():
    simulator().selftest("halves", 0)


@pytest.mark.parametrize("name", WRONG_SOMETIMES.split())
def test_race_shows(name):
    found = 0
    for seed in SEEDS:
        try:
            simulator().selftest(name, seed)
        except SimulationError as error:
            assert re.search("wrong number|ended|twice in one phase", str(error)), error
            found += 1
    assert found >= len(SEEDS) // 4  # a handful of seeds finds it


@pytest.mark.parametrize("name", REPORTED)
def test_fault_is_reported(name):
    for seed in SEEDS:
        with pytest.raises(SimulationError, match=REPORTED[name]):
            simulator().selftest(name, seed)


def test_same_seed_same_order():
    messages = set()
    for _ in range(3):
        with pytest.raises(SimulationError) as error:
            simulator().selftest("two_barriers", 5)
        messages.add(str(error.value))
    assert len(messages) == 1


def test_every_fault_of_the_mutations_applies():
    """A line that mutations.py replaces must be in its file; otherwise the fault would not be tested."""
    for _, _, name, file, line, fault in mutations.WORK:
        assert line in (mutations.ROOT / "csrc" / file).read_text() and fault != line, name
