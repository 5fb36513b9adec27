"""Finds the step loop of the resident kernels in SASS by its structure, and counts what is in it.

The *step loop* is the outermost natural loop with the most multiplications (HMMA, or FFMA for fp32). A multiplication
is *kept* if its weight is in a register that the step loop never writes, and *shared* if the loop loads its weight from
shared memory. (The cell's FFMAs are neither.) The *k-loop* is the unrolled part with the kept multiplications, from the
first load of their operands to the last of them. A *group* is the multiplications with one B fragment: those that read
the same register with the same value.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter

from .disassembly import Function, Instruction, Loop

CELLS = {"0": "RNN_TANH", "1": "RNN_RELU", "2": "LSTM", "3": "GRU"}
NEAR = 64  # instructions; a load from device memory takes longer than these
LOADS = ("U8", "S8", "U16", "S16", "32", "64", "128", "LDSM")


def loads_values(x: Instruction) -> bool:
    """Whether it loads values from global memory, not flags (bytes), lengths or tables (64 bits)."""
    return x.name in ("LDG", "LD") and not any(part in x.opcode.split(".") for part in ("U8", "64", "STRONG"))


def identity(name: str) -> dict | None:
    """Tier, pass, cell, dtype and tiles from a mangled kernel name; None if it is not a loop of the resident tiers."""
    found = re.search(
        r"\d(cluster|grid)_loop.*?(Forward|Backward)Pass.*?4CellE(\d)E(f|NS0_\d(?:bf16|f16)E)EE(.*)", name
    )
    if not found:
        return None
    tier, which, cell, dtype, rest = found.groups()
    more = re.match(r"(?:L[a-z](\d+)E)?((?:L[a-z]\d+E)*)", rest)
    dtype = "float32" if dtype == "f" else "bfloat16" if "bf16" in dtype else "float16"
    kernel = {"tier": tier, "pass": which.lower(), "cell": CELLS[cell], "dtype": dtype, "tiles": int(more[1] or 1)}
    if more[2]:
        kernel["variant"] = ",".join(re.findall(r"\d+", more[2]))
    return kernel


KIND = ("tier", "pass", "cell", "dtype", "tiles")


def key(kernel: dict, variant: bool = True) -> str:
    """A kernel's name in the tables, with or without the further arguments of its template."""
    return " ".join(str(kernel[k]) for k in (*KIND, *(["variant"] if variant else [])) if k in kernel)


