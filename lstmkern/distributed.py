"""Layers on the DTensors of torch.distributed.tensor.

Every process computes the whole layer: sharded tensors are gathered first, and results are replicated. Importing
torch.distributed.tensor takes half a second, so this module uses it only if the program has imported it already.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_registered = False


def takes_dtensors(input: Tensor) -> bool:
    """Whether input is a DTensor. The first DTensor registers the ops for DTensors."""
    tensor_module = sys.modules.get("torch.distributed.tensor")
    if tensor_module is None or not isinstance(input, tensor_module.DTensor):
        return False
    global _registered
    if not _registered:
        for op in ("lstmkern::layer_forward", "lstmkern::layer_backward"):
            torch.library.register_torch_dispatch(op, tensor_module.DTensor, _on_whole_tensors)
        _registered = True
    return True


def _on_whole_tensors(_: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    from torch.distributed.tensor import DTensor, Replicate

    meshes = {t.device_mesh for t in tree_leaves(args) if isinstance(t, DTensor)}
    if len(meshes) > 1:
        raise RuntimeError(f"{op}: all DTensors of a layer must be on one device mesh, got {len(meshes)}")
    (mesh,) = meshes

    def whole(t: Any) -> Any:
        if isinstance(t, DTensor):
            detached: Any = t.detach()  # full_tensor of torch 2.11 would otherwise call detach_, which DTensor lacks
            return detached.full_tensor()
        if isinstance(t, Tensor) and t.is_floating_point():
            raise RuntimeError(
                f"{op}: got mixed torch.Tensor and DTensor, need to convert all torch.Tensor to DTensor before calling "
                "distributed operators!"
            )
        return t

    results = op(*tree_map(whole, args), **kwargs)
    return tree_map(lambda t: DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False), results)
