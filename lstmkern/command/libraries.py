"""Optional libraries. A command checks for those it needs before it starts work."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..lm import distributed
from ..lm.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def need(args: argparse.Namespace, *libraries: str) -> None:
    """Check that the command of ``args`` finds ``libraries``, which belong to the extra "lm".

    Raises:
        InputError: one is not installed.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise InputError(
            f'{args.command} needs {" and ".join(missing)}: run `pip install "lstmkern[lm]"`, or in a clone '
            f"`pip install {' '.join(libraries)}`"
        )


def make_console(args: argparse.Namespace, *libraries: str) -> Console:
    """The console of a command that needs rich and ``libraries``. Of several processes, only the first one prints.

    Raises:
        InputError: one is not installed.
    """
    need(args, "rich", *libraries)
    from rich.console import Console

    return Console(highlight=False, markup=False, quiet=not distributed.first())
