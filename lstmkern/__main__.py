"""The command line: python -m lstmkern {demo,ladder,train,generate,classify,verify,bench,info}."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

try:
    import matplotlib  # noqa: F401 (not used here, but it must not turn out to be missing after the training)
    from rich.console import Console
except ModuleNotFoundError as error:
    sys.exit(f"the command line needs {error.name}: run `pip install rich matplotlib`")

from . import _extension
from .bench import goals, roofline
from .bench.cases import DTYPES as BENCH_DTYPES
from .lm import distributed
from .lm.checkpoint import Checkpoint, load_checkpoint, model_from
from .lm.classify import classify_session, load_classifier, most_likely
from .lm.climb import climb
from .lm.errors import InputError
from .lm.generate import encode_prompt, generate
from .lm.models import CELLS, RECIPES
from .lm.pretrained import MODEL, load_pretrained
from .lm.report import comparison_table
from .lm.session import CHECKPOINT, Interrupted, make_directory, output_directory, train_session
from .lm.train import DTYPES, OURS, PEER, Config, config_of
from .verify import verify

DEMO_PROMPT = "nine thousand nine hundred ninety eight ."
console = Console(highlight=False, markup=False, quiet=not distributed.first())


def run_train(args: argparse.Namespace) -> int:
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
        place = functools.partial(make_directory, resume.path.parent)  # go on where the session was interrupted
    else:
        place = output_directory(args.out, config.name, args.force)
    runs, out, _ = train_session(console, config, kernels, place, resume, pretrained, args.tensorboard)
    if len(runs) > 1:
        console.print(comparison_table([(runs[0], runs[1])]))
    console.print(f"results are in {out}", soft_wrap=True)
    return 0


def _resumed(resume: Checkpoint, given: dict, compare: bool | None) -> tuple[Config, list[str]]:
    """Configuration and kernels of the session to continue; an option that contradicts the checkpoint is an error."""
    known = asdict(resume.config)
    for name, value in given.items():
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
    place = functools.cache(output_directory(args.out, "demo", args.force))
    pairs = []
    for model in ("lm6", "lm7"):
        config = Config(model=model, cell=args.cell, epochs=args.epochs, seed=args.seed)
        runs, _, data = train_session(
            console, config, [OURS, PEER], lambda model=model: make_directory(place() / model)
        )
        pairs.append((runs[0], runs[1]))
        console.print()
    console.print(comparison_table(pairs))
    counting, _ = pairs[-1]
    continuation = generate(counting.model, data.vocab, DEMO_PROMPT, length=30)
    console.print(f"lm7, asked to continue {DEMO_PROMPT!r}:\n{continuation}\n")
    console.print(f"checkpoints, metrics.csv and plots are in {place()}/lm6 and {place()}/lm7", soft_wrap=True)
    return 0


def run_ladder(args: argparse.Namespace) -> int:
    place = output_directory(args.out, "ladder", args.force)
    out = climb(console, Config(seed=args.seed), place)
    console.print(f"table and plot are in {out}", soft_wrap=True)
    return 0


def run_generate(args: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(args.checkpoint)
    model = model_from(checkpoint)
    encode_prompt(args.prompt, checkpoint.vocab, model.window)  # before a word is written
    text = generate(model, checkpoint.vocab, args.prompt, args.length, args.temperature, args.seed)
    print(args.prompt, text, sep=checkpoint.vocab.separator)
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
    text = str(Path(args.text).resolve()) if args.text else None
    place = output_directory(args.out, "classify", args.force)
    out = classify_session(console, load_pretrained(args.encoder), text, args.epochs, args.classes, args.seed, place)
    console.print(f"results are in {out}", soft_wrap=True)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    return 0 if verify(console) else 1


def run_bench(args: argparse.Namespace) -> int:
    most = roofline.cores()
    if args.counts and max(args.counts) > most:
        raise InputError(f"--threads {max(args.counts)}: this process may use {most} core{'s' if most > 1 else ''}")
    seconds = args.seconds or (goals.QUICK_SECONDS if args.quick else goals.FULL_SECONDS)
    out = None if args.out is None else Path(args.out)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is not a directory")
    counts = sorted(set(args.counts or (1, most)))
    return goals.main(console, args.shape, args.cell, args.dtype, counts, seconds, out)


def run_info(args: argparse.Namespace) -> int:
    built = _extension.build_info()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = {
        "lstmkern": built["version"],
        "compiler": built["compiler"],
        "OpenMP": "yes" if built["openmp"] else "no",
        "CPU instruction set in use": f"{_extension.cpu_capability()}, for bf16 {_extension.cpu_capability(bf16=True)}",
        "CUDA kernels": f"built with CUDA {built['cuda']}" if built["cuda"] else "not built",
        "CUDA architectures": ", ".join(built["cuda_archs"]) or "none",
        "GPU": ", ".join(gpus) or "none seen",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    for name, value in rows.items():
        print(f"{name:<28}{value}")
    return 0


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def _number(convert: Callable, accept: Callable, what: str) -> Callable:
    def parse(text: str):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


_count = _number(int, lambda n: n >= 1, "a whole number of at least 1")
_seed = _number(int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1")
_rate = _number(float, lambda x: 0 < x < math.inf, "a number above 0")
_seconds = _number(float, lambda x: 0 < x < math.inf, "a number of seconds above 0")
_shape = _number(goals.parse_shape, lambda sizes: True, "a shape T,N,I,H[,layers]")
_length = _number(int, lambda n: n >= 0, "a whole number of at least 0")
_seq_len = _number(int, lambda n: n >= 2, "a whole number of at least 2")
_factor = _number(float, lambda x: 0 <= x <= 3, "a number from 0 to 3")
_temperature = _number(float, lambda x: 0 <= x < math.inf, "a number of at least 0")


def _model(text: str) -> str:
    return text.lower().replace("lmmodel", "lm")


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m lstmkern", description="Recurrent kernels for PyTorch, and models that run on them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, function: Callable, text: str) -> Parser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub

    def add_session(sub: Parser, name: str) -> None:
        sub.add_argument("--threads", type=_count, help="CPU threads; 1 is best beside other work (default: torch's)")
        sub.add_argument("--out", help=f"directory for the results (default: runs/{name}-<next free number>)")
        sub.add_argument("--force", action="store_true", help="write into --out even if it already holds files")

    demo = command(
        "demo", run_demo, "Train LMModel6 and LMModel7 to count, beside torch.nn, and let LMModel7 go on counting."
    )
    demo.add_argument("--cell", choices=CELLS, default=Config.cell)
    demo.add_argument("--epochs", type=_count, default=Config.epochs)
    demo.add_argument("--seed", type=_seed, default=Config.seed)
    add_session(demo, "demo")

    ladder = command("ladder", run_ladder, "Train LMModel1 to LMModel7 as the book does: one table, one plot.")
    ladder.add_argument("--seed", type=_seed, default=Config.seed)
    add_session(ladder, "ladder")

    train = command(
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
    option("--epochs", type=_count, help=f"(default: {Config.epochs})")
    option("--lr", type=_rate, help=f"peak learning rate of the one-cycle schedule (default: {Config.lr})")
    option(
        "--batch-size", type=_count, help=f"rows of a batch, of all processes together (default: {Config.batch_size})"
    )
    option(
        "--seq-len",
        type=_seq_len,
        help=f"tokens of a row between two steps of the optimizer (default: {Config.seq_len})",
    )
    option("--hidden", type=_count, help=f"width of the layers (default: {Config.hidden})")
    option("--embedding", type=_count, help="width of the embedding (models of characters and subwords)")
    option("--layers", type=_count, help=f"recurrent layers (default: {Config.layers})")
    option("--dropout", type=_factor, help="factor, 0 to 3, of all dropout probabilities of awd-lstm (default: 1)")
    option("--clip", type=_temperature, help="norm to which gradients are scaled down, 0 never (default: 0)")
    option("--seed", type=_seed, help=f"of weights and dropout (default: {Config.seed})")
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
        "--limit", type=_length, help=f"characters to read of it, 0 all (models of characters; default: {Config.limit})"
    )
    option("--subwords", type=_count, help=f"size of that vocabulary (default: {Config.subwords})")
    train.add_argument("--encoder", metavar="FILE", help="awd-lstm: start from this encoder, with its vocabulary")
    train.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="train the same model on torch.nn too, epochs in turn (default: yes for lm5 to lm7, no for texts)",
    )
    train.add_argument("--resume", metavar="CHECKPOINT", help="continue an interrupted session, in its directory")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's event files")
    add_session(train, "<model>")

    gen = command("generate", run_generate, "Continue a prompt with a trained model.")
    gen.add_argument("--checkpoint", required=True)
    gen.add_argument("--prompt", required=True, help=f'such as "{DEMO_PROMPT}"')
    gen.add_argument("--length", type=_count, default=40, help="words, characters or subwords to write (default: 40)")
    gen.add_argument("--temperature", type=_temperature, default=0.0, help="0 takes the likeliest word (default: 0)")
    gen.add_argument("--seed", type=_seed, default=0, help="of the words drawn at temperatures above 0 (default: 0)")

    sort = command(
        "classify",
        run_classify,
        "Train a classifier of texts on the encoder of an AWD-LSTM, or ask a trained one.",
    )
    sort.add_argument("--encoder", metavar="FILE", help="encoder.pt or checkpoint.pt of `train --model awd-lstm`")
    sort.add_argument(
        "--text",
        metavar="DIR",
        help="folder with one folder of texts per class (default: docstrings, which package do they come from)",
    )
    sort.add_argument("--classes", type=_count, default=20, help="use only the largest classes (default: 20)")
    sort.add_argument("--epochs", type=_count, default=6, help="after all layers are unfrozen (default: 6)")
    sort.add_argument("--seed", type=_seed, default=0)
    sort.add_argument("--checkpoint", help="a trained classifier")
    sort.add_argument("--prompt", help="the text that it is to classify")
    add_session(sort, "classify")

    command("verify", run_verify, "Check every kernel on every device present: gradcheck, and parity with torch.nn.")
    bench = command("bench", run_bench, "Measure the kernels beside torch.nn and the roofline of this machine.")
    bench.add_argument(
        "--quick", action="store_true", help=f"{goals.QUICK_SECONDS} seconds instead of {goals.FULL_SECONDS}"
    )
    bench.add_argument("--seconds", type=_seconds, help="stop taking new measurements after this long")
    bench.add_argument(
        "--threads", type=_count, nargs="+", dest="counts", metavar="N", help="CPU threads (default: 1, and every core)"
    )
    bench.add_argument("--dtype", nargs="+", choices=tuple(BENCH_DTYPES), default=["fp32", "bf16"])
    bench.add_argument("--cell", nargs="+", choices=("LSTM", "GRU", "RNN"), default=["LSTM", "GRU"])
    bench.add_argument(
        "--shape", type=_shape, nargs="+", metavar="T,N,I,H,LAYERS", help="sizes (default: those of the goals)"
    )
    bench.add_argument("--out", metavar="DIR", help="write goals.json and goals.md there")
    command("info", run_info, "Show versions, the instruction set in use, CUDA architectures and GPUs.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``.

    Returns the exit code: 0, 1 for a failed check or write, 2 for bad input, 130 after Ctrl-C.
    """
    try:
        args = make_parser().parse_args(argv)
        if getattr(args, "threads", None):
            torch.set_num_threads(args.threads)
        return args.function(args)
    except SystemExit as stop:
        return stop.code or 0
    except InputError as error:
        if distributed.first():
            print(f"lstmkern: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a closed pipe
        print(f"lstmkern: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        return 130


if __name__ == "__main__":
    sys.exit(main())
