"""The command line, ``lstmkern`` or ``python -m lstmkern``: one file per group of commands, each with its options.

Libraries that only some commands need, such as rich and matplotlib, are imported when such a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch

from .. import __version__
from ..lm import distributed
from ..lm.errors import Failed, InputError, Interrupted
from ..lm.output import explained
from . import book, machine, texts, train
from .options import Parser, program
from .waiting import sleep_while_waiting

SECONDS_FOR_THE_FIRST = 10.0  # to report an error that all processes have


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
        report(str(error))
        return 2
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python can flush it when it ends
        return 1
    except (Failed, OSError) as error:
        report(explained(error) if isinstance(error, OSError) else str(error))
        return 1
    except Interrupted as stop:
        if distributed.first():
            print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        if distributed.first():
            print("interrupted; nothing was written", file=sys.stderr)
        return 130


def report(message: str) -> None:
    """Print an error once, if torchrun has started several processes.

    When one process ends with an error, torchrun ends the others. So the first process reports and the others wait for
    their end. A process that still runs after that is the only one with this error, and reports it.
    """
    if not distributed.first():
        time.sleep(SECONDS_FOR_THE_FIRST)
    print(f"lstmkern: {message}", file=sys.stderr)


def start() -> int:
    """Run the command line of this process and return the exit code; see ``main``."""
    return main(sys.argv[1:], own_process=True)
