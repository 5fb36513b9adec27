"""The plots: what they show, what their labels and titles say, and that nothing covers anything else."""

import errno
import json
import math
from pathlib import Path

import pytest
import torch

import lstmkern
from lstmkern.lm import climb, report
from lstmkern.lm.dataset import load_dataset
from lstmkern.lm.train import OURS, PEER, EpochResult, Run, config_of, fit

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from benchmarks import bench_small, growth, growth_plots, small_plots  # noqa: E402
from benchmarks.gpu import plot as gpu_plot  # noqa: E402
from lstmkern import pictures  # noqa: E402

RESULTS = Path(lstmkern.__file__).parent.parent / "benchmarks" / "results"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that a test saves; no files are written."""
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))
    return figures


def runs_of(model, epochs, kernels=(OURS, PEER), apart=0.0):
    """Runs with an invented history; the second kernels' values differ from the first's by ``apart``."""
    runs = [Run(config_of(model), 30, 10, name) for name in kernels]
    for k, run in enumerate(runs):
        values = [0.5 + 2 * 0.8**epoch + k * apart for epoch in range(epochs)]
        run.history[:] = [EpochResult(e, v, v - 0.1, 1 / (1 + v), 1.0, 1.0, 1e3) for e, v in enumerate(values)]
    return runs


def ticks(axis):
    """(position, text) of the labelled ticks within the limits of ``axis``."""
    low, high = sorted(axis.get_view_interval())
    labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [(at, label.get_text()) for at, label in labels if low <= at <= high and label.get_text()]


def legends(figure):
    return [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]


def check_layout(figure: Figure):
    """No legend covers lines, no label overlaps another or is cut off, and numbers have no exponents."""
    figure.draw_without_rendering()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert legends(figure)
    for legend in legends(figure):
        assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
        assert not any(legend.get_window_extent().overlaps(text.get_window_extent()) for text in figure.texts)
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    assert min(drawn.x0, drawn.y0) > -0.02 and drawn.x1 < page.x1 + 0.02 and drawn.y1 < page.y1 + 0.02
    for axes in figure.axes:
        assert axes.get_ylabel() and any(a.get_xlabel() for a in axes.get_shared_x_axes().get_siblings(axes))
        for axis in (axes.xaxis, axes.yaxis):
            if axis is axes.xaxis and not axes.get_xlabel():
                continue  # the plot below has them
            shown = ticks(axis)
            assert len(shown) >= (1 if axes.get_xlabel() == "epochs trained" else 2)
            assert not any("^" in text or "×" in text for _, text in shown)
            texts = {text for _, text in shown}
            places = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text() in texts]
            assert not any(a.overlaps(b) for a, b in zip(places, places[1:], strict=False))


def luminance(colour):
    """Relative luminance as WCAG defines it."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def check_both_visible(under, over):
    """Of two lines that coincide, the upper one is thinner or dashed, has another lightness, and smaller markers."""
    assert over.get_zorder() >= under.get_zorder()
    assert over.get_linestyle() == "--" and under.get_linestyle() == "-"
    assert over.get_linewidth() < under.get_linewidth()
    assert over.get_markersize() < under.get_markersize() and over.get_marker() != under.get_marker()
    light, dark = sorted((luminance(over.get_color()), luminance(under.get_color())), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 3


def test_one_real_epoch_is_visible(drawn):
    config = config_of("lm7", epochs=1, hidden=8)
    data = load_dataset(config)
    runs = [Run(config, len(data.vocab), data.train.steps(1), kernels) for kernels in (OURS, PEER)]
    fit(runs, data.train, data.valid)
    report.write_plot("metrics.png", runs)
    (figure,) = drawn
    check_layout(figure)
    loss, accuracy = figure.axes
    assert [line.get_xydata().tolist() for line in loss.get_lines()] == [
        [[1, value]] for run in runs for value in (run.history[0].train_loss, run.history[0].valid_loss)
    ]
    assert [line.get_ydata()[0] for line in accuracy.get_lines()] == [run.history[0].accuracy for run in runs]
    for axes in figure.axes:
        assert ticks(axes.xaxis) == [(1, "1")]
        for line in axes.get_lines():
            assert line.get_marker() not in ("", "None") and line.get_markersize() >= 4
            (x, y), low, high = line.get_xydata()[0], *axes.viewLim.get_points()
            assert low[0] < x < high[0] and low[1] < y < high[1]


@pytest.mark.parametrize("epochs", [2, 15, 40, 1000])
def test_epochs_are_whole_and_begin_with_1(drawn, epochs):
    report.write_plot("metrics.png", runs_of("lm2", epochs, [OURS]))
    check_layout(drawn[0])
    for axes in drawn[0].axes:
        assert [line.get_xdata()[[0, -1]].tolist() for line in axes.get_lines()] == [[1, epochs]] * len(axes.lines)
        places = [at for at, _ in ticks(axes.xaxis)]
        assert places[0] == 1 and all(at == int(at) for at in places)
        assert [text for _, text in ticks(axes.xaxis)] == [str(int(at)) for at in places]
        assert places == list(range(1, 16))[:epochs] if epochs <= 15 else 5 <= len(places) <= 9


def test_lines_that_coincide_are_both_visible(drawn):
    report.write_plot("metrics.png", runs_of("lm7", 15))
    check_layout(drawn[0])
    loss, accuracy = (axes.get_lines() for axes in drawn[0].axes)
    check_both_visible(loss[0], loss[2])
    check_both_visible(loss[1], loss[3])
    check_both_visible(*accuracy)
    (legend,) = drawn[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [f"{what}, {who}" for who in (OURS, PEER) for what in ("training", "validation")]
    assert [line.get_label() for line in accuracy] == texts[1::2]
    assert [line.get_color() for line in accuracy] == [line.get_color() for line in loss[1::2]]


def test_a_history_without_finite_losses_can_be_drawn(tmp_path):
    runs = runs_of("lm2", 3, [OURS])
    runs[0].history[:] = [EpochResult(e, math.nan, math.inf, 0.1, 1.0, 1.0, 1.0) for e in range(3)]
    report.write_plot(tmp_path / "metrics.png", runs)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.png"]
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")


TITLES = {
    "lm1": "lm1: recurrence written in Python, 64 units",
    "lm4": "lm4: recurrence written in Python, 64 units",
    "lm5": "lm5: 2 RNN layers of 64 units",
    "lm6": "lm6-lstm: 2 LSTM layers of 64 units",
    "lm7": "lm7-lstm: 2 LSTM layers of 64 units",
    "char-loop": "char-loop: recurrence written in Python, 256 units",
    "char-rnn": "char-rnn: 1 RNN layer of 256 units",
    "char-gru-cell": "char-gru-cell: recurrence written in Python, 256 units",
    "char-gru": "char-gru: 1 GRU layer of 256 units",
    "char-lstm": "char-lstm: 2 LSTM layers of 256 units",
    "awd-lstm": "awd-lstm: 3 LSTM layers of 192, 192, 96 units",
}


@pytest.mark.parametrize("model", TITLES)
def test_titles_tell_the_layers(drawn, model):
    runs = runs_of(model, 2)
    report.write_plot("metrics.png", runs)
    first, second = drawn[0]._suptitle.get_text().splitlines()
    assert first == TITLES[model] + ", seed 0"
    config = runs[0].config
    assert f"{config.batch_size} x {config.seq_len} tokens" in second and torch.__version__ in second
    check_layout(drawn[0])


def test_titles_name_the_configuration(drawn):
    run = Run(config_of("lm7", cell="gru", layers=3, hidden=16, seed=5), 30, 10)
    report.write_plot("metrics.png", [run])
    assert drawn[0]._suptitle.get_text().startswith("lm7-gru: 3 GRU layers of 16 units, seed 5\n")


def test_ladder(drawn):
    """All models and their accuracy in fastbook. LMModel1 and LMModel2, which compute the same, are both visible."""
    runs = [run for model in climb.EXPECTED for run in runs_of(model, config_of(model).epochs, [OURS])]
    climb._plot(Path("ladder.png"), runs)
    (figure,) = drawn
    check_layout(figure)
    (axes,) = figure.axes
    assert [at for at, _ in ticks(axes.xaxis)] == list(range(1, 16))
    lines, books = axes.get_lines()[::2], axes.get_lines()[1::2]
    for line, book, run in zip(lines, books, runs, strict=True):
        expected = climb.EXPECTED[run.config.model]
        assert book.get_xydata().tolist() == [[run.epoch, expected]]
        assert (book.get_marker(), book.get_color()) == (line.get_marker(), line.get_color())
        assert book.get_fillstyle() == "none" and book.get_markersize() > line.get_markersize()
        assert (
            line.get_label() == f"LMModel{run.config.model[2:]}: {run.history[-1].accuracy:.2f} (book {expected:.2f})"
        )
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 7
    assert [line.get_linestyle() for line in lines[:2]] == ["-", "--"]


def test_ladder_of_several_seeds(drawn):
    """Each run is the median of its model; the medians may have different seeds."""
    runs = [Run(config_of("lm1", seed=seed), 30, 10) for seed in (3, 4)]
    for run in runs:
        run.history[:] = runs_of("lm1", 2)[0].history
    for chosen in (runs[:1], runs):
        climb._plot(Path("ladder.png"), chosen)
    titles = [figure.axes[0].get_title() for figure in drawn]
    assert titles[0].endswith("64 hidden units, seed 3") and titles[1].endswith("each run the median of its seeds")


def test_ladder_of_one_epoch(drawn):
    climb._plot(Path("ladder.png"), runs_of("lm1", 1, [OURS]))
    check_layout(drawn[0])
    assert ticks(drawn[0].axes[0].xaxis) == [(1, "1")]


@pytest.fixture(scope="module")
def committed():
    return json.loads((RESULTS / "growth.json").read_text())


def test_growth_says_what_is_fixed(committed):
    figures = growth_plots.figures(committed["cases"], committed)
    assert list(figures) == ["growth-time.png", "growth-memory.png"]
    for figure in figures.values():
        check_layout(figure)
        title = figure._suptitle.get_text()
        for part in ("one layer, fp32", committed["machine"]["cpu"], committed["versions"]["torch"]):
            assert part in title
        assert committed["commit"][:9] in title
    for (name, figure), threads in zip(figures.items(), ("2 threads", "1 thread"), strict=True):  # memory.THREADS
        rows = [axes.get_xlabel() for axes in figure.axes][:: 3 if name == "growth-time.png" else 2]
        assert rows[:3] == [
            f"T, time steps (N 16, I = H = 128, {threads})",
            f"N, batch size (T 32, I = H = 256, {threads})",
            f"H = I, units (T 16, N 16, {threads})",
        ]
        assert rows[3:] == (["threads (T 64, N 32, I = H = 256)"] if name == "growth-time.png" else [])


def test_growth_draws_the_file_s_numbers(committed):
    figure = growth_plots.figures(committed["cases"], committed)["growth-time.png"]
    time, ratio, share = figure.axes[6:9]  # the results for H
    assert [text for _, text in ticks(time.xaxis)] == ["32", "64", "128", "256", "512", "1024", "2048"]
    assert {"1", "10", "100", "1,000"} <= {text for _, text in ticks(time.yaxis)}
    assert {"20%", "100%"} <= {text for _, text in ticks(share.yaxis)}
    (case,) = (
        c for c in committed["cases"] if (c["size"], c["value"], c["cell"], c["train"]) == ("H", 128, "GRU", True)
    )
    for axes, label, value in (
        (time, "GRU, lstmkern", case["ours_ms"] * 1e3 / (16 * 16)),
        (time, "GRU, torch.nn", case["peer_ms"] * 1e3 / (16 * 16)),
        (ratio, "GRU, training", case["ratio"]),
        (share, "GRU, training", case["share"]),
    ):
        (line,) = (line for line in axes.get_lines() if line.get_label() == label)
        assert line.get_ydata()[2] == pytest.approx(value)


def test_growth_lines_that_coincide_are_visible(committed):
    figure = growth_plots.figures(committed["cases"], committed)["growth-memory.png"]
    ours, theirs = figure.axes[0].get_lines()[:2], figure.axes[0].get_lines()[2:]
    for lstm, gru in (ours, theirs):
        assert gru.get_linewidth() < lstm.get_linewidth() and gru.get_marker() != lstm.get_marker()
    assert [line.get_fillstyle() for line in (*ours, *theirs)] == ["full", "full", "none", "none"]
    assert [line.get_linestyle() for line in (*ours, *theirs)] == ["-", "-", "--", "--"]
    # The dashes of one are where the other has gaps.
    (start, on_off), (other_start, other_on_off) = (growth_plots.DASHES[cell] for cell in ("LSTM", "GRU"))
    assert on_off == other_on_off and (other_start - start) % sum(on_off) == on_off[0]


def test_growth_redraws_from_its_file(tmp_path, committed):
    """The command measures nothing and does not change the file; without memory results it draws one plot less."""
    path = tmp_path / "growth.json"
    for without in (["memory"], []):
        cases = [{key: value for key, value in c.items() if key not in without} for c in committed["cases"]]
        path.write_text(json.dumps({**committed, "cases": cases}))
        before = path.read_bytes()
        assert growth.main(["--redraw", "--out", str(tmp_path)]) == 0
        assert path.read_bytes() == before
        names = {"growth.json", "growth-time.png"} | ({"growth-memory.png"} if not without else set())
        assert {p.name for p in tmp_path.iterdir()} == names


def test_growth_of_few_values(committed):
    """A short run, --most 16, with one to three values for every size."""
    few = [c for c in committed["cases"] if c["value"] <= 16 or c["value"] == 32 and c["size"] == "H"]
    for figure in growth_plots.figures(few, committed).values():
        figure.draw_without_rendering()
        assert all(line.get_marker() in ("o", "s") for axes in figure.axes for line in axes.get_lines()[:4])


@pytest.fixture(scope="module")
def small():
    return json.loads((RESULTS / "bench_small.json").read_text())


def test_small_networks_draw_the_file_s_numbers(small):
    sizes, threads = (draw(small["cases"], small) for draw in small_plots.PICTURES.values())
    for figure in (sizes, threads):
        check_layout(figure)
        assert small["machine"]["cpu"] in figure._suptitle.get_text() and "fp32" in figure._suptitle.get_text()
    wanted = {"part": "sizes", "cell": "GRU", "shape": "100,8,32,32,1", "train": True, "peer": "JAX"}
    (case,) = (c for c in small["cases"] if all(c[k] == v for k, v in wanted.items()))
    (axes,) = (a for a in sizes.axes if a.get_title() == "GRU, training")
    assert [text for _, text in ticks(axes.xaxis)] == ["8", "16", "32", "64", "128"]
    lines = {line.get_label(): dict(line.get_xydata()) for line in axes.get_lines()}
    assert lines["JAX"][32] == pytest.approx(1e3 * case["peer_ms"])
    mine = [c["ours_ms"] for c in small["cases"] if all(c[k] == v for k, v in wanted.items() if k != "peer")]
    assert 1e3 * min(mine) <= lines["lstmkern"][32] <= 1e3 * max(mine)
    (axes,) = (a for a in threads.axes if a.get_title() == "GRU 200,2,64,64, inference")
    assert [text for _, text in ticks(axes.xaxis)] == ["1", "2", "16"]
    named = {**wanted, "part": "busy", "shape": "200,2,64,64,1", "train": False, "peer": "torch.nn"}
    (case,) = (c for c in small["cases"] if all(c[k] == v for k, v in named.items()))
    busy = [line for line in axes.get_lines() if line.get_label() == "_busy"]
    assert [case["threads"], case["peer_ms"]] in [
        line.get_xydata().tolist()[0] for line in busy if len(line.get_xdata())
    ]


def test_small_network_looks_differ(small):
    """Every library has the same look in every panel, and differs from the others in colour and marker."""
    (figure, _) = (draw(small["cases"], small) for draw in small_plots.PICTURES.values())
    looks = {}
    for line in (line for axes in figure.axes for line in axes.get_lines()):
        looks.setdefault(line.get_label(), set()).add((line.get_color(), line.get_marker(), line.get_linestyle()))
    assert set(looks) <= set(small_plots.LIBRARIES) and "lstmkern" in looks
    assert all(len(found) == 1 for found in looks.values())
    every = [found.pop() for found in looks.values()]
    assert len({colour for colour, *_ in every}) == len({marker for _, marker, _ in every}) == len(every)


def test_small_networks_redraw_from_their_file(tmp_path, small):
    path = tmp_path / "bench_small.json"
    path.write_text(json.dumps({**small, "cases": [c for c in small["cases"] if c["part"] == "sizes"]}))
    before = path.read_bytes()
    assert bench_small.main(["--redraw", "--out", str(tmp_path)]) == 0
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"bench_small.json", "small-sizes.png"}


def test_gpu_results():
    """One plot for each dtype that has results; an implementation has the same marker in all of them."""
    work = {"cell": "LSTM", "T": 64, "N": 8, "directions": 1, "layers": 1, "packed": False}
    found = [
        {"kind": "bench", "taken": True, "backward": True, "tier": tier, "us_per_step": {"cudnn": us, "ours": us / 2}}
        | {"work": {**work, "dtype": dtype, "I": H, "H": H}}
        for dtype, tiers in (("bf16", ("stepwise", "grid")), ("fp32", ("grid",)))
        for tier in tiers
        for H, us in ((128, 3.0), (1024, 250.0))
    ]
    header = {"kind": "header", "facts": {"name": "a GPU"}, "torch": "2.11", "python": "3.12", "commit": "abc"}
    header |= {"extension": {"cuda": "13.0", "cuda_archs": []}, "sources": {"all": "def"}}
    figure = gpu_plot.figure_of([header, *found])
    check_layout(figure)
    assert "a GPU" in figure._suptitle.get_text() and "commit abc" in figure._suptitle.get_text()
    assert [axes.get_ylabel().split(",")[0] for axes in figure.axes] == ["bf16", "fp32"]
    assert [text for _, text in ticks(figure.axes[1].xaxis)] == ["64,8,128,128", "64,8,1024,1024"]
    looks = [[(line.get_label(), line.get_marker(), line.get_color()) for line in axes.lines] for axes in figure.axes]
    assert looks[0] == looks[1] and len({marker for _, marker, _ in looks[0]}) == 3
    points = {line.get_label(): list(line.get_ydata()) for line in figure.axes[1].lines}
    assert points == {"cudnn": [3.0, 250.0], "stepwise": [], "grid": [1.5, 125.0]}
    assert gpu_plot.figure_of([header]).axes == []


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.15, 60, ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]),
        (9, 29, ["10", "20"]),
        (3, 16, ["3", "5", "7", "10"]),
        (900, 3e6, ["1,000", "10,000", "100,000", "1,000,000"]),
        (11, 13, ["11", "12", "13"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(low, high, labels):
    axes = Figure().subplots()
    axes.plot([1, 2], [low, high])
    pictures.plain_log(axes)
    found = [text for _, text in ticks(axes.yaxis)]
    assert set(labels) <= set(found) and not any("^" in text or "e" in text for text in found)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    class Broken(Figure):
        def savefig(self, *args, **kwargs):
            raise OSError(errno.ENOSPC, "full disk")

    with pytest.raises(OSError, match="full disk"):
        pictures.save(Broken(), path)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["a.png"]
