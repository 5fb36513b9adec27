"""What a type checker knows of lstmkern in somebody else's program."""

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
    reveal_type(lstmkern.__version__)  # str
"""


@pytest.mark.slow
def test_types_of_an_installed_package(tmp_path):
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv")
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    (site / "lstmkern.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--python-executable", str(tmp_path / "venv/bin/python")]
    command += ["--cache-dir", str(tmp_path / "cache"), "program.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
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
