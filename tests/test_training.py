"""Training with checkpointing, AMP, DDP and FSDP2 reaches the loss of ordinary training in one process."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.checkpoint import checkpoint

import lstmkern

STEPS, T, N = 4, 5, 8


class Net(torch.nn.Module):
    def __init__(self, cell: str = "LSTM"):
        super().__init__()
        self.rnn = getattr(lstmkern, cell)(6, 16, num_layers=2)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def batches():
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(T, N, 6, generator=generator), torch.randint(3, (T, N), generator=generator)
    return [batch] * STEPS  # the same batch every time: the loss must fall


def loss_of(logits, target):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def new_net(cell="LSTM"):
    torch.manual_seed(0)
    return Net(cell)


def train(model, data=None, forward=None, scaler=None) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for x, target in data or batches():
        optimizer.zero_grad()
        loss = loss_of((forward or model)(x), target)
        losses.append(loss.item())
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return losses


def close(a, b, rtol=1e-5):
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=rtol, atol=0)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(cell, reentrant):
    plain = train(new_net(cell))
    model = new_net(cell)
    assert plain[-1] < plain[0]
    again = train(model, forward=lambda x: checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant))
    assert again == plain  # the same kernels in the same order: the same bits


def test_grad_scaler():
    plain = train(new_net())
    # A power of two scales every gradient exactly.
    close(train(new_net(), scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10)), plain)


def test_grad_scaler_skips_a_step_with_inf():
    model = new_net()
    before = [p.detach().clone() for p in model.parameters()]
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=2.0**10), torch.optim.SGD(model.parameters(), lr=1.0)
    scaler.scale(model(torch.full((T, N, 6), float("inf"))).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_bf16_autocast_with_scaler_trains(cell):
    model = new_net(cell)

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    close(train(model, forward=forward, scaler=torch.amp.GradScaler("cpu")), train(new_net(cell)), rtol=2e-2)


def _worker(rank: int, world: int, port: int, kind: str, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        model = new_net()
        if kind == "ddp":
            model = torch.nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (world,))
            fully_shard(model.rnn, mesh=mesh)
            fully_shard(model, mesh=mesh)
        part = slice(rank * N // world, (rank + 1) * N // world)
        losses = torch.tensor(train(model, data=[(x[:, part], y[:, part]) for x, y in batches()]))
        dist.all_reduce(losses)
        if rank == 0:
            results.put((losses / world).tolist())
    finally:
        dist.destroy_process_group()
    # Skip the end of the interpreter, where a gloo thread that still holds a tensor would abort the process: torch
    # keeps the group alive (see lm/distributed.py).
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(kind):
    plain = train(new_net())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(_worker, args=(2, port, kind, results), nprocs=2)
    close(results.get(), plain)
