"""Training with AdamW and a one-cycle schedule, of one run or of several runs that alternate epoch by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _extension, modules
from . import distributed
from .data import Batches
from .errors import Diverged, InputError
from .models import RECIPES, Recipe, recipe_of
from .regularize import activation_regularization, temporal_activation_regularization
from .state import LanguageModel
from .stream import TokenStream

OURS, PEER = "lstmkern", "torch.nn"  # the kernels: whose recurrent layers a run uses
LAYERS = {OURS: modules, PEER: nn}
# The type of the weights. bf16 is autocast: weights, hidden states and the optimizer stay in fp32.
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32}


@dataclass(frozen=True)
class Config:
    """Everything that determines the result of a run. Defaults are those of LMModel7; see ``config_of``.

    Args:
        model: a name in ``models.RECIPES``.
        cell: "lstm" or "gru" (lm6 and lm7).
        epochs: passes over the training text.
        lr: peak of the learning rate.
        batch_size: sequences per batch, over all processes.
        seq_len: tokens per sequence.
        hidden: hidden units.
        layers: recurrent layers.
        seed: of the initial weights and of dropout.
        device: "cpu", "cuda" or "cuda:N".
        dtype: "fp32", "fp64", or "bf16" for autocast.
        data: directory with train.txt and valid.txt, or None for HUMAN_NUMBERS (models of words).
        text: a file or folder, or None for Python's standard library (models of characters and of subwords).
        limit: number of characters to read, 0 for all (models of characters).
        embedding: size of the embedding (models of characters and of subwords).
        subwords: size of the subword vocabulary.
        dropout: factor of all dropout probabilities (AWD-LSTM).
        clip: norm to which gradients are scaled down, 0 for never.
        compile: run the forward pass of training through torch.compile.
    """

    model: str = "lm7"
    cell: str = "lstm"
    epochs: int = 15
    lr: float = 1e-2
    batch_size: int = 64
    seq_len: int = 16
    hidden: int = 64
    layers: int = 2
    seed: int = 0
    device: str = "cpu"
    dtype: str = "fp32"
    data: str | None = None
    text: str | None = None
    limit: int = 1_000_000
    embedding: int = 0
    subwords: int = 3000
    dropout: float = 1.0
    clip: float = 0.0
    compile: bool = False

    @property
    def recipe(self) -> Recipe:
        """How the model is built, and what belongs to it."""
        return RECIPES[self.model]

    @property
    def name(self) -> str:
        """The model's name, with the cell if there is a choice, such as "lm7-lstm"."""
        return f"{self.model}-{self.cell}" if "cell" in self.recipe.options else self.model


def config_of(model: str = Config.model, **given: Any) -> Config:
    """The configuration of a model.

    Args:
        model: a name in ``models.RECIPES``.
        given: fields of Config; the others are the model's defaults.

    Raises:
        InputError: there is no such model, or a given field means nothing to it.
    """
    recipe = recipe_of(model)
    particular = {option for other in RECIPES.values() for option in other.options}
    for option in given:
        if option in particular and option not in recipe.options:
            raise InputError(f"--{option.replace('_', '-')} means nothing to model {model}, which reads {recipe.reads}")
    return Config(**{"model": model, **recipe.defaults, **given})


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch.

    Args:
        epoch: its number, from 0.
        train_loss: cross entropy per token in training, in nats.
        valid_loss: cross entropy per token in validation, in nats.
        accuracy: share of right predictions in validation, 0 to 1.
        seconds: duration of training and validation.
        train_seconds: duration of training.
        tokens_per_s: tokens per second in training.
    """

    epoch: int
    train_loss: float
    valid_loss: float
    accuracy: float
    seconds: float
    train_seconds: float
    tokens_per_s: float


def build_model(config: Config, vocab_sz: int, kernels: str = OURS) -> LanguageModel:
    """Build a model. Its weights depend on the seed, and not on the kernels or the device.

    Args:
        config: the configuration.
        vocab_sz: number of tokens in the vocabulary.
        kernels: ``OURS`` or ``PEER``, whose recurrent layers it uses.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = config.recipe.make(vocab_sz, config, LAYERS[kernels])
    return model.to(device=distributed.device(config.device), dtype=DTYPES[config.dtype])


def one_cycle(
    optimizer: torch.optim.Optimizer, rates: float | list[float], steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """fastai's one-cycle schedule of the learning rate and of the first momentum.

    The rate rises from 1/25 of its peak over the first quarter of the steps, then falls to 1e-5 of its peak.

    Args:
        optimizer: an AdamW optimizer.
        rates: peak learning rate, or one for each parameter group.
        steps: number of optimizer steps.
    """
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=rates,
        total_steps=steps,
        pct_start=0.25 if steps != 4 else 0.5,  # with a quarter, torch would divide by zero
        div_factor=25,
        final_div_factor=4000,
        base_momentum=0.85,
        max_momentum=0.95,
    )


