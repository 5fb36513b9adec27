"""The layers that are run on a GPU: shapes, modules, inputs, lower bounds of their time, and cuDNN's code path for
them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

import lstmkern

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # the most important first
GATES = {"LSTM": 4, "GRU": 3}


@dataclass(frozen=True)
class Work:
    """A stack of layers over T steps of N sequences, with I features and H units. packed: lengths from a quarter of T
    to T."""

    cell: str
    dtype: str
    T: int
    N: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    directions: int = 1
    packed: bool = False

    def __str__(self) -> str:
        sizes = f"{self.cell:4} {self.dtype} {self.T},{self.N},{self.I},{self.H}"
        special = ["packed"] * self.packed + [f"{self.layers} layers"] * (self.layers > 1)
        return " ".join([sizes, *special, *(["both ways"] * (self.directions > 1))])

    @property
    def record(self) -> dict:
        return asdict(self)

    def lengths(self) -> list[int]:
        if not self.packed:
            return [self.T] * self.N
        return torch.linspace(self.T, max(self.T // 4, 1), self.N).long().tolist()

    def modules(self, where) -> tuple[torch.nn.Module, torch.nn.Module]:
        """torch.nn's module and ours, with the same weights."""
        options = {"device": where.torch_device, "dtype": DTYPES[self.dtype], "bidirectional": self.directions > 1}
        theirs = getattr(torch.nn, self.cell)(self.I, self.H, self.layers, **options)
        ours = getattr(lstmkern, self.cell)(self.I, self.H, self.layers, **options)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    def input(self, where):
        x = torch.randn(self.T, self.N, self.I, device=where.torch_device, dtype=DTYPES[self.dtype])
        return torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(self.lengths())) if self.packed else x

    def floor(self, backward: bool) -> dict:
        """{"bytes", "operations"}: the bytes if every input is read once and every result written once, and the
        operations of the matrix products."""
        rows, G, D = sum(self.lengths()), GATES[self.cell], self.directions
        moved = operations = 0
        for layer in range(self.layers):
            columns = self.I if layer == 0 else D * self.H
            weights = D * G * self.H * (columns + self.H)
            moved += rows * (columns + D * self.H) + weights
            if backward:  # reads x, y, dy and the weights again; writes dx and the weight gradients
                moved += rows * (2 * columns + 2 * D * self.H) + 2 * weights
            operations += 2 * rows * weights * (3 if backward else 1)
        return {"bytes": moved * DTYPES[self.dtype].itemsize, "operations": operations}

    def floor_seconds(self, backward: bool, peaks: dict | None) -> float | None:
        """The least time for the work at the machine's measured rates."""
        if not peaks:
            return None
        need = self.floor(backward)
        return max(need["bytes"] / peaks["bandwidth"], need["operations"] / peaks[self.dtype])

    def cudnn_path(self, backward: bool) -> str:
        """Which of cuDNN's kernels torch selects on compute capability 8.0 and up (get_algo in torch's RNN.cpp)."""
        small = 128 if backward else 192
        if self.packed:
            return "stepwise"
        if small >= self.H:
            return "small-H"
        fits = self.layers == 1 and self.directions == 1 and self.H <= 1024 and self.H % 128 == self.I % 128 == 0
        if self.dtype == "fp16" and self.cell == "LSTM" and fits and self.N % 8 == 0 and self.N <= 128:
            return "persistent"
        return "stepwise"


def step_of(function, x, parameters, backward: bool):
    """A function that calls function(x), and with `backward` also computes the gradients of x and the parameters."""
    packed = isinstance(x, torch.nn.utils.rnn.PackedSequence)
    if not backward:

        def forward():
            with torch.no_grad():
                return [values_of(function(x))]

        return forward
    leaf = (x.data if packed else x).detach().requires_grad_()
    wanted = [leaf, *parameters]
    grad = torch.randn_like(values_of(function(x)))

    def both():
        out = values_of(function(x._replace(data=leaf) if packed else leaf))
        return list(torch.autograd.grad(out, wanted, grad))

    return both


def values_of(output):
    """The output of a layer; of a packed output its rows."""
    output = output[0] if isinstance(output, tuple) and not hasattr(output, "batch_sizes") else output
    return output.data if hasattr(output, "batch_sizes") else output


# --- which ---

BOTH = ("LSTM", "GRU")
MAIN = [(512, 64, 512, 512), (1024, 16, 768, 768), (256, 64, 1024, 1024)]  # T, N, I, H: the shapes of the goals
BATCHES = [(256, N, 512, 512) for N in (1, 8, 16, 32, 128, 256)] + [(128, N, 1024, 1024) for N in (1, 16, 256)]
OTHERS = [(70, 64, 400, 1152), (128, 256, 256, 256), (256, 64, 128, 128)]
SMOKE = [(2, 3, 8, 16), (5, 9, 20, 72), (6, 33, 64, 250), (20, 64, 64, 256), (50, 64, 64, 512), (300, 16, 64, 448)]
TINY = [(5, 3, 8, 16), (7, 9, 20, 40)]  # for a rehearsal


def smoke(rehearsal: bool) -> list[Work]:
    """16-bit types first, small layers before large ones."""
    shapes = TINY if rehearsal else SMOKE
    order = [(s, dtype) for s in shapes for dtype in ("bf16", "fp16")] + [(s, "fp32") for s in shapes]
    return [Work(cell, dtype, *shape) for shape, dtype in order for cell in BOTH]


def first(rehearsal: bool) -> list[Work]:
    """bf16 and fp16 at the goals' shapes; LSTM before GRU."""
    shapes = TINY[:1] if rehearsal else MAIN
    return [Work(cell, dtype, *shape) for cell in BOTH for dtype in ("bf16", "fp16") for shape in shapes]


def every(rehearsal: bool) -> list[Work]:
    """The layers that decide the table of tiers. The most important come first, because the time may run out."""
    main, batches, others = (TINY[:1], TINY[1:], []) if rehearsal else (MAIN, BATCHES, OTHERS)
    found = []

    def add(shapes, cells=("LSTM",), dtypes=("bf16",), **special):
        order = [(cell, dtype, shape) for cell in cells for dtype in dtypes for shape in shapes]
        found.extend(Work(cell, dtype, *shape, **special) for cell, dtype, shape in order)

    add(main, dtypes=("bf16", "fp16"))
    add(batches)
    add(main, directions=2)
    add(main, layers=2)
    add(main, cells=("GRU",), dtypes=("bf16", "fp16"))
    add(main, cells=BOTH, dtypes=("fp32",))
    add(main, cells=BOTH, packed=True)
    add(others, cells=BOTH)
    add(batches, cells=("GRU",))
    return found
