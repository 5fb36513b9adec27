"""Do the simulator's tests notice faults? Applies one-line faults to copies of the kernels and runs a few quick layers.

    python tests/simt/mutations.py [part of a name]

Exit code 0 if the unchanged kernels pass and every fault is caught: wrong numbers, an error of the simulator, or a crash.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])

F, B, S, W = "cuda/stepwise_forward.cu", "cuda/stepwise_backward.cu", "cuda/steps.h", "cuda/gradients.cu"
# ruff: noqa: E501 (a table: one fault a line)
MUTATIONS = [  # name, file, line as it is, line with the fault
    ("dropped barrier", W, "  sync_block();", "  ;"),
    ("barrier for one warp", W, "  sync_block();", "  if (warp == 0) sync_block();"),
    ("swapped gates forward", F, "cells::lstm_forward(a[0][k], a[1][k], a[2][k]", "cells::lstm_forward(a[1][k], a[0][k], a[2][k]"),
    ("swapped gates backward", B, "dc[k], a[0][k], a[1][k], a[2][k], a[3][k]);", "dc[k], a[1][k], a[0][k], a[2][k], a[3][k]);"),
    ("swapped GRU planes", B, "dh[k], a[1][k], a[2][k], a[0][k], a[3][k]", "dh[k], a[2][k], a[1][k], a[0][k], a[3][k]"),
    ("short tail", S, "if (k < n) narrow(from[k], to[k]);", "if (k < n - 1) narrow(from[k], to[k]);"),
    ("long tail", S, "if (k < n) narrow(from[k], to[k]);", "if (k < n + 1) narrow(from[k], to[k]);"),
    ("tail read past the end", S, "k < n ? static_cast<C>(widen(from[k])) : C(0)", "k <= n ? static_cast<C>(widen(from[k])) : C(0)"),
    ("no check of alignment", S, "reinterpret_cast<uintptr_t>(from) % 16 == 0", "true"),
    ("wrong stride of planes", F, "load(a[g], x + g * p.H, n);", "load(a[g], x + g * p.Hp, n);"),
    ("wrong stride of saved gates", F, "store(saved + g * p.Hp, a[g], V);", "store(saved + g * p.H, a[g], V);"),
    ("wrong stride of the state", F, "p.h_gates + j * G * p.H + unit", "p.h_gates + j * p.H + unit"),
    ("bias not added", F, "add(a[g], b + g * p.H, n);", ";"),
    ("b_hh twice", F, "sum += widen(b_ih[at])", "sum += widen(b_hh[at])"),
    ("b_hn with the input's", F, "if (b_hh && !input_only)", "if (b_hh)"),
    ("cell state not kept", F, "store(c_state, c, n);", ";"),
    ("reset ignored for c", F, "clear_if(anew, c);", ";"),
    ("reset ignored for h", F, "clear_if(anew, h);", ";"),
    ("reset of the step at hand", F, "const bool anew = p.mask.anew(after, j);", "const bool anew = p.mask.anew(now, j);"),
    ("padding not masked", S, "(lengths == nullptr || m.t < lengths[j])", "(true)"),
    ("one step too long", S, "m.t < lengths[j])", "m.t <= lengths[j])"),
    ("output of padding not written", F, "store(p.output.at(now.place, j) + unit, zeros, n);", ";"),
    ("reverse direction from the front", S, "const int64_t t = d ? layer.T - 1 - s : s;", "const int64_t t = s;"),
    ("one sequence too few", S, "const int64_t tall = (rows + down - 1) / down;", "const int64_t tall = rows / down;"),
    ("one block too few across", S, "(groups + across - 1) / across", "groups / across"),
    ("gradient crosses a reset", B, "&& !mask.anew(step.after, j); }", "; }"),
    ("grad_h_n at every step", B, "if (grad_h_n && !mask.real(step.after, j))", "if (grad_h_n)"),
    ("grad_c_n lost", B, "if (p.grad_c_n && !mask.real(after, j))", "if (false)"),
    ("carry lost", B, "store(carried, dc, n);", ";"),
    ("direct part lost", B, "if (direct) add(dh, direct", "if (false) add(dh, direct"),
    ("dh of every step from h0", B, "mask.real(step.before, j) ? output.at", "false ? output.at"),
    ("h before a reset in dW_hh", B, "if (mask.anew(step.now, j)) n = 0;", ";"),
    ("padding in dW", B, "store(to + g * p.H, zeros, n);", ";"),
    ("padded input in dW", W, "      x = input;", "      ;"),
    ("second direction overwrites", W, "d > 0);", "false);"),
    ("bias sums skip a warp", W, "w < kSumWarps; ++w) total", "w < kSumWarps - 1; ++w) total"),
    ("bias sums skip a row", W, "row += kSumWarps)", "row += kSumWarps + 1)"),
    ("bias sums lose a chunk", W, "i < chunks; ++i) total", "i < chunks - (chunks > 1); ++i) total"),
    ("rows beyond the grid", S, "row < rows; row += stride)", "row < rows; row += rows)"),
    ("too much work per block", S, "const unsigned down = kThreads / across;", "const unsigned down = 16 * kThreads / across;"),
    ("derivative of the projection's output lost", B, "all.of(trace.d_output, now, P, P), w_hr", "all.of(trace.d_output, step_of(L, d, s - 1).now, P, P), w_hr"),
]  # fmt: skip

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["simt.mutation_check"])


def notice(library, answer):
    from simt import mutation_check

    mutation_check.run(str(library), answer)


def caught(mutation, folder):
    """(name, what noticed the fault or None)."""
    from simt import simulator

    name, file, line, fault = mutation
    csrc = Path(folder, name.replace(" ", "_"), "csrc")
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("cpu"))
    text = (csrc / file).read_text()
    if line is not None:
        if line not in text:
            return name, None, "the line is not there any more: " + line
        (csrc / file).write_text(text.replace(line, fault, 1))
    flags = ("-O0", "-g0", "-DLSTMKERN_ONLY_F32", "-Wno-error", "-w")
    library = simulator.build(csrc, ROOT / "build" / "simt-mutations", flags, jobs=1)
    answer = Path(folder, library.name + ".txt")
    process = SERVER.Process(target=notice, args=(library, str(answer)))
    process.start()
    process.join(120)
    library.unlink()
    if process.is_alive():
        process.kill()
        return name, "no end after two minutes", ""
    if not answer.exists():
        return name, f"crash, exit code {process.exitcode}", ""
    message = answer.read_text()
    return name, " ".join(message.split())[:110] or None, "not noticed"


def main():
    wanted = [m for m in MUTATIONS if len(sys.argv) < 2 or sys.argv[1] in m[0]]
    start, missed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        name, by, _ = caught(("no fault", F, None, None), folder)
        if by:
            print("the kernels fail without any fault:", by)
            return 1
        with ThreadPoolExecutor(int(os.environ.get("LSTMKERN_JOBS", os.cpu_count() or 1))) as pool:
            for name, by, why in pool.map(lambda m: caught(m, folder), wanted):
                print(f"{'caught' if by else 'MISSED':7} {name:45} {by or why}", flush=True)
                missed += not by
    shutil.rmtree(ROOT / "build" / "simt-mutations")
    print(f"{len(wanted) - missed} of {len(wanted)} faults caught in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
