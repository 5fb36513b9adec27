"""What bounds every layer of the goals' table on this machine, and what each goal would take.

    python -m benchmarks.bounds [--threads 1] [--seconds 360] [--shape T,N,I,H[,layers] ...] [--out benchmarks/results]

fp32 and bf16 have the table's shapes, fp64 and fp16, whose goals are the same for every layer, one in the middle.

The cases take turns, over and over, so that what else the machine does meets them all. A round measures, one after the
other in one process: torch.nn's layer; the peak of fused multiply-adds (lstmkern/bench/roofline.py), in the fastest
unit that the processor has for the dtype; our microkernel on operands in the first-level cache; every product that the
layer is made of, by itself, at its real size (csrc/cpu/product.inl); how fast the recurrent weights can be read, where
that and not the operations is the bound; our layer. Shares of the peak are those of the same round, and the median over
the rounds is given. Prints Markdown; with --out also writes bounds.json and bounds.md there.
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

SLICE = 5e-3  # seconds of one measurement of a rate or a product
TURN = 0.4  # seconds that a case has before it is the next one's turn, so that a busy neighbour does not meet one alone
BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}  # of a register
CHUNK = 384  # rows that a layer brings together for its other products, beside those of a step (csrc/cpu/backward.inl)


@dataclass(frozen=True)
class Product:
    """rows x K times K x (gates * columns). gates, down, dtype: see csrc/cpu/product.h."""

    rows: int
    K: int
    columns: int
    gates: int = 1
    down: bool = False
    dtype: str = "fp32"

    def flops(self) -> int:
        return 2 * self.rows * self.K * self.columns * self.gates

    def seconds(self, threads: int = 1, duration: float = SLICE) -> float:
        """Seconds that it takes by itself."""
        return _extension.cpu_product(
            self.dtype, self.rows, self.K, self.columns, self.gates, self.down, threads, duration
        )


def operand_bytes(dtype: str) -> int:
    """Of a value as layers of ``dtype`` multiply it: 16-bit ones in fp32 unless there are products of them."""
    if dtype == "bf16" and _extension.cpu_capability(bf16=True) in ("amx", "avx512_bf16"):
        return 2
    return 8 if dtype == "fp64" else 4


def lanes(dtype: str, capability: str) -> int:
    """Sums in a register."""
    return BYTES[capability] // (8 if dtype == "fp64" else 4)


def products(case: Case) -> dict[Product, float]:
    """The products that a call of our layer consists of, and how many of each: forward x W_ih^T and, step by step,
    h W_hh^T (which a layer may make at once: the same operations); backward dgates W_hh step by step, dgates W_ih, and
    the weight gradients dgates^T x and dgates^T h.

    case: without projection, in one direction. Units are padded to whole registers, as in the layer.
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
                (Product(G * H, chunk, I, down=True), tokens / chunk),
                (Product(G * H, chunk, H, down=True), tokens / chunk),
            ]
        for product, count in parts:
            product = replace(product, dtype=case.dtype)
            found[product] = found.get(product, 0) + count
    return found


def microkernel(cell: str, dtype: str, capability: str, L1: int, threads: int) -> tuple[Product, int]:
    """A product on one panel of a layer of ``cell`` that lies in half of each first-level cache (``L1`` bytes), and the
    operations in it: a panel is whole registers, so more than the one unit that is asked for."""
    G, columns, size = GATES[cell], lanes(dtype, capability), operand_bytes(dtype)
    rows = 32 if size == 2 else 24  # whole tiles
    product = Product(rows * threads, L1 // 2 // (size * G * columns), 1, G, dtype=dtype)
    return product, product.flops() * columns


@dataclass(frozen=True)
class Reading:
    """What the machine could do in one round: operations per second (peak, micro: of the microkernel), seconds for
    each of the layer's products once, and the least seconds for a call by the roofline (floor)."""

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
    """Medians over rounds of shares of the peak, from seconds of our and torch.nn's calls and each round's Reading.

    bound: "operations" or "bytes", what the roofline's floor is made of.
    """
    counts, flops, wanted = products(case), case.flops(), goal(case)
    alone = [sum(counts[p] * seconds for p, seconds in r.products.items()) for r in readings]

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
            "products": share(alone),
            "ours": share(ours),
            "torch": share(theirs),
        },
        "rest": statistics.median(1 - a / b for a, b in zip(alone, ours, strict=True)),
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
    """One of VERDICTS: the goal is reached, or the first that would have to be better for it: the rest (all but the
    products), the products, the machine."""
    shares = result["shares"]
    if result["ratio"] >= result["goal"]:
        return "reached"
    if result["needs"] > max(shares["roofline"], shares["products"]):
        return "machine"
    return "products" if result["needs"] > shares["products"] else "rest"


