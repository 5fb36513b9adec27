"""torch.distributed.tensor: layers on DTensors.

Every process computes the whole layer: what is sharded is gathered first, and results are replicated. This module
imports torch.distributed.tensor, which takes half a second, only where a program has done so before.
"""

import sys

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_registered = False


def takes_dtensors(input: Tensor) -> bool:
    """Whether input is a DTensor; then the ops know what to do with it."""
    tensor_module = sys.modules.get("torch.distributed.tensor")
    if tensor_module is None or not isinstance(input, tensor_module.DTensor):
        return False
    global _registered
    if not _registered:
        for op in ("lstmkern::layer_forward", "lstmkern::layer_backward"):
            torch.library.register_torch_dispatch(op, tensor_module.DTensor, _on_whole_tensors)
        _registered = True
    return True


def _on_whole_tensors(_, op, types, args, kwargs):
    from torch.distributed.tensor import DTensor, Replicate

    meshes = {t.device_mesh for t in tree_leaves(args) if isinstance(t, DTensor)}
    if len(meshes) > 1:
        raise RuntimeError(f"{op}: all DTensors of a layer must be on one device mesh, got {len(meshes)}")
    (mesh,) = meshes

    def whole(t):
        if isinstance(t, DTensor):
            return t.detach().full_tensor()  # with a gradient torch 2.11 would need detach_, which it lacks here
        if isinstance(t, Tensor) and t.is_floating_point():
            raise RuntimeError(
                f"{op}: got mixed torch.Tensor and DTensor, need to convert all torch.Tensor to DTensor before calling "
                "distributed operators!"
            )
        return t

    results = op(*tree_map(whole, args), **kwargs)
    return tree_map(lambda t: DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False), results)
