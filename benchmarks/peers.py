"""Other implementations of the same layer. Each is optional and raises Unavailable, with a reason, if it cannot run.

A peer is a function (case, module, x, threads) -> (run, values). run() does the work of ``case`` with the weights of
the torch.nn ``module`` on ``x`` [T, N, I]. values() returns its output [T, N, H] as a tensor, to be checked before
timing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lstmkern.bench.cases import Case

Contestant = tuple[Callable[[], object], Callable[[], Tensor]]


class Unavailable(Exception):
    """Why a peer cannot run."""


def _layers(module: nn.RNNBase) -> list[list[Tensor]]:
    """[w_ih, w_hh, b_ih, b_hh] of every layer."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [[getattr(module, f"{n}_l{k}").detach() for n in names] for k in range(module.num_layers)]


def _only_plain(case: Case, train: bool = True, dtypes: tuple[str, ...] = ("fp32",)) -> None:
    if case.proj or case.bidirectional or case.dtype not in dtypes or (case.train and not train):
        raise Unavailable(f"this peer does not run {case}")


def onnx_runtime(case: Case, module: nn.RNNBase, x: Tensor, threads: int) -> Contestant:
    """onnxruntime's CPU kernels, fp32 inference. Weights are packed when the session is created, not at every call."""
    _only_plain(case, train=False)
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from None
    from onnx import TensorProto, helper, numpy_helper

    # For each gate in ONNX's order, its index in torch's.
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[case.cell]
    regroup = lambda w: torch.cat([w.chunk(len(order))[g] for g in order])  # noqa: E731
    nodes, constants, name = [], [numpy_helper.from_array(torch.tensor([1]).numpy(), "axis")], "x"
    for k, (w_ih, w_hh, b_ih, b_hh) in enumerate(_layers(module)):
        packed = {"W": regroup(w_ih)[None], "R": regroup(w_hh)[None]}
        packed["B"] = torch.cat([regroup(b_ih), regroup(b_hh)])[None]
        constants += [numpy_helper.from_array(v.contiguous().numpy(), f"{n}{k}") for n, v in packed.items()]
        extra = {"linear_before_reset": 1} if case.cell == "GRU" else {}
        inputs = [name, f"W{k}", f"R{k}", f"B{k}"]
        nodes += [
            helper.make_node(case.cell, inputs, [f"directions{k}"], hidden_size=case.H, **extra),
            helper.make_node("Squeeze", [f"directions{k}", "axis"], [f"y{k}"]),
        ]
        name = f"y{k}"
    declare = lambda n, width: helper.make_tensor_value_info(n, TensorProto.FLOAT, [case.T, case.N, width])  # noqa: E731
    graph = helper.make_graph(nodes, "layer", [declare("x", case.I)], [declare(name, case.H)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if threads > 1:  # its threads would keep spinning on the cores while our layer is timed
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    run = lambda: session.run(None, feed)[0]  # noqa: E731
    return run, lambda: torch.from_numpy(run())


def jax_scan(case: Case, module: nn.RNNBase, x: Tensor, threads: int) -> Contestant:
    """JAX on the CPU, all under jit: one input GEMM for all steps, then lax.scan over the steps."""
    _only_plain(case)
    if threads == 1:  # JAX reads this once, when it first runs something
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    elif threads != (os.cpu_count() or 1):
        raise Unavailable("JAX uses one thread or every core")
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from None
    single = "intra_op_parallelism_threads=1" in os.environ.get("XLA_FLAGS", "")
    if single != (threads == 1):
        raise Unavailable("JAX was started with another number of threads in this process")
    weights = [[jnp.asarray(w.numpy()) for w in layer] for layer in _layers(module)]
    values = jnp.asarray(x.numpy())
    cell = case.cell

    def layer(x, w_ih, w_hh, b_ih, b_hh):
        projected = x @ w_ih.T + b_ih
        start = jnp.zeros((x.shape[1], w_hh.shape[1]))

        def lstm(state, now):
            h, c = state
            i, f, g, o = jnp.split(now + h @ w_hh.T + b_hh, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        def gru(h, now):
            (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(v, 3, axis=-1) for v in (now, h @ w_hh.T + b_hh))
            z = jax.nn.sigmoid(x_z + h_z)
            h = (1 - z) * jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n) + z * h
            return h, h

        def rnn(h, now):
            h = jnp.tanh(now + h @ w_hh.T + b_hh)
            return h, h

        step = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[cell]
        return jax.lax.scan(step, (start, start) if cell == "LSTM" else start, projected)[1]

    def forward(x, weights):
        for w in weights:
            x = layer(x, *w)
        return x

    infer = jax.jit(forward)
    learn = jax.jit(jax.grad(lambda x, weights: forward(x, weights).sum(), argnums=(0, 1)))
    work = learn if case.train else infer
    run = lambda: jax.block_until_ready(work(values, weights))  # noqa: E731
    return run, lambda: torch.tensor(jax.device_get(infer(values, weights)))


def compiled_cell(case: Case, module: nn.RNNBase, x: Tensor, threads: int) -> Contestant:
    """A step written by hand and compiled with torch.compile, in a Python loop over the steps."""
    _only_plain(case, dtypes=("fp32", "bf16", "fp64"))
    cell = case.cell

    def step(now, h, c, w_hh, b_hh):
        recurrent = h @ w_hh.t() + b_hh
        if cell == "LSTM":
            i, f, g, o = (now + recurrent).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        if cell == "GRU":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = now.chunk(3, -1), recurrent.chunk(3, -1)
            z = (x_z + h_z).sigmoid()
            return (1 - z) * (x_n + (x_r + h_r).sigmoid() * h_n).tanh() + z * h, c
        return (now + recurrent).tanh(), c

    torch._dynamo.reset()  # otherwise the steps of other cases count towards dynamo's recompile limit
    compiled = torch.compile(step)
    layers = [[w.requires_grad_(case.train) for w in layer] for layer in _layers(module)]

    def forward(x):
        for w_ih, w_hh, b_ih, b_hh in layers:
            h = c = x.new_zeros(x.size(1), w_hh.size(1))
            out = []
            for now in nn.functional.linear(x, w_ih, b_ih).unbind(0):
                h, c = compiled(now, h, c, w_hh, b_hh)
                out.append(h)
            x = torch.stack(out)
        return x

    if case.train:
        leaf = x.detach().clone().requires_grad_()
        wanted, grad = [leaf, *(w for layer in layers for w in layer)], torch.ones(case.T, case.N, case.H).to(x.dtype)
        run = lambda: torch.autograd.grad(forward(leaf), wanted, grad)  # noqa: E731
    else:
        run = torch.no_grad()(lambda: forward(x))
    try:
        run()
    except Exception as error:  # inductor needs a compiler and can fail in many ways
        raise Unavailable(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    return run, lambda: forward(x).detach()


def without_onednn(case: Case, module: nn.RNNBase, x: Tensor, threads: int) -> Contestant:
    """torch.nn with oneDNN switched off: torch's loop over the steps, on the BLAS that torch was built with."""
    from lstmkern.bench.cases import step_of

    if not torch.backends.mkldnn.is_available():
        raise Unavailable("this torch is built without oneDNN")
    work = step_of(module, x, case.train)

    def run():
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            return work()

    def values():
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            return module(x)[0]

    return run, values


PEERS = {
    "onnxruntime": onnx_runtime,
    "JAX": jax_scan,
    "compiled cell": compiled_cell,
    "torch without oneDNN": without_onednn,
}
