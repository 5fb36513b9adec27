"""The parser, and the kinds of values and options that several commands have."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

T = TypeVar("T")
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # what a group of commands is added to


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and whose help may end with examples."""

    examples: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Print ``message`` to stderr and end the program with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")

    def format_help(self) -> str:
        """The text of --help: argparse's, then the examples."""
        lines = [f"  {program()} {example}" for example in self.examples]
        return "\n".join([super().format_help().rstrip("\n"), *(["", "examples:", *lines] if lines else []), ""])


def program() -> str:
    """How the user started this command line."""
    return "lstmkern" if Path(sys.argv[0]).stem == "lstmkern" else "python -m lstmkern"


def add_command(
    commands: Commands,
    name: str,
    function: Callable[[argparse.Namespace], int],
    summary: str,
    details: str = "",
    examples: Sequence[str] = (),
) -> Parser:
    """Add a command to the command line.

    Args:
        commands: what the command is added to.
        name: what the user types.
        function: runs the command, and returns its exit code.
        summary: one sentence for the list of commands, and the first sentence of the command's own help.
        details: what follows it there.
        examples: arguments of the program in typical calls, each one line.

    Returns:
        The command's parser, to which its options are to be added.
    """
    parser = commands.add_parser(name, help=summary, description=f"{summary} {details}".strip(), allow_abbrev=False)
    parser.set_defaults(function=function, trains=False)
    parser.examples = [f"{name} {example}".strip() for example in examples]
    return parser


def add_seed(parser: argparse._ActionsContainer, of: str) -> None:
    """Add ``--seed`` to a parser or to a group of options; ``of`` completes the help "seed of ..."."""
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help=f"seed of {of} (default: %(default)s)")


def add_session(parser: Parser, name: str) -> None:
    """Add the options of a command that trains. By default its results go to ``runs/<name>-<n>``."""
    parser.set_defaults(trains=True)
    group = parser.add_argument_group("session")
    group.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="number of CPU threads; 1 is best if other programs keep the machine busy (default: PyTorch's choice)",
    )
    group.add_argument(
        "--out", metavar="DIR", help=f"directory for the results (default: runs/{name}-N with the next free number N)"
    )
    group.add_argument("--force", action="store_true", help="write into --out even if it already holds files")


def value(convert: Callable[[str], T], accept: Callable[[T], bool], what: str) -> Callable[[str], T]:
    """Make a type for ``add_argument``.

    Args:
        convert: turns the text into a value; a ValueError means that it cannot.
        accept: whether that value is allowed.
        what: describes allowed values in the error "... is not <what>".
    """

    def parse(text: str) -> T:
        try:
            converted = convert(text)
        except ValueError:
            pass
        else:
            if accept(converted):
                return converted
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return parse


count = value(int, lambda n: n >= 1, "a whole number of at least 1")
length = value(int, lambda n: n >= 0, "a whole number of at least 0")
seq_len = value(int, lambda n: n >= 2, "a whole number of at least 2")
seed = value(int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1")
rate = value(float, lambda x: 0 < x < math.inf, "a number above 0")
seconds = value(float, lambda x: 0 < x < math.inf, "a number of seconds above 0")
factor = value(float, lambda x: 0 <= x <= 3, "a number from 0 to 3")
nonnegative = value(float, lambda x: 0 <= x < math.inf, "a number of at least 0")
