"""LSTM, GRU and RNN: torch.nn's modules on lstmkern's kernels."""

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import dynamo
from .functional import both_states, run_stack
from .leaf import KernelModule


class RecurrentModule(KernelModule, torch.nn.RNNBase):
    """What LSTM, GRU and RNN share. Weights are read as attributes at every call, so whatever stands in for a parameter
    (a parametrization, a dropped-out copy, the tensors of torch.func.functional_call) is what the kernels see."""

    # Tensors that stand in for parameters of these names since _flat_weights was assigned.
    _assigned_weights: dict[str, Tensor] = {}  # noqa: RUF012 (replaced, never changed)

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        """All weights in the order of _flat_weights_names; torch.nn keeps this list for cuDNN, here it is derived.

        Tensors of a list that is assigned take the place of the parameters, as in torch.nn, until a parameter is set
        or the module is moved.
        """
        return [self._assigned_weights.get(n, getattr(self, n, None)) for n in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        named = zip(self._flat_weights_names, weights, strict=True)
        parameters = self._parameters
        self._assigned_weights = {n: w for n, w in named if n in parameters and w is not parameters[n]}

    def _init_flat_weights(self) -> None:
        self._assigned_weights = {}

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if self._assigned_weights and name in self._flat_weights_names:
            self._assigned_weights = {}

    def _update_flat_weights(self) -> None: ...

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read the weights where they lie."""

    def _replicate_for_data_parallel(self):
        return torch.nn.Module._replicate_for_data_parallel(self)

    def _layers(self) -> list[list[Tensor]]:
        """The weights, one list per layer, its directions one after the other."""
        parameters, names = self._parameters, self._all_weights
        if self._assigned_weights:
            parameters = {**parameters, **self._assigned_weights}
        if self.bidirectional:
            names = [forward + reverse for forward, reverse in zip(names[::2], names[1::2], strict=True)]
        return [[parameters[n] if n in parameters else getattr(self, n) for n in layer] for layer in names]

    def _run(self, input, h0, c0, lengths, resets, cells):
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

    def _run_unbatched(self, input, h0, c0, lengths, resets, cells):
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

    def _run_packed(self, input, h0, c0, lengths, resets, cells):
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if lengths is not None:
            raise ValueError("lengths: a PackedSequence already has its lengths")
        layers = self._layers()
        directions = 2 if self.bidirectional else 1
        if h0 is not None and sorted_indices is not None:
            h0 = h0.index_select(1, sorted_indices)
            c0 = None if c0 is None else c0.index_select(1, sorted_indices)
        self._check(data, h0, c0, batch_sizes, None if h0 is None else int(batch_sizes[0]))
        if resets is not None:
            _check_mask("resets", resets, torch.bool, (data.size(0),))
        output, h_n, c_n, every_c = run_stack(
            self.mode, data, h0, c0, layers, directions, False, self.dropout if self.training else 0.0,
            batch_sizes, None, resets, cells,
        )  # fmt: skip
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = c_n.index_select(1, unsorted_indices) if self.mode == "LSTM" else c_n
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        if cells:
            every_c = PackedSequence(every_c, batch_sizes, sorted_indices, unsorted_indices)
        return output, h_n, c_n, every_c

    def _hidden_fits(self, h0: Tensor, c0: Tensor | None, N: int) -> bool:
        layers = 2 * self.num_layers if self.bidirectional else self.num_layers
        return h0.shape == (layers, N, self.proj_size or self.hidden_size) and (
            c0 is None or c0.shape == (layers, N, self.hidden_size)
        )

    def _check(self, input: Tensor, h0: Tensor | None, c0: Tensor | None, batch_sizes: Tensor | None, N: int) -> None:
        """torch.nn's checks in torch.nn's order, for their messages."""
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


def _check_mask(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: Expected a tensor of {dtype}, got {got}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: Expected size {shape}, got {list(tensor.shape)}")


class LSTM(RecurrentModule, torch.nn.LSTM):
    """torch.nn.LSTM: the same arguments, parameters and results, and four things more.

    LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    proj_size=0, device=None, dtype=None)

    Per layer and direction, with gates i, f, g, o stacked in w_ih [4*H, I], w_hh [4*H, P], b_ih and b_hh [4*H]:

        i, f, g, o = (x_t w_ih^T + b_ih + h_{t-1} w_hh^T + b_hh).chunk(4)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t), times w_hr^T [H, P] if proj_size > 0

    (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; the projection is Sak et al. 2014.)
    """

    # Without overloads the result would be a union of all four, of no use to a type checker.
    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        resets: Tensor | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        resets: Tensor | None = None,
        return_cells: Literal[True],
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence]: ...
    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Any, ...]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Any, ...]:
        """Runs the layers over a batch of sequences.

        Sizes: T steps, N rows, I = input_size, H = hidden_size, P = proj_size or H, D = 2 if bidirectional else 1, L =
        num_layers.

        input: [T, N, I], [N, T, I] if batch_first, [T, I] for one sequence, or a PackedSequence; fp32, fp64, bf16, fp16
        hx: (h_0 [L*D, N, P], c_0 [L*D, N, H]), zeros if None; without N for one sequence
        lengths: int64 [N] on any device, 0 <= lengths <= T, in any order: each row's number of steps in a padded batch;
            output is zero past a row's end, h_n and c_n are taken at it, and the reverse direction starts from it. A
            row of length 0 has h_n = h_0 and c_n = c_0. On a GPU lengths are not checked but clamped to 0..T; in a CUDA
            graph they must be on the GPU.
        resets: bool, laid out like input without its last dimension ([T, N], or [R] for packed data of R steps): where
            true, h and c are zeroed before that step, in both directions' own order of time.
        return_cells: also return the last layer's c of every step.

        Returns (output, (h_n, c_n)) or (output, (h_n, c_n), cells): output is laid out like input with D*P columns, h_n
        [L*D, N, P], c_n [L*D, N, H], cells laid out like output with D*H columns. ValueError or RuntimeError with
        torch.nn's wording for a wrong rank, size or dtype.
        """
        h0, c0 = both_states("lstm", hx)
        output, h_n, c_n, cells = self._run(input, h0, c0, lengths, resets, return_cells)
        return (output, (h_n, c_n), cells) if return_cells else (output, (h_n, c_n))


class _SingleState(RecurrentModule):
    """What GRU and RNN share: one state, h."""

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: None = None,
        resets: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Runs the layers over a batch of sequences; arguments as for lstmkern.LSTM, hx being h_0 [L*D, N, H].

        Returns (output, h_n): output is laid out like input with D*H columns, h_n [L*D, N, H]. ValueError or
        RuntimeError with torch.nn's wording for a wrong rank, size or dtype.
        """
        return self._run(input, hx, None, lengths, resets, False)[:2]


class GRU(_SingleState, torch.nn.GRU):
    """torch.nn.GRU: the same arguments, parameters and results; lengths and resets as for lstmkern.LSTM.

    GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    device=None, dtype=None)

    Per layer and direction, with gates r, z, n stacked in w_ih [3*H, I], w_hh [3*H, H], b_ih and b_hh [3*H]:

        r = sigmoid(x_t w_ir^T + b_ir + h_{t-1} w_hr^T + b_hr)
        z = sigmoid(x_t w_iz^T + b_iz + h_{t-1} w_hz^T + b_hz)
        n = tanh(x_t w_in^T + b_in + r * (h_{t-1} w_hn^T + b_hn))
        h_t = (1 - z) * n + z * h_{t-1}

    (Cho et al. 2014, with the reset gate after the product, as torch.nn and cuDNN have it.)
    """


class RNN(_SingleState, torch.nn.RNN):
    """torch.nn.RNN: the same arguments, parameters and results; lengths and resets as for lstmkern.LSTM.

    RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None)

    Per layer and direction h_t = tanh(x_t w_ih^T + b_ih + h_{t-1} w_hh^T + b_hh), or relu of it (Elman 1990).
    """


dynamo.let_through(RecurrentModule)
