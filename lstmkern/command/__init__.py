"""The command line, ``lstmkern`` or ``python -m lstmkern``: one file per group of commands, each with its options.

Libraries that only some commands need, such as rich and matplotlib, are imported when such a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import torch

from .. import __version__
from ..lm import distributed
from ..lm.errors import Failed, InputError, Interrupted
from ..lm.output import explained
from . import book, machine, texts, train
from .options import Parser, program
from .waiting import sleep_while_waiting


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog=program(),
        description="Fast recurrent layers for PyTorch: check and measure the kernels, train language models on them.",
        epilog="Run a command with --help to see its options.",
    )
    parser.add_argument("--version", action="version", version=f"lstmkern {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for group in (book, train, texts, machine):
        group.add_commands(commands)
    return parser


def main(argv: Sequence[str], *, own_process: bool = False) -> int:
    """Run the command line.

    Args:
        argv: what the user typed after the name of the program.
        own_process: the process exists only for this command, so that it may be replaced; see
            ``waiting.sleep_while_waiting``.

    Returns:
        The exit code: 0; 1 for a failed check or write, or a training that diverged; 2 for bad input; 130 after Ctrl-C.
    """
    try:
        args = make_parser().parse_args(argv)
        if own_process and args.trains:
            sleep_while_waiting(args.threads)
        if getattr(args, "threads", None):
            torch.set_num_threads(args.threads)
        run: Callable[[argparse.Namespace], int] = args.function
        return run(args)
    except SystemExit as stop:  # argparse, after --help or an error
        return int(stop.code or 0)
    except InputError as error:
        if distributed.first():
            print(f"lstmkern: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python can flush it when it ends
        return 1
    except (Failed, OSError) as error:
        if distributed.first():
            print(f"lstmkern: {explained(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        if distributed.first():
            print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        if distributed.first():
            print("interrupted; nothing was written", file=sys.stderr)
        return 130


def start() -> int:
    """Run the command line of this process and return the exit code; see ``main``."""
    return main(sys.argv[1:], own_process=True)
