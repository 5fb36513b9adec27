"""Part: layers on one tier compared with torch.nn on cuDNN, interleaved A B A B, timed by CUDA events.

    python -m benchmarks.gpu.bench --tier cluster             # all shapes; the table of tiers is decided by these
    python -m benchmarks.gpu.bench --tier cluster --first     # three shapes, bf16 and fp16
    python -m benchmarks.gpu.bench --peers                    # cuDNN compared with torch.nn without it
    python -m benchmarks.gpu.bench --peers --compiled         # also a compiled cell, which takes long to compile

Each line is printed at once. A time is the median over rounds, with its quartiles in brackets; a ratio is the median of
the rounds' ratios to cuDNN. The lower bound of a layer's time is the larger of its bytes over the measured bandwidth
and its operations over the measured rate. TF32 is on for all.
"""

from __future__ import annotations

import os
import statistics

import torch

from . import layers, records, session

ROUNDS, SECONDS = 7, 0.12  # at least so many rounds; seconds of all samples together
MOST = 1000  # rounds
COMPILED = {(128, 256, 256, 256), layers.TINY[0]}  # compiling a cell takes many seconds per shape
FAR = {"bf16": 0.05, "fp16": 0.02, "fp32": 0.01}  # largest relative distance from cuDNN's output, both with TF32


