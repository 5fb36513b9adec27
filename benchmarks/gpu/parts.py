"""The parts of each command, in order, with their limits in seconds. Parts of one group run side by side.

A command's limits add up to no more than the command may take (tests/test_gpu_commands.py), so no part can use
another's time. Time that a part saves goes to the parts after it, which may take up to twice their limits. If the
extension has to be built first, for which no command has time, later parts get the time that is left; a part that would
get less than half of its limit is left out, and the table says so.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMITS = {"first": 220, "check": 200, "bench": 150}  # seconds per command
GRACE = 1  # seconds between SIGTERM and SIGKILL
BUILD = 102
END = 3  # seconds before its limit at which a part ends an unfinished tool and records that
REHEARSAL = 600  # seconds for a part of a rehearsal on the CPU
RESIDENT = ("cluster", "grid")
TIERS = {"cuda": ("cluster", "grid", "stepwise"), "cpu": ("baseline", "best")}
VARIABLE = {"cuda": "LSTMKERN_CUDA_TIER", "cpu": "LSTMKERN_CPU_CAPABILITY"}


@dataclass(frozen=True)
class Part:
    name: str
    limit: int
    module: str
    arguments: tuple[str, ...] = ()
    tier: str = ""  # the tier that the process selects
    start_until: int = 0  # seconds after which it starts nothing new, before its limit

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.arguments, *(("--tier", self.tier) if self.tier else ()))


def per_tier(name: str, limit: int, module: str, device: str, *arguments: str, start_until: int = 0) -> list[Part]:
    return [Part(f"{name}-{tier}", limit, module, arguments, tier, start_until) for tier in TIERS[device]]


def sanitizers(tools: tuple[str, ...], limit: int, device: str, resident: bool) -> list[Part]:
    """All sanitizers, side by side."""
    tiers = ",".join(RESIDENT if resident and device == "cuda" else TIERS[device])
    words = [("--tool", tool, "--tiers", tiers) for tool in tools]
    return [Part(w[1], limit, "benchmarks.gpu.sanitize", w, start_until=limit - END) for w in words]


def one_by_one(parts: list[Part]) -> list[list[Part]]:
    return [[part] for part in parts]


def tests(limit: int, start_until: int, device: str, marked: str) -> Part:
    return Part("tests", limit, "benchmarks.gpu.tests", ("--marked", marked), start_until=start_until)


def groups(command: str, device: str) -> list[list[Part]]:
    extension = [Part("extension", 26, "benchmarks.gpu.extension")]
    facts = [Part("facts", 16, "benchmarks.gpu.facts")]
    bench = "benchmarks.gpu.bench"
    if command == "first":
        return [
            extension,
            facts,
            per_tier("smoke", 28, "benchmarks.gpu.smoke", device, start_until=24),
            *one_by_one(per_tier("bench", 14, bench, device, "--first", start_until=11)),
            [tests(65, 53, device, "cuda and not long")],
            sanitizers(("memcheck",), 35, device, resident=False),
        ]
    if command == "check":
        return [
            extension,
            [tests(72, 60, device, "cuda")],
            sanitizers(("racecheck", "synccheck", "memcheck"), 40, device, resident=True),
            [Part("ncu", 41, "benchmarks.gpu.profile", ("--tiers", ",".join(TIERS[device])), start_until=41 - END)],
            [Part("compare", 16, "benchmarks.gpu.compare", start_until=12)],
        ]
    return [
        extension,
        facts,
        *one_by_one(per_tier("bench", 29, bench, device, start_until=25)),
        [Part("peers", 15, bench, ("--peers",), start_until=11)],
    ]


def seconds(some: list[list[Part]]) -> int:
    """The seconds that these groups can take."""
    return sum(max(part.limit for part in group) + GRACE for group in some)


def longest(command: str, device: str = "cuda") -> int:
    """The seconds that a command can take if the extension need not be built."""
    return seconds(groups(command, device))
