"""Estimates the instructions that a warp issues in a step: those of one path through the step loop.

The path does all the work (multiplications, functions, shuffles, loads and stores of values) in the fewest
instructions: a dense batch without resets or lengths, with every optional tensor. An inner loop counts once;
"inner_loops" has the instructions of an iteration of each. Loops that only wait count as nothing.
"""

from __future__ import annotations

from collections import Counter

from .disassembly import Instruction, Loop
from .step_loop import StepLoop, loads_values

WORK = 10_000  # value of an instruction of work, in other instructions that the path may take to reach it


def is_work(x: Instruction) -> bool:
    if x.name in ("LDG", "LD"):
        return loads_values(x)
    if x.name == "MUFU":  # integer divisions also use reciprocals
        return "RCP" not in x.opcode
    return x.name in ("HMMA", "HGMMA", "LDSM", "LDS", "SHFL", "STG", "STS", "ST", "STAS", "BAR", "SYNCS")


class CommonPath:
    def __init__(self, step: StepLoop):
        self.step, self.code = step, step.code
        self.multiplies = set(step.kept) | set(step.shared)
        self.forbidden: set[int] = set()
        self.inner: list[dict] = []

    def count(self) -> dict:
        """{"executed": with all elements of a thread, "executed_one": with one element, "inner_loops": those on the
        path}"""
        both, way = self.through(self.step.loop)
        self.inner = []
        loops = [loop for loop in self.step.loop.inner if loop.header in way]
        result = {"executed": both}
        self.forbidden = self.second_halves(way)
        one, _ = self.through(self.step.loop)
        result["executed_one"] = one if one is not None else both
        result["inner_loops"] = [self.describe(loop) for loop in sorted(loops, key=lambda x: x.header)]
        return result

    def through(self, loop: Loop) -> tuple[int | None, list[int]]:
        """(instructions, blocks) of the best path from the loop's header back to it."""
        member: dict[int, Loop | None] = dict.fromkeys(loop.blocks)
        for inner in loop.inner:
            member |= dict.fromkeys(inner.blocks, inner)

        def node(b):
            return member[b].header if member[b] else b

        costs = {b: self.cost(member[b] or b) for b in {node(b) for b in loop.blocks}}
        following: dict[int, set[int]] = {b: set() for b in costs}
        ends = set()
        for b in loop.blocks:
            for to in self.step.successors[b]:
                if to == loop.header:
                    ends.add(node(b))
                elif to in member and node(to) != node(b):
                    following[node(b)].add(node(to))
        best: dict[int, tuple] = {}
        for b in reversed(self.ordered(loop.header, following)):
            score, instructions = costs[b]
            options = [best[to] for to in following[b] if best.get(to)]
            options += [(0, 0, [])] if b in ends else []
            if b in self.forbidden or not options:
                best[b] = None
                continue
            more = max(options, key=lambda o: o[0])
            best[b] = (score + more[0], instructions + more[1], [b, *more[2]])
        found = best[loop.header]
        return (found[1], found[2]) if found else (None, [])

    @staticmethod
    def ordered(first: int, following: dict[int, set[int]]) -> list[int]:
        """The nodes in topological order. Back edges (irreducible loops) are ignored."""
        order, state = [], {}
        stack = [(first, iter(sorted(following[first])))]
        state[first] = "open"
        while stack:
            b, rest = stack[-1]
            for to in rest:
                if state.get(to) == "open":
                    following[b].discard(to)
                elif to not in state:
                    state[to] = "open"
                    stack.append((to, iter(sorted(following[to]))))
                    break
            else:
                state[b] = "done"
                order.append(b)
                stack.pop()
        return order[::-1]

    def cost(self, what: Loop | int) -> tuple[int, int]:
        """(score, instructions) of a block, or of an iteration of an inner loop."""
        if isinstance(what, Loop):
            if self.waits(what):
                return 0, 0
            instructions, blocks = self.through(what)
            works = self.kind(what) in ("multiply", "copy", "send")
            return (WORK if works else 0) - (instructions or 0), instructions or 0
        block = self.step.blocks[what]
        work = sum(is_work(self.code[i]) or i in self.multiplies for i in block)
        return WORK * work - len(block), len(block)

    def waits(self, loop: Loop) -> bool:
        """Whether a loop only polls: it loads or tries, but neither computes nor stores."""
        names = {self.code[i].name for i in self.step.inside(loop)}
        polls = any("STRONG" in self.code[i].opcode or "TRYWAIT" in self.code[i].opcode for i in self.step.inside(loop))
        return polls and not names & {"STS", "STG", "ST", "LDGSTS", "HMMA", "FFMA", "FADD", "LDS"}

    def second_halves(self, way: list[int]) -> set[int]:
        """The blocks on the path for a thread's second element: the later half of each kind of work except matrix
        products."""
        found = set()
        products = {b for b in way if any(i in self.multiplies for i in self.step.blocks[b])}
        for names in (("MUFU",), ("SHFL",), ("LDG", "LD"), ("STG",), ("LDS",)):
            counts = Counter()
            for b in sorted(set(way) - products):
                counts[b] = sum(self.code[i].name in names and is_work(self.code[i]) for i in self.step.blocks[b])
            total, before = sum(counts.values()), 0
            for b in sorted(counts):
                if counts[b] and 2 * before >= total:
                    found.add(b)
                before += counts[b]
        return found

    def kind(self, loop: Loop) -> str:
        names = Counter(self.code[i].name for i in self.step.inside(loop))
        if any(i in self.multiplies for i in self.step.inside(loop)):
            return "multiply"
        if self.waits(loop):
            return "wait"
        if names["LDGSTS"]:
            return "copy"
        if names["ST"] or names["STAS"] or names["STG"]:
            return "send"
        return "sum" if names["LDS"] and names["FADD"] else "other"

    def describe(self, loop: Loop) -> dict:
        """What an inner loop does, and the instructions of an iteration."""
        inside = self.step.inside(loop)
        return {
            "kind": self.kind(loop),
            "instructions": self.through(loop)[0] or len(inside),
            "multiplications": sum(i in self.multiplies for i in inside),
            "copies": sum(self.code[i].name == "LDGSTS" for i in inside),
        }
