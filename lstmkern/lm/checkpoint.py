"""Checkpoints: one file with everything that is needed to continue a training session or to use its model."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from . import distributed
from .data import share
from .errors import InputError
from .models import CELLS, RECIPES
from .state import LanguageModel, join_states, map_state
from .train import DTYPES, OURS, Config, EpochResult, Run, build_model, check_device
from .vocabulary import Vocabulary, vocabulary_from

FORMAT = "lstmkern language model, version 2"
CHECKPOINT = "checkpoint.pt"  # its name in the directory of a session
# Fields of Config that may change when a training continues.
FREE = ("data", "text", "epochs")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Args:
        path: the file it was read from.
        config: the configuration of the runs.
        vocab: the vocabulary.
        fingerprint: SHA-256 of the text that the runs were trained on.
        runs: the state of each run, by its kernels (``OURS``, ``PEER``).
    """

    path: Path
    config: Config
    vocab: Vocabulary
    fingerprint: str
    runs: dict[str, dict[str, Any]]


def save_checkpoint(path: str | Path, runs: Sequence[Run], vocab: Vocabulary, fingerprint: str) -> None:
    """Write the state of runs to a file atomically; ``torch.load(path, weights_only=True)`` reads it.

    If several processes train together, all must call this; the first one writes.

    Args:
        path: the file.
        runs: finished or unfinished runs of one configuration.
        vocab: the vocabulary.
        fingerprint: SHA-256 of the text that they are trained on.
    """
    content = {
        "format": FORMAT,
        "config": asdict(runs[0].config),
        "vocab": vocab.state(),
        "fingerprint": fingerprint,
        "runs": {run.kernels: _run_state(run) for run in runs},
    }
    if distributed.first():
        save(path, content)


def save(path: str | Path, content: Any) -> None:
    """Write plain data and tensors to ``path`` atomically."""
    buffer = io.BytesIO()  # on a full disk, torch.save would raise a RuntimeError about its zip writer
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


class atomic_path:
    """Write a file atomically: ``with atomic_path(path) as temporary`` gives the name of a temporary file to write.

    At the end of the context it is renamed to ``path``, or removed if there was an error. An OSError gets the name
    ``path``, because the one of a full disk names no file.

    Args:
        path: the final name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with open(self.temporary, "rb+") as file:
                    os.fsync(file.fileno())  # some file systems report a full disk only here
                os.replace(self.temporary, self.path)
        except OSError as failed:
            error = failed
            raise
        finally:
            if error is not None:
                self.temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = str(self.path)


def _run_state(run: Run) -> dict[str, Any]:
    local = map_state(Tensor.cpu, run.model.state), run.loss_sum.cpu(), run.predictions, run.rng
    hidden, loss_sums, predictions, rngs = zip(*distributed.gathered(local), strict=True)
    return {
        "model": run.model.state_dict(),
        "hidden": join_states(hidden),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "batch": run.batch,
        "loss_sum": sum(loss_sums),
        "predictions": sum(predictions),
        "train_seconds": run.train_seconds,
        "rng": list(rngs),
        "history": [asdict(result) for result in run.history],
    }


@contextmanager
def damage(message: str) -> Iterator[None]:
    """Within this context the parts of a loaded file are used; an error means that the file is damaged.

    Args:
        message: the text of the InputError.

    Raises:
        InputError: any exception was raised inside. An InputError keeps its own text.
    """
    try:
        yield
    except InputError:
        raise
    except Exception:  # the tokenizers package raises Exception itself
        raise InputError(message) from None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file, or the directory of a session.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of a language model.
    """
    path = in_directory(path, [CHECKPOINT])
    content = load(path, [FORMAT], "of an lstmkern language model")
    with damage(f"{path} is a damaged checkpoint: parts of it are missing"):
        config = Config(**content["config"])
        known = config.model in RECIPES and config.cell in CELLS and config.dtype in DTYPES
        vocab = vocabulary_from(content["vocab"])
        checkpoint = Checkpoint(Path(path), config, vocab, content["fingerprint"], content["runs"])
    if not known:
        raise InputError(f"{path} is a checkpoint of a model that this version does not know")
    return checkpoint


