"""The public API as a reader sees it: signatures, docstrings, and examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import typing

import pytest
import torch

import lstmkern

# Documented elsewhere, or with dependencies of their own.
ELSEWHERE = ("lstmkern.lm", "lstmkern.command", "lstmkern.__main__", "lstmkern._C", "lstmkern.pictures")
INSIDE = (m.name for m in pkgutil.walk_packages(lstmkern.__path__, "lstmkern."))
MODULES = ["lstmkern", *(name for name in INSIDE if not name.startswith(ELSEWHERE))]
CLASSES = (lstmkern.LSTM, lstmkern.GRU, lstmkern.RNN, lstmkern.LSTMCell, lstmkern.GRUCell, lstmkern.RNNCell)


def public_callables():
    """(name, function or class) of everything that the package names in __all__, and what a user calls on it."""
    for name in lstmkern.__all__:
        thing = getattr(lstmkern, name)
        if inspect.ismodule(thing):
            yield from ((f"{name}.{inner}", getattr(thing, inner)) for inner in thing.__all__)
        else:
            yield name, thing
            if inspect.isclass(thing):
                yield f"{name}.forward", thing.forward


PUBLIC = dict(public_callables())


def test_the_walk_finds_the_api():
    assert {"LSTM", "GRUCell.forward", "functional.gru", "replace_modules", "reference.layer"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_signatures_are_complete(name):
    signature = inspect.signature(PUBLIC[name])
    for parameter in signature.parameters.values():
        assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD), parameter
        assert parameter.name == "self" or parameter.annotation is not parameter.empty, parameter
    assert inspect.isclass(PUBLIC[name]) or signature.return_annotation is not signature.empty


@pytest.mark.parametrize("ours", CLASSES, ids=lambda c: c.__name__)
def test_constructors_take_what_torch_documents(ours):
    """In torch.nn's order, with its defaults."""
    theirs = getattr(torch.nn, ours.__name__)
    if theirs.__init__.__code__.co_flags & inspect.CO_VARARGS:
        if not hasattr(typing, "get_overloads"):
            pytest.skip("Python 3.10 does not keep the overloads in which torch names the arguments")
        expected = inspect.signature(typing.get_overloads(theirs.__init__)[0])
    else:
        expected = inspect.signature(theirs.__init__)
    mine = inspect.signature(ours.__init__)
    assert [(p.name, p.default) for p in mine.parameters.values()] == [
        (p.name, p.default) for p in expected.parameters.values()
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_documented_with_every_argument(name):
    """Each argument is named in the docstring, which has an example unless it is a method of a class that has one."""
    text = inspect.getdoc(PUBLIC[name])
    for parameter in inspect.signature(PUBLIC[name]).parameters:
        assert parameter == "self" or f"{parameter}: " in text, parameter
    assert "Example:" in text or name.endswith("Cell.forward")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert found > 50