class Measurement:
    """One case, a turn at a time."""

    def __init__(self, case: Case, roofline: Roofline):
        contest = Contest(case)
        self.case, self.bound = case, roofline.floor(case).bound
        self.pairs = Pairs(contest.ours, contest.theirs, warm_up=contest.warm_up, probe=probe(case, roofline))

    def turn(self) -> None:
        """As many rounds as fit in TURN seconds, at least one."""
        for _ in range(max(1, int(TURN / self.pairs.round_seconds))):
            self.pairs.peer_block()
            self.pairs.own_block()

    def result(self) -> dict:
        return summarize(self.case, self.pairs.ours, self.pairs.theirs, self.pairs.probed, self.bound)


STREAMED = [(rows, H) for rows in (20, 32, 128) for H in (64, 128, 256, 512, 1152)]


class Streaming:
    """The product of an LSTM's step alone as its weights grow out of the caches, a turn at a time."""

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
    """The verdict in words; empty without a goal. Where the rest would have to shrink, how much of the layer's time
    the goal leaves for it."""
    if not case["goal"]:
        return ""
    room = 1 - case["needs"] / case["shares"]["products"]
    return {
        "reached": "reached",
        "rest": f"a rest of {room:.0%}",
        "products": "faster products",
        "machine": "another machine",
    }[case["verdict"]]


def bounds_tables(cases: Sequence[dict]) -> str:
    """Markdown: every case in shares of the peak, a table for each dtype."""
    dtypes = dict.fromkeys(case["dtype"] for case in cases)
    return "\n".join(bounds_table(dtype, [case for case in cases if case["dtype"] == dtype]) for dtype in dtypes)


def bounds_table(dtype: str, cases: Sequence[dict]) -> str:
    head = [f"{dtype}: T,N,I,H,layers", "", "peak, GFLOP/s", "roofline", "microkernel in L1", "products alone"]
    head += ["our layer", "torch.nn", "cell and rest", "ratio / goal", "the goal needs", "which takes"]
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
    """Markdown: share of the peak by H and rows of a step."""
    sizes = dict.fromkeys((line["H"], line["bytes"]) for line in lines)
    counts = dict.fromkeys(line["rows"] for line in lines)
    share = {(line["rows"], line["H"]): line["share"] for line in lines}
    head = ["LSTM's h W_hh^T alone", *(f"N {rows}" for rows in counts)]
    return report.markdown(
        head,
        [[f"H {H}, {size / 2**20:.3g} MiB", *(f"{share[rows, H]:.0%}" for rows in counts)] for H, size in sizes],
    )


def digest(cases: Sequence[dict]) -> str:
    """A sentence for each dtype on how the goals stand; empty without cases."""
    parts = []
    for dtype in dict.fromkeys(c["dtype"] for c in cases if c["goal"]):
        wanted = [c for c in cases if c["goal"] and c["dtype"] == dtype]
        count = {key: sum(c["verdict"] == key for c in wanted) for key in VERDICTS}
        parts.append(
            f"of {len(wanted)} {dtype} goals {count['reached']} are reached; {count['machine']} would need more "
            f"operations or bytes per second than this machine has, {count['products']} faster products than ours, "
            f"{count['rest']} less time beside the products."
        )
    if not parts:
        return ""
    return (
        "What bounds a layer ([table](benchmarks/results/bounds.md), [reading it](benchmarks/README.md#what-bounds-a-"
        f"layer)): {' '.join([parts[0], *(p.capitalize() for p in parts[1:])])}"
    )


TEXT = """\
Shares of the peak of fused multiply-adds, measured in the same rounds; medians.

- roofline: what the rate of operations, or of reading the recurrent weights (bytes), lets through
- microkernel in L1: the register block of the gates' products on operands in the first-level cache
- products alone: all products of the layer at their real sizes, one kind after the other, and nothing else
- cell and rest: the part of our layer's time that its products alone do not account for
- the goal needs: the goal's ratio times torch.nn's share, and what would have to be better for it: the machine, our
  products, or the rest (with the part of the layer's time that the goal leaves for it)
"""


def run(console, cases: Sequence[Case], threads: int, seconds: float, clock=now) -> dict:
    """{"cases": [...], "streaming": [...]}: turns of all cases, over and over for ``seconds``, three times at least."""
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--shape", type=parse_shape, nargs="+", help="only these (default: the goals', T 1 aside)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    # A step of one row is a call's overhead, not a product.
    shapes = args.shape or [sizes for sizes in SHAPES if sizes[0] > 1]
    about = report.context(args.threads)
    cells = ["LSTM", "GRU"]
    cases = cases_for(shapes, cells, ["fp32", "bf16"]) + cases_for(args.shape or [MIDDLE], cells, ["fp64", "fp16"])
    results = run(Console(stderr=True), cases, args.threads, args.seconds)
    text = f"{report.machine_line(about)}, threads: {args.threads}; `{about['command']}`\n\n{TEXT}\n"
    text += f"{bounds_tables(results['cases'])}\nIn fp32, the same product as its weights grow out of the caches:\n\n"
    text += streaming_table(results["streaming"])
    print(text)
    if args.out:
        report.write_json(args.out / "bounds.json", about, **results)
        report.write_text(args.out / "bounds.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
