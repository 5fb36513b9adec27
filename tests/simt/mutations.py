"""Checks that the simulator's tests notice faults: puts one-line faults into copies of the kernels and runs a few small
layers.

    python tests/simt/mutations.py [parts of tiers' and faults' names ...]

Exit code 0 if the unchanged kernels pass and every fault is noticed: by wrong numbers, an error of the simulator, or a
crash.

Two kinds of faults are not in the list, because a simulation on a CPU cannot show them: a missing sync_warp before a
matrix product (which only reconverges the lanes), and 32-bit offsets other than those of Rows::at (they need arrays of
more than 2^31 elements).
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

F, B, S, W = "cuda/stepwise_forward.cu", "cuda/stepwise_backward.cu", "cuda/steps.h", "cuda/gradients.cu"
C, G, R, IN = "cuda/cluster.cu", "cuda/grid.cu", "cuda/resident.h", "cuda/inputs.cu"
RL, RP, FR = "cuda/resident_loop.h", "cuda/resident_pass.h", "cuda/fragments.h"
RF, RB = "cuda/resident_forward.h", "cuda/resident_backward.h"
# ruff: noqa: E501 (a table: one fault a line)
MUTATIONS = [  # name, file, line, line with the fault; "bf16": the fault needs the bf16 kernels
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
    ("b_hh twice", IN, "sum += widen(b_ih[at])", "sum += widen(b_hh[at])"),
    ("b_hn with the input's", IN, "if (b_hh && !input_only)", "if (b_hh)"),
    ("cell state not kept", F, "store(c_state, c, n);", ";"),
    ("reset ignored for c", F, "clear_if(reset, c);", ";"),
    ("reset ignored for h", F, "clear_if(reset, h);", ";"),
    ("reset of the current step", F, "const bool reset = p.mask.is_reset(after, j);", "const bool reset = p.mask.is_reset(now, j);"),
    ("padding not masked", S, "(lengths == nullptr || m.t < lengths[j])", "(true)"),
    ("one step too long", S, "m.t < lengths[j])", "m.t <= lengths[j])"),
    ("output of padding not written", F, "store(p.output.at(now.place, j) + unit, zeros, n);", ";"),
    ("reverse direction from the front", S, "const int64_t t = d ? layer.T - 1 - s : s;", "const int64_t t = s;"),
    ("one sequence too few", S, "const int64_t blocks_y = (rows + threads_y - 1) / threads_y;", "const int64_t blocks_y = rows / threads_y;"),
    ("one block too few in x", S, "(groups + threads_x - 1) / threads_x", "groups / threads_x"),
    ("gradient crosses a reset", B, "&& !mask.is_reset(step.after, j); }", "; }"),
    ("grad_h_n at every step", B, "if (grad_h_n && !mask.takes(step.after, j))", "if (grad_h_n)"),
    ("grad_c_n lost", B, "if (p.grad_c_n && !mask.takes(after, j))", "if (false)"),
    ("h of a sequence without steps lost", B, "if (passes_through(j) && grad_h_n)", "if (false)"),
    ("c of a sequence without steps lost", B, "if (p.in.passes_through(j) && p.grad_c_n)", "if (false)"),
    ("sequence without steps forgotten", B, "return step.now.t < 0 && mask.empty(j);", "return false;"),
    ("carry lost", B, "store(carried, dc, n);", ";"),
    ("direct part lost", B, "if (direct) add(dh, direct", "if (false) add(dh, direct"),
    ("dh of every step from h0", B, "mask.takes(step.before, j) ? output.at", "false ? output.at"),
    ("h before a reset in dW_hh", B, "if (mask.is_reset(step.now, j)) n = 0;", ";"),
    ("padding in dW", B, "store(to + g * p.H, zeros, n);", ";"),
    ("padded input in dW", W, "      x = input;", "      ;"),
    ("second direction overwrites", W, "d > 0);", "false);"),
    ("bias sums skip a warp", W, "w < kSumWarps; ++w) total", "w < kSumWarps - 1; ++w) total"),
    ("bias sums skip a row", W, "row += kSumWarps)", "row += kSumWarps + 1)"),
    ("bias sums lose a chunk", W, "i < chunks; ++i) total", "i < chunks - (chunks > 1); ++i) total"),
    ("rows beyond the grid", S, "row < rows; row += stride)", "row < rows; row += rows)"),
    ("too much work per block", S, "const unsigned threads_y = kThreads / threads_x;", "const unsigned threads_y = 16 * kThreads / threads_x;"),
    ("rows lost between chunks of the bias sums", W, "row < rows * (chunk + 1) / chunks;", "row < rows * chunk / chunks + rows / chunks;"),
    ("rows lost after equal chunks", W, "row = rows * chunk / chunks + warp; row < rows * (chunk + 1) / chunks;", "row = rows / chunks * chunk + warp; row < rows / chunks * (chunk + 1);"),
    ("addresses of 32 bits", S, "data + place * step + j * lane;", "data + static_cast<int>(place * step + j * lane);"),
    ("more threads than the kernel's bound", F, "LSTMKERN_KERNEL(kThreads)\ncell_forward", "LSTMKERN_KERNEL(kThreads / 2)\ncell_forward"),
    ("blocks of twice the threads", S, "const unsigned threads_y = kThreads / threads_x;", "const unsigned threads_y = 2 * kThreads / threads_x;"),
    ("c_n of 16-bit layers not written", F, "if (CELL == Cell::lstm && kSeparateCell)", "if (false && kSeparateCell)", "bf16"),
    ("second 16 bytes read from the first", S, "load16(from + i * per);", "load16(from);", "bf16"),
    ("second 16 bytes over the first", S, "store16(to + i * per, piece);", "store16(to, piece);", "bf16"),
    ("second 16 bytes of values unused", S, "narrow(from[(i * per + k) % V], values[k]);", "narrow(from[k % V], values[k]);", "bf16"),
    ("second part of a 16-bit result from the first rows", W, "rows_from(a, first, n, sizeof(S))", "rows_from(a, 0, n, sizeof(S))", "bf16"),
    ("second part of a 16-bit result over the first", W, "out + first * columns", "out", "bf16"),
    ("second direction overwrites 16-bit dx", W, "if (more) add(v, to + at, n);", ";", "bf16"),
    ("16-bit sums", W, "matrix(sums, n, columns, columns), rows_from(a, first, n, sizeof(S))", "matrix(out + first * columns, n, columns, columns), rows_from(a, first, n, sizeof(S))", "bf16"),
    ("derivative of the projection's output lost", B, "all.of(trace.d_output, now, P, P), w_hr", "all.of(trace.d_output, step_of(L, d, s - 1).now, P, P), w_hr"),
]  # fmt: skip
# For the resident tiers, compiled for fp32 and bf16. Shared code is tested with the cluster's kernels.
RESIDENT = [
    ("last peer left out", C, "sent && peer(i) < owners", "sent && peer(i) < owners - 1"),
    ("peers beyond a piece's lanes left out", C, "for (int i = 0; i < kPeers; ++i) store_async16", "for (int i = 0; i < 1; ++i) store_async16"),
    ("blocks beyond 8 write to the first", C, "peer(i) < owners ? peer(i) : 0", "peer(i) < owners ? peer(i) % 8 : 0"),
    ("one buffer of the state", C, "return step & 1;", "return 0;"),
    ("no cluster barrier at the start", C, "    sync_cluster();", "    sync_block();"),
    ("state not awaited", C, "      mbarrier_wait(barriers + buffer(step), static_cast<unsigned>(step - 1) / 2 & 1);\n", ""),
    ("blocks without units take part", C, "if (pass.role.rank >= exchange.owners)", "if (false)"),
    ("lengths of 32 bits", RP, "const int64_t length = mask.lengths[sequence];", "const int length = static_cast<int>(mask.lengths[sequence]);"),
    ("output of one step read", RB, "if (side.output.data) next.h[e]", "next.h[e]"),
    ("values moved a step late", RL, "    pass.advance();\n    pass.fetch(step + 2);", "    pass.fetch(step + 2);\n    pass.advance();"),
    ("phase before awaited", C, "static_cast<unsigned>(step - 1) / 2 & 1", "static_cast<unsigned>(step + 1) / 2 & 1"),
    ("bytes awaited only once", C, "if (thread_rank() == 0) mbarrier_expect(", "if (false) mbarrier_expect("),
    ("bytes of sequences that are not there", C, "bytes(static_cast<unsigned>(sequences * p.width)", "bytes(static_cast<unsigned>(p.sequences * p.width)"),
    ("bytes counted for the other buffer", C, "p.state_at + buffer(step) * static_cast", "p.state_at + buffer(step + 1) * static_cast"),
    ("partial sums without a barrier", RL, "    sync_block();\n    const bool last", "    const bool last"),
    ("slices of the sum left out", RL, "i < p.slices; i += 2", "i < p.slices - 2; i += 2"),
    ("last step of depth left out", RL, "for (int i = 0; i < KEPT; ++i) T::multiply", "for (int i = 0; i < KEPT - 1; ++i) T::multiply"),
    ("first step of depth again from shared memory", RL, "state + (KEPT + i) * T::kDepth", "state + i * T::kDepth"),
    ("wrong fragments in shared memory", RL, "packed + (KEPT * M * PIECES + i) * 32", "packed + i * 32"),
    ("warps share their fragments", RL, "shared + warp * 512 + lane_index() * 16", "shared + lane_index() * 16"),
    ("padding of the depth not zero", RL, "    store16(all + i * kPer16<S>, Bytes16{{0, 0, 0, 0}});", "    ;"),
    ("one chain of sums lost", RL, "chain < CHAINS; ++chain", "chain < 1; ++chain"),
    ("fetched a step late", RL, "pass.fetch(step + 2);", "pass.fetch(step + 1);"),
    ("results stored after the next step's values came", RL, "      if (e < elements && pass.exists(e)) pass.store(e);\n    if (last) break;\n    pass.advance();", "      if (false) pass.store(e);\n    if (last) break;\n    pass.advance();\n    for (int e = 0; e < kElements<S>; ++e)\n      if (e < elements && pass.exists(e)) pass.store(e);"),
    ("bias lost", RL, "if (Pass::kBias) load_vector(", "if (false) load_vector("),
    ("state of every part in the first", RL, "place + part * p.row", "place"),
    ("packed for the wrong slice", RL, "(slice * p.steps + i) * T::kDepth, [&]", "(slice + i * p.slices) * T::kDepth, [&]"),
    ("pieces of a step swapped", RL, "at + piece * 32 + lane_index()", "at + (T::kPieces - 1 - piece) * 32 + lane_index()"),
    ("neighbours swapped in 32 bits", FR, "narrow_two(lane & 1 ? other : value, lane & 1 ? value : other", "narrow_two(lane & 1 ? value : other, lane & 1 ? other : value"),
    ("halves swapped in 16 bytes", FR, "return lane & 4 ?", "return lane & 8 ?"),
    ("mma's other rows", FR, "f(group + i / 2 * 8, t * 8 + member * 2 + i % 2", "f(group + i % 2 * 8, t * 8 + member * 2 + i / 2"),
    ("matrices of B in another order", FR, "lane / 8 * 8;", "(lane / 8 ^ 1) * 8;"),
    ("all tiles read the first's sequences", FR, "from + t * 8 * stride", "from"),
    ("partial sums over the state", R, "p.state_at + buffers * p.sequences", "p.state_at + (buffers - 1) * p.sequences"),
    ("a kernel that keeps less than the plan", R, "p.kept == b ? f(tiles, std::integral_constant<int, b>{})", "p.kept == b ? f(tiles, std::integral_constant<int, c>{})"),
    ("every team takes the first sequences", RP, "team % p.batches * p.sequences", "0 * p.sequences"),
    ("one step too long", RP, "static_cast<int>(m.t) < length", "static_cast<int>(m.t) <= length"),
    ("reverse direction from the front", "cuda/inputs.h", "const int64_t t = d ? T - 1 - s : s;", "const int64_t t = s;"),
    ("reset ignored", RF, "if (now.reset[e]) h[e] = c[e] = 0;", ";"),
    ("reset not sent", RF, "next.kind.of(e) == kReal && next.reset[e] ? 0 : h[e]", "h[e]"),
    ("reset of the first step ignored", RF, "&& !a.mask.is_reset(first, j);", ";"),
    ("padding not zero", RF, "narrow(taken ? h[e] : 0, ", "narrow(h[e], "),
    ("b_hn with the input's", RF, "g[2] = sums[3] + x[2];", "g[2] = sums[3] + sums[2] + x[2];"),
    ("biases of n swapped", RF, "? 5 - i % 4 : i % 4", "? i % 4 : i % 4"),
    ("gradient crosses a reset", RB, "after[e] = now.reset[e] ? kRestarts : kContinues;", "after[e] = kContinues;"),
    ("weights not transposed", RB, "(gate * a.H + from) * a.H + unit", "(gate * a.H + unit) * a.H + from"),
    ("h of every step from h0", RB, "has_previous ? widen_raw<S>(next.h[e])", "false ? widen_raw<S>(next.h[e])"),
    ("c of every step from c0", RB, "has_previous ? widen_raw<S>(next.c[e])", "false ? widen_raw<S>(next.c[e])"),
    ("sequence without steps forgotten", RB, "if (!exists(e) || !a.mask.empty(sequence(e))) continue;", "continue;"),
    ("carry lost", RB, "carry[e] = dc;", ";"),
    ("padding in dW", RB, "narrow(taken ? dgates[e][g] : 0, ", "narrow(dgates[e][g], "),
    ("initial state's gradient a step early", RB, "kExtraSteps = 1, ", "kExtraSteps = 0, "),
    ("unpublished flag", G, "if (thread_rank() == 0) add_release(flag, 1);", ";"),
    ("flag before data", G, "    sync_block();\n    if (thread_rank() == 0) add_release", "    if (thread_rank() == 0) add_release"),
    ("flag awaited too little", G, "static_cast<unsigned>(step) *", "static_cast<unsigned>(step - 1) *"),
    ("one buffer in L2", G, "(step & 1)", "(step & 0)"),
    ("flags not cleared", G, "if (i < count) flags[i] = 0;", ";"),
    ("copy not awaited by the others", G, "    async_wait<0>();\n    sync_block();", "    async_wait<0>();"),
    ("columns beyond a warp's not copied", G, "column += 32 * kPer16<S>", "column += p.width"),
    ("later launches repeat the first teams", G, "const int team = g.first +", "const int team = 0 * g.first +"),
    ("teams share one counter", G, "g.flags + team * kFlagStride", "g.flags"),
    ("teams share one state", G, "static_cast<int64_t>(team) * 2 *", "static_cast<int64_t>(0) * 2 *"),
    ("tables of steps", IN, "to[i] = numbers.value[i]", "to[i] = numbers.value[0]"),
    ("table chunks all to the front", IN, "config, to + at, numbers", "config, to, numbers"),
    ("table chunks all from the front", IN, "= from[at + i];", "= from[i];"),
    ("plan of another batch size kept", RL, "last.N != layer.N || ", ""),
    ("plan of another hidden size kept", RL, "last.H != layer.H || ", ""),
    ("plan of one direction kept for two", RL, " || last.D != layer.D", ""),
    ("plan of another device kept", RL, "last.chip.device != now.device || ", ""),
    ("addresses of 32 bits", S, "data + place * step + j * lane;", "data + static_cast<int>(place * step + j * lane);"),
    ("more threads than the kernel's bound", RL, "LSTMKERN_KERNEL(kPackThreads)", "LSTMKERN_KERNEL(kPackThreads / 2)"),
]  # fmt: skip

SERVER = multiprocessing.get_context("forkserver")


def notice(library, answer, tier, types):
    from simt import mutation_check

    mutation_check.run(str(library), answer, tier, types)


# The sources that are compiled for a tier's faults.
SOURCES = {
    "stepwise": ("stepwise", "gradients", "inputs"),
    "cluster": ("cluster", "inputs"),
    "grid": ("grid", "inputs"),
}
# (tier to run, LSTMKERN_TYPES, name, file, line, fault)
WORK = [("stepwise", 2 if m[4:] == ("bf16",) else 1, *m[:4]) for m in MUTATIONS]
WORK += [("grid" if m[1] == G else "cluster", 2, *m) for m in RESIDENT]


def caught(mutation, folder):
    """Returns (tier and name, what noticed the fault or None, why not)."""
    from simt import simulator

    tier, types, name, file, line, fault = mutation
    name = f"{tier}: {name}"
    csrc = Path(folder, name.replace(" ", "_"), "csrc")
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("cpu"))
    text = (csrc / file).read_text()
    if line is not None:
        if line not in text:
            return name, None, "the file no longer has the line: " + line
        (csrc / file).write_text(text.replace(line, fault, 1))
    flags = ("-O0", "-g0", f"-DLSTMKERN_TYPES={types}", "-Wno-error", "-w")
    where = ROOT / "build" / "simt-mutations"
    library = simulator.build(where, flags, jobs=1, changed=csrc, names=SOURCES[tier])
    answer = Path(folder, library.name + ".txt")
    process = SERVER.Process(target=notice, args=(library, str(answer), tier, types))
    process.start()
    process.join(120)
    if line is not None:
        library.unlink()
    if process.is_alive():
        process.kill()
        return name, "no end after two minutes", ""
    if not answer.exists():
        return name, f"crash, exit code {process.exitcode}", ""
    message = answer.read_text()
    return name, " ".join(message.split())[:110] or None, "not noticed"


def main():
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    SERVER.set_forkserver_preload(["simt.mutation_check"])
    named = lambda m: f"{m[0]}: {m[2]}"  # noqa: E731
    wanted = [m for m in WORK if len(sys.argv) < 2 or any(part in named(m) for part in sys.argv[1:])]
    start, missed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        for tier in sorted({m[0] for m in wanted}):
            _, by, _ = caught((tier, 2, "no fault", F, None, None), folder)
            if by:
                print(f"the {tier} kernels fail without a fault:", by)
                return 1
        with ThreadPoolExecutor(int(os.environ.get("LSTMKERN_JOBS", os.cpu_count() or 1))) as pool:
            for name, by, why in pool.map(lambda m: caught(m, folder), wanted):
                print(f"{'caught' if by else 'MISSED':7} {name:55} {by or why}", flush=True)
                missed += not by
    shutil.rmtree(ROOT / "build" / "simt-mutations")
    print(f"{len(wanted) - missed} of {len(wanted)} faults caught in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
