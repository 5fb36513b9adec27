"""The tables of small networks in README.md and docs/, from bench_small.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lstmkern.bench import report

CELLS = ("LSTM", "GRU", "RNN")
MODES = ((False, "inference"), (True, "training"))
COLUMNS = [(cell, train, f"{cell} {mode}") for cell in CELLS for train, mode in MODES]
MOST = 64  # hidden units of a small network
GOALS = {"LSTM": 1.8, "GRU": 8, "RNN": 7}  # speed relative to torch.nn that the project aims at for them, one thread


def hidden(case: dict) -> int:
    """H of "T,N,I,H,layers"."""
    return int(case["shape"].split(",")[3])


def chosen(cases: Sequence[dict], **fields: object) -> list[dict]:
    """The lines with these fields."""
    return [c for c in cases if all(c[key] == value for key, value in fields.items())]


def peers(cases: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(c["peer"] for c in cases))


def spread(cases: Sequence[dict]) -> str:
    """ "2.1 (1.4)": the median of the ratios, and the least."""
    ratios = [c["ratio"] for c in cases]
    return f"{report.number(statistics.median(ratios))} ({report.number(min(ratios))})" if ratios else "-"


def summary(about: dict) -> str:
    """One line per peer: the ratios over all T, N and H up to MOST, on one thread."""
    small = [c for c in chosen(about["cases"], part="sizes") if hidden(c) <= MOST]
    rows = [
        [peer, *(spread(chosen(small, peer=peer, cell=cell, train=train)) for cell, train, _ in COLUMNS)]
        for peer in peers(small)
    ]
    return (
        report.markdown([f"{about['machine']['cpu']}, relative to", *(name for *_, name in COLUMNS)], rows)
        if rows
        else ""
    )


def sizes(about: dict) -> str:
    """The machine, and the ratios to torch.nn for each H, over all T and N, with the cases that reach the goal."""
    found = chosen(about["cases"], part="sizes", peer="torch.nn")
    columns, rows = sorted({hidden(c) for c in found}), []
    for cell, train, name in COLUMNS:
        mine = chosen(found, cell=cell, train=train)
        small = [c["ratio"] for c in mine if hidden(c) <= MOST]
        reached = f"{sum(ratio >= GOALS[cell] for ratio in small)} of {len(small)}"
        beyond = str(sum(at_floor(c) < GOALS[cell] for c in mine if hidden(c) <= MOST))
        rows.append(
            [name, *(spread([c for c in mine if hidden(c) == H]) for H in columns), f"{GOALS[cell]:g}", reached, beyond]
        )
    head = ["", *(f"H {H}" for H in columns), "goal", f"reached, H up to {MOST}", "beyond the machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["peers"].items() if version)
    line = f"{report.machine_line(about)}; {versions or 'no other peers'}."
    others = [
        f"{part} at {run['commit'][:9]}"
        for part, run in about["parts"].items()
        if run["commit"][:9] != about["commit"][:9]
    ]
    line += f" Measured at another commit: {', '.join(others)}." if others else ""
    return f"{line}\n\n{report.markdown(head, rows)}" if found else line


def at_floor(case: dict) -> float:
    """The ratio of a layer that takes the least time that the machine allows."""
    return case["peer_ms"] / case["floor_ms"]


def missed(about: dict) -> str:
    """The cases that do not reach the goal, with the ratio at the floor."""
    rows = [
        [
            f"{c['cell']} {c['shape'].rsplit(',', 1)[0]}",
            dict(MODES)[c["train"]],
            report.number(1e3 * c["ours_ms"]),
            report.number(1e3 * c["floor_ms"]),
            report.number(c["ratio"]),
            report.number(at_floor(c)),
            f"{GOALS[c['cell']]:g}",
        ]
        for c in chosen(about["cases"], part="sizes", peer="torch.nn")
        if hidden(c) <= MOST and c["ratio"] < GOALS[c["cell"]]
    ]
    head = ["T,N,I,H", "", "lstmkern, us", "floor, us", "ratio", "ratio at the floor", "goal"]
    return report.markdown(head, rows) if rows else "Every case reaches its goal."


def compared(mine: Sequence[dict], names: Sequence[str]) -> str:
    """ "0.221 ms: 1.8, 1.3, -": our time, and the ratio to each of the peers ``names``."""
    if not mine:
        return "-"
    ratios = {c["peer"]: report.number(c["ratio"]) for c in mine}
    return f"{report.number(statistics.median(c['ours_ms'] for c in mine))} ms: " + ", ".join(
        ratios.get(name, "-") for name in names
    )


def threads(about: dict) -> str:
    """Our time and the ratios for each number of threads, and on the busy machine with the slowdown."""
    found = [c for c in about["cases"] if c["part"] in ("threads", "busy")]
    names = [peer for peer in peers(found) if peer != "compiled cell"]
    columns = list(dict.fromkeys((c["part"], c["threads"]) for c in found))
    rows = []
    for cell, shape, train in dict.fromkeys((c["cell"], c["shape"], c["train"]) for c in found):
        mine = chosen(found, cell=cell, shape=shape, train=train)
        row = [f"{cell} {shape.rsplit(',', 1)[0]}, {dict(MODES)[train]}"]
        for part, count in columns:
            here = chosen(mine, part=part, threads=count)
            slow = [c["ours_slowdown"] for c in here if "ours_slowdown" in c]
            row.append(compared(here, names) + (f"; slowed {statistics.median(slow):.1f} times" if slow else ""))
        rows.append(row)
    titles = [f"{n} thread{'s' if n > 1 else ''}{', busy' if part == 'busy' else ''}" for part, n in columns]
    head = [f"T,N,I,H; lstmkern: relative to {', '.join(names)}", *titles]
    return report.markdown(head, rows) if rows else ""


def calls(about: dict) -> str:
    """One step of one sequence: our time in microseconds, and the ratios."""
    found = chosen(about["cases"], part="calls")
    names, rows = peers(found), []
    for module, cell, shape, train in dict.fromkeys((c["module"], c["cell"], c["shape"], c["train"]) for c in found):
        mine = chosen(found, module=module, cell=cell, shape=shape, train=train)
        ratios = {c["peer"]: report.number(c["ratio"]) for c in mine}
        ours = statistics.median(c["ours_ms"] for c in mine)
        what = f"{cell}{'Cell' if module == 'cell' else ''}, H {hidden(mine[0])}, {dict(MODES)[train]}"
        rows.append([what, report.number(1e3 * ours), *(ratios.get(name, "-") for name in names)])
    return report.markdown(["T = N = 1", "lstmkern, us", *names], rows) if rows else ""


def losses(about: dict) -> str:
    """Every comparison in which lstmkern is slower."""
    cases = about["cases"]
    slower = sorted((c for c in cases if c["ratio"] < 1), key=lambda c: c["ratio"])
    text = f"lstmkern is slower in {len(slower)} of {len(cases)} comparisons"
    if not slower:
        return text + "."
    rows = [
        [
            f"{c['cell']}{'Cell' if c['module'] == 'cell' else ''} {c['shape'].rsplit(',', 1)[0]}",
            dict(MODES)[c["train"]],
            str(c["threads"]) + (", busy" if c["part"] == "busy" else ""),
            c["peer"],
            report.number(c["ratio"]),
        ]
        for c in slower
    ]
    return f"{text}:\n\n{report.markdown(['T,N,I,H', '', 'threads', 'peer', 'ratio'], rows)}"
