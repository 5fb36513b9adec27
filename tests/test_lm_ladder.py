"""LMModel1 to LMModel5, LSTM cells in Python, and the ladder: each agrees with fastbook and with our kernels."""

import csv
from functools import partial

import pytest
import torch
from language import random_tokens, terminal, use_few_numbers
from torch import nn

import lstmkern
from lstmkern.command import main
from lstmkern.lm import LMModel1, LMModel2, LMModel3, LMModel4, LMModel5, climb
from lstmkern.lm.output import output_directory
from lstmkern.lm.train import Config, config_of

VOCAB, HIDDEN = 11, 16
tokens = partial(random_tokens, VOCAB)


def make(model, *args):
    torch.manual_seed(0)
    return model(VOCAB, HIDDEN, *args).double()


def test_the_loop_is_the_unrolled_model():
    one, two = make(LMModel1), make(LMModel2)
    x = tokens(5, 3)
    assert one(x).shape == (5, VOCAB)
    torch.testing.assert_close(two(x), one(x), rtol=0, atol=1e-14)


def test_the_state_is_kept_and_detached():
    two, three = make(LMModel2), make(LMModel3)
    x = tokens(4, 6)
    torch.testing.assert_close(three(x), two(x), rtol=0, atol=1e-14)  # from a zero state
    three.reset()
    three(x[:, :3])
    assert not three.state.requires_grad
    torch.testing.assert_close(three(x[:, 3:]), two(x), rtol=0, atol=1e-14)
    three.reset()
    assert three.state is None


