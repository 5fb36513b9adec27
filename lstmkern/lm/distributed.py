"""Several processes that train one model together, started by torchrun; alone, every function here is the identity."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError


@contextmanager
def group(device_name: str, batch_size: int) -> Iterator[None]:
    """Within, the processes that torchrun started are one group: gloo on the CPU, nccl on CUDA.

    Raises:
        InputError: ``batch_size`` rows cannot be dealt out evenly, or there are fewer GPUs than processes for them.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    count = int(os.environ["WORLD_SIZE"])
    if batch_size % count:
        raise InputError(f"a batch of {batch_size} rows cannot be shared evenly by {count} processes")
    backend = "gloo"
    if device_name.startswith("cuda"):
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if device_name != "cuda" or torch.cuda.device_count() < here:
            raise InputError(f"{here} processes on device {device_name} need --device cuda and a GPU for each of them")
        torch.cuda.set_device(device(device_name))
        backend = "cpu:gloo,cuda:nccl"  # what is gathered for a checkpoint lies on the CPU
    # Imported when there is a group (DDP does it), its default arguments are that group and keep its threads to the
    # interpreter's end, where one that still holds a tensor aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def refuse(command: str) -> None:
    """Raise InputError if torchrun started several processes: ``command`` does not share its work between them."""
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise InputError(f"{command} trains in one process: start it without torchrun")


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 to processes() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this process is the one that speaks and writes; torchrun sets RANK before there is a group."""
    return not dist.is_torchelastic_launched() or int(os.environ["RANK"]) == 0


def device(name: str) -> torch.device:
    """The device ``name``; of several processes on a machine's GPUs, each has its own."""
    if name == "cuda" and dist.is_torchelastic_launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def parallel(network: nn.Module) -> nn.Module:
    """``network``, with gradients that are the mean over the processes."""
    if processes() == 1:
        return network
    # With a group of its own, for it outlives the common one, which has to end where no lock of Python is held: its
    # threads may wait for that lock to free what they sent. Gradients are sent as tensors that Python never saw.
    return DistributedDataParallel(network, process_group=dist.new_group())


def total(tensor: Tensor) -> Tensor:
    """The sum of every process's ``tensor``."""
    if processes() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def from_first(make: Callable[[], Any]) -> Any:
    """What ``make`` gives on the first process, on every process."""
    things = [make() if rank() == 0 else None]
    if processes() > 1:
        dist.broadcast_object_list(things)
    return things[0]


def gathered(thing: Any) -> list[Any]:
    """Every process's ``thing``, in the order of their ranks."""
    if processes() == 1:
        return [thing]
    things = [None] * processes()
    dist.all_gather_object(things, thing)
    return things
