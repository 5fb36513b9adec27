"""What limits each layer of the goals' table on this machine, and what each goal would need.

    python -m benchmarks.bounds [--threads 1] [--seconds 360] [--shape T,N,I,H[,layers] ...] [--out benchmarks/results]

fp32 and bf16 are measured on the table's shapes. fp64 and fp16 have one goal for all layers and are measured on one
shape of medium size.

The cases are measured in turn, many times over, so that other load on the machine affects all of them. One round
measures in one process, one after the other:

- torch.nn's layer
- the peak rate of fused multiply-adds (lstmkern/bench/roofline.py), in the fastest unit that the processor has for the
  dtype
- our microkernel with its operands in the L1 cache
- each GEMM of the layer by itself, at its real size (csrc/cpu/product.inl)
- the rate of reading the recurrent weights, if that is the limit and not the number of operations
- our layer

A share of the peak compares values of the same round; the tables give the median over the rounds. Prints Markdown. With
--out, also writes bounds.json into that directory; benchmarks.readme makes the tables in docs/performance.md of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.progress import track

from lstmkern import _extension
from lstmkern.bench import report
from lstmkern.bench.cases import GATES, MIDDLE, SHAPES, Case, Contest, goal
from lstmkern.bench.goals import cases_for, parse_shape
from lstmkern.bench.measure import Pairs, now, quiet
from lstmkern.bench.roofline import Roofline, cache_sizes, fma_rate, read_rate

SLICE = 5e-3  # seconds of one measurement of a rate or a GEMM
TURN = 0.4  # seconds per case and turn: short, so that a burst of other load does not hit only one case
BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}  # of a register
CHUNK = 384  # rows per GEMM over many steps, apart from the rows of one step (csrc/cpu/backward.inl)


@dataclass(frozen=True)
class Product:
    """A GEMM of [rows, K] by [K, gates * columns]. gates, transposed, dtype: see csrc/cpu/product.h."""

    rows: int
    K: int
    columns: int
    gates: int = 1
    transposed: bool = False
    dtype: str = "fp32"

    def flops(self) -> int:
        return 2 * self.rows * self.K * self.columns * self.gates

    def seconds(self, threads: int = 1, duration: float = SLICE) -> float:
        """Measured seconds of this GEMM by itself."""
        return _extension.cpu_product(
            self.dtype, self.rows, self.K, self.columns, self.gates, self.transposed, threads, duration
        )


def operand_bytes(dtype: str) -> int:
    """Bytes of one GEMM operand in layers of ``dtype``: bf16 where the processor multiplies it, else fp32 or fp64."""
    if dtype == "bf16" and _extension.cpu_capability(bf16=True) in ("amx", "avx512_bf16"):
        return 2
    return 8 if dtype == "fp64" else 4


def lanes(dtype: str, capability: str) -> int:
    """Accumulators per register."""
    return BYTES[capability] // (8 if dtype == "fp64" else 4)


def products(case: Case) -> dict[Product, float]:
    """The GEMMs of one call of our layer, and how many times each runs.

    Forward: x W_ih^T for many steps and h W_hh^T at each step (the layer may compute both in one pass, with the same
    operations). Backward: dgates W_hh at each step, dgates W_ih, and the weight gradients dgates^T x and dgates^T h.

    case: one direction, no projection; ValueError otherwise. Units are padded to whole registers, as in the layer.
    """
    if case.proj or case.bidirectional:
        raise ValueError(f"{case}: only layers of one direction without projection")
    G, H, N, tokens = GATES[case.cell], case.H, case.N, case.T * case.N
    chunk = min(tokens, CHUNK + N)
    whole = lanes(case.dtype, _extension.cpu_capability())
    deep = G * -(-H // whole) * whole  # columns of dgates
    found: dict[Product, float] = {}
    for layer in range(case.layers):
        I = case.I if layer == 0 else H  # noqa: E741
        parts = [(Product(chunk, I, H, G), tokens / chunk), (Product(N, H, H, G), case.T)]
        if case.train:
            parts += [
                (Product(N, deep, H), case.T),
                (Product(chunk, deep, I), tokens / chunk),
                (Product(G * H, chunk, I, transposed=True), tokens / chunk),
                (Product(G * H, chunk, H, transposed=True), tokens / chunk),
            ]
        for product, count in parts:
            product = replace(product, dtype=case.dtype)
            found[product] = found.get(product, 0) + count
    return found


def microkernel(cell: str, dtype: str, capability: str, L1: int, threads: int) -> tuple[Product, int]:
    """A GEMM on one panel of a layer of ``cell`` that fills half of each L1 cache (``L1`` bytes), and its operations.

    A panel is padded to whole registers, so there are more operations than for the one unit of the GEMM."""
    G, columns, size = GATES[cell], lanes(dtype, capability), operand_bytes(dtype)
    rows = 32 if size == 2 else 24  # whole tiles
    product = Product(rows * threads, L1 // 2 // (size * G * columns), 1, G, dtype=dtype)
    return product, product.flops() * columns


@dataclass(frozen=True)
class Reading:
    """What the machine could do in one round.

    peak, micro: operations per second at the peak and in the microkernel. products: seconds of each GEMM, run once.
    floor: minimum seconds of a call according to the roofline.
    """

    peak: float
    micro: float
    products: dict[Product, float]
    floor: float


def probe(case: Case, roofline: Roofline) -> Callable[[], Reading]:
    """A function that takes a Reading for ``case``."""
    threads, parts = roofline.threads, products(case)
    L1, rate = cache_sizes().get("L1", 2**15), roofline.unit(case.dtype)
    micro, flops = microkernel(case.cell, case.dtype, _extension.cpu_capability(), L1, threads)
    streams = roofline.floor(case).bound == "bytes"

    def read() -> Reading:
        before = fma_rate(rate, threads, seconds=SLICE)
        small = flops / micro.seconds(threads)
        seconds = {product: product.seconds(threads) for product in parts}
        arrives = read_rate(case.recurrent_bytes(), threads, SLICE) if streams else None
        peak = (before + fma_rate(rate, threads, seconds=SLICE)) / 2
        return Reading(peak, small, seconds, roofline.floor(case, peak, arrives).seconds)

    return read


def summarize(
    case: Case, ours: Sequence[float], theirs: Sequence[float], readings: Sequence[Reading], bound: str
) -> dict:
    """The result of a case: medians over the rounds of shares of the peak.

    ours, theirs: seconds of a call of our layer and torch.nn's in each round. bound: "operations" or "bytes", whichever
    sets the roofline's floor.
    """
    counts, flops, wanted = products(case), case.flops(), goal(case)
    gemms = [sum(counts[p] * seconds for p, seconds in r.products.items()) for r in readings]

    def share(seconds: Sequence[float]) -> float:
        return statistics.median(flops / s / r.peak for s, r in zip(seconds, readings, strict=True))

    result = {
        "cell": case.cell,
        "shape": case.shape,
        "dtype": case.dtype,
        "train": case.train,
        "rounds": len(readings),
        "peak_gflops": statistics.median(r.peak for r in readings) / 1e9,
        "bound": bound,
        "shares": {
            "roofline": share([r.floor for r in readings]),
            "microkernel": statistics.median(r.micro / r.peak for r in readings),
            "products": share(gemms),
            "ours": share(ours),
            "torch": share(theirs),
        },
        "rest": statistics.median(1 - a / b for a, b in zip(gemms, ours, strict=True)),
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "goal": wanted,
        "products": [
            {**asdict(p), "count": n, "share": statistics.median(p.flops() / r.products[p] / r.peak for r in readings)}
            for p, n in counts.items()
        ],
    }
    if wanted:
        result["needs"] = wanted * result["shares"]["torch"]
        result["verdict"] = verdict(result)
    return result


VERDICTS = ("reached", "rest", "products", "machine")


def verdict(result: dict) -> str:
    """One of VERDICTS: the goal is "reached", or the first thing that would have to be faster to reach it: the time
    outside of GEMMs ("rest"), our GEMM ("products"), or the "machine"."""
    shares = result["shares"]
    if result["ratio"] >= result["goal"]:
        return "reached"
    if result["needs"] > max(shares["roofline"], shares["products"]):
        return "machine"
    return "products" if result["needs"] > shares["products"] else "rest"


class Measurement:
    """One case, measured one turn at a time."""

    def __init__(self, case: Case, roofline: Roofline):
        contest = Contest(case)
        self.case, self.bound = case, roofline.floor(case).bound
        self.pairs = Pairs(contest.ours, contest.theirs, warm_up=contest.warm_up, probe=probe(case, roofline))

    def turn(self) -> None:
        """As many rounds as fit in TURN seconds, at least one."""
        for _ in range(max(1, int(TURN / self.pairs.round_seconds))):
            self.pairs.peer_block()
            self.pairs.our_block()

    def result(self) -> dict:
        return summarize(self.case, self.pairs.ours, self.pairs.theirs, self.pairs.probed, self.bound)


STREAMED = [(rows, H) for rows in (20, 32, 128) for H in (64, 128, 256, 512, 1152)]


class Streaming:
    """The GEMM of an LSTM's step by itself, for weights in L1, L2 and beyond; measured one turn at a time."""

    def __init__(self, threads: int):
        self.threads = threads
        self.shares: dict[tuple[int, int], list[float]] = {key: [] for key in STREAMED}

    def turn(self) -> None:
        for rows, H in STREAMED:
            product = Product(rows, H, H, GATES["LSTM"])
            rate = product.flops() / product.seconds(self.threads)
            self.shares[rows, H].append(rate / fma_rate("fp32", self.threads, seconds=SLICE))

    def result(self) -> list[dict]:
        """[{rows, H, bytes of the weights, share}]"""
        return [
            {"rows": rows, "H": H, "bytes": GATES["LSTM"] * H * H * 4, "share": statistics.median(found)}
            for (rows, H), found in self.shares.items()
        ]


