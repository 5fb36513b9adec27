"""The compiled part: csrc/module.cpp and the headers for Python. Loading it registers ``torch.ops.lstmkern.*``."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from torch import Tensor
from torch.nn import Module

class BuildInfo(TypedDict):
    version: str
    torch: str
    python: str
    capabilities: list[str]
    compiler: str
    cuda: str | None
    cuda_archs: list[str]
    openmp: bool

# CPUs in the affinity mask; of those, as many as the quotas of cgroups are worth; the most threads for a call; what
# limits the CPUs found, and LSTMKERN_NUM_THREADS if it is set.
Cpus = TypedDict("Cpus", {"mask": int, "found": int, "threads": int, "from": str})

# {mode: (gates, values saved for backward per unit and step)}, and what the saved units are padded to a multiple of.
cells: dict[str, tuple[int, int]]
padding: int

def add_calls(number: int) -> None: ...
def alone_ended(work: float, seconds: float) -> None: ...
def build_info() -> BuildInfo: ...
def cpu_capability(bf16: bool = False) -> str: ...
def cpu_peak(capability: str, rate: str, threads: int, bytes: int, seconds: float) -> float: ...
def cpu_product(
    dtype: str,
    rows: int,
    K: int,
    columns: int,
    gates: int = 1,
    transposed: bool = False,
    threads: int = 1,
    seconds: float = 0.01,
) -> float: ...
def cpus() -> Cpus: ...
def fix_threads(threads: int, division: str = "chosen") -> tuple[int, str]: ...
def choose_threads(
    mode: str,
    dtype: str,
    T: int,
    N: int,
    I: int,
    H: int,
    threads: int,
    pass_: str = "infer",
    proj_size: int = 0,
    asleep: bool = False,
) -> tuple[int, str, float]: ...
def cuda_plan(
    tier: str, mode: str, dtype: str, N: int, H: int, D: int = 1, backward: bool = False
) -> dict[str, int] | None: ...
def cuda_tier_runs() -> dict[str, tuple[int, int]]: ...
def layer_forward(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    save: bool,
    cells: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]: ...
def layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor | None,
    cells: Tensor | None,
    gates: Tensor | None,
    mode: str,
    batch_first: bool,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]: ...
def run_module(
    module: Module,
    input: Any,
    hx: Any,
    lengths: Tensor | None,
    resets: Tensor | None,
    return_cells: bool,
    record: Callable[..., Any],
    /,
) -> Any: ...
def run_cell(cell: Module, mode: str, input: Tensor, hx: Any, record: Callable[..., Any], /) -> Any: ...
def only_calls_forward(module: Module, /) -> bool: ...
def run_stack(
    mode: str,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    directions: int,
    batch_first: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cells: bool,
    record: Callable[..., Any],
    /,
) -> tuple[Tensor, Any, Any, Any] | None: ...

# See LayerFunction in autograd.py.
def results_in_order(
    results: tuple[Any, ...], mode: str, one_step: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]: ...
def recorded_forward(
    settings: tuple[Any, ...],
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: tuple[Tensor, ...],
    recompute: bool,
    /,
) -> tuple[tuple[Any, ...], tuple[Tensor | None, ...], list[tuple[Tensor, int]]]: ...
def recorded_backward(
    grads: tuple[Tensor | None, ...],
    saved: tuple[Tensor | None, ...],
    biases: list[tuple[Tensor, int]],
    settings: tuple[Any, ...],
    needs_input_grad: tuple[bool, ...],
    /,
) -> tuple[Tensor | None, ...] | None: ...
def read_cpus(root: str, mask: int, variable: str = "") -> Cpus: ...
def region_for(work: float) -> bool: ...
def team_ended(work: float, region: bool, threads: int, total: float, lost: float) -> None: ...
def team_runs() -> dict[int, int]: ...
def threads_for(work: float, most: int) -> int: ...
