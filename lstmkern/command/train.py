"""train: the command that trains a language model on HUMAN_NUMBERS or on a text of the user."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..lm.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from ..lm.dataset import HUMAN_NUMBERS
from ..lm.errors import InputError
from ..lm.models import CELLS, RECIPES
from ..lm.output import output_directory
from ..lm.pretrained import MODEL, Pretrained, load_pretrained
from ..lm.train import DTYPES, OURS, PEER, Config, config_of
from . import options
from .libraries import make_console

LM7 = "(default: {}; depends on the model)"  # of a default that is lm7's


def add_commands(commands: options.Commands) -> None:
    """Add train to the command line."""
    parser = options.add_command(
        commands,
        "train",
        run_train,
        "Train a language model on numbers in words, or on a text of your own.",
        f"Defaults that depend on the model are those of {Config.model}. Without any option, LMModel7 learns to count, "
        "on lstmkern and on torch.nn. Started by torchrun, several processes share every batch.",
        [
            "--model lm7 --cell gru --epochs 5",
            "--model char-gru --text book.txt",
            "--model awd-lstm --text documents/ --out runs/mine",
            "--resume runs/mine --epochs 20",
        ],
    )
    _add_model(parser)
    _add_training(parser)
    _add_text(parser)
    _add_results(parser)
    options.add_session(parser, "MODEL")


def _add_model(parser: options.Parser) -> None:
    # Options of Config that the user does not give are absent: the model's own defaults apply.
    group = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--model",
        type=lambda text: text.lower().replace("lmmodel", "lm"),
        choices=tuple(RECIPES),
        metavar="MODEL",
        help=f"one of {', '.join(RECIPES)} (default: {Config.model})",
    )
    group.add_argument(
        "--cell", choices=CELLS, help=f"type of the recurrent layers, for lm6 and lm7 (default: {Config.cell})"
    )
    group.add_argument("--hidden", type=options.count, metavar="N", help=f"hidden units {LM7.format(Config.hidden)}")
    group.add_argument(
        "--layers",
        type=options.count,
        metavar="N",
        help=f"recurrent layers, for lm5 to lm7, char-lstm and awd-lstm {LM7.format(Config.layers)}",
    )
    group.add_argument(
        "--embedding",
        type=options.count,
        metavar="N",
        help="size of the embedding, for models of characters and subwords "
        f"(default: {RECIPES['char-gru'].defaults['embedding']} and {RECIPES[MODEL].defaults['embedding']})",
    )
    group.add_argument(
        "--dropout",
        type=options.factor,
        metavar="X",
        help="factor from 0 to 3 by which all dropout probabilities of awd-lstm are multiplied (default: "
        f"{RECIPES[MODEL].defaults['dropout']})",
    )


def _add_training(parser: options.Parser) -> None:
    group = parser.add_argument_group("training", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--epochs",
        type=options.count,
        metavar="N",
        help=f"passes over the training text {LM7.format(Config.epochs)}. On a small text the default is larger, so "
        f"that a model of characters makes {RECIPES['char-gru'].least_steps} optimizer steps, and one of subwords "
        f"{RECIPES[MODEL].least_steps}",
    )
    group.add_argument(
        "--lr", type=options.rate, metavar="X", help=f"peak of the one-cycle learning rate {LM7.format(Config.lr)}"
    )
    group.add_argument(
        "--batch-size",
        type=options.count,
        metavar="N",
        help=f"sequences per batch, over all processes {LM7.format(Config.batch_size)}",
    )
    group.add_argument(
        "--seq-len", type=options.seq_len, metavar="N", help=f"tokens per sequence {LM7.format(Config.seq_len)}"
    )
    group.add_argument(
        "--clip",
        type=options.nonnegative,
        metavar="X",
        help="scale gradients down to this norm; 0 turns this off (default: 0; "
        f"{MODEL}: {RECIPES[MODEL].defaults['clip']})",
    )
    group.add_argument(
        "--seed",
        type=options.seed,
        metavar="N",
        help=f"seed of the initial weights and of dropout (default: {Config.seed})",
    )
    group.add_argument("--device", help=f"cpu, cuda, or cuda:N for GPU number N (default: {Config.device})")
    group.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help=f"fp32, fp64, or bf16 by autocast with weights in fp32 (default: {Config.dtype})",
    )
    group.add_argument(
        "--compile", action="store_true", help="run the forward pass of training through torch.compile (default: no)"
    )


def _add_text(parser: options.Parser) -> None:
    group = parser.add_argument_group("text", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--data",
        metavar="DIR",
        help="for models of words: directory with train.txt and valid.txt. The two are joined; the first 80 %% is for "
        f"training, the rest for validation (default: {HUMAN_NUMBERS}, numbers up to 9999 in words)",
    )
    group.add_argument(
        "--text",
        metavar="PATH",
        help="for models of characters and subwords: a file, or a folder of files (default: for characters the source "
        "of Python's standard library, for subwords its docstrings)",
    )
    group.add_argument(
        "--limit",
        type=options.length,
        metavar="N",
        help=f"for models of characters: read the first N characters, 0 for all (default: {Config.limit})",
    )
    group.add_argument(
        "--subwords",
        type=options.count,
        metavar="N",
        help=f"size of the subword vocabulary (default: {Config.subwords})",
    )


def _add_results(parser: options.Parser) -> None:
    group = parser.add_argument_group("start and results")
    group.add_argument(
        "--encoder",
        metavar="FILE",
        help=f"start {MODEL} from the weights and vocabulary in encoder.pt or checkpoint.pt (default: new weights)",
    )
    group.add_argument(
        "--resume",
        metavar="PATH",
        help="continue the session whose checkpoint.pt, or whose directory, this is. With a larger --epochs, the "
        "remaining epochs get a new one-cycle schedule",
    )
    group.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="also train the same model on torch.nn, alternating epoch by epoch (default: only for lm5 to lm7)",
    )
    group.add_argument("--tensorboard", action="store_true", help="also write TensorBoard event files (default: no)")


def run_train(args: argparse.Namespace) -> int:
    """Run ``train`` and return the exit code."""
    console = make_console(args, "matplotlib")
    from ..lm.report import comparison_table
    from ..lm.session import train_session

    given = _given(args)
    resume = load_checkpoint(args.resume) if args.resume else None
    pretrained = load_pretrained(args.encoder) if args.encoder else None
    if resume and pretrained:
        raise InputError("--encoder starts a new session: it cannot be given together with --resume")
    if resume:
        config, kernels = _resumed(resume, given, args.compare)
    else:
        config, kernels = _new(pretrained, given, args.compare)
    out, force = args.out, args.force
    if resume and out is None and resume.path.name == CHECKPOINT:
        out, force = resume.path.parent, True  # continue in the directory of the session itself
    choose_epochs = resume is None and "epochs" not in given
    with output_directory(out, config.name, force) as output:
        runs, directory, data = train_session(
            console, config, kernels, output.make, resume, pretrained, args.tensorboard, choose_epochs
        )
    if len(runs) > 1:
        console.print(comparison_table([(runs[0], runs[1])]))
    prompt = "one thousand ." if data.source == HUMAN_NUMBERS else "TEXT"
    console.print(
        f"results are in {directory}; to generate text from them:\n"
        f'  {options.program()} generate --checkpoint {shlex.quote(str(directory))} --prompt "{prompt}"',
        soft_wrap=True,
    )
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of Config that the user gave, with absolute paths."""
    given = {field.name: getattr(args, field.name) for field in fields(Config) if hasattr(args, field.name)}
    paths = {name: str(Path(given[name]).resolve()) for name in ("data", "text") if given.get(name)}
    return {**given, **paths}


