"""demo, ladder and train: the commands that train language models."""

from __future__ import annotations

import argparse
import functools
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..lm import distributed
from ..lm.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from ..lm.dataset import HUMAN_NUMBERS
from ..lm.errors import InputError
from ..lm.generate import generate
from ..lm.models import CELLS, RECIPES
from ..lm.output import output_directory
from ..lm.pretrained import MODEL, load_pretrained
from ..lm.train import DTYPES, OURS, PEER, Config, config_of
from . import options
from .libraries import make_console

DEMO_PROMPT = "nine thousand nine hundred ninety eight ."
_SEED = f"seed of the weights and of dropout (default: {Config.seed})"


def _model(text: str) -> str:
    return text.lower().replace("lmmodel", "lm")


def add_commands(commands: Any) -> None:
    demo = options.add_command(
        commands,
        "demo",
        run_demo,
        "Train LMModel6 and LMModel7 to count, compared with torch.nn, and let LMModel7 go on counting.",
    )
    demo.add_argument(
        "--cell", choices=CELLS, default=Config.cell, help=f"recurrent layer of both models (default: {Config.cell})"
    )
    demo.add_argument(
        "--epochs", type=options.count, default=Config.epochs, help=f"epochs to train (default: {Config.epochs})"
    )
    demo.add_argument("--seed", type=options.seed, default=Config.seed, help=_SEED)
    options.add_session(demo, "demo")

    ladder = options.add_command(
        commands, "ladder", run_ladder, "Train LMModel1 to LMModel7 as fastbook chapter 12 does: one table, one plot."
    )
    ladder.add_argument("--seed", type=options.seed, default=Config.seed, help=_SEED)
    ladder.add_argument(
        "--seeds",
        type=options.count,
        default=1,
        metavar="N",
        help="train every model with N seeds, from --seed up, and show the median (default: 1)",
    )
    options.add_session(ladder, "ladder")

    train = options.add_command(
        commands,
        "train",
        run_train,
        "Train a language model on HUMAN_NUMBERS or on a text of your own. Defaults depend on the model; those named "
        f"here are {Config.model}'s. With torchrun, several processes share every batch.",
    )
    option = lambda *names, **how: train.add_argument(*names, default=argparse.SUPPRESS, **how)  # noqa: E731
    option(
        "--model",
        type=_model,
        choices=tuple(RECIPES),
        metavar="MODEL",
        help=f"one of {', '.join(RECIPES)} (default: {Config.model})",
    )
    option("--cell", choices=CELLS, help=f"recurrent layer of lm6 and lm7 (default: {Config.cell})")
    option(
        "--epochs",
        type=options.count,
        help=f"epochs to train (default: {Config.epochs}; more for a small text: a model of characters needs "
        f"{RECIPES['char-gru'].least_steps} optimizer steps to write words, one of subwords "
        f"{RECIPES['awd-lstm'].least_steps})",
    )
    option("--lr", type=options.rate, help=f"peak learning rate of the one-cycle schedule (default: {Config.lr})")
    option(
        "--batch-size",
        type=options.count,
        help=f"sequences per batch, of all processes together (default: {Config.batch_size})",
    )
    option(
        "--seq-len",
        type=options.seq_len,
        help=f"tokens per sequence in an optimizer step (default: {Config.seq_len})",
    )
    option("--hidden", type=options.count, help=f"width of the layers (default: {Config.hidden})")
    option("--embedding", type=options.count, help="width of the embedding (models of characters and subwords)")
    option("--layers", type=options.count, help=f"recurrent layers (default: {Config.layers})")
    option(
        "--dropout", type=options.factor, help="factor, 0 to 3, of all dropout probabilities of awd-lstm (default: 1)"
    )
    option("--clip", type=options.nonnegative, help="norm to which gradients are scaled down, 0 never (default: 0)")
    option("--seed", type=options.seed, help=_SEED)
    option("--device", help=f"cpu, cuda or cuda:N (default: {Config.device})")
    option("--dtype", choices=tuple(DTYPES), help=f"bf16 is autocast, with weights in fp32 (default: {Config.dtype})")
    option("--compile", action="store_true", help="torch.compile the training step's forward")
    option(
        "--data",
        metavar="DIR",
        help="directory with train.txt and valid.txt; joined, their first 80 %% train and the rest validates (models "
        "of words; default: HUMAN_NUMBERS)",
    )
    option(
        "--text",
        metavar="PATH",
        help="file, or folder of files (models of characters and subwords; default: the source of Python's standard "
        "library for characters, its docstrings for subwords)",
    )
    option(
        "--limit",
        type=options.length,
        help=f"characters to read of --text, 0 for all (models of characters; default: {Config.limit})",
    )
    option("--subwords", type=options.count, help=f"size of the subword vocabulary (default: {Config.subwords})")
    train.add_argument("--encoder", metavar="FILE", help="awd-lstm: start from this encoder, with its vocabulary")
    train.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="train the same model on torch.nn too, epochs in turn (default: yes for lm5 to lm7, no for texts)",
    )
    train.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="checkpoint.pt, or the directory that it is in: continue that session there; with a larger --epochs, the "
        "epochs that are left get a new one-cycle schedule, warm-up included",
    )
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's event files")
    options.add_session(train, "<model>")


