"""The CUDA back end beside its peers on a real GPU: `python benchmarks/gpu.py`, or `make gpu-bench`.

Peers: torch.nn on cuDNN, torch.nn with cuDNN off, a torch.compile'd cell in a Python loop (where the time allows), and
every tier of ours. All run the same work in the same process, interleaved A B A B and timed by CUDA events; the figure
is the median over rounds, a ratio is the median of the rounds' ratios. The floor of a shape is the larger of its bytes
over the measured copy bandwidth and its operations over the measured rate of a large product in the same dtype.

Prints one table last; writes gpu.json and gpu.png to $OUT or benchmarks/results/.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import lstmkern

SHAPES = [  # T, N, I, H
    (1024, 16, 768, 768),
    (512, 64, 512, 512),
    (256, 64, 1024, 1024),
    (70, 64, 400, 1152),
    (128, 256, 256, 256),
    (1024, 1, 512, 512),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TIERS = ["stepwise", "cluster", "grid"]
COMPILED = [(70, 64, 400, 1152), (128, 256, 256, 256)]  # compiling a cell costs seconds per shape and dtype


def median_ms(function, rounds=9):
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def peaks():
    """Bytes per second of a large copy, and operations per second of a large product in each dtype."""
    values = torch.empty(2, 2**28, dtype=torch.float32, device="cuda").normal_()
    copy = lambda: values[1].copy_(values[0])  # noqa: E731
    copy()
    found = {"bandwidth": 2 * values[0].numel() * 4 / (median_ms(copy) * 1e-3)}
    for name, dtype in DTYPES.items():
        x = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        x @ x
        found[name] = 2 * 8192**3 / (median_ms(lambda x=x: x @ x, 5) * 1e-3)
    return found


def floor_seconds(shape, cell, dtype, backward, rows, peak):
    """The least time for the work: every input read once and every result written once, or its multiplications."""
    _, N, features, H = shape
    G, size = {"LSTM": 4, "GRU": 3}[cell], DTYPES[dtype].itemsize
    weights = G * H * (features + H)
    moved = rows * (features + H) + weights
    if backward:  # x, y and the weights again; dy, and dx and the weights' gradients written
        moved += rows * (2 * features + 2 * H) + 2 * weights
    operations = 2 * rows * G * H * (features + H) * (3 if backward else 1)
    return max(moved * size / peak["bandwidth"], operations / peak[dtype])


class CompiledCell(torch.nn.Module):
    """What one writes without a library: a compiled step in a Python loop."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        lstm = isinstance(module, torch.nn.LSTM)
        cell = torch.lstm_cell if lstm else torch.gru_cell

        def step(x, h, *weights):
            return cell(x, h, *weights)

        self.step, self.lstm = torch.compile(step), lstm

    def forward(self, x):
        weights = [getattr(self.module, n) for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        h = x.new_zeros(x.size(1), self.module.hidden_size)
        state, out = (h, h) if self.lstm else h, []
        for now in x.unbind(0):
            state = self.step(now, state, *weights)
            out.append(state[0] if self.lstm else state)
        return torch.stack(out), None


def contenders(shape, cell, dtype, packed):
    T, N, features, H = shape
    theirs = getattr(torch.nn, cell)(features, H, device="cuda", dtype=DTYPES[dtype])
    ours = getattr(lstmkern, cell)(features, H, device="cuda", dtype=DTYPES[dtype])
    ours.load_state_dict(theirs.state_dict())

    def with_cudnn(enabled):
        def run(x):
            with torch.backends.cudnn.flags(enabled=enabled, allow_tf32=torch.backends.cudnn.allow_tf32):
                return theirs(x)[0]

        return run

    def with_tier(tier):
        def run(x):
            os.environ["LSTMKERN_CUDA_TIER"] = tier
            return ours(x)[0]

        return run

    found = {"cudnn": with_cudnn(True), "cudnn off": with_cudnn(False)}
    found |= {f"ours {tier}": with_tier(tier) for tier in TIERS}
    if shape in COMPILED and not packed and dtype != "fp16":
        compiled = CompiledCell(theirs)
        found["compiled cell"] = lambda x: compiled(x)[0]
    x = torch.randn(T, N, features, device="cuda", dtype=DTYPES[dtype])
    rows = T * N
    if packed:  # lengths from a quarter of T to T
        lengths = torch.linspace(T, max(T // 4, 1), N).long()
        x = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
        rows = int(lengths.sum())
    return found, x, rows, [theirs, ours]


def step_of(function, x, modules, backward):
    packed = isinstance(x, torch.nn.utils.rnn.PackedSequence)
    if not backward:

        def run():
            with torch.no_grad():
                return function(x)

        return run
    leaf = (x.data if packed else x).detach().requires_grad_()
    grad = None

    def run():
        nonlocal grad
        out = function(x._replace(data=leaf) if packed else leaf)
        out = out.data if packed else out
        if grad is None:
            grad = torch.randn_like(out)
        out.backward(grad)
        leaf.grad = None
        for module in modules:
            module.zero_grad(set_to_none=True)

    return run


def whose(step):
    """The tiers of ours that a step runs on, forward and backward: what cannot run on one falls to the next."""
    before = lstmkern._C.cuda_tier_runs()
    step()
    after = lstmkern._C.cuda_tier_runs()
    return [next(t for t in after if after[t][i] > before[t][i]) for i in (0, 1)]


def agree(functions, x):
    """The relative distance of everyone's output from cuDNN's."""
    with torch.no_grad():
        outs = {k: f(x) for k, f in functions.items()}
    outs = {k: (v.data if hasattr(v, "batch_sizes") else v).float() for k, v in outs.items()}
    return {k: float((v - outs["cudnn"]).norm() / outs["cudnn"].norm()) for k, v in outs.items()}


def measure(functions, rounds, seconds):
    """{name: [milliseconds per round]}, the names taking turns."""
    for function in functions.values():
        function()
        function()
    torch.cuda.synchronize()
    times, start = {name: [] for name in functions}, time.monotonic()
    for i in range(rounds):
        for name, function in functions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
        if i >= 2 and time.monotonic() - start > seconds:
            break
    return times


def machine():
    driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(driver, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "gpu": torch.cuda.get_device_name(),
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "lstmkern": lstmkern._C.build_info(),
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def plot(results, path):
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    rows = [r for r in results if r["cell"] == "LSTM" and not r["packed"] and r["backward"]]
    names = ["cudnn", "cudnn off", *[f"ours {t}" for t in TIERS]]
    figure, axes = pyplot.subplots(1, len(DTYPES), figsize=(15, 4), sharey=True, squeeze=False)
    for axis, dtype in zip(axes[0], DTYPES, strict=True):
        mine = [r for r in rows if r["dtype"] == dtype]
        for k, name in enumerate(names):
            heights = [r["us_per_step"].get(name, 0) for r in mine]
            axis.bar([i + 0.8 * k / len(names) for i in range(len(mine))], heights, 0.8 / len(names), label=name)
        axis.set_xticks(range(len(mine)), ["x".join(map(str, r["shape"])) for r in mine], rotation=30, ha="right")
        axis.set_title(f"LSTM {dtype}, forward + backward")
    axes[0][0].set_ylabel("microseconds per step")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="stop taking new measurements after this long")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a GPU and a CUDA build of torch")
    start = time.monotonic()
    # The same rule for everyone's fp32: torch has one switch for cuDNN and one for products, apart by default.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    peak, results, skipped = peaks(), [], 0
    # In this order, so that a short run still has every shape.
    work = [
        (shape, cell, dtype, packed)
        for packed in (False, True)
        for cell in ("LSTM", "GRU")
        for dtype in DTYPES
        for shape in SHAPES
    ]
    each = options.seconds / len(work) / 2
    for shape, cell, dtype, packed in work:
        if time.monotonic() - start > options.seconds:
            skipped += 1
            continue
        torch.manual_seed(0)
        functions, x, rows, modules = contenders(shape, cell, dtype, packed)
        try:
            errors = agree(functions, x)
        except Exception as error:  # a peer that does not run here (a compiler is missing, say) is left out
            print(f"without the compiled cell: {type(error).__name__}: {str(error).splitlines()[0]}")
            functions.pop("compiled cell", None)
            errors = agree(functions, x)
        ran = {n: whose(step_of(f, x, modules, True)) for n, f in functions.items() if n.startswith("ours")}
        functions = {n: f for n, f in functions.items() if n not in ran or n.removeprefix("ours ") in ran[n]}
        for backward in (False, True):
            steps = {name: step_of(f, x, modules, backward) for name, f in functions.items()}
            times = measure(steps, options.rounds, each)
            floor = floor_seconds(shape, cell, dtype, backward, rows, peak)
            per_step = {k: statistics.median(v) * 1e3 / shape[0] for k, v in times.items()}
            ratio = {k: statistics.median(a / b for a, b in zip(v, times["cudnn"])) for k, v in times.items()}  # noqa: B905
            share = {k: floor * 1e6 / shape[0] / v for k, v in per_step.items()}
            results.append(
                {
                    "shape": shape, "cell": cell, "dtype": dtype, "packed": packed, "backward": backward,
                    "us_per_step": per_step, "time_over_cudnn": ratio, "share_of_floor": share,
                    "distance_from_cudnn": errors, "tiers": {n: ran[n] for n in functions if n in ran},
                    "rounds": len(times["cudnn"]),
                }
            )  # fmt: skip
    out = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    out.mkdir(parents=True, exist_ok=True)
    about = machine()
    (out / "gpu.json").write_text(json.dumps({"machine": about, "peaks": peak, "results": results}, indent=1) + "\n")
    plot(results, out / "gpu.png")
    print(
        f"\n{about['gpu']}, driver {about['driver']}, torch {about['torch']}, cuDNN {about['cudnn']}, TF32 on;", end=" "
    )
    print(f"copy {peak['bandwidth'] / 1e12:.2f} TB/s,", ", ".join(f"{d} {peak[d] / 1e12:.0f} TFLOP/s" for d in DTYPES))
    print("microseconds per step (time / cuDNN's time; share of the floor)")
    for r in results:
        cells = [
            f"{n} {us:.2f} ({r['time_over_cudnn'][n]:.2f}; {100 * r['share_of_floor'][n]:.0f}%)"
            for n, us in r["us_per_step"].items()
        ]
        what = (
            f"{r['cell']:4} {r['dtype']} {'packed' if r['packed'] else 'dense ':6} {'f+b' if r['backward'] else 'f  '}"
        )
        print(f"{'x'.join(map(str, r['shape'])):18} {what}  {'  '.join(cells)}")
    if skipped:
        print(f"{skipped} of {len(work)} not measured: {options.seconds:.0f} seconds were over")


if __name__ == "__main__":
    main()
