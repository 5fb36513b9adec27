"""Training: one-cycle AdamW epochs over contiguous batches, one run alone or several runs epoch by epoch in turn."""

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

OURS, PEER = "lstmkern", "torch.nn"  # whose recurrent layers a run uses
LAYERS = {OURS: modules, PEER: nn}
# bf16 is autocast: weights, hidden states and the optimizer stay in fp32.
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32}


@dataclass(frozen=True)
class Config:
    """Everything that determines the result of a run.

    Defaults are LMModel7's; ``config_of`` has those of every model. data: a directory with train.txt and valid.txt, or
    None for HUMAN_NUMBERS (models that read words). text: a file or folder, or None for the standard library (the
    others), of which the first ``limit`` characters are read, 0 being all (models that read characters). embedding: its
    width, where that is not ``hidden``. subwords: size of that vocabulary. dropout: factor of all of AWD-LSTM's
    probabilities. clip: the norm to which gradients are scaled down, 0 being never. compile: torch.compile.
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
        return RECIPES[self.model]

    @property
    def name(self) -> str:
        """Of the model, with its cell where there is a choice: "lm7-lstm"."""
        return f"{self.model}-{self.cell}" if "cell" in self.recipe.options else self.model


def config_of(model: str = Config.model, **given: Any) -> Config:
    """The configuration of ``model``: what is ``given``, the model's own defaults for the rest.

    Raises:
        InputError: there is no such model, or it has no use for something given.
    """
    recipe = recipe_of(model)
    particular = {option for other in RECIPES.values() for option in other.options}
    for option in given:
        if option in particular and option not in recipe.options:
            raise InputError(f"--{option.replace('_', '-')} means nothing to model {model}, which reads {recipe.reads}")
    return Config(**{"model": model, **recipe.defaults, **given})


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch: cross entropies per token, validation accuracy, seconds of training and of both passes."""

    epoch: int
    train_loss: float
    valid_loss: float
    accuracy: float
    seconds: float
    train_seconds: float
    tokens_per_s: float


def build_model(config: Config, vocab_sz: int, kernels: str = OURS) -> LanguageModel:
    """A new model; the same seed gives the same weights whatever the kernels and the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = config.recipe.make(vocab_sz, config, LAYERS[kernels])
    return model.to(device=distributed.device(config.device), dtype=DTYPES[config.dtype])


def one_cycle(
    optimizer: torch.optim.Optimizer, rates: float | list[float], steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """fastai's schedule: a quarter of the ``steps`` up from 1/25 of the peak ``rates``, then down to 1e-5 of them."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=rates,
        total_steps=steps,
        pct_start=0.25 if steps != 4 else 0.5,  # a warm-up that ends at step 0 makes torch divide by zero
        div_factor=25,
        final_div_factor=4000,
        base_momentum=0.85,
        max_momentum=0.95,
    )


class Run:
    """One model in training: weights, optimizer, schedule, random numbers and position, all that a checkpoint holds.

    steps: batches of the whole training. Where several processes train together, each has a Run with the same weights;
    ``network`` is what is called in training, the model itself or what makes the gradient the mean over the processes.
    """

    def __init__(self, config: Config, vocab_sz: int, steps: int, kernels: str = OURS):
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
        self.batch = 0  # batches of the current epoch that are done
        # Of the current epoch, on this process: the sum of the cross entropies of its predictions, and their number.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.predictions = 0
        self.train_seconds = 0.0  # of the current epoch
        self.history: list[EpochResult] = []
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.manual_seed(config.seed + distributed.rank())  # other dropout masks on every process
            self.rng = self._rng_state()

    def autocast(self) -> torch.autocast:
        """The context in which the model is called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bf16")

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def finite(self) -> bool:
        """Whether the losses so far and the weights are numbers, neither nan nor inf: worth a checkpoint."""
        losses = [self.loss_sum.item(), *(x for r in self.history[-1:] for x in (r.train_loss, r.valid_loss))]
        return all(map(math.isfinite, losses)) and all(bool(p.isfinite().all()) for p in self.model.parameters())

    def new_cycle(self, steps: int) -> None:
        """Let the rest of the training, ``steps`` batches, have a schedule of its own, from its warm-up on."""
        self.scheduler = one_cycle(self.optimizer, self.config.lr, steps)

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """Inside, torch's random numbers are this run's own, so that runs taking turns do not disturb each other."""
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
    """Raise InputError unless ``name`` is a device of this machine that the installed kernels can run on."""
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
    """The logits of whatever a language model returns, [N, T, vocab_sz], T = 1 if it predicts once."""
    logits = output[0] if isinstance(output, tuple) else output
    return logits if logits.dim() == 3 else logits.unsqueeze(1)


def predictions_of(output: Tensor | tuple[Tensor, ...], y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [P, vocab_sz] and the targets [P] among ``y`` [N, T] that they are predictions of: all, or the last."""
    logits = logits_of(output)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # of autocast's bf16
    return logits.flatten(0, 1), y[:, -logits.size(1) :].flatten()


def losses(output: Tensor | tuple[Tensor, ...], y: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Cross entropy per token, and the training loss: the same plus AR and TAR for a model that returns activations."""
    cross_entropy = F.cross_entropy(*predictions_of(output, y))
    if not isinstance(output, tuple):
        return cross_entropy, cross_entropy
    _, raw, out = output
    regularization = activation_regularization(out, recipe.alpha) + temporal_activation_regularization(raw, recipe.beta)
    return cross_entropy, cross_entropy + regularization


def train_pass(run: Run, batches: Batches | TokenStream, after_batch: Callable[[], None] = lambda: None) -> None:
    """Train ``run`` on the rest of its epoch's batches. ``after_batch`` may raise to stop; the run can go on later."""
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
                group["lr"] *= x.size(1) / config.seq_len  # a short piece makes a short step
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()  # sets the next step's rate, whatever the last one was scaled to
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
    """Cross entropy per token and accuracy of ``model`` over ``batches``, from a zero hidden state."""
    model.eval()
    device = next(model.parameters()).device
    batches = batches.share(distributed.rank(), distributed.processes()).to(device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # cross entropy, right predictions, predictions
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
    """Finish the current epoch of ``run``: the rest of its training pass, then validation; adds to ``run.history``."""
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
    """Train every run to its last epoch, one epoch each in turn (A B A B), so that noise of the machine hits all alike.

    ``after_batch()`` is called after every training and validation batch of any run and may raise to stop; calling
    ``fit`` again goes on where it stopped. ``after_epoch(epoch)`` is called when all runs have finished an epoch.

    Raises:
        Diverged: the loss of an epoch, in training or validation, is nan or inf; ``after_epoch`` has not seen it.
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
