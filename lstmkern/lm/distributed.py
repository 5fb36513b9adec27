"""Processes started by torchrun that train one model together. With one process these functions do nothing."""

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
    """Within this context the processes that torchrun started are one group: gloo on the CPU, NCCL on CUDA.

    Args:
        device_name: "cpu", "cuda" or "cuda:N".
        batch_size: sequences per batch, over all processes.

    Raises:
        InputError: the batch cannot be shared evenly, or there are fewer GPUs than processes.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    count = int(os.environ["WORLD_SIZE"])
    if batch_size % count:
        raise InputError(f"a batch of {batch_size} sequences cannot be shared evenly by {count} processes")
    backend = "gloo"
    if device_name.startswith("cuda"):
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if device_name != "cuda" or torch.cuda.device_count() < here:
            raise InputError(f"{here} processes on device {device_name} need --device cuda and a GPU for each of them")
        torch.cuda.set_device(device(device_name))
        backend = "cpu:gloo,cuda:nccl"  # tensors gathered for a checkpoint are on the CPU
    # DistributedDataParallel imports this module. If that happens while there is a group, the module's default
    # arguments keep the group and its threads alive until the interpreter ends; a thread that still holds a tensor
    # then aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def refuse(command: str) -> None:
    """Raise InputError if torchrun started several processes, for a command that works in one process only."""
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise InputError(f"{command} trains in one process: start it without torchrun")


def processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 to processes() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that prints and writes files. Also valid before there is a group."""
    return not dist.is_torchelastic_launched() or int(os.environ["RANK"]) == 0


def device(name: str) -> torch.device:
    """The device ``name``. If torchrun started several processes with "cuda", each gets a GPU of its own."""
    if name == "cuda" and dist.is_torchelastic_launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def parallel(network: nn.Module) -> nn.Module:
    """Wrap a network so that its gradients are averaged over the processes."""
    if processes() == 1:
        return network
    # It gets a separate group, because it outlives the common one. The common group must end where Python's lock is
    # not held: its threads may need that lock to free tensors that they sent. Gradients are tensors that Python never
    # saw, so the separate group does not have this problem.
    return DistributedDataParallel(network, process_group=dist.new_group())


def total(tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over the processes."""
    if processes() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def from_first(make: Callable[[], Any]) -> Any:
    """Call ``make`` on the first process and return its result on every process."""
    things = [make() if rank() == 0 else None]
    if processes() > 1:
        dist.broadcast_object_list(things)
    return things[0]


def gathered(thing: Any) -> list[Any]:
    """The values of ``thing`` on all processes, in the order of their ranks."""
    if processes() == 1:
        return [thing]
    things = [None] * processes()
    dist.all_gather_object(things, thing)
    return things
