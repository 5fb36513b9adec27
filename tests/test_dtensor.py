"""Layers and cells on DTensors: two processes, whose results equal torch.nn's."""

import os
import socket
import subprocess
import sys
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import lstmkern

T, N, I, H = 3, 4, 4, 5  # noqa: E741


def layer(name, package=lstmkern, **options):
    torch.manual_seed(0)
    return getattr(package, name)(I, H, dtype=torch.float64, **options)


def inputs(name, layers=1):
    generator = torch.Generator().manual_seed(1)
    cell = name.endswith("Cell")
    x = torch.randn(*(() if cell else (T,)), N, I, dtype=torch.float64, generator=generator)
    h = torch.randn(*(() if cell else (layers,)), N, H, dtype=torch.float64, generator=generator)
    return x, h


def run(module, name, x, h, recompute=False):
    """The output and all gradients of a module."""
    x, h = x.detach().requires_grad_(), None if h is None else h.detach().requires_grad_()
    with lstmkern.recompute(recompute):
        results = module(x, (h, 2 * h) if "LSTM" in name and h is not None else h)
    output = results if isinstance(results, torch.Tensor) else results[0]
    output.sin().sum().backward()
    return [output, x.grad, *([] if h is None else [h.grad]), *(p.grad for p in module.parameters())]


def compare(mesh, name, placements, with_state=True, recompute=False, weights=None, **options):
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    theirs, ours = layer(name, nn, **options), layer(name, **options)
    x, h = inputs(name, options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1))
    h = h if with_state else None
    expected = run(theirs, name, x, h)

    def place(_, module, mesh):
        for key, p in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(distribute_tensor(p, mesh, [weights])))

    distribute_module(ours, mesh, place if weights else None)
    x, h = (t if t is None else distribute_tensor(t, mesh, [p]) for t, p in zip((x, h), placements, strict=True))
    results = run(ours, name, x, h, recompute)
    assert results[0].placements == (Replicate(),)
    torch.testing.assert_close([r.full_tensor() for r in results], expected)


def replicated(mesh, name):
    from torch.distributed.tensor import Replicate

    everywhere = (Replicate(), Replicate())
    for with_state in (False, True):
        compare(mesh, name, everywhere, with_state)
    if name.endswith("Cell"):
        return
    compare(mesh, name, everywhere, recompute=True)
    compare(mesh, name, everywhere, num_layers=2, bidirectional=True)


def sharded(mesh, name):
    """The batch or the weights are sharded; they are gathered first."""
    from torch.distributed.tensor import Replicate, Shard

    batch = Shard(0 if name.endswith("Cell") else 1)
    compare(mesh, name, (batch, batch))
    compare(mesh, name, (Replicate(), Replicate()), weights=Shard(0))


def other_uses(mesh, name):
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    def spread(t):
        return distribute_tensor(t, mesh, [Replicate()])

    x, h = inputs(name)
    plain, ours = layer(name, nn), layer(name)
    distribute_module(ours, mesh)
    packed = PackedSequence(x.flatten(0, 1)[:7], torch.tensor([4, 2, 1]))
    spread_out = PackedSequence(spread(packed.data), packed.batch_sizes)
    torch.testing.assert_close(ours(spread_out, spread(h))[0].data.full_tensor(), plain(packed, h)[0].data)
    for wrong in ((x, h), (x, spread(h))):
        with pytest.raises(RuntimeError, match="got mixed torch.Tensor and DTensor"):
            ours(*wrong)
    with pytest.raises(RuntimeError, match="got mixed torch.Tensor and DTensor"):
        layer(name)(spread(x), spread(h))
    penalties = []
    for module, x, h in ((plain, x, h), (ours, spread(x), spread(h))):  # noqa: B020
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(module(x, h)[0].square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        penalties.append(module.weight_hh_l0.grad)
    torch.testing.assert_close(penalties[1].full_tensor(), penalties[0])


CASES = [
    (case, name)
    for case in (replicated, sharded)
    for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
] + [(other_uses, "GRU")]  # fmt: skip


def _worker(rank: int, world: int, port: int, failures):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
        failed = []
        for case, name in CASES:
            try:
                case(mesh, name)
            except BaseException:  # noqa: BLE001 (pytest.raises fails with one)
                failed.append(f"{case.__name__} {name}, rank {rank}: {traceback.format_exc()}")
                break  # the other process may be waiting for a collective of this one
        failures.put(failed)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # as in test_training.py


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    failures = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_worker, args=(2, port, failures), nprocs=2)
    assert failures.get() + failures.get() == []


def test_importing_lstmkern_does_not_import_dtensors():
    """That import takes half as long as importing torch."""
    code = "import sys, torch, lstmkern; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
