"""generate and classify: the commands that write texts and sort them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..lm import distributed
from ..lm.checkpoint import load_checkpoint, model_from
from ..lm.classify import classify_session, load_classifier, most_likely
from ..lm.errors import InputError, Interrupted
from ..lm.generate import LONGEST, default_temperature, encode_prompt, generate_pieces
from ..lm.output import output_directory
from ..lm.pretrained import load_pretrained
from . import options
from .libraries import make_console
from .training import DEMO_PROMPT


def add_commands(commands: Any) -> None:
    gen = options.add_command(commands, "generate", run_generate, "Continue a prompt with a trained model.")
    gen.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="checkpoint.pt of `train`, or the directory that it is in"
    )
    gen.add_argument("--prompt", required=True, help=f'the text to continue, such as "{DEMO_PROMPT}"')
    gen.add_argument(
        "--length",
        type=options.value(int, lambda n: 1 <= n <= LONGEST, f"a whole number from 1 to {LONGEST:,}"),
        default=40,
        help=f"words, characters or subwords to write, at most {LONGEST:,}, which take minutes (default: 40)",
    )
    gen.add_argument(
        "--temperature",
        type=options.nonnegative,
        help="0 takes the likeliest word each time (default: 0 for models of HUMAN_NUMBERS, which count; 0.8 for those "
        "of texts, which would repeat the most frequent, such as blanks)",
    )
    gen.add_argument(
        "--seed", type=options.seed, default=0, help="seed of the words drawn at temperatures above 0 (default: 0)"
    )

    sort = options.add_command(
        commands,
        "classify",
        run_classify,
        "Train a classifier of texts on the encoder of an AWD-LSTM, or ask a trained one.",
    )
    sort.add_argument(
        "--encoder", metavar="FILE", help="encoder.pt or checkpoint.pt of `train --model awd-lstm`, or their directory"
    )
    sort.add_argument(
        "--text",
        metavar="DIR",
        help="folder with one folder of texts per class (default: docstrings, which package do they come from)",
    )
    sort.add_argument("--classes", type=options.count, default=20, help="use only the largest classes (default: 20)")
    sort.add_argument(
        "--epochs",
        type=options.count,
        default=6,
        help="epochs to train all layers; before them, one epoch per stage of unfreezing (default: 6)",
    )
    sort.add_argument("--seed", type=options.seed, default=0, help="seed of new weights and of dropout (default: 0)")
    sort.add_argument("--checkpoint", help="a trained classifier: classifier.pt, or the directory that it is in")
    sort.add_argument("--prompt", help="the text to classify")
    options.add_session(sort, "classify")


def run_generate(args: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(args.checkpoint)
    model = model_from(checkpoint)
    encode_prompt(args.prompt, checkpoint.vocab, model.window)  # before a word is written
    temperature = default_temperature(checkpoint.config) if args.temperature is None else args.temperature
    print(args.prompt, end=checkpoint.vocab.separator, flush=True)
    written = 0
    try:
        for piece in generate_pieces(model, checkpoint.vocab, args.prompt, args.length, temperature, args.seed):
            print(piece, end="", flush=True)
            written += 1
    except KeyboardInterrupt:
        print(flush=True)
        raise Interrupted(
            f"interrupted; the text above, {written} of {args.length} {checkpoint.vocab.unit}, is not kept elsewhere"
        ) from None
    print()
    return 0


def run_classify(args: argparse.Namespace) -> int:
    if args.prompt is not None:
        if args.checkpoint is None or args.encoder is not None:
            raise InputError("--prompt asks a trained classifier: give its --checkpoint")
        for name, probability in most_likely(load_classifier(args.checkpoint), args.prompt):
            print(f"{probability:6.1%}  {name}")
        return 0
    if args.encoder is None or args.checkpoint is not None:
        raise InputError(
            "to train a classifier give --encoder, a file of an AWD-LSTM; to ask one, --checkpoint and --prompt"
        )
    distributed.refuse("classify")
    console = make_console(args)
    text = str(Path(args.text).resolve()) if args.text else None
    with output_directory(args.out, "classify", args.force) as output:
        out = classify_session(
            console, load_pretrained(args.encoder), text, args.epochs, args.classes, args.seed, output.make
        )
    console.print(f"results are in {out}", soft_wrap=True)
    return 0
