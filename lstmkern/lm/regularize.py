"""Activation regularisation (AR) and temporal activation regularisation (TAR).

Source: Merity, McCann, Socher, "Revisiting Activation Regularization for Language RNNs" (2017).
Both are added to the loss that is minimised; the loss that is reported is only the cross entropy.
"""

from __future__ import annotations

from torch import Tensor


def activation_regularization(out: Tensor, alpha: float) -> Tensor:
    r"""AR, which keeps activations small: :math:`\alpha \operatorname{mean}(out^2)`.

    Args:
        out: recurrent output after dropout, [N, T, H].
        alpha: factor.

    Returns:
        A scalar.
    """
    return alpha * out.pow(2).mean()


def temporal_activation_regularization(raw: Tensor, beta: float) -> Tensor:
    r"""TAR, which keeps changes per time step small: :math:`\beta \operatorname{mean}((raw_{t+1} - raw_t)^2)`.

    Args:
        raw: recurrent output before dropout, [N, T, H].
        beta: factor.

    Returns:
        A scalar; zero for T = 1.
    """
    if raw.size(1) < 2:
        return raw.new_zeros(())
    return beta * (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