class Run:
    """One model in training: weights, optimizer, schedule, random number state and position; a checkpoint holds these.

    If several processes train together, each has a Run with the same weights. ``network`` is called in training: the
    model, or a wrapper of it that compiles it or averages gradients over the processes.

    Args:
        config: the configuration.
        vocab_sz: number of tokens in the vocabulary.
        steps: number of optimizer steps of the whole training.
        kernels: ``OURS`` or ``PEER``, whose recurrent layers the model uses.
    """

    def __init__(self, config: Config, vocab_sz: int, steps: int, kernels: str = OURS) -> None:
        self.config, self.kernels = config, kernels
        self.recipe = config.recipe
        self.device = distributed.device(config.device)
        self.model = build_model(config, vocab_sz, kernels)
        self.network = distributed.parallel(torch.compile(self.model) if config.compile else self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=(0.95, 0.99),
            eps=1e-5,
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )
        self.scheduler = one_cycle(self.optimizer, config.lr, steps)
        self.batch = 0  # finished batches of the current epoch
        # In the current epoch, on this process: the sum of the cross entropies of all predictions, and their number.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.predictions = 0
        self.train_seconds = 0.0  # of the current epoch
        self.history: list[EpochResult] = []
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.manual_seed(config.seed + distributed.rank())  # different dropout masks on every process
            self.rng = self._rng_state()

    def autocast(self) -> torch.autocast:
        """The context in which the model is to be called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bf16")

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    def finite(self) -> bool:
        """Whether no loss and no weight is nan or inf. Otherwise a checkpoint would be useless."""
        losses = [self.loss_sum.item(), *(x for r in self.history[-1:] for x in (r.train_loss, r.valid_loss))]
        return all(map(math.isfinite, losses)) and all(bool(p.isfinite().all()) for p in self.model.parameters())

    def new_cycle(self, steps: int) -> None:
        """Start a new one-cycle schedule for the remaining ``steps`` optimizer steps."""
        self.scheduler = one_cycle(self.optimizer, self.config.lr, steps)

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """Within this context torch uses this run's random number state, so that alternating runs are independent."""
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.set_rng_state(self.rng[0])
            if len(self.rng) > 1:
                torch.cuda.set_rng_state(self.rng[1], self.device)
            try:
                yield
            finally:
                self.rng = self._rng_state()

    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _rng_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda_devices())]


def check_device(name: str) -> None:
    """Check that a device exists and that the installed kernels support it.

    Args:
        name: such as "cpu" or "cuda:0".

    Raises:
        InputError: it does not exist or is not supported.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: use cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device {name} is not available: torch sees no GPU")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device {name} is not available: torch sees {torch.cuda.device_count()} GPU(s)")
        if not _extension.build_info()["cuda"]:
            raise InputError(f"device {name} cannot be used: this lstmkern was built without CUDA kernels")
    elif device.type != "cpu":
        raise InputError(f"device {name} is not supported: use cpu, cuda or cuda:N")


def logits_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The logits [N, T, vocab_sz] in the output of a language model; T = 1 if it predicts only the last token."""
    logits = output[0] if isinstance(output, tuple) else output
    return logits if logits.dim() == 3 else logits.unsqueeze(1)


def predictions_of(output: Tensor | tuple[Tensor, ...], y: Tensor) -> tuple[Tensor, Tensor]:
    """Match predictions with their targets.

    Args:
        output: of a language model.
        y: targets, int64 [N, T].

    Returns:
        Logits [P, vocab_sz] in fp32 or fp64, and targets int64 [P]; P is N * T, or N for a model that predicts only the
        last token.
    """
    logits = logits_of(output)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.flatten(0, 1), y[:, -logits.size(1) :].flatten()


