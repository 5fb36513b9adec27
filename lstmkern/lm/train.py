"""Training: one-cycle AdamW epochs over contiguous batches, one run alone or several runs epoch by epoch in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _extension, modules
from .data import Batches, InputError
from .models import LMModel6, LMModel7
from .regularize import activation_regularization, temporal_activation_regularization

OURS, PEER = "lstmkern", "torch.nn"  # whose recurrent layers a run uses
CELLS = ("lstm", "gru")
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Recipe:
    """What belongs to a model rather than to a run: dropout p, weight decay, the factors of AR and TAR."""

    weight_decay: float
    p: float = 0.0
    alpha: float = 0.0
    beta: float = 0.0


RECIPES = {"lm6": Recipe(weight_decay=0.01), "lm7": Recipe(weight_decay=0.1, p=0.4, alpha=2.0, beta=1.0)}


@dataclass(frozen=True)
class Config:
    """Everything that determines the result of a run. ``data`` is a directory, or None for HUMAN_NUMBERS."""

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


def recurrent_class(cell: str, kernels: str) -> type[nn.Module]:
    """The class for ``cell`` ("lstm" | "gru") of ``kernels`` (OURS | PEER)."""
    return getattr(nn if kernels == PEER else modules, cell.upper())


def build_model(config: Config, vocab_sz: int, kernels: str = OURS) -> nn.Module:
    """A new model; the same seed gives the same weights whatever the kernels and the device."""
    rnn = recurrent_class(config.cell, kernels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.model == "lm6":
            model = LMModel6(vocab_sz, config.hidden, config.layers, rnn=rnn)
        else:
            model = LMModel7(vocab_sz, config.hidden, config.layers, RECIPES[config.model].p, rnn=rnn)
    return model.to(device=config.device, dtype=DTYPES[config.dtype])


class Run:
    """One model in training: weights, optimizer, schedule, random numbers and position, all that a checkpoint holds."""

    def __init__(self, config: Config, vocab_sz: int, steps_per_epoch: int, kernels: str = OURS):
        self.config, self.kernels = config, kernels
        self.recipe = RECIPES[config.model]
        self.device = torch.device(config.device)
        self.model = build_model(config, vocab_sz, kernels)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=(0.95, 0.99),
            eps=1e-5,
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=config.lr,
            total_steps=config.epochs * steps_per_epoch,
            pct_start=0.25,
            div_factor=25,
            final_div_factor=4000,
            base_momentum=0.85,
            max_momentum=0.95,
        )
        self.batch = 0  # batches of the current epoch that are done
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.train_seconds = 0.0  # of the current epoch
        self.history: list[EpochResult] = []
        with torch.random.fork_rng(devices=self._cuda_devices()):
            torch.manual_seed(config.seed)
            self.rng = self._rng_state()

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

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
    """The logits [N, T, vocab_sz] of whatever a language model returns."""
    return output[0] if isinstance(output, tuple) else output


def losses(output: Tensor | tuple[Tensor, ...], y: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Cross entropy per token, and the training loss: the same plus AR and TAR for a model that returns activations."""
    cross_entropy = F.cross_entropy(logits_of(output).flatten(0, 1), y.flatten())
    if not isinstance(output, tuple):
        return cross_entropy, cross_entropy
    _, raw, out = output
    regularization = activation_regularization(out, recipe.alpha) + temporal_activation_regularization(raw, recipe.beta)
    return cross_entropy, cross_entropy + regularization


def train_pass(run: Run, batches: Batches, after_batch: Callable[[], None] = lambda: None) -> None:
    """Train ``run`` on the rest of its epoch's batches. ``after_batch`` may raise to stop; the run can go on later."""
    model, optimizer, scheduler = run.model, run.optimizer, run.scheduler
    model.train()
    if run.batch == 0:
        model.reset()
        run.loss_sum.zero_()
        run.train_seconds = 0.0
    with run.random_numbers(), _adding_time(run):
        while run.batch < len(batches):
            cross_entropy, loss = losses(model(batches.x[run.batch]), batches.y[run.batch], run.recipe)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            run.loss_sum += cross_entropy.detach()
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
    model.reset()
    loss = torch.zeros((), dtype=torch.float64, device=batches.x.device)
    correct = torch.zeros((), dtype=torch.int64, device=batches.x.device)
    for x, y in zip(batches.x, batches.y, strict=True):
        logits = logits_of(model(x))
        loss += F.cross_entropy(logits.flatten(0, 1), y.flatten())
        correct += (logits.argmax(-1) == y).sum()
        after_batch()
    return (loss / len(batches)).item(), correct.item() / batches.tokens


def train_epoch(run: Run, train: Batches, valid: Batches, after_batch: Callable[[], None] = lambda: None) -> None:
    """Finish the current epoch of ``run``: the rest of its training pass, then validation; adds to ``run.history``."""
    train_pass(run, train, after_batch)
    start = _clock(run.device)
    valid_loss, accuracy = validate(run.model, valid, after_batch)
    run.history.append(
        EpochResult(
            epoch=run.epoch,
            train_loss=run.loss_sum.item() / len(train),
            valid_loss=valid_loss,
            accuracy=accuracy,
            seconds=run.train_seconds + _clock(run.device) - start,
            train_seconds=run.train_seconds,
            tokens_per_s=train.tokens / run.train_seconds,
        )
    )
    run.batch = 0


def fit(
    runs: list[Run],
    train: Batches,
    valid: Batches,
    after_batch: Callable[[], None] = lambda: None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train every run to its last epoch, one epoch each in turn (A B A B), so that noise of the machine hits all alike.

    ``after_batch()`` is called after every training and validation batch of any run and may raise to stop; calling
    ``fit`` again goes on where it stopped. ``after_epoch(epoch)`` is called when all runs have finished an epoch.
    """
    for epoch in range(min(run.epoch for run in runs), runs[0].config.epochs):
        for run in runs:
            if run.epoch == epoch:
                train_epoch(run, train, valid, after_batch)
        after_epoch(epoch)