def run_train(args: argparse.Namespace) -> int:
    console = make_console(args, "matplotlib")
    from ..lm.report import comparison_table
    from ..lm.session import train_session

    given = {field.name: getattr(args, field.name) for field in fields(Config) if hasattr(args, field.name)}
    for name in ("data", "text"):
        if given.get(name):
            given[name] = str(Path(given[name]).resolve())
    resume = load_checkpoint(args.resume) if args.resume else None
    pretrained = load_pretrained(args.encoder) if args.encoder else None
    if resume and pretrained:
        raise InputError("--encoder starts a new session: it cannot be given together with --resume")
    if resume:
        config, kernels = _resumed(resume, given, args.compare)
    else:
        if pretrained:
            sizes = {name: getattr(pretrained.config, name) for name in ("embedding", "hidden", "layers")}
            given = {"model": MODEL, **sizes, **given}
            if given["model"] != MODEL:
                raise InputError(f"--encoder means nothing to model {given['model']}: only {MODEL} has an encoder")
        config = config_of(**given)
        compare = config.recipe.compare if args.compare is None else args.compare
        if compare and not config.recipe.recurrent:
            raise InputError(f"model {config.model} has no recurrent layer: there is nothing to compare")
        kernels = [OURS, PEER] if compare else [OURS]
    if resume and args.out is None and resume.path.name == CHECKPOINT:
        where, force = resume.path.parent, True  # go on where the session was interrupted
    else:
        where, force = args.out, args.force
    choose = resume is None and "epochs" not in given
    with output_directory(where, config.name, force) as output:
        runs, out, data = train_session(
            console, config, kernels, output.make, resume, pretrained, args.tensorboard, choose_epochs=choose
        )
    if len(runs) > 1:
        console.print(comparison_table([(runs[0], runs[1])]))
    prompt = "one thousand ." if data.source == HUMAN_NUMBERS else "TEXT"
    console.print(
        f"results are in {out}; to generate text from them:\n"
        f'  {options.program()} generate --checkpoint {shlex.quote(str(out))} --prompt "{prompt}"',
        soft_wrap=True,
    )
    return 0


def _resumed(resume: Checkpoint, given: dict, compare: bool | None) -> tuple[Config, list[str]]:
    """Configuration and kernels of the session to continue; an option that contradicts the checkpoint is an error."""
    known = asdict(resume.config)
    for name, value in given.items():
        if name == "epochs" and value > known[name]:
            continue
        if name not in ("data", "text") and value != known[name]:
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"{option} {value} contradicts checkpoint {resume.path}, which was made with {known[name]}"
            )
    kernels = [name for name in (OURS, PEER) if name in resume.runs]
    if compare is not None and compare != (PEER in kernels):
        held = "a comparison" if PEER in kernels else "no comparison"
        raise InputError(
            f"--{'compare' if compare else 'no-compare'} contradicts checkpoint {resume.path}, which holds {held}"
        )
    return Config(**{**known, **given}), kernels


def run_demo(args: argparse.Namespace) -> int:
    console = make_console(args, "matplotlib")
    from ..lm.report import comparison_table
    from ..lm.session import train_session

    pairs = []
    with output_directory(args.out, "demo", args.force) as output:
        for model in ("lm6", "lm7"):
            config = Config(model=model, cell=args.cell, epochs=args.epochs, seed=args.seed)
            runs, _, data = train_session(console, config, [OURS, PEER], functools.partial(output.subdirectory, model))
            pairs.append((runs[0], runs[1]))
            console.print()
    console.print(comparison_table(pairs))
    counting, _ = pairs[-1]
    continuation = generate(counting.model, data.vocab, DEMO_PROMPT, length=30)
    console.print(f"lm7, asked to continue {DEMO_PROMPT!r}:\n{continuation}\n")
    console.print(f"checkpoints, metrics.csv and plots are in {output.path}/lm6 and {output.path}/lm7", soft_wrap=True)
    return 0


def run_ladder(args: argparse.Namespace) -> int:
    console = make_console(args, "matplotlib")
    distributed.refuse("ladder")
    from ..lm.climb import climb

    with output_directory(args.out, "ladder", args.force) as output:
        out = climb(console, range(args.seed, args.seed + args.seeds), output.make)
    console.print(f"table and plot are in {out}", soft_wrap=True)
    return 0
