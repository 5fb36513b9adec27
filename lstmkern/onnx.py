"""What torch.onnx.export(dynamo=True) writes for a layer: the standard ONNX operators LSTM, GRU and RNN.

Formulas and layouts: https://onnx.ai/onnx/operators/onnx__LSTM.html (GRU, RNN). ONNX differs from torch in the order of
the gates (LSTM i o f c, GRU z r h), keeps both biases in one tensor, and gives the output as [T, D, N, H].

The nodes have the form of opset 14, and torch converts a model to the opset that the caller asks for. The other
operators written here must convert up and down too, before any optimization. Not all does: chunk (Split), new_zeros
(CastLike), cat of one tensor and reshape of a transposed one (Identity) make older opsets invalid or impossible.
"""

import torch
from torch import Tensor

# Where ONNX's gates are among torch's.
_GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


def layer(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    directions: int,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    cells: bool,
) -> tuple[Tensor | None, ...]:
    """One layer as an ONNX node; arguments and results as for lstmkern::layer_forward, absent results are None.

    Without h0 (and c0) the states start at zero. Raises NotImplementedError for what ONNX's operators lack: packed
    input, resets, projections, the cell states of every step.
    """
    if input.dtype == torch.bfloat16:  # the operators have it since opset 22, onnxruntime no kernels: compute in fp32
        x, h, c = (None if t is None else t.float() for t in (input, h0, c0))
        wide = [w.float() for w in weights]
        results = layer(x, h, c, wide, directions, batch_sizes, lengths, resets, mode, batch_first, cells)
        return tuple(None if r is None else r.to(torch.bfloat16) for r in results)
    if input.dim() == 2 and batch_sizes is None:  # one step
        x, h, c = (None if t is None else t.unsqueeze(0) for t in (input, h0, c0))
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

    def regroup(tensors: list[Tensor], *shape: int) -> Tensor:
        gates = torch.stack(tensors).unflatten(1, (len(order), H))
        return torch.stack([gates.select(1, g) for g in order], 1).view(directions, *shape)

    W, R = (regroup(weights[i::per], len(order) * H, -1) for i in (0, 1))
    B = regroup([w for i, w in enumerate(weights) if i % per > 1], -1) if per == 4 else None
    attributes = {"hidden_size": H, "direction": "bidirectional" if directions == 2 else "forward"}
    if mode == "GRU":
        attributes["linear_before_reset"] = 1  # b_hn inside the reset product, as in torch
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
    if lengths is not None and h0 is not None:  # onnxruntime makes zeros of the states of a row without steps
        empty = (lengths == 0).unsqueeze(1)
        finals = [torch.where(empty, initial, final) for initial, final in zip(states, finals, strict=True)]
    return output, finals[0], finals[1] if mode == "LSTM" else None, None, None