def in_directory(path: str | Path, names: Sequence[str]) -> Path:
    """Find a file that the user named by its path or by its directory.

    Args:
        path: the file, or a directory.
        names: names of the file to look for in a directory, most preferred first.

    Raises:
        InputError: the directory contains none of them; the message names those in its subdirectories.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    below = sorted(str(found) for name in names for found in path.glob(f"*/{name}"))
    instead = f"give {' or '.join(below[:5])}" if below else "give the file of a checkpoint"
    raise InputError(f"the directory {path} holds no {' or '.join(names)}: {instead}")


def load(path: str | Path, formats: Sequence[str], what: str) -> dict[str, Any]:
    """Read a file that ``save`` wrote.

    Args:
        path: the file.
        formats: allowed values of its entry "format".
        what: completes "is not a checkpoint ..." in the error message.

    Raises:
        InputError: there is no such file, or it has another format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such checkpoint: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror}") from None
    except Exception:  # depending on the bytes, torch.load raises almost any exception
        raise InputError(f"{path} is not a checkpoint, or it is damaged") from None
    if not isinstance(content, dict) or content.get("format") not in formats:
        raise InputError(f"{path} is not a checkpoint {what}, or is one of another version")
    return content


def restore_run(run: Run, checkpoint: Checkpoint) -> None:
    """Give a new run the state that a checkpoint has for a run with the same kernels.

    Args:
        run: a new run of the checkpoint's configuration, apart from the fields in ``FREE``.
        checkpoint: where the state is from.

    Raises:
        InputError: the checkpoint has no such run, is of another model, or its training diverged.
    """
    state = checkpoint.runs.get(run.kernels)
    if state is None:
        raise InputError(f"checkpoint {checkpoint.path} holds no run on {run.kernels}")
    if replace(checkpoint.config, **{name: getattr(run.config, name) for name in FREE}) != run.config:
        raise _other_model(checkpoint)
    try:
        run.model.load_state_dict(state["model"])
        rank, processes = distributed.rank(), distributed.processes()
        run.model.state = map_state(
            lambda s: s[..., share(s.size(-2), rank, processes), :].to(run.device), state["hidden"]
        )
        run.optimizer.load_state_dict(state["optimizer"])
        run.scheduler.load_state_dict(state["scheduler"])
        run.batch = state["batch"]
        if rank == 0:  # sums over the processes are kept by the first
            run.loss_sum.copy_(state["loss_sum"])
            run.predictions = state["predictions"]
        run.train_seconds = state["train_seconds"]
        if len(state["rng"]) == processes:
            run.rng = state["rng"][rank]
        run.history = [EpochResult(**result) for result in state["history"]]
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise _other_model(checkpoint) from None
    if not run.finite():
        raise InputError(
            f"checkpoint {checkpoint.path} is of a training that diverged, with weights or losses of nan or inf: train "
            "again with a lower --lr"
        )


def model_from(checkpoint: Checkpoint, device: str = "cpu") -> LanguageModel:
    """The trained model of a checkpoint, on lstmkern's kernels and in eval mode, with a zero hidden state.

    Args:
        checkpoint: where the weights are from.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: the checkpoint has no run on lstmkern's kernels, or the device is not available.
    """
    check_device(device)
    config = replace(checkpoint.config, device=device)
    try:
        model = build_model(config, len(checkpoint.vocab))
        model.load_state_dict(checkpoint.runs[OURS]["model"])
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise _other_model(checkpoint) from None
    return model.eval()


def _other_model(checkpoint: Checkpoint) -> InputError:
    return InputError(f"checkpoint {checkpoint.path} is of another model, or damaged")