def needed(case: dict) -> str:
    """The verdict in words; empty without a goal.

    "non-GEMM time 10%": for the goal, at most that share of the layer's time may be spent outside of GEMMs.
    """
    if not case["goal"]:
        return ""
    room = 1 - case["needs"] / case["shares"]["products"]
    return {
        "reached": "met",
        "rest": f"non-GEMM time {room:.0%}",
        "products": "a faster GEMM",
        "machine": "a faster machine",
    }[case["verdict"]]


def bounds_tables(cases: Sequence[dict]) -> str:
    """Markdown: every case in shares of the peak, one table per dtype."""
    dtypes = dict.fromkeys(case["dtype"] for case in cases)
    return "\n".join(bounds_table(dtype, [case for case in cases if case["dtype"] == dtype]) for dtype in dtypes)


def bounds_table(dtype: str, cases: Sequence[dict]) -> str:
    head = [f"{dtype}: T,N,I,H,layers", "", "peak, GFLOP/s", "roofline", "microkernel in L1", "GEMMs alone"]
    head += ["our layer", "torch.nn", "non-GEMM time", "ratio / goal", "share for the goal", "requires"]
    rows = []
    for case in cases:
        shares = case["shares"]
        row = [case["shape"], f"{case['cell']} {'train' if case['train'] else 'infer'}", f"{case['peak_gflops']:.0f}"]
        row += [f"{shares['roofline']:.0%}" + (" (bytes)" if case["bound"] == "bytes" else "")]
        row += [f"{shares[key]:.0%}" for key in ("microkernel", "products", "ours", "torch")]
        row += [f"{case['rest']:.0%}"]
        if case["goal"]:
            row += [f"{case['ratio']:.2f} / {case['goal']:g}", f"{case['needs']:.0%}", needed(case)]
        else:
            row += [f"{case['ratio']:.2f}", "", ""]
        rows.append(row)
    return report.markdown(head, rows)


