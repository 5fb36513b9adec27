"""Times two functions that do the same work, in turn: A B A B. The result is the median of the rounds' ratios."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

clock = time.perf_counter  # read by everything in bench/, through now()
BLOCK = 2e-3  # least seconds of a timed block: short calls are repeated, so that reading the clock does not matter


def now() -> float:
    """Seconds of ``clock``."""
    return clock()


@contextmanager
def quiet(threads: int | None = None) -> Iterator[None]:
    """Switch garbage collection off and let torch and lstmkern use ``threads`` threads, if given."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class Summary:
    """The median and the quartiles of a sample."""

    median: float
    low: float
    high: float


def summarize(values: list[float]) -> Summary:
    """Median and quartiles (both ends included; of a single value, that value)."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high)


class Pairs:
    """Rounds of (theirs, ours), each a block of calls. The two blocks follow each other closely, so that changes in the
    speed of the machine affect both.

    Args:
        ours: a function without arguments.
        theirs: a function without arguments that does the same work.
        warm_up: called before anything is timed, so that both are ready. It may return the estimated seconds of one
            call of (ours, theirs). Default: call both once; the estimate is then the faster of two more calls each.
        probe: called in every round. Its results (the speed of the machine at that moment) are in ``probed``.
        block: least seconds of a timed block.
        clock: returns seconds.
    """

    def __init__(
        self,
        ours: Callable[[], object],
        theirs: Callable[[], object],
        *,
        warm_up: Callable[[], tuple[float, float] | None] | None = None,
        probe: Callable[[], float] | None = None,
        block: float = BLOCK,
        clock: Callable[[], float] = now,
    ):
        self._functions, self._probe, self._clock = (ours, theirs), probe, clock
        if warm_up is None:
            ours()
            theirs()
        first = warm_up() if warm_up is not None else None
        if first is None:
            first = (min(self._time(ours, 1) for _ in range(2)), min(self._time(theirs, 1) for _ in range(2)))
        # Calls per block.
        self.calls = [max(1, math.ceil(block / max(seconds, 1e-9))) for seconds in first]
        self.round_seconds: float = sum(seconds * calls for seconds, calls in zip(first, self.calls, strict=True))
        if probe:
            start = clock()
            probe()
            self.round_seconds += clock() - start
        self.ours: list[float] = []  # seconds per call
        self.theirs: list[float] = []
        self.probed: list[float] = []

    def _time(self, function: Callable[[], object], calls: int) -> float:
        start = self._clock()
        for _ in range(calls):
            function()
        return (self._clock() - start) / calls

    def peer_block(self) -> None:
        """The first half of a round: theirs, and the probe."""
        self.theirs.append(self._time(self._functions[1], self.calls[1]))
        if self._probe:
            self.probed.append(self._probe())

    def our_block(self) -> None:
        """The second half of a round: ours."""
        self.ours.append(self._time(self._functions[0], self.calls[0]))

    def rounds_within(self, seconds: float, least: int = 3, most: int = 40) -> int:
        """How many rounds fit: at least ``least`` if a round takes less than a second, otherwise at least one."""
        if self.round_seconds > 1:
            least = 1
        return max(least, min(most, int(seconds / self.round_seconds)))

    def run(self, seconds: float, least: int = 3, most: int = 40) -> Pairs:
        """Measure as many rounds as fit into ``seconds``; see rounds_within."""
        for _ in range(self.rounds_within(seconds, least, most)):
            self.peer_block()
            self.our_block()
        return self

    @property
    def ratios(self) -> list[float]:
        """Time of theirs divided by the time of ours, for each round; above 1 if ours is faster."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    def result(self) -> dict[str, float]:
        """The ratio with its quartiles, the number of rounds, and the medians in milliseconds per call."""
        ratio = summarize(self.ratios)
        return {
            "ratio": ratio.median,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "rounds": len(self.ours),
            "ours_ms": statistics.median(self.ours) * 1e3,
            "peer_ms": statistics.median(self.theirs) * 1e3,
        }
