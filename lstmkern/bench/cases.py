"""The measured layers: their sizes, their work, the goals, and each as a pair of modules, ours and torch.nn's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import modules
from .measure import now

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Case:
    """One measurement: T steps, N sequences, I inputs, H hidden units, P = proj or H, D = 2 if bidirectional else 1.

    ``rows`` is the number of non-padding tokens of a batch with padding; 0 means T * N.
    """

    cell: str
    T: int
    N: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    dtype: str = "fp32"
    train: bool = False
    proj: int = 0
    bidirectional: bool = False
    rows: int = 0

    @property
    def shape(self) -> str:
        """T,N,I,H,layers, and the options that are not the defaults."""
        extra = f", proj {self.proj}" if self.proj else ""
        extra += ", bidirectional" if self.bidirectional else ""
        return f"{self.T},{self.N},{self.I},{self.H},{self.layers}{extra}"

    @property
    def mode(self) -> str:
        """ "train" or "infer"."""
        return "train" if self.train else "infer"

    def __str__(self) -> str:
        return f"{self.cell} {self.shape} {self.dtype} {self.mode}"

    @property
    def tokens(self) -> int:
        """Steps of all sequences together, without padding."""
        return self.rows or self.T * self.N

    def _directions(self) -> list[int]:
        """The number of inputs of each direction of each layer."""
        D, P = (2 if self.bidirectional else 1), self.proj or self.H
        return [self.I if layer == 0 else D * P for layer in range(self.layers) for _ in range(D)]

    def input_flops(self) -> int:
        """Operations of the input GEMMs x w_ih^T, additions and multiplications: 2 tokens G H I per direction."""
        return sum(2 * self.tokens * GATES[self.cell] * self.H * columns for columns in self._directions())

    def recurrent_flops(self) -> int:
        """Operations of the recurrent GEMMs h w_hh^T, 2 tokens G H P, and of the projection, 2 tokens H P."""
        P = self.proj or self.H
        weights = GATES[self.cell] * self.H * P + (self.H * P if self.proj else 0)
        return len(self._directions()) * 2 * self.tokens * weights

    def flops(self) -> int:
        """Operations of all GEMMs. Training has three times as many: backward computes dx (dh) and dW for each GEMM.

        The few other operations per unit and step are not counted.
        """
        return (3 if self.train else 1) * (self.input_flops() + self.recurrent_flops())

    def input_bytes(self) -> int:
        """Bytes of w_ih and of all inputs and outputs: each is read or written at least once."""
        columns, P = self._directions(), self.proj or self.H
        weights = sum(GATES[self.cell] * self.H * c for c in columns)
        return (weights + self.tokens * sum(c + P for c in columns)) * DTYPES[self.dtype].itemsize

    def recurrent_bytes(self) -> int:
        """Bytes of one direction's w_hh (and w_hr), read at every step."""
        P = self.proj or self.H
        return (GATES[self.cell] * self.H * P + (self.H * P if self.proj else 0)) * DTYPES[self.dtype].itemsize

    def sweeps(self) -> int:
        """How often the recurrent weights of a direction are read: once per step in forward and once in backward."""
        return len(self._directions()) * self.T * (2 if self.train else 1)


# The goals: speeds relative to torch.nn that this project aims at, by shape T, N, I, H, layers.
SHAPES = {
    (16, 64, 64, 64, 2): "LMModel6, 7",
    (70, 64, 400, 1152, 1): "AWD-LSTM",
    (70, 20, 200, 200, 2): "",
    (35, 20, 650, 650, 2): "",
    (128, 32, 256, 256, 1): "",
    (64, 1, 512, 512, 1): "one sequence",
    (128, 128, 512, 512, 1): "",
    (1, 1, 256, 256, 1): "one step of one sequence",
}
MIDDLE = (32, 32, 256, 256, 1)  # a shape of medium size, for goals that do not depend on the shape
COLUMNS = [(cell, dtype, train) for dtype in ("fp32", "bf16") for cell in ("LSTM", "GRU") for train in (False, True)]
_GOALS = [
    (1.6, 1.5, 4, 3.5, 1.7, 1.5, 4.9, 4.2),
    (1.2, 1.25, 2.8, 2.8, 1.25, 1.9, 1.6, 1.6),
    (1.2, 1.2, 3.1, 2.9, 1.25, 1.3, 3.1, 3),
    (1.2, 1.35, 2.8, 2.9, 1.25, 2.5, 1.8, 1.8),
    (1.12, 1.45, 2.9, 2.8, 1.15, 1.5, 2.4, 2.1),
    (1.6, 1.5, 2.5, 3.5, 1.7, 3.4, 4.2, 6),
    (1.2, 1.4, 2.8, 2.7, 1.18, 1.6, 1.7, 1.5),
    (6, 3, 2, 1.4, 5, 2.5, 2.8, 1.5),
]


def goal(case: Case) -> float | None:
    """The speed relative to torch.nn that the project aims at for ``case``; None: only not to be slower."""
    if case.proj:
        return 2
    if case.bidirectional:
        case = replace(case, bidirectional=False)  # the same as in one direction
    sizes = (case.T, case.N, case.I, case.H, case.layers)
    if case.dtype in ("fp64", "fp16"):
        return {"fp64": 2, "fp16": 10}[case.dtype]
    if sizes not in SHAPES:
        return None
    key = (case.cell, case.dtype, case.train)
    return _GOALS[list(SHAPES).index(sizes)][COLUMNS.index(key)] if key in COLUMNS else None


def modules_for(case: Case) -> tuple[torch.nn.RNNBase, torch.nn.RNNBase]:
    """lstmkern's module and torch.nn's, with the same weights."""
    options: dict[str, Any] = {"bidirectional": case.bidirectional, "dtype": DTYPES[case.dtype]}
    if case.proj:
        options["proj_size"] = case.proj
    theirs = getattr(torch.nn, case.cell)(case.I, case.H, case.layers, **options)
    ours = getattr(modules, case.cell)(case.I, case.H, case.layers, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def step_of(module: torch.nn.RNNBase, x: Tensor, train: bool, **keywords: Tensor) -> Callable[[], object]:
    """A function that runs ``module`` on ``x`` [T, N, I] and, if ``train``, backward for x and every parameter."""
    if not train:

        def infer() -> object:
            with torch.no_grad():
                return module(x, **keywords)

        return infer
    x = x.detach().requires_grad_()
    wanted = [x, *module.parameters()]
    columns = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    grad = torch.randn(*x.shape[:2], columns).to(x.dtype)

    def train_step() -> object:
        return torch.autograd.grad(module(x, **keywords)[0], wanted, grad)

    return train_step


class Contest:
    """``case`` as two functions, ours() and theirs(), and a warm_up() with fewer steps, for Pairs."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        self.modules = modules_for(case)
        x = torch.randn(case.T, case.N, case.I).to(DTYPES[case.dtype])
        self.ours, self.theirs = (step_of(module, x, case.train) for module in self.modules)
        self._few = max(1, case.T // 8)
        self._short = [step_of(module, x[: self._few], case.train) for module in self.modules]

    def warm_up(self) -> tuple[float, float]:
        """Run both on an eighth of the steps, three times; returns the estimated seconds of a call of (ours, theirs).

        The estimate uses the fastest of the three: after an interrupted one, too few rounds would be measured.
        """

        def seconds(run: Callable[[], object]) -> float:
            start = now()
            run()
            return now() - start

        ours, theirs = (min(seconds(run) for _ in range(3)) * self.case.T / self._few for run in self._short)
        return ours, theirs
