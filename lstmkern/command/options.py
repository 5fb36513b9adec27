"""The parser, and the kinds of values and options that several commands have."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def program() -> str:
    """How the user started this command line."""
    return "lstmkern" if Path(sys.argv[0]).stem == "lstmkern" else "python -m lstmkern"


def add_command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str) -> Parser:
    """The parser of a new command ``name``, which runs ``function`` and whose help is ``text``."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(function=function, trains=False)
    return parser


def add_session(parser: Parser, name: str) -> None:
    """Make ``parser`` that of a command that trains, with options for threads and where the results go."""
    parser.set_defaults(trains=True)
    parser.add_argument("--threads", type=count, help="CPU threads; 1 is best on a busy machine (default: torch's)")
    parser.add_argument("--out", help=f"directory for the results (default: runs/{name}-<next free number>)")
    parser.add_argument("--force", action="store_true", help="write into --out even if it already holds files")


def value(convert: Callable[[str], Any], accept: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    """A type for add_argument: ``convert`` of the text, if that ``accept``s; otherwise the text "is not ``what``"."""

    def parse(text: str) -> Any:
        try:
            converted = convert(text)
        except ValueError:
            converted = None
        if converted is None or not accept(converted):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return converted

    return parse


count = value(int, lambda n: n >= 1, "a whole number of at least 1")
length = value(int, lambda n: n >= 0, "a whole number of at least 0")
seq_len = value(int, lambda n: n >= 2, "a whole number of at least 2")
seed = value(int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1")
rate = value(float, lambda x: 0 < x < math.inf, "a number above 0")
seconds = value(float, lambda x: 0 < x < math.inf, "a number of seconds above 0")
factor = value(float, lambda x: 0 <= x <= 3, "a number from 0 to 3")
nonnegative = value(float, lambda x: 0 <= x < math.inf, "a number of at least 0")
