"""The command line, `lstmkern` or `python -m lstmkern`: one file per group of commands, each with its options.

What only some commands need, rich and matplotlib among it, is imported when such a command runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from .. import __version__
from ..lm import distributed
from ..lm.errors import Failed, InputError, Interrupted
from ..lm.output import explained
from . import machine, texts, training
from .options import Parser, program
from .waiting import sleep_while_waiting


def make_parser() -> Parser:
    parser = Parser(prog=program(), description="Recurrent kernels for PyTorch, and models that run on them.")
    parser.add_argument("--version", action="version", version=f"lstmkern {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for group in (training, texts, machine):
        group.add_commands(commands)
    return parser


def main(argv: Sequence[str], *, own_process: bool = False) -> int:
    """Run the command line ``argv``. With ``own_process``, that is what this process is for: it may start again.

    Returns the exit code: 0; 1 for a failed check or write, or a training that diverged; 2 for bad input; 130 after
    Ctrl-C.
    """
    try:
        args = make_parser().parse_args(argv)
        if own_process and args.trains:
            sleep_while_waiting(args.threads)
        if getattr(args, "threads", None):
            torch.set_num_threads(args.threads)
        return args.function(args)
    except SystemExit as stop:
        return stop.code or 0
    except InputError as error:
        if distributed.first():
            print(f"lstmkern: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
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
    """Run this process's own command line; see main."""
    return main(sys.argv[1:], own_process=True)
