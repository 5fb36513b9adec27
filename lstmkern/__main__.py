"""Entry point of ``python -m lstmkern``; see ``lstmkern.command``."""

import sys

from .command import start

if __name__ == "__main__":
    sys.exit(start())
