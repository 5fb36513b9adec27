"""The names of device.py on the CPU, for a rehearsal of everything except the CUDA kernels. Its times mean nothing.

The tiers are the instruction sets of the CPU kernels: `baseline`, and `best`, the best that this machine has.
"""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager

import torch

import lstmkern


class Host:
    """The CPU in place of the GPU."""

    name = "cpu"
    torch_device = torch.device("cpu")
    tiers = ("baseline", "best")
    planned = ()
    tier_variable = "LSTMKERN_CPU_CAPABILITY"  # read when lstmkern is loaded; an unknown name, "best", is ignored
    peer = "torch.nn"
    compiler = "eager"  # for torch.compile
    has_tf32 = False
    warm = True

    def missing(self) -> str | None:
        return None

    def resident_tiers(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def alive(self) -> bool:
        return True

    def warm_up(self, seconds: float = 0.2) -> None:
        pass

    def milliseconds(self, function) -> float:
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)

    def capture(self, function, warm_up: int = 3):
        """A "graph" that calls the function again and copies its results to where the first results are."""
        for _ in range(warm_up):
            function()
        captured = function()

        def replay():
            again = function()
            if captured is not None:
                with torch.no_grad():
                    for old, new in zip(captured, again, strict=True):
                        old.copy_(new)

        return captured, replay

    @contextmanager
    def side_stream(self):
        yield

    def delay(self, clocks: int) -> None:
        pass

    @contextmanager
    def no_synchronization(self):
        yield

    def allocations(self) -> int:
        return 0

    @contextmanager
    def tf32(self, allowed: bool):
        yield

    @contextmanager
    def peer_enabled(self, enabled: bool):
        """Switches oneDNN, in place of cuDNN."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
            with torch.backends.mkldnn.flags(enabled=enabled):
                yield

    def runs(self) -> dict:
        return {}

    def ran(self, function) -> tuple[str | None, str | None]:
        function()
        used = lstmkern._extension.cpu_capability()
        tier = "baseline" if used == "baseline" else "best"
        return tier, tier

    def plan(self, tier: str, mode: str, dtype: str, N: int, H: int, D: int, backward: bool) -> dict | None:
        return None

    def facts(self) -> dict:
        return {"name": "none: the CPU in its place", "mkldnn": torch.backends.mkldnn.is_available()}

    def peaks(self, columns: int = 256, numbers: int = 2**16) -> dict:
        x = torch.randn(columns, columns)
        y = torch.randn(2, numbers)
        rate = 2e3 * columns**3 / self.milliseconds(lambda: x @ x)
        copied = 8e3 * numbers / self.milliseconds(lambda: y[1].copy_(y[0]))
        return {"bandwidth": copied, "bf16": rate, "fp16": rate, "fp32": rate}
