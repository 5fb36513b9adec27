"""The parts of each command, in order, with their limits in seconds; parts of one group run side by side.

A command's limits add up to no more than the command may take (tests/test_gpu_commands.py), so that no part can take
another's time; what a part saves goes to those after it, up to twice their limits. When the extension has to be built
first, which no command has time for, later parts get what is left; one that would get less than half of its limit is
left out and said to be.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMITS = {"first": 220, "check": 200, "bench": 150}  # of the commands
GRACE = 1  # seconds between the signal that ends a part and the one that it cannot refuse
BUILD = 102
END = 3  # seconds before its limit, a part ends a tool that has not finished, and says so
REHEARSAL = 600  # of a part on the CPU: a machine may be slow, but not for ever
RESIDENT = ("cluster", "grid")
TIERS = {"cuda": ("cluster", "grid", "stepwise"), "cpu": ("baseline", "best")}
VARIABLE = {"cuda": "LSTMKERN_CUDA_TIER", "cpu": "LSTMKERN_CPU_CAPABILITY"}


@dataclass(frozen=True)
class Part:
    name: str
    limit: int
    module: str
    arguments: tuple[str, ...] = ()
    tier: str = ""  # that the process is for
    own_time: int = 0  # seconds after which it starts nothing new, well before its limit

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.arguments, *(("--tier", self.tier) if self.tier else ()))


def per_tier(name: str, limit: int, module: str, device: str, *arguments: str, own_time: int = 0) -> list[Part]:
    return [Part(f"{name}-{tier}", limit, module, arguments, tier, own_time) for tier in TIERS[device]]


def sanitizers(tools: tuple[str, ...], limit: int, device: str, resident: bool) -> list[Part]:
    """All side by side."""
    tiers = ",".join(RESIDENT if resident and device == "cuda" else TIERS[device])
    words = [("--tool", tool, "--tiers", tiers) for tool in tools]
    return [Part(w[1], limit, "benchmarks.gpu.sanitize", w, own_time=limit - END) for w in words]


def one_by_one(parts: list[Part]) -> list[list[Part]]:
    return [[part] for part in parts]


def tests(limit: int, own_time: int, device: str, marked: str) -> Part:
    return Part("tests", limit, "benchmarks.gpu.tests", ("--marked", marked), own_time=own_time)


def groups(command: str, device: str) -> list[list[Part]]:
    extension = [Part("extension", 26, "benchmarks.gpu.extension")]
    facts = [Part("facts", 16, "benchmarks.gpu.facts")]
    bench = "benchmarks.gpu.bench"
    if command == "first":
        return [
            extension,
            facts,
            per_tier("smoke", 28, "benchmarks.gpu.smoke", device, own_time=24),
            *one_by_one(per_tier("bench", 14, bench, device, "--first", own_time=11)),
            [tests(65, 53, device, "cuda and not long")],
            sanitizers(("memcheck",), 35, device, resident=False),
        ]
    if command == "check":
        return [
            extension,
            [tests(72, 60, device, "cuda")],
            sanitizers(("racecheck", "synccheck", "memcheck"), 40, device, resident=True),
            [Part("ncu", 41, "benchmarks.gpu.profile", ("--tiers", ",".join(TIERS[device])), own_time=41 - END)],
            [Part("compare", 16, "benchmarks.gpu.compare", own_time=12)],
        ]
    return [
        extension,
        facts,
        *one_by_one(per_tier("bench", 29, bench, device, own_time=25)),
        [Part("peers", 15, bench, ("--peers",), own_time=11)],
    ]


def seconds(some: list[list[Part]]) -> int:
    """That these groups can take."""
    return sum(max(part.limit for part in group) + GRACE for group in some)


def longest(command: str, device: str = "cuda") -> int:
    """Seconds that a command can take whose extension need not be built."""
    return seconds(groups(command, device))