class CompiledCell(torch.nn.Module):
    """A layer without a library: a compiled time step in a Python loop."""

    def __init__(self, module, compiler: str):
        super().__init__()
        self.module, self.lstm = module, module.mode == "LSTM"
        cell = torch.lstm_cell if self.lstm else torch.gru_cell

        def step(x, h, *weights):
            return cell(x, h, *weights)

        self.step = torch.compile(step, backend=compiler)

    def forward(self, x):
        weights = [getattr(self.module, n) for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        h = x.new_zeros(x.size(1), self.module.hidden_size)
        state, out = (h, h) if self.lstm else h, []
        for now in x.unbind(0):
            state = self.step(now, state, *weights)
            out.append(state[0] if self.lstm else state)
        return torch.stack(out), None


def measure(run: session.Session, functions: dict, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """{name: milliseconds of each round}. The names take turns, for `rounds` rounds or more, until SECONDS are full."""
    where = run.device
    rounds, seconds = (2, 0.0) if run.rehearsal else (rounds, SECONDS)
    where.warm_up()
    for function in functions.values():
        function()
        function()
    where.synchronize()
    times: dict[str, list[float]] = {name: [] for name in functions}
    sampled = 0.0
    for i in range(MOST):
        if i >= rounds and sampled >= 1e3 * seconds:
            break
        for name, function in functions.items():
            times[name].append(where.milliseconds(function))
            sampled += times[name][-1]
    return times


def quartiles(times: dict[str, list[float]], T: int) -> dict[str, list[float]]:
    """{name: (first, third)}, in microseconds per step."""
    found = {name: statistics.quantiles(ms, method="inclusive") for name, ms in times.items()}
    return {name: [1e3 * low / T, 1e3 * high / T] for name, (low, _, high) in found.items()}


def contenders(run: session.Session, work: layers.Work) -> tuple[dict, dict, object]:
    """{name: function of the input}, {name: its parameters}, and the input."""
    theirs, ours = work.modules(run.device)
    x, peer = work.input(run.device), run.device.peer

    def without_peer(x):
        with run.device.peer_enabled(False):
            return theirs(x)

    if not run.options.peers:
        return {peer: theirs, "ours": ours}, {peer: list(theirs.parameters()), "ours": list(ours.parameters())}, x
    found = {peer: theirs, f"{peer} off": without_peer}
    if run.options.compiled and (work.T, work.N, work.I, work.H) in COMPILED:
        compiled = CompiledCell(theirs, run.device.compiler)
        # A compiler may be missing or fail; the others are measured all the same.
        if run.case(f"compiled cell {work}", lambda: compiled(x)) is not None:
            found["compiled cell"] = compiled
    return found, dict.fromkeys(found, list(theirs.parameters())), x


def not_taken(run: session.Session, about: dict, work: layers.Work, why: str) -> None:
    run.records.write("bench", taken=False, why=why, **about)
    run.say(f"{work!s:40} not taken: {why}")


def without_plan(plan: dict | None) -> str:
    """The passes that a tier with plans cannot run."""
    return ", ".join(name for name in ("forward", "backward") if not (plan or {}).get(name))


def measure_work(run: session.Session, work: layers.Work, peak: dict | None) -> None:
    options = run.options
    about = {"work": work.record, "tier": options.tier}
    if options.tier:
        about["plan"] = plan = run.plan(options.tier, work)
        if options.tier in run.device.planned and (passes := without_plan(plan)):
            not_taken(run, about, work, f"no plan for {passes}")
            return
    torch.manual_seed(0)
    functions, parameters, x = contenders(run, work)
    if "ours" in functions:
        step = layers.step_of(functions["ours"], x, parameters["ours"], True)
        about["ran"] = ran = run.device.ran(step)
        if set(ran) != {options.tier}:
            not_taken(run, about, work, f"ran on {'/'.join(dict.fromkeys(map(str, ran)))}")
            return
    with torch.no_grad():
        outs = {name: layers.values_of(f(x)).double() for name, f in functions.items()}
    exact = outs[run.device.peer]
    distance = {name: float((out - exact).norm() / exact.norm()) for name, out in outs.items()}
    wrong = {name: d for name, d in distance.items() if not d <= FAR[work.dtype]}
    if wrong:
        run.failed += 1
        run.say(f"WRONG {work}: {', '.join(f'{n} is {d:.1e} from {run.device.peer}' for n, d in wrong.items())}")
    for backward in (False, True):
        steps = {n: layers.step_of(f, x, parameters[n], backward) for n, f in functions.items()}
        if options.tier == "stepwise" or run.rehearsal and not options.peers:
            graph = run.case(f"graph of {work}", lambda: run.device.capture(steps["ours"]))  # noqa: B023 (called at once)
            if graph is not None:
                steps["ours in a graph"] = graph[1]
                if "ours" in wrong:
                    wrong["ours in a graph"] = wrong["ours"]
        times = measure(run, steps, options.rounds)
        report(run, work, backward, times, {**about, "distance": distance, "wrong": wrong}, peak)


def report(run: session.Session, work: layers.Work, backward: bool, times: dict, about: dict, peak) -> None:
    base, floor = times[run.device.peer], work.floor_seconds(backward, peak)
    us = {name: 1e3 * statistics.median(ms) / work.T for name, ms in times.items()}
    ratio = {name: statistics.median(a / b for a, b in zip(ms, base, strict=True)) for name, ms in times.items()}
    spread = quartiles(times, work.T)
    share = None if floor is None else {name: 1e6 * floor / work.T / value for name, value in us.items()}
    run.records.write(
        "bench", taken=True, **about, backward=backward, us_per_step=us, time_over_peer=ratio, share_of_floor=share,
        floor=work.floor(backward), peer_path=work.cudnn_path(backward), milliseconds=times, quartiles=spread,
    )  # fmt: skip
    shares = {name: f"; {100 * share[name]:.0f}%" if share else "" for name in us}
    within = {name: f"{low:.2f}-{high:.2f}" for name, (low, high) in spread.items()}
    cells = [f"{name} {us[name]:.2f} us [{within[name]}] ({ratio[name]:.2f}{shares[name]})" for name in us]
    run.say(f"{work!s:40} {'f+b' if backward else 'f  '} {' '.join(cells)} [cuDNN: {work.cudnn_path(backward)}]")


def peaks_of(run: session.Session) -> dict | None:
    """The rates that facts.py measured in this run."""
    found = [r for r in records.read(run.records.path, run.records.run) if r["kind"] == "peaks"]
    return found[-1] if found else None


def main(arguments: list[str] | None = None) -> None:
    parser = session.arguments(
        __doc__,
        tier={"default": ""},
        first={"action": "store_true"},
        peers={"action": "store_true"},
        compiled={"action": "store_true"},
        rounds={"type": int, "default": ROUNDS},
    )
    options = parser.parse_args(arguments)
    if bool(options.tier) == options.peers:
        parser.error("--tier NAME or --peers")
    run = session.Session("bench", options)
    if options.tier:
        os.environ[run.device.tier_variable] = options.tier
    few = options.first or (run.rehearsal and options.peers)
    work = (layers.first if few else layers.every)(run.rehearsal)
    if options.peers:
        work = [w for w in work if w.cell == "LSTM" and not w.packed and w.layers == w.directions == 1]
    peak = peaks_of(run)
    with run.device.tf32(True):
        for i, one in enumerate(work):
            if run.out_of_time(tier=options.tier, left_out=len(work) - i):
                break
            run.case(str(one), lambda one=one: measure_work(run, one, peak))
    run.finish()


if __name__ == "__main__":
    main()
