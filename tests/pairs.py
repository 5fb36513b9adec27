"""Shared by tests that compare our modules with torch.nn's: kinds of layers, states, errors that must be the same."""

import pytest
import torch

import lstmkern

KINDS = {
    "lstm": ("LSTM", {}),
    "lstm-proj": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
}


def as_tuple(state):
    """The tensors of a state: (h,), or (h, c) of an LSTM."""
    return state if isinstance(state, tuple) else (state,)


def random_state(module, N, dtype=torch.float32):
    """A random state of a recurrent module for N sequences: h, or (h, c) of an LSTM."""
    layers = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(layers, N, module.proj_size or module.hidden_size, dtype=dtype)
    return (h, torch.randn(layers, N, module.hidden_size, dtype=dtype)) if module.mode == "LSTM" else h


def zero_state(name, *sizes, **options):
    """A state of zeros for the class ``name``: h, or (h, c) of LSTM and LSTMCell, each of ``sizes``."""
    h = torch.zeros(*sizes, **options)
    return (h, h) if name.startswith("LSTM") else h


def assert_same_error(name, sizes, arguments):
    """The class ``name`` of torch.nn and ours refuse ``arguments`` with the same type of error and the same words."""
    errors = []
    for package in (torch.nn, lstmkern):
        with pytest.raises(Exception) as error:  # noqa: PT011 (the types are compared below)
            getattr(package, name)(*sizes)(*arguments)
        errors.append((error.type, str(error.value)))
    assert errors[1] == errors[0]
