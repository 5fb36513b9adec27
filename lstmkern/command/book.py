"""demo and ladder: the commands that train models of fastbook chapter 12 with its settings."""

from __future__ import annotations

import argparse
import functools

from ..lm import distributed
from ..lm.generate import generate
from ..lm.models import CELLS
from ..lm.output import output_directory
from ..lm.train import OURS, PEER, Config
from . import options
from .libraries import make_console

PROMPT = "nine thousand nine hundred ninety eight ."  # numbers up to 9,999 are in the training text


def add_commands(commands: options.Commands) -> None:
    """Add demo and ladder to the command line."""
    _add_demo(commands)
    _add_ladder(commands)


def _add_demo(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "demo",
        run_demo,
        "Train two language models to count, on lstmkern and on torch.nn, and compare.",
        "The models are LMModel6 and LMModel7 of fastbook chapter 12; the text is HUMAN_NUMBERS, numbers up to 9999 "
        "in words. Prints losses, accuracy and speed, and what LMModel7 writes after a prompt.",
        ["", "--cell gru --epochs 5 --threads 1"],
    )
    parser.add_argument(
        "--cell", choices=CELLS, default=Config.cell, help="type of the recurrent layers (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=options.count,
        default=Config.epochs,
        metavar="N",
        help="passes over the training text (default: %(default)s)",
    )
    options.add_seed(parser, "the initial weights and of dropout")
    options.add_session(parser, "demo")


def _add_ladder(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "ladder",
        run_ladder,
        "Train LMModel1 to LMModel7 as fastbook chapter 12 does, and compare with its accuracy.",
        "From three words and two linear layers to an LSTM that counts. Prints a table, and writes it to ladder.csv "
        "with a plot in ladder.png.",
        ["", "--seeds 5 --threads 1"],
    )
    options.add_seed(parser, "the initial weights and of dropout")
    parser.add_argument(
        "--seeds",
        type=options.count,
        default=1,
        metavar="N",
        help="train each model with N seeds, --seed and those that follow it, and show the median (default: "
        "%(default)s)",
    )
    options.add_session(parser, "ladder")


def run_demo(args: argparse.Namespace) -> int:
    """Run ``demo`` and return the exit code."""
    console = make_console(args, "matplotlib")
    from ..lm.report import comparison_table
    from ..lm.session import train_session

    pairs = []
    with output_directory(args.out, "demo", args.force) as output:
        for model in ("lm6", "lm7"):
            config = Config(model=model, cell=args.cell, epochs=args.epochs, seed=args.seed)
            make_directory = functools.partial(output.subdirectory, model)
            runs, _, data = train_session(console, config, [OURS, PEER], make_directory)
            pairs.append((runs[0], runs[1]))
            console.print()
    console.print(comparison_table(pairs))
    lm7, _ = pairs[-1]
    continuation = generate(lm7.model, data.vocab, PROMPT, length=30)
    console.print(f"lm7, asked to continue {PROMPT!r}:\n{continuation}\n")
    console.print(f"checkpoints, metrics.csv and plots are in {output.path}/lm6 and {output.path}/lm7", soft_wrap=True)
    return 0


def run_ladder(args: argparse.Namespace) -> int:
    """Run ``ladder`` and return the exit code."""
    console = make_console(args, "matplotlib")
    distributed.refuse("ladder")
    from ..lm.climb import climb

    with output_directory(args.out, "ladder", args.force) as output:
        directory = climb(console, range(args.seed, args.seed + args.seeds), output.make)
    console.print(f"table and plot are in {directory}", soft_wrap=True)
    return 0
