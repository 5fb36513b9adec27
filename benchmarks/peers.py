"""Other implementations of the same layer. Each is optional and raises Unavailable, with a reason, if it cannot run.

A peer is a function (case, module, x, threads, state=()) -> (run, values). run() does the work of ``case`` with the
weights of the torch.nn ``module`` on ``x`` [T, N, I]. values() returns its output [T, N, H] as a tensor, to be checked
before timing.

``module`` may also be a cell (torch.nn.LSTMCell and so on). It takes ``x`` [1, N, I] and starts from ``state``: h and,
for an LSTM, c, each [1, N, H]. run() then returns the next state, and values() the next h [1, N, H]. Training
differentiates the output for x and the weights, not for the state.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lstmkern.bench.cases import Case, step_of

Contestant = tuple[Callable[[], object], Callable[[], Tensor]]
State = tuple[Tensor, ...]


class Unavailable(Exception):
    """Why a peer cannot run."""


def _layers(module: nn.RNNBase | nn.RNNCellBase) -> list[list[Tensor]]:
    """[w_ih, w_hh, b_ih, b_hh] of every layer, or of the cell."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    suffixes = [""] if isinstance(module, nn.RNNCellBase) else [f"_l{k}" for k in range(module.num_layers)]
    return [[getattr(module, n + suffix).detach() for n in names] for suffix in suffixes]


def _only_plain(case: Case, train: bool = True, dtypes: tuple[str, ...] = ("fp32",)) -> None:
    if case.proj or case.bidirectional or case.dtype not in dtypes or (case.train and not train):
        raise Unavailable(f"this peer does not run {case}")


def onnx_runtime(case: Case, module: nn.Module, x: Tensor, threads: int, state: State = ()) -> Contestant:
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
    results = ["h", "c"][: len(state)]
    for k, (w_ih, w_hh, b_ih, b_hh) in enumerate(_layers(module)):
        packed = {"W": regroup(w_ih)[None], "R": regroup(w_hh)[None]}
        packed["B"] = torch.cat([regroup(b_ih), regroup(b_hh)])[None]
        constants += [numpy_helper.from_array(v.contiguous().numpy(), f"{n}{k}") for n, v in packed.items()]
        extra = {"linear_before_reset": 1} if case.cell == "GRU" else {}
        inputs = [name, f"W{k}", f"R{k}", f"B{k}"]
        if state:  # one step: the last state is the result, and needs no axis removed
            inputs += ["", *("h0", "c0")[: len(state)]]
            nodes.append(helper.make_node(case.cell, inputs, ["", *results], hidden_size=case.H, **extra))
            continue
        nodes += [
            helper.make_node(case.cell, inputs, [f"directions{k}"], hidden_size=case.H, **extra),
            helper.make_node("Squeeze", [f"directions{k}", "axis"], [f"y{k}"]),
        ]
        name = f"y{k}"
    declare = lambda n, width: helper.make_tensor_value_info(n, TensorProto.FLOAT, [case.T, case.N, width])  # noqa: E731
    given = [declare("x", case.I), *(declare(n, case.H) for n in ("h0", "c0")[: len(state)])]
    wanted = [declare(n, case.H) for n in results] or [declare(name, case.H)]
    graph = helper.make_graph(nodes, "layer", given, wanted, constants if not state else constants[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads may spin during a call, but not on the cores of whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy(), **{n: s.numpy() for n, s in zip(("h0", "c0"), state, strict=False)}}
    return lambda: session.run(None, feed), lambda: torch.from_numpy(session.run(None, feed)[0])


def jax_scan(case: Case, module: nn.Module, x: Tensor, threads: int, state: State = ()) -> Contestant:
    """JAX on the CPU, all under jit: one input GEMM for all steps, then lax.scan over the steps."""
    _only_plain(case)
    # XLA reads these once, when JAX first runs something. NPROC is the size of its thread pool.
    if os.environ.setdefault("NPROC", str(threads)) != str(threads):
        raise Unavailable("JAX was started with another number of threads in this process")
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from None
    weights = [[jnp.asarray(w.numpy()) for w in layer] for layer in _layers(module)]
    values, given = jnp.asarray(x.numpy()), [jnp.asarray(s[0].numpy()) for s in state]
    cell = case.cell

    def lstm(state, now, w_hh, b_hh):
        h, c = state
        i, f, g, o = jnp.split(now + h @ w_hh.T + b_hh, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(state, now, w_hh, b_hh):
        (h,) = state
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(v, 3, axis=-1) for v in (now, h @ w_hh.T + b_hh))
        z = jax.nn.sigmoid(x_z + h_z)
        return ((1 - z) * jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n) + z * h,)

    def rnn(state, now, w_hh, b_hh):
        return (jnp.tanh(now + state[0] @ w_hh.T + b_hh),)

    step = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[cell]

    def forward(x, weights):
        for w_ih, w_hh, b_ih, b_hh in weights:

            def advance(state, now, w_hh=w_hh, b_hh=b_hh):
                state = step(state, now, w_hh, b_hh)
                return state, state[0]

            start = (jnp.zeros((x.shape[1], w_hh.shape[1])),) * (2 if cell == "LSTM" else 1)
            x = jax.lax.scan(advance, start, x @ w_ih.T + b_ih)[1]
        return x

    def one_step(x, weights, state):
        w_ih, w_hh, b_ih, b_hh = weights[0]
        return step(state, x[0] @ w_ih.T + b_ih, w_hh, b_hh)

    if state:
        infer = jax.jit(one_step)
        learn = jax.jit(jax.grad(lambda x, weights, state: one_step(x, weights, state)[0].sum(), argnums=(0, 1)))
        arguments, output = (values, weights, tuple(given)), lambda found: found[0][None]
    else:
        infer = jax.jit(forward)
        learn = jax.jit(jax.grad(lambda x, weights: forward(x, weights).sum(), argnums=(0, 1)))
        arguments, output = (values, weights), lambda found: found
    work = learn if case.train else infer
    run = lambda: jax.block_until_ready(work(*arguments))  # noqa: E731
    return run, lambda: torch.tensor(jax.device_get(output(infer(*arguments))))