def losses(output: Tensor | tuple[Tensor, ...], y: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Compute the losses of a batch.

    Args:
        output: of a language model.
        y: targets, int64 [N, T].
        recipe: has the factors of AR and TAR.

    Returns:
        The cross entropy per token, and the loss to minimise: the cross entropy, plus AR and TAR if the model returns
        its activations. Both are scalars.
    """
    cross_entropy = F.cross_entropy(*predictions_of(output, y))
    if not isinstance(output, tuple):
        return cross_entropy, cross_entropy
    _, raw, out = output
    regularization = activation_regularization(out, recipe.alpha) + temporal_activation_regularization(raw, recipe.beta)
    return cross_entropy, cross_entropy + regularization


def train_pass(run: Run, batches: Batches | TokenStream, after_batch: Callable[[], None] = lambda: None) -> None:
    """Train on the remaining batches of the current epoch.

    Args:
        run: what is trained.
        batches: of an epoch, or a stream that gives new ones for every epoch.
        after_batch: called after every batch. It may raise to stop; training can continue later with the next batch.
    """
    model, optimizer, scheduler, config = run.model, run.optimizer, run.scheduler, run.config
    batches = batches.epoch(run.epoch).share(distributed.rank(), distributed.processes()).to(run.device)
    run.network.train()
    if run.batch == 0:
        run.loss_sum.zero_()
        run.predictions = 0
        run.train_seconds = 0.0
    with run.random_numbers(), _adding_time(run):
        while run.batch < len(batches):
            x, y, weight = batches.x[run.batch], batches.y[run.batch], batches.weight(run.batch)
            if batches.starts(run.batch):
                model.reset()
            with run.autocast():
                output = run.network(x)
                cross_entropy, loss = losses(output, y, run.recipe)
            (loss * weight).backward()
            if config.clip > 0:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            for group in optimizer.param_groups:
                group["lr"] *= x.size(1) / config.seq_len  # a shorter sequence makes a smaller step
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()  # overwrites the scaled rate
            if weight > 0:
                predictions = x.size(0) * logits_of(output).size(1)
                run.loss_sum += cross_entropy.detach() * predictions
                run.predictions += predictions
            run.batch += 1
            after_batch()


@contextmanager
def _adding_time(run: Run) -> Iterator[None]:
    start = _clock(run.device)
    try:
        yield
    finally:
        run.train_seconds += _clock(run.device) - start


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def validate(model: nn.Module, batches: Batches, after_batch: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Evaluate a model, starting from a zero hidden state.

    Args:
        model: a language model.
        batches: validation batches.
        after_batch: called after every batch; may raise to stop.

    Returns:
        The cross entropy per token in nats, and the share of right predictions.
    """
    model.eval()
    device = next(model.parameters()).device
    batches = batches.share(distributed.rank(), distributed.processes()).to(device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # of cross entropies; right predictions; all predictions
    for batch, (x, y) in enumerate(zip(batches.x, batches.y, strict=True)):
        if batches.starts(batch):
            model.reset()
        logits, target = predictions_of(model(x), y)
        if batches.weight(batch) > 0:
            sums[0] += F.cross_entropy(logits, target) * len(target)
            sums[1] += (logits.argmax(-1) == target).sum()
            sums[2] += len(target)
        after_batch()
    loss, correct, predictions = distributed.total(sums).tolist()
    return loss / predictions, correct / predictions


def train_epoch(
    run: Run, train: Batches | TokenStream, valid: Batches, after_batch: Callable[[], None] = lambda: None
) -> None:
    """Finish the current epoch: train on the remaining batches, validate, and append the result to ``run.history``.

    Args:
        run: what is trained.
        train: training batches.
        valid: validation batches.
        after_batch: called after every batch of training and validation; may raise to stop.
    """
    train_pass(run, train, after_batch)
    start = _clock(run.device)
    with run.autocast():
        valid_loss, accuracy = validate(run.model, valid, after_batch)
    loss_sum, predictions = distributed.total(torch.stack((run.loss_sum, run.loss_sum.new_tensor(run.predictions))))
    run.history.append(
        EpochResult(
            epoch=run.epoch,
            train_loss=(loss_sum / predictions).item(),
            valid_loss=valid_loss,
            accuracy=accuracy,
            seconds=run.train_seconds + _clock(run.device) - start,
            train_seconds=run.train_seconds,
            tokens_per_s=train.epoch(run.epoch).tokens / run.train_seconds,
        )
    )
    run.batch = 0


def fit(
    runs: list[Run],
    train: Batches | TokenStream,
    valid: Batches,
    after_batch: Callable[[], None] = lambda: None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train all runs to their last epoch.

    The runs alternate epoch by epoch (A B A B), so that other load on the machine affects all of them alike.

    Args:
        runs: what is trained.
        train: training batches.
        valid: validation batches.
        after_batch: called after every training and validation batch of any run. It may raise to stop; calling ``fit``
            again continues with the next batch.
        after_epoch: called with the number of the epoch when all runs have finished it.

    Raises:
        Diverged: a loss of an epoch, in training or validation, is nan or inf; ``after_epoch`` is not called for it.
    """
    for epoch in range(min(run.epoch for run in runs), runs[0].config.epochs):
        for run in runs:
            if run.epoch == epoch:
                train_epoch(run, train, valid, after_batch)
                _check_losses(run)
        after_epoch(epoch)


def _check_losses(run: Run) -> None:
    result, config = run.history[-1], run.config
    if math.isfinite(result.train_loss) and math.isfinite(result.valid_loss):
        return
    part, loss = ("training", result.train_loss)
    if math.isfinite(loss):
        part, loss = ("validation", result.valid_loss)
    usual = config.recipe.defaults.get("lr", Config.lr)
    clip = "" if config.clip else ", or with --clip 0.5"
    raise Diverged(
        f"the training of {config.name} on {run.kernels} diverged: its {part} loss is {loss} in epoch {result.epoch}; "
        f"train again with a lower learning rate, such as --lr {usual if config.lr > usual else config.lr / 10:g}{clip}"
    )
