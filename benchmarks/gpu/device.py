"""What these commands and tests/test_cuda.py need from a GPU in Python: events, graphs, streams, torch's switches,
facts.

tests/test_gpu_device.py runs every line of this file without a GPU; it replaces torch.cuda's functions by stand-ins
with the same signatures. host.py has the same names for the CPU.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch

import lstmkern

PROPERTIES = [
    "name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size", "regs_per_multiprocessor",
    "shared_memory_per_multiprocessor", "shared_memory_per_block_optin", "max_threads_per_multi_processor",
]  # fmt: skip
AHEAD = 400_000  # clocks, about 0.2 ms: how long the GPU waits while the host queues the timed call
RATES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def cudnn_flags(**changed):
    """torch's context manager for cuDNN's flags, changing only the given ones. (A process may forbid assignments to the
    flags.)"""
    names = ("enabled", "benchmark", "deterministic", "allow_tf32")
    return torch.backends.cudnn.flags(**{**{name: getattr(torch.backends.cudnn, name) for name in names}, **changed})


class Gpu:
    """The current CUDA device."""

    name = "cuda"
    torch_device = torch.device("cuda")
    tiers = ("cluster", "grid", "stepwise")
    planned = ("cluster", "grid")  # the tiers that plan() knows
    tier_variable = "LSTMKERN_CUDA_TIER"
    peer = "cudnn"
    compiler = "inductor"  # for torch.compile
    has_tf32 = True
    warm = False  # whether the clock has been raised in this process

    def missing(self) -> str | None:
        """A sentence that says why nothing can run, or None."""
        if not torch.cuda.is_available():
            return "torch finds no usable GPU"
        if lstmkern._C.build_info()["cuda"] is None:
            return "lstmkern was built without CUDA"
        return None

    def resident_tiers(self) -> bool:
        """Whether the chip can run tiers other than the stepwise one."""
        return torch.cuda.get_device_capability() >= (9, 0)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def alive(self) -> bool:
        """False after an error that ended the CUDA context: nothing more can run in this process."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def warm_up(self, seconds: float = 0.2) -> None:
        """Raises the GPU's clock from its idle state with matrix products, once per process."""
        if self.warm:
            return
        x = torch.randn(4096, 4096, device=self.torch_device)
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            x @ x
            torch.cuda.synchronize()
        self.warm = True

    def milliseconds(self, function) -> float:
        """The time of one call on the device, between two events.

        The stream is kept busy before the first event, so that the host has queued all launches by then. A call whose
        launches take the host longer than its kernels stays limited by the host.
        """
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(AHEAD)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def capture(self, function, warm_up: int = 3):
        """Captures function() in a CUDA graph. Returns (its result, replay); replay() writes to the same result."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                function()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = function()
        return captured, graph.replay

    @contextmanager
    def side_stream(self):
        """A context in which work goes to a stream of its own; it has finished when the context ends. Not ordered after
        the default stream."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            yield
            stream.synchronize()

    def delay(self, clocks: int) -> None:
        """Keeps the current stream busy for that many GPU clocks."""
        torch.cuda._sleep(clocks)

    @contextmanager
    def no_synchronization(self):
        """A context in which a call that waits for the GPU is an error."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def allocations(self) -> int:
        """How many blocks of device memory this process has allocated so far."""
        return torch.cuda.memory_stats()["allocation.all.allocated"]

    @contextmanager
    def tf32(self, allowed: bool):
        """A context that sets TF32 for matrix products and for cuDNN; torch has a switch for each, with different
        defaults."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, allowed
        try:
            with cudnn_flags(allow_tf32=allowed):
                yield
        finally:
            matmul.allow_tf32 = before

    @contextmanager
    def peer_enabled(self, enabled: bool):
        """A context in which torch.nn's layers run on cuDNN, or do not."""
        with cudnn_flags(enabled=enabled):
            yield

    def runs(self) -> dict:
        """{tier: (forward, backward)}: how often each tier has run."""
        return {tier: tuple(counts) for tier, counts in lstmkern._C.cuda_tier_runs().items()}

    def ran(self, function) -> tuple[str | None, str | None]:
        """The tiers that function() ran on, forward and backward; None if there was no such pass.

        A layer that the selected tier cannot run falls through to another one.
        """
        before = self.runs()
        function()
        after = self.runs()
        grown = ([t for t in after if after[t][i] > before.get(t, (0, 0))[i]] for i in (0, 1))
        return tuple("+".join(tiers) or None for tiers in grown)

    def plan(self, tier: str, mode: str, dtype: str, N: int, H: int, D: int, backward: bool) -> dict | None:
        """How a resident tier would divide the layer among blocks; None if it cannot run it, or has no plan."""
        plan = getattr(lstmkern._C, "cuda_plan", None)
        if lstmkern._C.build_info()["cuda"] is None or plan is None or tier not in self.planned:
            return None
        return plan(tier, mode, dtype, N, H, D, backward)

    def facts(self) -> dict:
        """What a result must say about its machine."""
        found = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        return {
            **{name: getattr(found, name, None) for name in PROPERTIES},
            "memory_free": free,
            "memory": total,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "archs_of_torch": torch.cuda.get_arch_list(),
            "tf32": {
                "matmul": torch.backends.cuda.matmul.allow_tf32,
                "cudnn": torch.backends.cudnn.allow_tf32,
            },
            "reduced_precision_sums": {
                "bf16": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
                "fp16": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            },
        }

    def peaks(self, columns: int = 8192, numbers: int = 2**28) -> dict:
        """Bytes per second of a large copy, and operations per second of a large matrix product in each dtype (fp32:
        TF32)."""
        values = torch.randn(2, numbers, device=self.torch_device)

        copied = [self.milliseconds(lambda: values[1].copy_(values[0])) for _ in range(6)][1:]
        found = {"bandwidth": 8e3 * numbers / sorted(copied)[2]}
        values = None
        with self.tf32(True):
            for name, dtype in RATES.items():
                x = torch.randn(columns, columns, device=self.torch_device, dtype=dtype)
                self.milliseconds(lambda x=x: x @ x)
                ms = sorted(self.milliseconds(lambda x=x: x @ x) for _ in range(5))[2]
                found[name] = 2e3 * columns**3 / ms
        return found


def named(name: str):
    """The device that a command or a test names: "cuda", or "cpu" for a rehearsal."""
    if name == "cuda":
        return Gpu()
    if name == "cpu":
        from .host import Host

        return Host()
    raise SystemExit(f"DEVICE must be cuda or cpu (a rehearsal), got {name!r}.")