class StepLoop:
    """The counts for a function's step loop. Raises ValueError if it has none."""

    def __init__(self, function: Function, fp32: bool):
        self.code = function.instructions
        self.blocks, self.successors, outermost = function.loops()
        self.fp32 = fp32
        self.loop = max(outermost, key=lambda loop: sum(map(self.may_multiply, self.inside(loop))), default=None)
        if self.loop is None or not any(map(self.may_multiply, self.inside(self.loop))):
            raise ValueError(f"{function.name}: no loop that multiplies")
        self.all = self.inside(self.loop)
        written = {r for i in self.all for r in self.code[i].writes()}
        loaded = {r for i in self.all if self.code[i].name == "LDS" for r in self.code[i].writes()}
        self.inner = list(self.every(self.loop.inner))
        dense = {i for loop in self.inner if not loop.inner for i in self.inside(loop)}
        self.kept, self.shared = [], []
        for i in filter(self.may_multiply, self.all):
            factors = [self.code[i].register(j) for j in ((1, 2) if fp32 else (1,))]
            unwritten = [r not in written for r in factors]
            if any(unwritten) and (not fp32 or any(r in loaded for r in factors)):
                self.kept.append(i)
            elif not any(unwritten) and (not fp32 or (i in dense and all(r in loaded for r in factors))):
                self.shared.append(i)
        self.k_loops = [x for x in self.inner if not x.inner and any(i in self.shared for i in self.inside(x))]

    def every(self, loops: list[Loop]):
        for loop in loops:
            yield loop
            yield from self.every(loop.inner)

    def inside(self, loop: Loop) -> list[int]:
        """The loop's instructions, by address."""
        return sorted(i for b in loop.blocks for i in self.blocks[b])

    def may_multiply(self, i: int) -> bool:
        x = self.code[i]
        if not self.fp32:
            return x.name in ("HMMA", "HGMMA")
        registers = [x.register(j) for j in range(4)]
        return x.opcode == "FFMA" and None not in registers[:3]

    def unrolled(self) -> list[int]:
        """The instructions of the k-loop."""
        if not self.kept:
            return []
        looped, first = {i for loop in self.inner for i in self.inside(loop)}, self.first_load()
        return [i for i in self.all if first <= i <= self.kept[-1] and i not in looped]

    def first_load(self) -> int:
        """The first load from shared memory of an operand of the kept multiplications, or the first of these."""
        kept, last, first = set(self.kept), {}, self.kept[0]
        writers: dict[int, set[int]] = {}  # for each instruction, the writers of its operands
        for i in (i for i in self.all if i <= self.kept[-1]):
            x = self.code[i]
            factors = {x.register(1), x.register(2)} if i in kept else x.reads()
            writers[i] = {last[r] for r in factors if r in last}
            last |= dict.fromkeys(x.writes(), i)
        open_, seen = [w for i in self.kept for w in writers[i]], set()
        while open_:
            i = open_.pop()
            if i in seen or i in kept:
                continue
            seen.add(i)
            if self.code[i].name in ("LDS", "LDSM"):
                first = min(first, i)
            else:
                open_ += writers[i]
        return first

    def groups(self) -> list[int]:
        """The first multiplication of every group of the k-loop."""
        version: dict[int, int] = {}
        multiplies, seen, first = set(self.kept), set(), []
        for i in self.all:
            if i in multiplies and (fragment := self.code[i].register(2)) is not None:
                state = (fragment, version.get(fragment))
                if state not in seen:
                    seen.add(state)
                    first.append(i)
            for r in self.code[i].writes():
                version[r] = i
        return first

    def chain(self) -> int:
        """The longest chain of kept multiplications in which each adds to the result of the one before."""
        kept, length, last = set(self.kept), {}, {}
        for i in self.all:
            x = self.code[i]
            if i in kept:
                length[i] = 1 + length.get(last.get(x.register(3)), 0)
            last |= dict.fromkeys(x.writes(), i)
        return max(length.values(), default=0)

    def loads_waited_for(self) -> int:
        """How many loads of values from global memory are read within the next NEAR instructions. At the loop's end
        this includes the first instructions of the next step."""
        count, around = 0, [*self.all, *self.all]
        for n, i in enumerate(self.all):
            x = self.code[i]
            if not loads_values(x):
                continue
            result = set(x.writes())
            for j in around[n + 1 : n + 1 + NEAR]:
                if result & self.code[j].reads():
                    count += 1
                    break
                result -= set(self.code[j].writes())
        return count

    def measure(self) -> dict:
        code, ours = self.code, [self.code[i] for i in self.all]
        opcodes = Counter(x.opcode for x in ours)

        def count(pattern):
            return sum(n for opcode, n in opcodes.items() if re.match(pattern, opcode))

        loads = Counter()
        for x in ours:
            if x.name == "LDS":
                loads[next((w for w in LOADS if w in x.opcode.split(".")[1:]), "32")] += 1
        loads["LDSM"] = count(r"LDSM\b")
        multiplies, looped = set(self.kept) | set(self.shared), {i for x in self.k_loops for i in self.inside(x)}
        unrolled = self.unrolled()
        weights = {code[i].register(1) for i in self.kept} if not self.fp32 else set()
        result = {
            "instructions": len(self.all),
            "instructions_k_loop": len(unrolled),
            "instructions_shared_loop": len(looped),
            "HMMA": count("HMMA|HGMMA"),
            "FFMA": count(r"FFMA\b"),
            "kept": len(self.kept),
            "kept_fragments": len(weights),
            "shared": len(self.shared),
            "LDS": {w: loads[w] for w in LOADS if loads[w]},
            "LDL": count(r"LDL\b"),
            "STL": count(r"STL\b"),
            "branches": sum(x.jumps for x in ours),
            "branches_k_loop": sum(code[i].jumps for i in unrolled),
            # In the k-loop over shared memory: jumps other than the one back to its start.
            "branches_shared_loop": sum(code[i].jumps for i in looped) - len(self.k_loops),
            "MEMBAR": {o: n for o, n in sorted(opcodes.items()) if o.startswith(("MEMBAR", "FENCE"))},
            "L1_flush": count(r"CCTL\.\w*IVALL"),
            "ERRBAR": count(r"(CGA)?ERRBAR"),
            "barriers": {o: n for o, n in sorted(opcodes.items()) if o.startswith(("BAR.", "UCGABAR", "SYNCS"))},
            "global_loads": count(r"LDG\b|LD\b"),
            "global_stores": count(r"STG\b|ST\b|STAS\b"),
            "chain": self.chain(),
            "loads_of_values": sum(map(loads_values, ours)),
            "loads_waited_for": self.loads_waited_for(),
        }
        if not self.fp32 and (groups := self.groups()):
            index = {i: n for n, i in enumerate(self.all)}
            gaps = [index[b] - index[a] for a, b in zip(groups, groups[1:], strict=False)]
            between = [
                sum(i not in multiplies for i in self.all[index[a] : index[b]])
                for a, b in zip(groups, groups[1:], strict=False)
            ]
            others = sum(i not in multiplies for i in unrolled)
            result |= {"groups": len(groups), "per_group": round(others / len(groups), 1)}
            if gaps:
                result |= {
                    "group_period": statistics.median(gaps),  # from one group's first HMMA to the next one's
                    "between_groups": statistics.median(between),  # the same without the HMMAs
                }
        return result
