"""What torch.onnx.export(dynamo=True) writes for a layer: the standard ONNX operators LSTM, GRU and RNN.

Formulas and layouts: https://onnx.ai/onnx/operators/onnx__LSTM.html (GRU, RNN). ONNX differs from torch in the order of
the gates (LSTM i o f c, GRU z r h), keeps both biases in one tensor, and gives the output as [T, D, N, H].
"""

import torch
from torch import Tensor

# Where ONNX's gates lie among torch's.
_GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


def layer(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    cells: bool,
) -> tuple[Tensor, ...]:
    """One layer as an ONNX node; arguments and results as for lstmkern::layer_forward.

    Raises NotImplementedError for what ONNX's operators cannot say: packed input, resets, projections, all-step cells.
    """
    if input.dim() == 2 and batch_sizes is None:  # one step
        x, h, c = (None if t is None else t.unsqueeze(0) for t in (input, h0, c0))
        output, _, c_n, *nothing = layer(x, h, c, weights, None, lengths, resets, mode, False, False)
        return output.squeeze(0), *nothing, c_n if c is None else c_n.squeeze(0), nothing[0]
    directions, per = h0.size(0), len(weights) // h0.size(0)
    for refused, what in (
        (batch_sizes is not None, "a PackedSequence (pass lengths= instead)"),
        (resets is not None, "resets="),
        (per % 2 == 1, "proj_size"),
        (cells, "return_cells=True"),
    ):
        if refused:
            raise NotImplementedError(f"ONNX has no recurrent operator with {what}")

    order, H, N = _GATE_ORDER[mode], h0.size(2), h0.size(1)

    def regroup(w: Tensor) -> Tensor:
        gates = w.chunk(len(order))
        return torch.cat([gates[g] for g in order])

    each = [weights[d * per : (d + 1) * per] for d in range(directions)]
    W, R = (torch.stack([regroup(w[i]) for w in each]) for i in (0, 1))
    B = torch.stack([torch.cat([regroup(w[2]), regroup(w[3])]) for w in each]) if per == 4 else None
    attributes = {"hidden_size": H, "direction": "bidirectional" if directions == 2 else "forward"}
    if mode == "GRU":
        attributes["linear_before_reset"] = 1  # b_hn inside the reset product, as in torch
    elif mode == "RNN_RELU":
        attributes["activations"] = ["Relu"] * directions
    x = input.transpose(0, 1) if batch_first else input
    T = x.size(0)
    states = (h0,) if c0 is None else (h0, c0)
    stacked, *finals = torch.onnx.ops.symbolic_multi_out(
        mode.split("_")[0],
        (x, W, R, B, None if lengths is None else lengths.to(torch.int32), *states),
        attributes,
        dtypes=[input.dtype] * (1 + len(states)),
        shapes=[(T, directions, N, H), *((directions, N, H) for _ in states)],
        version=14,
    )
    output = stacked.permute((2, 0, 1, 3) if batch_first else (0, 2, 1, 3)).flatten(2)
    if lengths is not None:  # onnxruntime makes zeros of the states of a row without steps
        empty = (lengths == 0).view(1, -1, 1)
        finals = [torch.where(empty, initial, final) for initial, final in zip(states, finals, strict=True)]
    nothing = input.new_empty(0)
    return output, finals[0], finals[1] if c0 is not None else nothing, nothing, nothing
