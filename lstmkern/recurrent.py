"""What LSTM, GRU and RNN share: reading the weights, checking a call's arguments, the three kinds of input."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import disable, dynamo
from .functional import run_stack
from .leaf import KernelModule


class RecurrentModule(KernelModule, torch.nn.RNNBase):
    """The base class of LSTM, GRU and RNN.

    Weights are read as attributes at every call. So the kernels see whatever replaces a parameter: a parametrization, a
    copy after weight dropout, the tensors of torch.func.functional_call.
    """

    # Tensors that replace the parameters of these names, since _flat_weights was assigned.
    _assigned_weights: dict[str, Tensor | None] = {}  # noqa: RUF012 (replaced, never changed)

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        """All weights in the order of _flat_weights_names. torch.nn keeps this list for cuDNN; here it is derived.

        The tensors of an assigned list replace the parameters, as in torch.nn, until a parameter is set or the module
        is moved.
        """
        return [self._assigned_weights.get(n, getattr(self, n, None)) for n in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        named = zip(self._flat_weights_names, weights, strict=True)
        parameters = self._parameters
        self._assigned_weights = {n: w for n, w in named if n in parameters and w is not parameters[n]}

    def _init_flat_weights(self) -> None:
        self._assigned_weights = {}
        self.flatten_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self._assigned_weights and name in self._flat_weights_names:
            self._assigned_weights = {}

    def _update_flat_weights(self) -> None: ...

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels read the weights where they are stored. With LSTMKERN_DISABLE=1, as in torch.nn."""
        if disable.DISABLED:
            super().flatten_parameters()

    def _replicate_for_data_parallel(self) -> torch.nn.Module:
        replica: torch.nn.Module = torch.nn.Module._replicate_for_data_parallel(self)
        return replica

    def _layers(self) -> list[list[Tensor]]:
        """The weights: one list per layer, with the reverse direction's after the forward direction's."""
        parameters: dict[str, Any] = self._parameters
        names = self._all_weights
        if self._assigned_weights:
            parameters = {**parameters, **self._assigned_weights}
        if self.bidirectional:
            names = [forward + reverse for forward, reverse in zip(names[::2], names[1::2], strict=True)]
        return [[parameters[n] if n in parameters else getattr(self, n) for n in layer] for layer in names]

    def _run(
        self,
        input: Tensor | PackedSequence,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        cells: bool,
    ) -> tuple[Any, Tensor, Any, Any]:
        """(output, h_n, c_n, cells) for any kind of input; h0 and c0 may be None."""
        if isinstance(input, PackedSequence):
            return self._run_packed(input, h0, c0, lengths, resets, cells)
        dim = input.dim()
        if dim != 3:
            if dim != 2:
                name, tensor = (self.mode, "") if self.mode in ("LSTM", "GRU") else ("RNN", " tensor")
                raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dim}D{tensor} instead")
            return self._run_unbatched(input, h0, c0, lengths, resets, cells)
        layers = self._layers()
        T, N, features = input.shape
        if self.batch_first:
            T, N = N, T
        if (
            T == 0
            or features != self.input_size
            or input.dtype != layers[0][0].dtype
            or (h0 is not None and not self._hidden_fits(h0, c0, N))
        ):
            if h0 is not None and (h0.dim() != 3 or (c0 is not None and c0.dim() != 3)):
                self._refuse_hidden_rank("batched 3-D", 3, h0, c0)
            self._check(input, h0, c0, None, N)
            if T == 0:
                raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None:
            _check_mask("lengths", lengths, torch.int64, (N,))
        if resets is not None:
            _check_mask("resets", resets, torch.bool, tuple(input.shape[:2]))
        return run_stack(
            self.mode, input, h0, c0, layers, 2 if self.bidirectional else 1, self.batch_first,
            self.dropout if self.training else 0.0, None, lengths, resets, cells,
        )  # fmt: skip

    def _run_unbatched(
        self,
        input: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        cells: bool,
    ) -> tuple[Tensor, Tensor, Any, Any]:
        if h0 is not None:
            if h0.dim() != 2 or (c0 is not None and c0.dim() != 2):
                self._refuse_hidden_rank("unbatched 2-D", 2, h0, c0)
            h0, c0 = h0.unsqueeze(1), None if c0 is None else c0.unsqueeze(1)
        batch_dim = 0 if self.batch_first else 1
        output, h_n, c_n, every_c = self._run(
            input.unsqueeze(batch_dim),
            h0,
            c0,
            None if lengths is None else lengths.unsqueeze(0),
            None if resets is None else resets.unsqueeze(batch_dim),
            cells,
        )
        lstm = self.mode == "LSTM"
        return (
            output.squeeze(batch_dim),
            h_n.squeeze(1),
            c_n.squeeze(1) if lstm else c_n,
            every_c.squeeze(batch_dim) if cells else every_c,
        )

    def _run_packed(
        self,
        input: PackedSequence,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        cells: bool,
    ) -> tuple[PackedSequence, Tensor, Any, Any]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if lengths is not None:
            raise ValueError("lengths: a PackedSequence already has its lengths")
        layers = self._layers()
        directions = 2 if self.bidirectional else 1
        if h0 is not None and sorted_indices is not None:
            h0 = h0.index_select(1, sorted_indices)
            c0 = None if c0 is None else c0.index_select(1, sorted_indices)
        self._check(data, h0, c0, batch_sizes, 0 if h0 is None else int(batch_sizes[0]))
        if resets is not None:
            _check_mask("resets", resets, torch.bool, (data.size(0),))
        output, h_n, c_n, every_c = run_stack(
            self.mode, data, h0, c0, layers, directions, False, self.dropout if self.training else 0.0,
            batch_sizes, None, resets, cells,
        )  # fmt: skip
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = c_n.index_select(1, unsorted_indices) if self.mode == "LSTM" else c_n
        if cells:
            every_c = PackedSequence(every_c, batch_sizes, sorted_indices, unsorted_indices)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), h_n, c_n, every_c

    def _hidden_fits(self, h0: Tensor, c0: Tensor | None, N: int) -> bool:
        layers = 2 * self.num_layers if self.bidirectional else self.num_layers
        return h0.shape == (layers, N, self.proj_size or self.hidden_size) and (
            c0 is None or c0.shape == (layers, N, self.hidden_size)
        )

    def _check(self, input: Tensor, h0: Tensor | None, c0: Tensor | None, batch_sizes: Tensor | None, N: int) -> None:
        """Run torch.nn's checks in torch.nn's order, for their messages. N: sequences; only used with h0."""
        self.check_input(input, batch_sizes)
        if h0 is None:
            return
        layers = 2 * self.num_layers if self.bidirectional else self.num_layers
        hidden, cell = (layers, N, self.proj_size or self.hidden_size), (layers, N, self.hidden_size)
        if c0 is None:
            self.check_hidden_size(h0, hidden)
        else:
            self.check_hidden_size(h0, hidden, "Expected hidden[0] size {}, got {}")
            self.check_hidden_size(c0, cell, "Expected hidden[1] size {}, got {}")

    def _refuse_hidden_rank(self, kind: str, rank: int, h0: Tensor, c0: Tensor | None) -> None:
        if c0 is None:
            raise RuntimeError(f"For {kind} input, hx should also be {rank}-D but got {h0.dim()}-D tensor")
        raise RuntimeError(
            f"For {kind} input, hx and cx should also be {rank}-D but got ({h0.dim()}-D, {c0.dim()}-D) tensors"
        )


def _check_mask(name: str, tensor: object, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: Expected a tensor of {dtype}, got {got}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: Expected size {shape}, got {list(tensor.shape)}")


dynamo.let_through(RecurrentModule)