def streaming_table(lines: Sequence[dict]) -> str:
    """Markdown: share of the peak by H and batch size."""
    sizes = dict.fromkeys((line["H"], line["bytes"]) for line in lines)
    counts = dict.fromkeys(line["rows"] for line in lines)
    share = {(line["rows"], line["H"]): line["share"] for line in lines}
    head = ["h W_hh^T of an LSTM", *(f"N {rows}" for rows in counts)]
    return report.markdown(
        head,
        [[f"H {H}, {size / 2**20:.3g} MiB", *(f"{share[rows, H]:.0%}" for rows in counts)] for H, size in sizes],
    )


def digest(about: dict) -> str:
    """A line for each dtype on how many goals are met, and what the others need; empty without goals.

    about: the content of bounds.json. A line says with how many threads, and that T = N = 1 is left out if it is.
    """
    threads = about["threads"]
    scope = "one thread" if threads == 1 else f"{threads} threads"
    if not any(c["shape"].startswith("1,1,") for c in about["cases"]):
        scope += ", without T = N = 1"
    lines = []
    for dtype in dict.fromkeys(c["dtype"] for c in about["cases"] if c["goal"]):
        wanted = [c for c in about["cases"] if c["goal"] and c["dtype"] == dtype]
        count = {key: sum(c["verdict"] == key for c in wanted) for key in VERDICTS}
        others = {
            "machine": ("exceeds", "exceed", "this machine's compute or bandwidth"),
            "products": ("needs", "need", "a faster GEMM"),
            "rest": ("needs", "need", "less non-GEMM time"),
        }
        missed = ", ".join(
            f"{count[key]} {one if count[key] == 1 else more} {what}"
            for key, (one, more, what) in others.items()
            if count[key]
        )
        met = f"- {dtype} ({scope}): {count['reached']} of {len(wanted)} goals met"
        lines.append(f"{met}; {missed}." if missed else f"{met}.")
    return "\n".join(lines)