def test_a_prediction_after_every_word():
    three, four = make(LMModel3), make(LMModel4)
    x = tokens(4, 6)
    logits = four(x)
    assert logits.shape == (4, 6, VOCAB)
    for t in range(6):
        three.reset()
        torch.testing.assert_close(logits[:, t], three(x[:, : t + 1]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("layers", [1, 2])
def test_lmmodel5_is_torch_rnn(layers):
    ours, theirs = make(LMModel5, layers), make(lambda *a: LMModel5(*a, rnn=nn.RNN), layers)
    assert type(ours.rnn) is lstmkern.RNN
    for x in (tokens(3, 7), tokens(3, 7)):  # the second call continues from the first
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


class LSTMCellOfFour(nn.Module):
    """fastbook's first LSTM cell: four Linear layers, one per gate, on the concatenation of h and the input."""

    def __init__(self, ni, nh):
        super().__init__()
        self.forget_gate = nn.Linear(ni + nh, nh)
        self.input_gate = nn.Linear(ni + nh, nh)
        self.cell_gate = nn.Linear(ni + nh, nh)
        self.output_gate = nn.Linear(ni + nh, nh)

    def forward(self, input, state):
        """input [N, ni], state (h, c) each [N, nh] -> (h, (h, c))."""
        h, c = state
        h = torch.cat([h, input], dim=1)
        c = c * torch.sigmoid(self.forget_gate(h))
        c = c + torch.sigmoid(self.input_gate(h)) * torch.tanh(self.cell_gate(h))
        h = torch.sigmoid(self.output_gate(h)) * torch.tanh(c)
        return h, (h, c)


class LSTMCellChunked(nn.Module):
    """fastbook's second LSTM cell: one matrix product for all gates, split in the order i, f, o, g."""

    def __init__(self, ni, nh):
        super().__init__()
        self.ih = nn.Linear(ni, 4 * nh)
        self.hh = nn.Linear(nh, 4 * nh)

    def forward(self, input, state):
        """input [N, ni], state (h, c) each [N, nh] -> (h, (h, c))."""
        h, c = state
        gates = (self.ih(input) + self.hh(h)).chunk(4, dim=1)
        i, f, o = map(torch.sigmoid, gates[:3])
        c = f * c + i * torch.tanh(gates[3])
        h = o * torch.tanh(c)
        return h, (h, c)


def kernel_of_four(cell):
    """Weights for our LSTM from LSTMCellOfFour: columns of h and x separated, gates in the order i, f, g, o."""
    gates = (cell.input_gate, cell.forget_gate, cell.cell_gate, cell.output_gate)
    nh = gates[0].out_features
    both = torch.cat([gate.weight for gate in gates])
    bias = torch.cat([gate.bias for gate in gates])
    return both[:, nh:], both[:, :nh], bias, torch.zeros_like(bias)


def kernel_of_chunked(cell):
    """Weights for our LSTM from LSTMCellChunked: gates in the order i, f, g, o instead of i, f, o, g."""

    def permuted(tensor):
        i, f, o, g = tensor.chunk(4)
        return torch.cat([i, f, g, o])

    return tuple(map(permuted, (cell.ih.weight, cell.hh.weight, cell.ih.bias, cell.hh.bias)))


@pytest.mark.parametrize(
    ("in_python", "weights_of"), [(LSTMCellOfFour, kernel_of_four), (LSTMCellChunked, kernel_of_chunked)]
)
def test_in_python_lstm_cells_are_our_kernel(in_python, weights_of):
    """The cell in Python, our cell and our layer, over several steps: equal results, and gradients of x, h and c."""
    N, T, ni, nh = 3, 5, 4, 6
    cell = in_python(ni, nh).double()
    layer, step = lstmkern.LSTM(ni, nh).double(), lstmkern.LSTMCell(ni, nh).double()
    with torch.no_grad():
        for name, weight in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights_of(cell), strict=True):
            getattr(layer, name + "_l0").copy_(weight)
            getattr(step, name).copy_(weight)
    x = torch.randn(T, N, ni, dtype=torch.double, requires_grad=True)
    h0, c0 = (torch.randn(N, nh, dtype=torch.double, requires_grad=True) for _ in "hc")

    def loop(advance):
        h, c, outputs = h0, c0, []
        for t in range(T):
            h, c = advance(x[t], (h, c))
            outputs.append(h)
        return torch.stack(outputs), c

    def kernel():
        output, (_, c) = layer(x, (h0.unsqueeze(0), c0.unsqueeze(0)))
        return output, c.squeeze(0)

    results = []
    for run in (lambda: loop(lambda x, state: cell(x, state)[1]), lambda: loop(step), kernel):
        output, c = run()
        weight = torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output)
        results.append((output, c, *torch.autograd.grad((output * weight).sum() + c.sum(), (x, h0, c0))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_learning_rates_and_epochs_of_the_book():
    recipes = {name: (c.lr, c.epochs, c.seq_len) for name in climb.EXPECTED for c in [config_of(name)]}
    assert recipes == {
        "lm1": (1e-3, 4, 3),
        "lm2": (1e-3, 4, 3),
        "lm3": (3e-3, 10, 3),
        "lm4": (3e-3, 15, 16),
        "lm5": (3e-3, 15, 16),
        "lm6": (1e-2, 15, 16),
        "lm7": (1e-2, 15, 16),
    }
    assert config_of("lm7") == Config()


@pytest.mark.slow
def test_the_ladder_reaches_the_accuracy_of_the_book(tmp_path, monkeypatch, capsys):
    """The command with two models: accuracy near fastbook's, a table, a CSV file and a plot."""
    monkeypatch.setattr(climb, "EXPECTED", {name: climb.EXPECTED[name] for name in ("lm2", "lm3")})
    assert main(["ladder", "--out", str(tmp_path / "out"), "--threads", "1"]) == 0
    with open(tmp_path / "out" / "ladder.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["LMModel2", "LMModel3"]
    for row in rows:
        assert float(row["accuracy"]) > float(row["book"]) - 0.1, row
    assert {row["parameters"] for row in rows} == {str(30 * 64 + 64 * 64 + 64 + 64 * 30 + 30)}
    assert (tmp_path / "out" / "ladder.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert all(row["accuracy"] in out for row in rows)


def test_the_ladder_shows_the_median_and_a_bar(here, monkeypatch):
    use_few_numbers(monkeypatch)
    monkeypatch.setattr(climb, "EXPECTED", {"lm1": 0.49, "lm4": 0.64})
    console, seen, real = terminal(), [], climb.fit
    monkeypatch.setattr(climb, "fit", lambda *args: seen.append(console.file.getvalue()) or real(*args))
    with output_directory(None, "ladder") as output:
        out = climb.climb(console, range(3), output.make)
    assert "LMModel1, seed 0" in seen[0] and "LMModel4, seed 2" in seen[-1] and len(seen) == 6
    text = console.file.getvalue()
    assert "median of seeds 0 to 2" in text
    assert "book: fastbook chapter 12\n" in "\n".join(map(str.strip, text.splitlines())) + "\n"  # on one line
    head, *rows = [line.split(",") for line in (out / "ladder.csv").read_text().splitlines()]
    for row in rows:
        row = dict(zip(head, row, strict=True))
        assert row["seeds"] == "3"
        assert float(row["lowest"]) <= float(row["accuracy"]) <= float(row["highest"])
    assert sorted(path.name for path in out.iterdir()) == ["ladder.csv", "ladder.png"]


def test_the_ladder_names_the_models_below_the_book():
    """The note says which models, by how much, and that accuracy depends on the seed."""

    class Result:
        def __init__(self, accuracy):
            self.accuracy = accuracy

    class Done:
        def __init__(self, model, accuracy):
            self.config, self.history = config_of(model), [Result(accuracy)]

    note = climb._below_the_book([[Done("lm4", 0.63)], [Done("lm6", 0.60)], [Done("lm7", 0.80)]])
    assert note.startswith("Below fastbook: LMModel6 by 0.12, LMModel7 by 0.03. Accuracy depends on the seed")
    assert "--seeds 5" in note
    note = climb._below_the_book([[Done("lm6", accuracy) for accuracy in (0.60, 0.65, 0.90)]])
    assert note.startswith("Below fastbook: LMModel6 by 0.07. ") and "lowest and highest" in note
    assert climb._below_the_book([[Done("lm6", 0.71)], [Done("lm1", 0.49)]]) == ""
