"""Checks the installed kernels on this machine: gradcheck in fp64, and accuracy in fp32 relative to torch.nn's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lstmkern

from . import _extension

# Name in the table: class and arguments. Each is checked with one direction and with two.
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "LSTM projected": ("LSTM", {"proj_size": 2}),
    "GRU": ("GRU", {}),
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
}
EPS = torch.finfo(torch.float32).eps
SLACK = 16 * EPS  # an error may be twice torch.nn's plus this


@dataclass(frozen=True)
class Check:
    """The result for one kernel on one device, with one direction or two.

    An error is the largest over output, final states and all gradients, each relative to the largest entry of the same
    tensor of the fp64 reference.
    """

    device: str
    kernel: str
    directions: int
    gradcheck: bool
    error: float
    peer_error: float
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything passed."""
        return self.gradcheck and not self.failure


def devices() -> Iterator[str]:
    """The devices of this machine that the installed kernels run on."""
    yield "cpu"
    if torch.cuda.is_available() and _extension.build_info()["cuda"]:
        for index in range(torch.cuda.device_count()):
            yield f"cuda:{index}"


def verify() -> bool:
    """Check every kernel on every device, print a table, and return whether all passed."""
    with warnings.catch_warnings():
        # torch.nn warns about its own slow path, which is only compared with here.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        checks = [
            check_kernel(device, kernel, directions)
            for device in devices()
            for kernel in KERNELS
            for directions in (1, 2)
        ]
    print(
        "A check passes if gradcheck in fp64 passes and each fp32 error, relative to an fp64 reference,\n"
        f"is at most twice torch.nn's plus {SLACK / EPS:.0f} eps ({SLACK:.1e}).",
        _table(checks),
        sep="\n\n",
        end="\n\n",
    )
    failed = sum(not check.ok for check in checks)
    print(f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed")
    return not failed


def _table(checks: list[Check]) -> str:
    """One line for each of ``checks``, in columns."""
    rows = [("device", "kernel", "directions", "gradcheck", "fp32 error", "torch.nn's fp32 error", "result")]
    rows += [
        (
            check.device,
            check.kernel,
            str(check.directions),
            "ok" if check.gradcheck else "FAILED",
            f"{check.error:.1e}",
            f"{check.peer_error:.1e}",
            "ok" if check.ok else f"FAILED {check.failure}",
        )
        for check in checks
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = "<<><>><"
    lines = [
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, aligned, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def check_kernel(device: str, kernel: str, directions: int) -> Check:
    """Run both checks for ``kernel``, a key of KERNELS, on ``device``."""
    name, options = KERNELS[kernel]
    options = {**options, "bidirectional": directions == 2}
    try:
        gradients_right = _gradcheck(device, name, options)
        error, peer_error, failure = _parity(device, name, options)
    except Exception as problem:  # any error in a kernel is a line of the table
        failure = f"{type(problem).__name__}: {problem}".splitlines()[0]
        return Check(device, kernel, directions, False, float("nan"), float("nan"), failure)
    return Check(device, kernel, directions, gradients_right, error, peer_error, failure)


def _inputs(module: nn.RNNBase, T: int, N: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Input [T, N, I] and initial states h0 [L*D, N, P] (and c0 [L*D, N, H] for an LSTM), all requiring gradients.

    Values come from a fixed seed and are the same for every device and, up to rounding, dtype.
    """
    generator = torch.Generator().manual_seed(0)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    shapes = [(T, N, module.input_size), (rows, N, module.proj_size or module.hidden_size)]
    if module.mode == "LSTM":
        shapes.append((rows, N, module.hidden_size))
    values = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [value.to(device, dtype).requires_grad_() for value in values]


def _call(module: nn.RNNBase, parameters: Mapping[str, Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Output and final states of ``module`` with ``parameters`` instead of its own."""
    x, *state = inputs
    hx = tuple(state) if module.mode == "LSTM" else state[0]
    output, final = torch.func.functional_call(module, dict(parameters), (x, hx))
    return [output, *final] if isinstance(final, tuple) else [output, final]


def _gradcheck(device: str, name: str, options: dict[str, Any]) -> bool:
    torch.manual_seed(0)
    # Small, because each entry of each tensor costs two calls; odd, so that no vector width divides it.
    module = getattr(lstmkern, name)(2, 3, **options).to(device, torch.float64)
    parameters = {key: value.detach().requires_grad_() for key, value in module.named_parameters()}
    inputs = _inputs(module, 3, 3, device, torch.float64)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(parameters, tensors[len(inputs) :], strict=True))
        return tuple(_call(module, named, list(tensors[: len(inputs)])))

    return torch.autograd.gradcheck(function, (*inputs, *parameters.values()), raise_exception=False)


def _parity(device: str, name: str, options: dict[str, Any]) -> tuple[float, float, str]:
    """lstmkern's and torch.nn's errors in fp32, and the names of tensors whose error exceeds the bound."""
    torch.manual_seed(0)
    reference = getattr(nn, name)(19, 37, 2, **options).double()
    weights = reference.state_dict()
    expected = _results(reference, "cpu", torch.float64)
    measured = []
    for source in (lstmkern, nn):
        module = getattr(source, name)(19, 37, 2, **options)
        module.load_state_dict(weights)
        results = _results(module.to(device), device, torch.float32)
        measured.append(
            {
                key: ((results[key].double().cpu() - value).abs().max() / value.abs().max()).item()
                for key, value in expected.items()
            }
        )
    ours, peers = measured
    failure = ", ".join(key for key in expected if not ours[key] <= 2 * peers[key] + SLACK)
    return max(ours.values()), max(peers.values()), failure


def _results(module: nn.RNNBase, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs of a batch by name, and the gradients of a weighted sum of them with respect to inputs and weights."""
    inputs = _inputs(module, 21, 13, device, dtype)
    parameters = dict(module.named_parameters())
    outputs = _call(module, parameters, inputs)
    generator = torch.Generator().manual_seed(1)
    factors = (torch.randn(o.shape, generator=generator, dtype=torch.float64).to(device, dtype) for o in outputs)
    torch.stack([(o * f).sum() for o, f in zip(outputs, factors, strict=True)]).sum().backward()
    names = ("input", "h_0", "c_0")
    gradients: dict[str, Any] = {f"gradient of {key}": t.grad for key, t in zip(names, inputs, strict=False)}
    gradients |= {f"gradient of {key}": p.grad for key, p in parameters.items()}
    return {key: o.detach() for key, o in zip(("output", "h_n", "c_n"), outputs, strict=False)} | gradients
