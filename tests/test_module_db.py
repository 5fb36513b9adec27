"""Our modules on all test inputs that torch has for its recurrent modules (module_db in torch.testing)."""

import copy
import pickle

import pytest
import torch

import lstmkern

module_db = pytest.importorskip("torch.testing._internal.common_modules").module_db

OURS = {
    torch.nn.LSTM: lstmkern.LSTM,
    torch.nn.GRU: lstmkern.GRU,
    torch.nn.RNN: lstmkern.RNN,
    torch.nn.LSTMCell: lstmkern.LSTMCell,
    torch.nn.GRUCell: lstmkern.GRUCell,
    torch.nn.RNNCell: lstmkern.RNNCell,
}
CASES = []
for info in module_db:
    if info.module_cls not in OURS:
        continue
    for training in [True, False] if info.train_and_eval_differ else [True]:
        n = len(
            info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=training)
        )
        CASES += [
            pytest.param(info, training, i, id=f"{info.module_cls.__name__}-{'train' if training else 'eval'}-{i}")
            for i in range(n)
        ]


def test_every_class_has_inputs():
    assert {case.values[0].module_cls for case in CASES} == set(OURS)


def take(info, training, index, dtype=torch.float64, requires_grad=False):
    torch.manual_seed(index)
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training)
    return inputs[index]


def build(cls, case, dtype=torch.float64, **factory):
    """The module without dropout, so that two calls compute the same."""
    torch.manual_seed(0)
    args, kwargs = case.constructor_input.args, {**case.constructor_input.kwargs, "dtype": dtype, **factory}
    module = cls(*args, **kwargs)
    if getattr(module, "dropout", 0):
        module.dropout = 0.0
    return module


def leaves(results):
    return [t for t in torch.utils._pytree.tree_leaves(_data(results)) if isinstance(t, torch.Tensor)]


def _data(results):
    if isinstance(results, torch.nn.utils.rnn.PackedSequence):
        return results.data
    return tuple(map(_data, results)) if isinstance(results, (tuple, list)) else results


def call(module, case):
    return module(*case.forward_input.args, **case.forward_input.kwargs)


@pytest.mark.parametrize(("info", "training", "index"), CASES)
def test_forward(info, training, index):
    case = take(info, training, index)
    ours, theirs = build(OURS[info.module_cls], case), build(info.module_cls, case)
    for a, b in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    for a, b in zip(leaves(call(ours, case)), leaves(call(theirs, case)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=50 * torch.finfo(torch.float64).eps)


def differentiable(module, case):
    """A function of all differentiable inputs and parameters, and these tensors."""
    names = list(dict(module.named_parameters()))
    spec = torch.utils._pytree.tree_flatten((case.forward_input.args, case.forward_input.kwargs))
    places = [i for i, t in enumerate(spec[0]) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    tensors = [spec[0][i].detach().clone().requires_grad_() for i in places]
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def f(*values):
        flat = list(spec[0])
        for i, value in zip(places, values, strict=False):
            flat[i] = value
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, spec[1])
        parameters = dict(zip(names, values[len(places) :], strict=False))
        return tuple(leaves(torch.func.functional_call(module, parameters, args, kwargs)))

    return f, (*tensors, *weights)


@pytest.mark.parametrize(("info", "training", "index"), CASES)
def test_gradcheck(info, training, index):
    case = take(info, training, index)
    f, inputs = differentiable(build(OURS[info.module_cls], case), case)
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True, check_batched_grad=True)


@pytest.mark.parametrize(("info", "training", "index"), CASES)
def test_gradgradcheck(info, training, index):
    case = take(info, training, index)
    f, inputs = differentiable(build(OURS[info.module_cls], case), case)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True, check_batched_grad=True)


@pytest.mark.parametrize(("info", "training", "index"), CASES)
def test_pickle_and_copies(info, training, index):
    case = take(info, training, index)
    module = build(OURS[info.module_cls], case)
    expected = leaves(call(module, case))
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), copy.copy(module)):
        assert all(torch.equal(a, b) for a, b in zip(leaves(call(twin, case)), expected, strict=True))


@pytest.mark.parametrize(("info", "training", "index"), CASES)
def test_strides_do_not_matter(info, training, index):
    case = take(info, training, index)
    module = build(OURS[info.module_cls], case)
    expected = leaves(call(module, case))

    def restride(t):
        if not isinstance(t, torch.Tensor) or not t.is_floating_point():
            return t
        wide = torch.full((*t.shape[:-1], t.shape[-1] * 2), float("nan"), dtype=t.dtype)[..., ::2]
        return wide.copy_(t).transpose(0, -1).contiguous().transpose(0, -1)

    case.forward_input.args = torch.utils._pytree.tree_map(restride, case.forward_input.args)
    got = leaves(call(module, case))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(("info", "training", "index"), CASES)
def test_to_and_factory_kwargs(info, training, index):
    case = take(info, training, index, dtype=torch.float32)
    cls = OURS[info.module_cls]
    made = build(cls, case, dtype=torch.float32, device="cpu")
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in made.parameters())
    assert all(p.is_meta for p in build(cls, case, device="meta").parameters())
    wide = build(cls, case, dtype=torch.float64).to(torch.float32)
    assert all(p.dtype == torch.float32 for p in wide.parameters())
    assert all(r.dtype == torch.float32 for r in leaves(call(wide, case)))
    assert all(p.dtype == torch.bfloat16 for p in made.to(dtype=torch.bfloat16).parameters())
