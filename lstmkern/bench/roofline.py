"""The peak rates of this machine, measured now, and the least time that a case can take with them.

The rate of fused multiply-adds (FMA) is that of a loop in registers (csrc/cpu/peak.inl). The bandwidth is that of
reading a buffer of a given size repeatedly. Both are measured for each instruction set, so that a share of the roofline
compares a kernel with the limit of its instructions.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _extension
from .cases import Case

CAPABILITIES = ("baseline", "avx2", "avx512")  # each includes the ones before it
RATES = ("fp32", "fp64", "bf16", "amx")
# The units that can compute the GEMMs of a dtype: for bf16 fp32 instructions, bf16 instructions, or tiles (AMX).
UNITS = {"fp32": ("fp32",), "fp64": ("fp64",), "bf16": ("fp32", "bf16", "amx"), "fp16": ("fp32",)}
SLICE = 2e-3  # seconds for which a rate is measured


def cache_sizes() -> dict[str, int]:
    """Bytes of the first core's data caches, {"L1": .., "L2": .., "L3": ..}; empty if the system does not say."""
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
    """The instruction sets up to the one in use."""
    return CAPABILITIES[: CAPABILITIES.index(_extension.cpu_capability()) + 1]


def fma_rate(rate: str, threads: int, capability: str | None = None, seconds: float = SLICE) -> float:
    """Operations per second of multiply-adds on ``threads`` threads; ``rate`` is one of RATES.

    bf16 and amx are the rates of instructions that multiply bf16; 0 if the machine has none.
    """
    return _extension.cpu_peak(capability or _extension.cpu_capability(), rate, threads, 4096, seconds)


def read_rate(size: int, threads: int, seconds: float = 10 * SLICE) -> float:
    """Bytes per second that ``threads`` threads read together, each from its part of ``size`` bytes."""
    return _extension.cpu_peak(_extension.cpu_capability(), "read", threads, size, seconds)


@dataclass(frozen=True)
class Floor:
    """The least seconds for a case, and the larger part of it: "operations" or "bytes"."""

    seconds: float
    bound: str


class Roofline:
    """The peak rates of the machine with ``threads`` threads.

    Attributes:
        threads: number of threads.
        fma: operations per second, by RATES.
        bandwidth: [(size of the buffer in bytes, bytes per second)], sorted.
    """

    def __init__(self, threads: int, fma: dict[str, float], bandwidth: Sequence[tuple[int, float]]):
        self.threads, self.fma, self.bandwidth = threads, fma, sorted(bandwidth)

    @classmethod
    def measure(cls, threads: int) -> Roofline:
        """Measure this machine, in about half a second."""
        fma = {rate: max(fma_rate(rate, threads) for _ in range(5)) for rate in RATES}
        caches = cache_sizes()
        largest = min(max(4 * caches.get("L3", 2**26), 2**28), 2**30)
        sizes = [2**k for k in range(15, 28, 2)] + [largest]
        return cls(threads, fma, [(size, read_rate(size, threads)) for size in sizes])

    def read_rate(self, size: int) -> float:
        """Bytes per second for ``size`` bytes, interpolated between the next smaller and larger measured sizes."""
        sizes = [known for known, _ in self.bandwidth]
        k = bisect.bisect_left(sizes, size)
        if k in (0, len(sizes)):
            return self.bandwidth[min(k, len(sizes) - 1)][1]
        (small, fast), (large, slow) = self.bandwidth[k - 1], self.bandwidth[k]
        part = (size - small) / (large - small)
        return fast + part * (slow - fast)

    def unit(self, dtype: str) -> str:
        """The rate that bounds GEMMs of ``dtype``: that of the fastest unit for it."""
        return max(UNITS[dtype], key=self.fma.__getitem__)

    def probe(self, case: Case) -> Callable[[], float]:
        """A function that returns the floor of ``case`` in seconds, with rates that it measures when called.

        It measures the FMA rate and, for a case bound by bytes, the rate of reading the recurrent weights. The best of
        a few measurements counts, because other processes may interrupt one.
        """
        rate, size = self.unit(case.dtype), case.recurrent_bytes()
        streams = self.floor(case).bound == "bytes"

        def now() -> float:
            fma = max(fma_rate(rate, self.threads, seconds=SLICE / 2) for _ in range(3))
            read = max(read_rate(size, self.threads, SLICE / 2) for _ in range(3)) if streams else None
            return self.floor(case, fma, read).seconds

        return now

    def floor(self, case: Case, fma: float | None = None, read: float | None = None) -> Floor:
        """The least seconds for ``case``: each GEMM takes the time of its operations or of its bytes, whichever is
        longer.

        The recurrent GEMM depends on the step before, so its weights are read at every step, from the level of memory
        that they fit into. All other data is read or written once.

        Args:
            case: the layer.
            fma: operations per second; default: as measured before.
            read: bytes per second of reading the recurrent weights; default: as measured before.
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
        """The rates, for a result file."""
        found = {
            "threads": self.threads,
            "fma_gflops": {name: rate / 1e9 for name, rate in self.fma.items() if rate},
            "read_gb_per_s": [[size, rate / 1e9] for size, rate in self.bandwidth],
            "memory_gb_per_s": self.bandwidth[-1][1] / 1e9,
        }
        if "L2" in (caches := cache_sizes()):  # half of each thread's L2 cache
            found["L2_gb_per_s"] = self.read_rate(caches["L2"] // 2 * self.threads) / 1e9
        return found


def survey(threads: Sequence[int]) -> list[dict[str, Any]]:
    """[{capability, rate, threads, gflops}]: the FMA rate of each instruction set that this machine supports."""
    return [
        {"capability": capability, "rate": rate, "threads": count, "gflops": speed / 1e9}
        for capability in supported()
        for rate in RATES
        for count in threads
        if (speed := max(fma_rate(rate, count, capability) for _ in range(3)))
    ]


def cores() -> int:
    """The number of cores that this process may use."""
    return _extension.CPUS["found"]
