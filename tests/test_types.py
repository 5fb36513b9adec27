"""A type checker understands lstmkern in another program."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import torch
import lstmkern
from torch.nn.utils.rnn import PackedSequence

class Tagger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = lstmkern.LSTM(4, 8, num_layers=2, bidirectional=True, dtype=torch.bfloat16, device="cpu")
        self.cell = lstmkern.RNNCell(4, 8, bias=False, nonlinearity="relu")

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        with lstmkern.recompute():
            output, _ = self.lstm.forward(x, lengths=lengths)
        return output

def types(x: torch.Tensor, packed: PackedSequence, either: bool) -> None:
    lstm, gru, rnn = lstmkern.LSTM(4, 8), lstmkern.GRU(4, 8), lstmkern.RNN(4, 8)
    reveal_type(lstm.forward(x))  # tuple[Tensor, tuple[Tensor, Tensor]]
    reveal_type(lstm.forward(packed, (x, x)))  # tuple[PackedSequence, tuple[Tensor, Tensor]]
    reveal_type(lstm.forward(x, return_cells=True))  # tuple[Tensor, tuple[Tensor, Tensor], Tensor]
    reveal_type(lstm.forward(packed, return_cells=True))  # tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence]
    reveal_type(lstm.forward(x, return_cells=either))  # tuple[Any, ...]
    reveal_type(gru.forward(x, lengths=x))  # tuple[Tensor, Tensor]
    reveal_type(rnn.forward(packed, x))  # tuple[PackedSequence, Tensor]
    reveal_type(lstmkern.LSTMCell(4, 8).forward(x))  # tuple[Tensor, Tensor]
    reveal_type(lstmkern.GRUCell(4, 8).forward(x))  # Tensor
    reveal_type(lstmkern.RNNCell(4, 8).forward(x, x))  # Tensor
    reveal_type(lstmkern.replace_modules(torch.nn.LSTM(4, 8)))  # Report
    reveal_type(lstmkern.functional.lstm(x, None, lstm.all_weights))  # tuple[Tensor, tuple[Tensor, Tensor]]
    lstmkern.functional.lstm(x, None, [], return_cells=True)[2].size()
    reveal_type(lstmkern.functional.lstm(x, None, [], return_cells=either))  # tuple[Any, ...]
    reveal_type(lstmkern.functional.gru(x, x, gru.all_weights, lengths=x))  # tuple[Tensor, Tensor]
    reveal_type(lstmkern.functional.rnn(x, x, [[x, x]], nonlinearity="relu"))  # tuple[Tensor, Tensor]
    reveal_type(lstmkern.__version__)  # str
"""

# What a checker must find, by the code of its error.
MISTAKES = """
import torch
import lstmkern

lstmkern.LSTM(4)  # call-arg
lstmkern.LSTM("4", 8)  # arg-type
lstmkern.GRU(4, 8, proj_size=2)  # call-arg
lstmkern.GRUCell(4, 8, nonlinearity="relu")  # call-arg
lstmkern.GRU(4, 8).forward(torch.ones(1), return_cells=True)  # call-overload
lstmkern.functional.gru(torch.ones(1), None, [], batchfirst=True)  # call-arg
lstmkern.replace_modules("model")  # arg-type
"""


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """check(program): what mypy --strict says of a program in an environment where lstmkern is installed."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("types")
    venv.create(folder / "venv")
    (site,) = folder.glob("venv/lib/python*/site-packages")
    (site / "lstmkern.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")

    def run(program):
        (folder / "program.py").write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(folder / "venv/bin/python")]
        command += ["--cache-dir", str(folder / "cache"), "program.py"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout

    return run


@pytest.mark.slow
def test_mistakes_in_a_program_are_found(check):
    said = check(MISTAKES)
    found = {int(line.split(":")[1]): line.rpartition("[")[2][:-1] for line in said.splitlines() if ": error: " in line}
    lines = MISTAKES.splitlines()
    expected = {number: line.partition("  # ")[2] for number, line in enumerate(lines, 1) if "  # " in line}
    assert found == expected, said


@pytest.mark.slow
def test_types_of_an_installed_package(check):
    said = check(PROGRAM)
    for module in ("torch._tensor.", "torch.nn.utils.rnn.", "lstmkern.convert.", "builtins."):
        said = said.replace(module, "")
    packed = "tuple[Tensor, Tensor, Tensor | None, Tensor | None, fallback=PackedSequence]"  # a named tuple
    said = said.replace(packed, "PackedSequence")
    lines = {int(line.split(":")[1]): line.partition(": note: ")[2] for line in said.splitlines() if ": note: " in line}
    assert "error" not in said, said
    for number, line in enumerate(PROGRAM.splitlines(), 1):
        if "reveal_type" in line:
            expected = line.partition("  # ")[2]
            assert lines[number] == f'Revealed type is "{expected}"', line
