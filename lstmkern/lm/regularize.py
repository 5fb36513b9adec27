"""Activation and temporal activation regularisation.

Source: Merity, McCann, Socher, "Revisiting Activation Regularization for Language RNNs" (2017).
Both are added to the training loss only; what is reported as a loss stays the cross entropy.
"""

from __future__ import annotations

from torch import Tensor


def activation_regularization(out: Tensor, alpha: float) -> Tensor:
    """alpha * mean(out^2) of the dropped-out recurrent output ``out`` [N, T, H]: keeps activations small. Scalar."""
    return alpha * out.pow(2).mean()


def temporal_activation_regularization(raw: Tensor, beta: float) -> Tensor:
    """beta * mean((raw[:, 1:] - raw[:, :-1])^2) of the recurrent output before dropout, ``raw`` [N, T, H]: keeps
    activations from changing much in one step. Scalar; zero for T = 1, where nothing changes."""
    if raw.size(1) < 2:
        return raw.new_zeros(())
    return beta * (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
