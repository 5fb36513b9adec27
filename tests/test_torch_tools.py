"""torch.compile, torch.export, torch.fx and torch.ao.quantization treat our modules like torch.nn's."""

import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    QConfigMapping,
    default_dynamic_qconfig,
    get_default_qconfig_mapping,
    quantize_dynamic,
)
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn.utils import parametrizations

import lstmkern

LAYERS = ("LSTM", "GRU", "RNN")
NAMES = (*LAYERS, "LSTMCell", "GRUCell", "RNNCell")


def run(program: str) -> None:
    """Run a program in a new process, because it changes torch.nn or checks what importing lstmkern changes."""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


# ---- torch.compile and torch.export ----

COMPILE = """
    import copy, torch
    from torch import nn
    names = ("LSTM", "GRU", "RNN")
    theirs = {n: getattr(nn, n)(3, 4) for n in names}
    import lstmkern
    ours = {n: getattr(lstmkern, n)(3, 4) for n in names}
    for n in names:
        ours[n].load_state_dict(theirs[n].state_dict())
    x = torch.randn(2, 5, 3)

    def compiled(module, count=None):
        torch._dynamo.reset()
        model = nn.Sequential(module)  # as a part of a model: by itself Dynamo would compile its forward
        return torch.compile(lambda x: model(x)[0], fullgraph=True, backend=count or "eager")

    def check():
        from torch._dynamo.testing import CompileCounter
        for n in names:
            count = CompileCounter()
            function = compiled(ours[n], count)
            for _ in range(3):
                assert torch.equal(function(x), ours[n](x)[0])
            assert count.frame_count == 1
            try:
                compiled(theirs[n])(x)
            except torch._dynamo.exc.Unsupported as error:
                assert "Attempted to wrap RNN, GRU, or LSTM" in str(error)
            else:
                raise AssertionError("torch.nn's own compiles, which it does not without us")
            assert not torch._dynamo.config.allow_rnn

    def check_export(n):
        for strict in (False, True):
            for module in (ours[n], theirs[n]):
                exported = torch.export.export(nn.Sequential(module), (x,), strict=strict).module()
                torch.testing.assert_close(exported(x)[0], theirs[n](x)[0])
"""


PATCH = "for n in names: setattr(nn, n, getattr(lstmkern, n))\n"


@pytest.mark.parametrize("patch", ["", PATCH])
@pytest.mark.parametrize("before", ["", "import torch._dynamo\n"])
def test_compile(before, patch):
    """Ours compile as one graph and torch.nn's are refused as without us, also if our classes replace torch.nn's."""
    run(before + textwrap.dedent(COMPILE) + patch + "check()")


@pytest.mark.parametrize("patch", ["", PATCH])
@pytest.mark.parametrize("name", LAYERS)
def test_export(name, patch):
    run(textwrap.dedent(COMPILE) + patch + f"check_export({name!r})")


def test_torch_nns_own_compile_where_the_user_allows_it():
    run(
        textwrap.dedent(COMPILE)
        + PATCH
        + "torch._dynamo.config.allow_rnn = True\n"
        + "for n in names: torch.testing.assert_close(compiled(theirs[n])(x), theirs[n](x)[0])\n"
    )


def test_import_does_not_load_dynamo():
    run("""
        import sys, lstmkern
        assert "torch._dynamo" not in sys.modules
        [f for f in sys.meta_path if type(f).__module__ == "lstmkern.dynamo"][0].find_spec("json", None)
        import torch._dynamo.variables.builder
        assert hasattr(torch._dynamo.variables.builder.VariableBuilder.wrap_module, "__wrapped__")
        assert not [f for f in sys.meta_path if type(f).__module__.startswith("lstmkern")]
    """)


def test_an_unknown_version_of_dynamo_is_not_changed():
    run("""
        import sys, types
        builder = types.ModuleType("torch._dynamo.variables.builder")
        import torch
        sys.modules[builder.__name__] = builder
        import lstmkern
        lstmkern.LSTM(3, 4)(torch.ones(2, 5, 3))
    """)


# ---- torch.fx ----


class Model(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(5, 2)

    def forward(self, x, state=None):
        results = self.rnn(x) if state is None else self.rnn(x, state)
        return self.head(results if isinstance(self.rnn, (nn.GRUCell, nn.RNNCell)) else results[0])


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_symbolic_trace_takes_them_as_leaves(name, weight_norm):
    graphs = []
    x = torch.randn(3, 4) if "Cell" in name else torch.randn(3, 2, 4)
    for package in (nn, lstmkern):
        model = Model(getattr(package, name)(4, 5))
        if weight_norm:
            parametrizations.weight_norm(model.rnn, "weight_hh" if "Cell" in name else "weight_hh_l0")
        calls = []
        model.rnn.register_forward_hook(lambda *_, calls=calls: calls.append("hook"))
        traced = torch.fx.symbolic_trace(model)
        assert not calls and type(traced.rnn) is type(model.rnn)
        assert torch.equal(traced(x), model(x)) and len(calls) == 2
        graphs.append([(node.op, node.target) for node in traced.graph.nodes])
    assert graphs[0] == graphs[1] and ("call_module", "rnn") in graphs[1]


def test_a_subclass_is_traced_into_like_one_of_torch_nns():
    class Doubled(lstmkern.LSTM):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    assert Doubled.__module__ == __name__ == Doubled(4, 5).__module__
    assert not torch.fx.Tracer().is_leaf_module(Doubled(4, 5), "rnn")


# ---- torch.ao.quantization ----

QUANTIZED = ("LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell")  # torch does not quantize nn.RNN


def quantized(model: nn.Module) -> nn.Module:
    return quantize_dynamic(model, {getattr(nn, n) for n in QUANTIZED} | {nn.Linear})


@pytest.mark.parametrize("made", ["replaced", "ours"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_dynamic_quantization_says_what_to_do(name, made):
    model = Model(getattr(lstmkern if made == "ours" else nn, name)(4, 5)).eval()
    lstmkern.replace_modules(model)
    with pytest.warns(UserWarning, match=rf"does not quantize lstmkern's {name}.*restore_modules\(model, every=True\)"):
        left = quantized(model)
    assert type(left.rnn) is getattr(lstmkern, name)
    lstmkern.restore_modules(model, every=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lstmkern.*")
        done = quantized(model)
    assert type(done.rnn).__module__.startswith("torch.ao.nn.quantized")


@pytest.mark.parametrize(
    "mapping", [get_default_qconfig_mapping(), QConfigMapping().set_global(default_dynamic_qconfig)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_prepare_fx_and_convert_fx(mapping):
    """They run as with torch.nn's; our modules stay unquantized, with a warning."""
    x = torch.randn(3, 2, 4)
    model = Model(lstmkern.LSTM(4, 5)).eval()
    with pytest.warns(UserWarning, match="does not quantize lstmkern's LSTM"):
        prepared = prepare_fx(model, mapping, (x,))
    prepared(x)
    converted = convert_fx(prepared)
    assert type(converted.rnn) is lstmkern.LSTM and type(converted.head) is not nn.Linear
    assert torch.equal(converted.rnn(x)[0], model.rnn(x)[0]) and converted(x).shape == model(x).shape
