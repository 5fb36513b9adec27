"""Optional libraries: a command checks for those that it needs before it starts to work."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..lm import distributed
from ..lm.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def need(args: argparse.Namespace, *libraries: str) -> None:
    """Check that optional libraries of the extra "lm" are installed.

    Args:
        args: of the command that needs them.
        libraries: their names.

    Raises:
        InputError: one of them is missing.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise InputError(
            f'{args.command} needs {" and ".join(missing)}: run `pip install "lstmkern[lm]"`, or in a clone '
            f"`pip install {' '.join(libraries)}`"
        )


def make_console(args: argparse.Namespace, *libraries: str) -> Console:
    """Check that rich and further optional libraries are installed, and make the command's console.

    If torchrun started several processes, only the first one's console prints.

    Args:
        args: of the command.
        libraries: names of what it needs in addition to rich.

    Raises:
        InputError: one of them is missing.
    """
    need(args, "rich", *libraries)
    from rich.console import Console

    return Console(highlight=False, markup=False, quiet=not distributed.first())
