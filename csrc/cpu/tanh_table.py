"""Writes tanh_table.h: ``python csrc/cpu/tanh_table.py > csrc/cpu/tanh_table.h`` (SymPy, hence PyTorch, needs mpmath).

tanh(a) for a >= 0 is a polynomial of degree 5 in a - center, in each of 32 intervals: four to an octave, from 1/16 to
16. Bits 21 to 25 of the float number the interval (two bits of the mantissa, three of the exponent). The polynomial
interpolates in Chebyshev's nodes. The center is a float near the middle whose tanh is nearly a float (the "accurate
tables" of S. Gal and B. Bachelis, 1991), so that rounding the constant coefficient costs no accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
from mpmath import mp, mpf

mp.dps = 40
DEGREE, OCTAVES, PARTS, FIRST = 5, 8, 4, -4  # PARTS intervals in each of so many octaves from 2^FIRST on
SMALL = mpf(1) / 8  # below: one polynomial around 0, in the entry of the last interval below
SATURATED = 10  # from here on, 1 - tanh(a) is less than a sixteenth of the last place of 1


def interpolate(f: Callable, center: mpf, low: mpf, high: mpf, degree: int) -> list[mpf]:
    """The coefficients, lowest first, of the polynomial in x - center that interpolates f in Chebyshev's nodes."""
    middle, radius, n = (low + high) / 2, (high - low) / 2, degree + 1
    nodes = [middle + radius * mp.cos((2 * k + 1) * mp.pi / (2 * n)) for k in range(n)]
    powers = mp.matrix([[(x - center) ** k for k in range(n)] for x in nodes])
    return list(mp.lu_solve(powers, mp.matrix([f(x) for x in nodes])))


def accurate_center(low: mpf, high: mpf) -> mpf:
    """Of the 801 floats around the middle, the one whose tanh is nearest to a float."""
    middle = numpy.float32(float((low + high) / 2))
    floats = [mpf(float(middle + numpy.float32(k) * numpy.spacing(middle))) for k in range(-400, 401)]
    return min(floats, key=lambda x: abs(mp.tanh(x) - mpf(float(numpy.float32(float(mp.tanh(x)))))) / mp.tanh(x))


def entry(low: mpf, high: mpf) -> list[mpf]:
    """The center and the coefficients for an interval."""
    if high == SMALL:
        rest = interpolate(lambda x: (mp.tanh(x) / x - 1) / x, mpf(0), mpf(0), high, DEGREE - 2)
        return [mpf(0), mpf(0), mpf(1), *rest]
    if high < SMALL:  # never used
        return [mpf(0)] * (DEGREE + 2)
    if low >= SATURATED:
        return [low, mpf(1), *[mpf(0)] * DEGREE]
    center = accurate_center(low, high)
    return [center, *interpolate(mp.tanh, center, low, high, DEGREE)]


def table() -> list[list[numpy.float32]]:
    """The centers, then the coefficients of each power, lowest first, for each number of an interval."""
    columns: list[list[mpf]] = [[]] * (OCTAVES * PARTS)
    for exponent in range(FIRST, FIRST + OCTAVES):
        for part in range(PARTS):
            low = mpf(2) ** exponent * (1 + mpf(part) / PARTS)
            number = numpy.float32(float(low)).view(numpy.uint32) >> 21 & 31
            columns[number] = entry(low, low + mpf(2) ** exponent / PARTS)
    return [[numpy.float32(float(v)) for v in row] for row in zip(*columns, strict=True)]


def hexadecimal(value: numpy.float32) -> str:
    """As a C++ literal, without the zeros that a double would have."""
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}f" if value else "0"


def header() -> str:
    """The text of tanh_table.h."""
    lines = []
    for row in table():
        cells = list(map(hexadecimal, row))
        lines += ["    {", *("      " + ", ".join(cells[k : k + 4]) + "," for k in range(0, len(cells), 4)), "    },"]
    return "\n".join(
        [
            "// Written by tanh_table.py, which explains it: the centers, then the coefficients, lowest power first.",
            "// clang-format off",
            "alignas(64) static const float kTanh[7][32] = {",
            *lines,
            "};",
            "// clang-format on",
            "",
        ]
    )


if __name__ == "__main__":
    print(header(), end="")
