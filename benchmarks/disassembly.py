"""SASS in the format of `nvdisasm -c`: instructions, registers, basic blocks and natural loops."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
LABEL = re.compile(r"^(\.L\w+):")
SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
TARGET = re.compile(r"\.L\w+")
REGISTER = re.compile(r"^[-~|]*R(\d+)")
PREDICATE = re.compile(r"^!?U?P[T\d]")

JUMPS = ("BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU")
ENDS = ("EXIT", "RET")
# Opcodes whose first operand is not a destination, or not a general register.
NO_REGISTER = re.compile(
    r"^(ST[GSL]?|RED[A-Z]*|[A-Z]*SETP\w*|PLOP3|R2P|R2UR|S2UR|VOTEU|BAR|BRA|BRX|BSYNC|BSSY|CALL|RET|EXIT|MEMBAR|CCTL\w*|"
    r"SYNCS|DEPBAR|LDGDEPBAR|LDGSTS|UBLKCP|ARRIVES|WARPSYNC|NOP|ERRBAR|FENCE|U[A-Z0-9]+)(\.|$)"
)


@dataclass
class Instruction:
    address: int
    guard: str  # such as "@!P0", or empty
    opcode: str
    operands: list[str]

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def jumps(self) -> bool:
        return self.name in JUMPS

    @property
    def targets(self) -> list[str]:
        return [t for o in self.operands for t in TARGET.findall(o)] if self.jumps else []

    @property
    def conditional(self) -> bool:
        """Whether the next instruction can follow a jump or an end."""
        return bool(self.guard and self.guard != "@PT") or any(PREDICATE.match(o) for o in self.operands)

    def register(self, i: int) -> int | None:
        """The number of the general register that is operand ``i``; None for RZ and other operands."""
        found = REGISTER.match(self.operands[i]) if i < len(self.operands) else None
        return int(found[1]) if found else None

    def writes(self) -> range:
        """The general registers that the instruction writes."""
        if NO_REGISTER.match(self.opcode):
            return range(0)
        first = next((o for o in self.operands if not PREDICATE.match(o)), "")
        found = REGISTER.match(first)
        return range(int(found[1]), int(found[1]) + self._width()) if found else range(0)

    def reads(self) -> set[int]:
        """The general registers that its operands name, except the first of those that it writes."""
        skip = 1 if self.writes() else 0
        named = [int(r) for o in self.operands for r in re.findall(r"\bR(\d+)", o)]
        return set(named[skip:])

    def _width(self) -> int:
        parts = self.opcode.split(".")
        if parts[0].endswith("MMA") and parts[0] != "HFMA2":
            return 4 if "F32" in parts or "S32" in parts else 2
        if parts[0] == "LDSM":
            return int(parts[-1]) if parts[-1] in ("2", "4") else 1
        if "128" in parts:
            return 4
        wide = "64" in parts or "WIDE" in parts or (parts[0] == "CS2R" and "32" not in parts) or parts[0][0] == "D"
        return 2 if wide else 1


@dataclass
class Loop:
    """A natural loop: its header, all its blocks (including those of inner loops), and the loops directly inside."""

    header: int
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)


@dataclass
class Function:
    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # {label: number of the instruction}

    def graph(self) -> tuple[list[range], list[list[int]]]:
        """Basic blocks, as ranges of instructions, and the successors of each. A call is assumed to return."""
        code, count = self.instructions, len(self.instructions)
        starts = {0} | {i for i in self.labels.values() if i < count}
        starts |= {i + 1 for i, x in enumerate(code) if (x.jumps or x.name in ENDS) and i + 1 < count}
        order = sorted(starts)
        blocks = [range(a, b) for a, b in zip(order, [*order[1:], count], strict=True)]
        at = {block.start: i for i, block in enumerate(blocks)}
        successors = []
        for i, block in enumerate(blocks):
            last = code[block[-1]]
            to = [at[self.labels[t]] for t in last.targets if self.labels.get(t, count) < count]
            if i + 1 < len(blocks) and (last.conditional or not (last.jumps or last.name in ENDS)):
                to.append(i + 1)
            successors.append(to)
        return blocks, successors

    def loops(self) -> tuple[list[range], list[list[int]], list[Loop]]:
        """Blocks, successors, and the outermost natural loops."""
        blocks, successors = self.graph()
        return blocks, successors, nested(natural_loops(successors))


def parse(text: str) -> list[Function]:
    """The functions in the output of `nvdisasm -c`."""
    functions, here = [], None
    for line in text.splitlines():
        if found := SECTION.match(line):
            functions.append(here := Function(found[1]))
        elif here is None:
            continue
        elif found := LABEL.match(line):
            here.labels[found[1]] = len(here.instructions)
        elif found := LINE.match(line):
            address, guard, opcode, rest = found.groups()
            operands = [o.strip() for o in rest.split(",")] if rest else []
            here.instructions.append(Instruction(int(address, 16), guard or "", opcode, operands))
    return functions


def dominators(successors: list[list[int]]) -> list[int | None]:
    """Each block's immediate dominator. The entry's is the entry itself; that of an unreachable block is None."""
    order, seen, stack = [], {0}, [(0, iter(successors[0]))]
    while stack:
        node, rest = stack[-1]
        following = next((n for n in rest if n not in seen), None)
        if following is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(successors[following])))
    order.reverse()
    number = {node: i for i, node in enumerate(order)}
    predecessors: dict[int, list[int]] = {node: [] for node in order}
    for node in order:
        for to in successors[node]:
            predecessors[to].append(node)
    above: list[int | None] = [None] * len(successors)
    above[0] = 0

    def meet(a, b):
        while a != b:
            while number[a] > number[b]:
                a = above[a]
            while number[b] > number[a]:
                b = above[b]
        return a

    changed = True
    while changed:
        changed = False
        for node in order[1:]:
            known = [p for p in predecessors[node] if above[p] is not None]
            new = known[0]
            for p in known[1:]:
                new = meet(p, new)
            if above[node] != new:
                above[node], changed = new, True
    return above


def natural_loops(successors: list[list[int]]) -> list[Loop]:
    """The natural loop of every header, with all its back edges together."""
    above = dominators(successors)
    predecessors: list[list[int]] = [[] for _ in successors]
    for node, to in enumerate(successors):
        if above[node] is not None:
            for n in to:
                predecessors[n].append(node)

    def dominates(a, b):
        while b != a and above[b] != b:
            b = above[b]
        return a == b

    loops: dict[int, Loop] = {}
    for node, to in enumerate(successors):
        for header in to:
            if above[node] is None or not dominates(header, node):
                continue
            loop = loops.setdefault(header, Loop(header, {header}))
            stack = [node]
            while stack:
                n = stack.pop()
                if n not in loop.blocks:
                    loop.blocks.add(n)
                    stack += predecessors[n]
    return list(loops.values())


def nested(loops: list[Loop]) -> list[Loop]:
    """The outermost loops, with the others nested inside them."""
    outermost = []
    by_size = sorted(loops, key=lambda loop: len(loop.blocks))
    for i, loop in enumerate(by_size):
        parent = next((p for p in by_size[i + 1 :] if loop.header in p.blocks and loop.blocks < p.blocks), None)
        (parent.inner if parent else outermost).append(loop)
    return outermost
