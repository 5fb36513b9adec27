"""generate and classify: the commands that write texts and assign them to classes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..lm import distributed
from ..lm.checkpoint import load_checkpoint, model_from
from ..lm.classify import classify_session, load_classifier, most_likely
from ..lm.errors import InputError, Interrupted
from ..lm.generate import LONGEST, default_temperature, encode_prompt, generate_pieces
from ..lm.output import output_directory
from ..lm.pretrained import load_pretrained
from . import options
from .libraries import make_console


def add_commands(commands: options.Commands) -> None:
    """Add generate and classify to the command line."""
    _add_generate(commands)
    _add_classify(commands)


def _add_generate(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "generate",
        run_generate,
        "Continue a text with a trained language model.",
        "Prints the prompt and, word by word, what the model writes after it.",
        [
            '--checkpoint runs/lm7-lstm-1 --prompt "one thousand ."',
            '--checkpoint runs/char-gru-1 --prompt "def " --length 200 --temperature 0.6',
        ],
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="checkpoint.pt that `train` wrote, or its directory"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    parser.add_argument(
        "--length",
        type=options.value(int, lambda n: 1 <= n <= LONGEST, f"a whole number from 1 to {LONGEST:,}"),
        default=40,
        metavar="N",
        help=f"number of words, characters or subwords to write, at most {LONGEST:,} (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=options.nonnegative,
        metavar="X",
        help="0 always takes the most likely word; higher values make the text more varied (default: 0 for models that "
        "were trained on HUMAN_NUMBERS, 0.8 for others)",
    )
    options.add_seed(parser, "the random numbers for temperatures above 0")


def _add_classify(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "classify",
        run_classify,
        "Train a text classifier on the encoder of an AWD-LSTM, or use a trained one.",
        "To train one, give --encoder. To use one, give --checkpoint and --prompt: this prints the most likely classes "
        "with their probabilities.",
        [
            "--encoder runs/awd-lstm-1 --text reviews/",
            '--checkpoint runs/classify-1 --prompt "a text to classify"',
        ],
    )
    train = parser.add_argument_group("train a classifier")
    train.add_argument(
        "--encoder", metavar="PATH", help="encoder.pt or checkpoint.pt of `train --model awd-lstm`, or their directory"
    )
    train.add_argument(
        "--text",
        metavar="DIR",
        help="folder with one folder of text files per class (default: the docstrings of Python's standard library; "
        "the class is the package)",
    )
    train.add_argument(
        "--classes",
        type=options.count,
        default=20,
        metavar="N",
        help="use only the N classes with the most texts (default: %(default)s)",
    )
    train.add_argument(
        "--epochs",
        type=options.count,
        default=6,
        metavar="N",
        help="epochs in which all layers are trained; before them comes one epoch per stage of gradual unfreezing "
        "(default: %(default)s)",
    )
    options.add_seed(train, "new weights, of dropout and of the order of the texts")
    use = parser.add_argument_group("use a classifier")
    use.add_argument("--checkpoint", metavar="PATH", help="classifier.pt of a trained classifier, or its directory")
    use.add_argument("--prompt", metavar="TEXT", help="text to classify")
    options.add_session(parser, "classify")


def run_generate(args: argparse.Namespace) -> int:
    """Run ``generate`` and return the exit code."""
    checkpoint = load_checkpoint(args.checkpoint)
    model, vocab = model_from(checkpoint), checkpoint.vocab
    encode_prompt(args.prompt, vocab, model.window)  # raises if the prompt is unusable, before anything is printed
    temperature = default_temperature(checkpoint.config) if args.temperature is None else args.temperature
    print(args.prompt, end=vocab.separator, flush=True)
    written = 0
    try:
        for piece in generate_pieces(model, vocab, args.prompt, args.length, temperature, args.seed):
            print(piece, end="", flush=True)
            written += 1
    except KeyboardInterrupt:
        print(flush=True)
        raise Interrupted(
            f"interrupted; the text above, {written} of {args.length} {vocab.unit}, is not saved anywhere"
        ) from None
    print()
    return 0


def run_classify(args: argparse.Namespace) -> int:
    """Run ``classify`` and return the exit code."""
    if args.prompt is not None:
        return _use_classifier(args)
    if args.encoder is None or args.checkpoint is not None:
        raise InputError(
            "to train a classifier give --encoder, a file of an AWD-LSTM; to use one, --checkpoint and --prompt"
        )
    distributed.refuse("classify")
    console = make_console(args)
    text = str(Path(args.text).resolve()) if args.text else None
    with output_directory(args.out, "classify", args.force) as output:
        pretrained = load_pretrained(args.encoder)
        directory = classify_session(console, pretrained, text, args.epochs, args.classes, args.seed, output.make)
    console.print(f"results are in {directory}", soft_wrap=True)
    return 0


def _use_classifier(args: argparse.Namespace) -> int:
    if args.checkpoint is None or args.encoder is not None:
        raise InputError("--prompt is for a trained classifier: give its --checkpoint")
    for name, probability in most_likely(load_classifier(args.checkpoint), args.prompt):
        print(f"{probability:6.1%}  {name}")
    return 0