TEXT = """\
Shares of the peak rate of fused multiply-adds, measured in the same rounds; medians over the rounds.

- roofline: the upper limit set by the peak rate, or "(bytes)" by the rate of reading the recurrent weights
- microkernel in L1: the register block of the gate GEMMs with its operands in the L1 cache
- GEMMs alone: all GEMMs of the layer at their real sizes, one after the other, and nothing else
- non-GEMM time: the part of our layer's time that the GEMMs alone do not explain
- share for the goal: the share of the peak that our layer would have to reach for the goal's ratio
- requires: what would have to improve for that: the machine, our GEMM, or the non-GEMM time (with the share of the
  layer's time that the goal leaves for it)
"""


def document(about: dict) -> str:
    """Markdown, from the content of bounds.json."""
    return "\n".join(
        [
            f"{report.machine_line(about)}, threads: {about['threads']}; `{about['command']}`\n",
            TEXT,
            bounds_tables(about["cases"]),
            "The fp32 GEMM of one step, for weights that fit L1, L2 or neither; N is the batch size:\n",
            streaming_table(about["streaming"]),
        ]
    )


def run(console, cases: Sequence[Case], threads: int, seconds: float, clock=now) -> dict:
    """{"cases": [...], "streaming": [...]}: all cases in turn, repeated for ``seconds`` and at least three times."""
    with quiet(threads):
        roofline = Roofline.measure(threads)
        found = [Measurement(case, roofline) for case in track(cases, "warming up", console=console, transient=True)]
        streaming = Streaming(threads)
        begin = clock()
        passes, last = 0, 0.0
        while passes < 3 or clock() - begin + last < seconds:
            start = clock()
            for one in track([*found, streaming], f"bounds, pass {passes + 1}", console=console, transient=True):
                one.turn()
            passes, last = passes + 1, clock() - start
        return {"cases": [one.result() for one in found], "streaming": streaming.result()}


def main(argv: list[str] | None = None) -> int:
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=360, help="time limit (default: 360)")
    parser.add_argument("--shape", type=parse_shape, nargs="+", help="only these (default: all with a goal and T > 1)")
    parser.add_argument("--out", type=Path, help="write bounds.json into this directory")
    args = parser.parse_args(argv)
    # With T = N = 1 the overhead of a call is measured, not a GEMM.
    shapes = args.shape or [sizes for sizes in SHAPES if sizes[0] > 1]
    about = report.context(args.threads)
    cells = ["LSTM", "GRU"]
    cases = cases_for(shapes, cells, ["fp32", "bf16"]) + cases_for(args.shape or [MIDDLE], cells, ["fp64", "fp16"])
    results = run(Console(stderr=True), cases, args.threads, args.seconds)
    print(document({**about, **results}))
    if args.out:
        report.write_json(args.out / "bounds.json", about, **results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
