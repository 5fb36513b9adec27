"""What this machine can do at most, measured on the spot, and the least time that a case can take on it.

The rate of fused multiply-adds is that of a loop in registers (csrc/cpu/peak.inl), the bandwidth that of reading a
buffer of a given size over and over. Both are measured by the instruction set, so that a share compares a kernel with
what its own instructions could do.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _extension
from .cases import Case

CAPABILITIES = ("baseline", "avx2", "avx512")  # each includes the ones before it
RATES = ("fp32", "fp64", "bf16", "amx")
# The units that can do the products of a dtype: bf16 in instructions of its own, in tiles (AMX), or as fp32.
UNITS = {"fp32": ("fp32",), "fp64": ("fp64",), "bf16": ("fp32", "bf16", "amx"), "fp16": ("fp32",)}
SLICE = 2e-3  # seconds of one measurement of a rate


def cache_sizes() -> dict[str, int]:
    """Bytes of the first core's data caches, {"L1": .., "L2": .., "L3": ..}; empty where the system does not tell."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            sizes[f"L{level}"] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
    return sizes


def supported() -> tuple[str, ...]:
    """Instruction sets up to the one in use."""
    return CAPABILITIES[: CAPABILITIES.index(_extension.cpu_capability()) + 1]


def fma_rate(rate: str, threads: int, capability: str | None = None, seconds: float = SLICE) -> float:
    """Operations per second of ``threads`` threads multiplying and adding, ``rate`` being one of RATES.

    bf16 and amx are the rates of instructions that multiply bf16 themselves; 0 where there are none.
    """
    return _extension.cpu_peak(capability or _extension.cpu_capability(), rate, threads, 4096, seconds)


def read_rate(size: int, threads: int, seconds: float = 10 * SLICE) -> float:
    """Bytes per second that ``threads`` threads read together, each from its own part of ``size`` bytes in all."""
    return _extension.cpu_peak(_extension.cpu_capability(), "read", threads, size, seconds)


@dataclass(frozen=True)
class Floor:
    """The least seconds for a case, and which of "operations" and "bytes" makes most of it."""

    seconds: float
    bound: str


class Roofline:
    """The machine's rates with ``threads`` threads.

    fma: operations per second, by RATES; bandwidth: [(bytes read over and over, bytes per second)].
    """

    def __init__(self, threads: int, fma: dict[str, float], bandwidth: Sequence[tuple[int, float]]):
        self.threads, self.fma, self.bandwidth = threads, fma, sorted(bandwidth)

    @classmethod
    def measure(cls, threads: int) -> Roofline:
        """Measure this machine; about half a second."""
        fma = {rate: max(fma_rate(rate, threads) for _ in range(5)) for rate in RATES}
        caches = cache_sizes()
        largest = min(max(4 * caches.get("L3", 2**26), 2**28), 2**30)
        sizes = [2**k for k in range(15, 28, 2)] + [largest]
        return cls(threads, fma, [(size, read_rate(size, threads)) for size in sizes])

    def read_rate(self, size: int) -> float:
        """Bytes per second for ``size`` bytes: that of the next smaller and larger measured size, interpolated."""
        sizes = [known for known, _ in self.bandwidth]
        k = bisect.bisect_left(sizes, size)
        if k in (0, len(sizes)):
            return self.bandwidth[min(k, len(sizes) - 1)][1]
        (small, fast), (large, slow) = self.bandwidth[k - 1], self.bandwidth[k]
        part = (size - small) / (large - small)
        return fast + part * (slow - fast)

    def unit(self, dtype: str) -> str:
        """The rate that bounds products of ``dtype``: that of the fastest unit for it."""
        return max(UNITS[dtype], key=self.fma.__getitem__)

    def probe(self, case: Case) -> Callable[[], float]:
        """A function that gives the floor of ``case`` in seconds at the rates of that moment: of FMAs and, for a case
        bound by bytes, of reading the recurrent weights. The best of a few slices: an interrupted one says nothing."""
        rate, size = self.unit(case.dtype), case.recurrent_bytes()
        streams = self.floor(case).bound == "bytes"

        def now() -> float:
            fma = max(fma_rate(rate, self.threads, seconds=SLICE / 2) for _ in range(3))
            read = max(read_rate(size, self.threads, SLICE / 2) for _ in range(3)) if streams else None
            return self.floor(case, fma, read).seconds

        return now

    def floor(self, case: Case, fma: float | None = None, read: float | None = None) -> Floor:
        """The least seconds for ``case``: every product at the rate of FMAs (``fma``, or the one measured before), or
        at the pace at which its bytes arrive, whichever is slower.

        The recurrent product waits at every step for the one before, so that its weights are read at every step (at
        ``read`` bytes per second, or the rate measured before), from whatever level of memory holds them; what else a
        call touches crosses once.
        """
        fma = fma or self.fma[self.unit(case.dtype)]
        read = read or self.read_rate(case.recurrent_bytes())
        once = case.input_bytes() * (3 if case.train else 1)
        steps, stream = case.sweeps() * case.recurrent_bytes() / read, once / self.read_rate(once)
        recurrent = case.recurrent_flops() / fma * (2 if case.train else 1)
        rest = case.flops() / fma - recurrent
        seconds = max(steps, recurrent) + max(stream, rest)
        return Floor(seconds, "operations" if max(recurrent, rest) >= max(steps, stream) else "bytes")

    def as_json(self) -> dict[str, Any]:
        found = {
            "threads": self.threads,
            "fma_gflops": {name: rate / 1e9 for name, rate in self.fma.items() if rate},
            "read_gb_per_s": [[size, rate / 1e9] for size, rate in self.bandwidth],
            "memory_gb_per_s": self.bandwidth[-1][1] / 1e9,
        }
        if "L2" in (caches := cache_sizes()):  # half of every thread's
            found["L2_gb_per_s"] = self.read_rate(caches["L2"] // 2 * self.threads) / 1e9
        return found


def survey(threads: Sequence[int]) -> list[dict[str, Any]]:
    """[{capability, rate, threads, gflops}]: the rate of FMAs for every instruction set that may be in use here."""
    return [
        {"capability": capability, "rate": rate, "threads": count, "gflops": speed / 1e9}
        for capability in supported()
        for rate in RATES
        for count in threads
        if (speed := max(fma_rate(rate, count, capability) for _ in range(3)))
    ]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