def run_jax_inline() -> None:
    """Let JAX run small computations in the thread that calls them, which halves the time of one step.

    It has an effect only before JAX first runs something.
    """
    with contextlib.suppress(ImportError):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)


def compiled_cell(case: Case, module: nn.Module, x: Tensor, threads: int, state: State = ()) -> Contestant:
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

    def whole_step(x, h, c, w_ih, w_hh, b_ih, b_hh):
        return step(nn.functional.linear(x, w_ih, b_ih), h, c, w_hh, b_hh)

    torch._dynamo.reset()  # otherwise the steps of other cases count towards dynamo's recompile limit
    compiled = torch.compile(whole_step if state else step)
    layers = [[w.requires_grad_(case.train) for w in layer] for layer in _layers(module)]

    def loop(x):
        for w_ih, w_hh, b_ih, b_hh in layers:
            h = c = x.new_zeros(x.size(1), w_hh.size(1))
            out = []
            for now in nn.functional.linear(x, w_ih, b_ih).unbind(0):
                h, c = compiled(now, h, c, w_hh, b_hh)
                out.append(h)
            x = torch.stack(out)
        return x

    def one_step(x):
        return compiled(x, state[0][0], state[-1][0], *layers[0])[0]

    if state:
        x, forward = x[0], one_step
    else:
        forward = loop
    if case.train:
        leaf = x.detach().clone().requires_grad_()
        wanted, grad = [leaf, *(w for layer in layers for w in layer)], torch.ones(*x.shape[:-1], case.H).to(x.dtype)
        run = lambda: torch.autograd.grad(forward(leaf), wanted, grad)  # noqa: E731
    else:
        run = torch.no_grad()(lambda: forward(x))
    try:
        run()
    except Exception as error:  # inductor needs a compiler and can fail in many ways
        raise Unavailable(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    return run, lambda: forward(x).detach().view(case.T, case.N, case.H)


def without_onednn(case: Case, module: nn.Module, x: Tensor, threads: int, state: State = ()) -> Contestant:
    """torch.nn with oneDNN switched off: torch's loop over the steps, on the BLAS that torch was built with."""
    if state:
        raise Unavailable("torch.nn's cells never use oneDNN")
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