def _new(pretrained: Pretrained | None, given: dict[str, Any], compare: bool | None) -> tuple[Config, list[str]]:
    """Configuration and kernels of a new session, which may start from an encoder."""
    if pretrained:
        sizes = {name: getattr(pretrained.config, name) for name in ("embedding", "hidden", "layers")}
        given = {"model": MODEL, **sizes, **given}
        if given["model"] != MODEL:
            raise InputError(f"--encoder means nothing to model {given['model']}: only {MODEL} has an encoder")
    config = config_of(**given)
    if compare and not config.recipe.recurrent:
        raise InputError(f"model {config.model} has no recurrent layer: there is nothing to compare")
    compare = config.recipe.compare if compare is None else compare
    return config, [OURS, PEER] if compare else [OURS]


def _resumed(resume: Checkpoint, given: dict[str, Any], compare: bool | None) -> tuple[Config, list[str]]:
    """Configuration and kernels of the session to continue; an option that contradicts the checkpoint is an error."""
    known = asdict(resume.config)
    for name, value in given.items():
        free = name in ("data", "text") or (name == "epochs" and value > known[name])
        if not free and value != known[name]:
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"{option} {value} contradicts checkpoint {resume.path}, which was made with {known[name]}"
            )
    kernels = [name for name in (OURS, PEER) if name in resume.runs]
    if compare is not None and compare != (PEER in kernels):
        option = "--compare" if compare else "--no-compare"
        held = "a comparison" if PEER in kernels else "no comparison"
        raise InputError(f"{option} contradicts checkpoint {resume.path}, which holds {held}")
    return Config(**{**known, **given}), kernels
