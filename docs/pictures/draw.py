"""Draw the pictures of docs/how-it-is-fast.md: python docs/pictures/draw.py

Each picture is an SVG 480 units wide with text of 15 units or more, which is readable on a phone. Its background is
a light card, so it is readable on a dark page.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

WIDTH = 480
INK, LINE, CARD, PALE = "#1d2733", "#5b6b7b", "#fbfcfd", "#e6ebf0"
GATES = {"i": "#9ecae8", "f": "#f7c58f", "g": "#a9d8a2", "o": "#d9b3e0"}
BLUE, ORANGE = "#9ecae8", "#f7c58f"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'"


class Picture:
    """Shapes in the order in which they were added. title: the text for those who cannot see the picture."""

    def __init__(self, height: float, title: str):
        self.height, self.title, self.parts = height, title, []

    def box(self, x: float, y: float, w: float, h: float, fill: str = PALE, stroke: str = LINE, r: float = 3) -> None:
        self.parts.append(
            f"<rect x='{x:g}' y='{y:g}' width='{w:g}' height='{h:g}' rx='{r:g}' fill='{fill}' stroke='{stroke}'/>"
        )

    def text(self, x: float, y: float, words: str, size: float = 15, anchor: str = "start", bold: bool = False) -> None:
        weight = " font-weight='600'" if bold else ""
        self.parts.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' text-anchor='{anchor}'{weight}>{escape(words)}</text>"
        )

    def label(self, x: float, y: float, w: float, h: float, words: str, fill: str = PALE, size: float = 15) -> None:
        """A box with centred text; "|" starts a new line."""
        self.box(x, y, w, h, fill)
        lines = words.split("|")
        for k, line in enumerate(lines):
            self.text(
                x + w / 2, y + h / 2 + 0.35 * size + (k - (len(lines) - 1) / 2) * 1.2 * size, line, size, "middle"
            )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dashes = " stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(
            f"<path d='{path}' fill='none' stroke='{INK}' stroke-width='1.8' marker-end='url(#head)'{dashes}/>"
        )

    def svg(self) -> str:
        size = f"viewBox='0 0 {WIDTH} {self.height:g}'"
        head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img' {FONT} fill='{INK}'>"
        marker = (
            "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
            f"orient='auto'><path d='M0 0 L10 5 L0 10 z' fill='{INK}'/></marker></defs>"
        )
        card = (
            f"<rect x='0.5' y='0.5' width='{WIDTH - 1}' height='{self.height - 1:g}' rx='8' "
            f"fill='{CARD}' stroke='{PALE}'/>"
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", marker, card, *self.parts, "</svg>", ""])


def packing() -> Picture:
    p = Picture(318, "The same 16 units of each gate's weights become one panel, with the gates next to each other.")
    p.text(78, 30, "W  [4H, K]", anchor="middle", bold=True)
    for k, (gate, color) in enumerate(GATES.items()):
        y = 44 + 62 * k
        p.box(34, y, 88, 56, CARD)
        p.box(34, y + 14, 88, 16, color)
        p.text(18, y + 33, gate, 17, "middle")
        p.arrow((124, y + 22), (190, 76 + 4 * k))
    p.text(12, 308, "16 rows of each gate")
    p.text(350, 30, "one panel, contiguous", anchor="middle", bold=True)
    for row in range(7):
        y = 50 + 30 * row
        for k, (gate, color) in enumerate(GATES.items()):
            p.label(250 + 54 * k, y, 54, 26, gate if row == 0 else "", color)
        p.text(244, y + 18, {0: "k = 0", 1: "1", 2: "2", 3: "...", 6: "K - 1"}.get(row, ""), anchor="end")
    p.text(350, 284, "each cell: 16 units, one register", anchor="middle")
    p.text(350, 304, "k runs over x first, then over h", anchor="middle")
    return p


def microkernel() -> Picture:
    p = Picture(352, "For each k, six values of A and four registers of the panel update 24 accumulators.")
    p.text(330, 28, "panel row k: 4 registers (i f g o)", anchor="middle", bold=True)
    for k, (gate, color) in enumerate(GATES.items()):
        p.label(196 + 66 * k, 40, 62, 28, gate, color)
    p.text(90, 28, "column k of [x, h]", anchor="middle", bold=True)
    p.text(76, 90, "6 rows", anchor="middle")
    for row in range(6):
        y = 102 + 32 * row
        p.label(52, y, 48, 26, f"a{row}")
        p.arrow((104, y + 13), (188, y + 13))
        for k, color in enumerate(GATES.values()):
            p.box(196 + 66 * k, y, 62, 26, color)
            p.text(227 + 66 * k, y + 18, "+=", 15, "middle")
    p.text(148, 90, "broadcast", anchor="middle")
    p.text(326, 318, "24 accumulators stay in registers", anchor="middle", bold=True)
    p.text(240, 340, "meanwhile: prefetch a share of the next panel", anchor="middle")
    return p


def epilogue() -> Picture:
    p = Picture(330, "The sums of a tile go through the cell while they are in the L1 cache.")
    p.label(20, 24, 130, 54, "x_t, h_(t-1)|operands", PALE)
    p.label(20, 94, 130, 54, "panel|packed weights", PALE)
    p.label(186, 56, 108, 60, "GEMM|one tile", BLUE)
    p.label(330, 56, 130, 60, "sums of a tile|in L1", ORANGE)
    p.arrow((150, 51), (184, 76))
    p.arrow((150, 121), (184, 98))
    p.arrow((294, 86), (328, 86))
    p.arrow((395, 116), (395, 166))
    p.label(226, 168, 234, 56, "cell: bias, sigmoid, tanh,|c = f c + i g,  h = o tanh(c)", "#a9d8a2")
    p.arrow((224, 182), (160, 182))
    p.label(20, 166, 138, 34, "h_t, next operand")
    p.arrow((20, 183), (8, 183), (8, 51), (18, 51), dashed=True)
    p.arrow((270, 226), (150, 262))
    p.label(20, 246, 128, 58, "output|of the user")
    p.arrow((343, 226), (300, 252))
    p.label(186, 254, 120, 50, "c_t|in place")
    p.arrow((420, 226), (400, 252))
    p.label(330, 254, 130, 50, "gates, if|training")
    p.text(240, 324, "no other pass over memory", anchor="middle", bold=True)
    return p


def threads() -> Picture:
    p = Picture(330, "Two ways to divide a step among two threads: by rows of the batch, or by hidden units.")

    def half(x: float, title: str, by_rows: bool, notes: list[str]) -> None:
        p.text(x + 105, 30, title, 16, "middle", bold=True)
        p.text(x + 34, 56, "batch", anchor="middle")
        p.text(x + 150, 56, "weights", anchor="middle")
        for k in range(4):
            mine = BLUE if k < 2 else ORANGE
            p.box(x + 4, 66 + 26 * k, 60, 22, mine if by_rows else "#dfe5ea")
        for k in range(4):
            mine = BLUE if k < 2 else ORANGE
            p.box(x + 102 + 26 * k, 66, 22, 100, "#dfe5ea" if by_rows else mine)
        for k, note in enumerate(notes):
            p.text(x + 105, 194 + 22 * k, note, anchor="middle")

    half(16, "by rows", True, ["each reads all weights", "no barrier in the loop"])
    half(254, "by hidden units", False, ["each reads its weights", "a barrier per step"])
    p.parts.append(f"<path d='M240 18 V230' stroke='{PALE}' stroke-width='2'/>")
    p.label(16, 250, 28, 22, "", BLUE)
    p.text(52, 267, "thread 0")
    p.label(136, 250, 28, 22, "", ORANGE)
    p.text(172, 267, "thread 1")
    p.label(256, 250, 28, 22, "", "#dfe5ea")
    p.text(292, 267, "used by both")
    p.text(240, 294, "Units are divided if there are few rows to divide,", anchor="middle")
    p.text(240, 314, "or weights that exceed L2. A cost model decides.", anchor="middle")
    return p


def memory() -> Picture:
    p = Picture(300, "Steps read the panels forth and back, so that the last panels of a step are cached for the next.")
    p.text(240, 28, "panels of the weights", anchor="middle", bold=True)
    for k in range(6):
        p.label(66 + 62 * k, 40, 58, 30, str(k))
    for step in range(4):
        y = 98 + 34 * step
        p.text(14, y + 5, f"t = {step}")
        ends = [(74, y), (430, y)] if step % 2 == 0 else [(430, y), (74, y)]
        p.arrow(*ends)
        if step < 3:
            x = 446 if step % 2 == 0 else 64
            p.parts.append(f"<circle cx='{x}' cy='{y + 17}' r='6' fill='{ORANGE}' stroke='{LINE}'/>")
    p.parts.append(f"<circle cx='24' cy='244' r='6' fill='{ORANGE}' stroke='{LINE}'/>")
    p.text(40, 249, "here the last panel is still in the cache")
    p.text(14, 278, "The next call goes on in the opposite direction.")
    return p


def backward() -> Picture:
    p = Picture(322, "Backward runs in chunks of steps from the last to the first; each chunk ends with three GEMMs.")
    p.text(240, 28, "time", anchor="middle", bold=True)
    for k in range(4):
        p.label(40 + 100 * k, 40, 96, 34, f"chunk {3 - k}", ORANGE if k == 3 else PALE)
    p.arrow((440, 92), (340, 92))
    p.text(240, 97, "steps in reverse", anchor="middle")
    p.arrow((388, 108), (388, 134))
    p.label(40, 136, 396, 48, "step loop: dh = dgates W_hh, cell's derivative,|dgates into a buffer in the cache", BLUE)
    for x, words in ((40, "dW_ih +=|dgates^T x"), (178, "dW_hh +=|dgates^T h"), (316, "dx =|dgates W_ih")):
        p.arrow((x + 60, 184), (x + 60, 216))
        p.label(x, 218, 120, 52, words, "#a9d8a2")
    p.text(240, 300, "three GEMMs per chunk of about 384 rows", anchor="middle", bold=True)
    return p


PICTURES: list[Callable[[], Picture]] = [packing, microkernel, epilogue, threads, memory, backward]


def main(folder: Path = Path(__file__).parent) -> None:
    for draw in PICTURES:
        (folder / f"{draw.__name__}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
