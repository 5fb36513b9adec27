"""What ``torch.onnx.export(dynamo=True)`` writes for a layer: the standard ONNX operators LSTM, GRU and RNN.

Formulas and layouts: https://onnx.ai/onnx/operators/onnx__LSTM.html (onnx__GRU, onnx__RNN). ONNX differs from torch in
the order of the gates (LSTM i o f c, GRU z r h), keeps both biases in one tensor, and has the output as
``[T, D, N, H]``.

The nodes have the form of opset 14, and torch converts a model to the opset that the caller chooses. The other
operators written here must convert to older and newer opsets too, before any optimization. Some do not: chunk (Split),
new_zeros (CastLike), cat of one tensor and reshape of a transposed one (Identity) make older opsets invalid or
impossible."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["layer"]

# For each of ONNX's gates, its position among torch's gates.
_GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


def layer(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    cells: bool,
) -> tuple[Tensor, Any, Any, Any, Any]:
    """Write one layer as an ONNX node. Modules and functions call it while ``torch.onnx.export`` traces a model.

    Args:
        input: dense input, or one step, as for :func:`lstmkern.reference.layer`.
        h0: initial h; None for zeros.
        c0: initial c of an LSTM; None for zeros.
        weights: of all directions.
        directions: 1 or 2.
        batch_sizes: must be None.
        lengths: int64 ``[N]``, or None.
        resets: must be None.
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``.
        batch_first: whether dense input and output are ``[N, T, ...]``.
        cells: must be False.

    Returns:
        The results of the op ``lstmkern::layer_forward``; absent ones are None.

    Raises:
        NotImplementedError: the call uses what ONNX's operators do not support: packed input, resets, a projection,
            or the cell states of every step. A user of ``torch.onnx.export`` sees torch's ``ConversionError`` instead,
            which says that ``lstmkern.layer_forward`` has no ONNX function.

    Example:
        A model with a layer is exported with torch's function (which needs the onnxscript package)::

            torch.onnx.export(model, (x,), "model.onnx", dynamo=True)
    """
    if input.dtype == torch.bfloat16:  # in ONNX since opset 22, but onnxruntime has no kernels: compute in fp32
        h, c = (None if t is None else t.float() for t in (h0, c0))
        wide = [w.float() for w in weights]
        results = layer(input.float(), h, c, wide, directions, batch_sizes, lengths, resets, mode, batch_first, cells)
        output, *others = results
        return output.to(torch.bfloat16), *(None if r is None else r.to(torch.bfloat16) for r in others)  # type: ignore[return-value]  # mypy: a tuple of unknown length
    if input.dim() == 2 and batch_sizes is None:  # one step
        h, c = (None if t is None else t.unsqueeze(0) for t in (h0, c0))
        x = input.unsqueeze(0)
        output, _, c_n, *_ = layer(x, h, c, weights, directions, None, lengths, resets, mode, False, False)
        return output.squeeze(0), None, None, None if c_n is None else c_n.squeeze(0), None
    per = len(weights) // directions
    for refused, what in (
        (batch_sizes is not None, "a PackedSequence (pass lengths= instead)"),
        (resets is not None, "resets="),
        (per % 2 == 1, "proj_size"),
        (cells, "return_cells=True"),
    ):
        if refused:
            raise NotImplementedError(f"ONNX has no recurrent operator with {what}")

    order, H = _GATE_ORDER[mode], weights[1].size(-1)

    def regroup(tensors: Sequence[Tensor], *shape: int) -> Tensor:
        gates = torch.stack(list(tensors)).unflatten(1, (len(order), H))
        return torch.stack([gates.select(1, g) for g in order], 1).view(directions, *shape)

    W, R = (regroup(weights[i::per], len(order) * H, -1) for i in (0, 1))
    B = regroup([w for i, w in enumerate(weights) if i % per > 1], -1) if per == 4 else None
    attributes: dict[str, Any] = {"hidden_size": H, "direction": "bidirectional" if directions == 2 else "forward"}
    if mode == "GRU":
        attributes["linear_before_reset"] = 1  # the reset gate multiplies b_hn too, as in torch
    elif mode == "RNN_RELU":
        attributes["activations"] = ["Relu"] * directions
    x = input.transpose(0, 1) if batch_first else input
    T, N, _ = x.shape
    states = (h0, c0) if mode == "LSTM" else (h0,)
    stacked, *finals = torch.onnx.ops.symbolic_multi_out(
        mode.split("_")[0],
        (x, W, R, B, None if lengths is None else lengths.to(torch.int32), *states),
        attributes,
        dtypes=[input.dtype] * (1 + len(states)),
        shapes=[(T, directions, N, H), *((directions, N, H) for _ in states)],
        version=14,
    )
    output = stacked.squeeze(1) if directions == 1 else torch.cat([stacked[:, 0], stacked[:, 1]], -1)
    if batch_first:
        output = output.transpose(0, 1)
    if lengths is not None and h0 is not None:  # onnxruntime zeroes the states of a sequence without steps
        empty = (lengths == 0).unsqueeze(1)
        finals = [torch.where(empty, initial, final) for initial, final in zip(states, finals, strict=True)]  # type: ignore[arg-type]  # both states are given
    return output, finals[0], finals[1] if mode == "LSTM" else None, None, None
