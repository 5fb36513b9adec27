"""All language models by name: how each is built, what it reads, and how it is trained by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from . import characters, ladder
from .awd import AWDLSTM, Dropouts, Encoder
from .errors import InputError
from .state import LanguageModel

if TYPE_CHECKING:
    from .train import Config


@dataclass(frozen=True)
class Recipe:
    """What belongs to a model rather than to a run.

    Args:
        make: ``make(vocab_sz, config, layers)`` builds the model; ``layers`` has the classes LSTM, GRU and RNN, as
            lstmkern and torch.nn do.
        reads: "words", "characters" or "subwords".
        options: the fields of Config that this model uses and not every model.
        weight_decay: of AdamW.
        alpha: factor of activation regularisation.
        beta: factor of temporal activation regularisation.
        stateful: whether it keeps a state, so that batches must continue each other.
        recurrent: whether it has a recurrent layer, so that kernels can be compared.
        compare: whether they are compared by default.
        least_steps: number of optimizer steps that it needs to learn words; a small text gets more epochs.
        defaults: the fields of Config whose defaults differ from those of the class.
    """

    make: Callable[[int, Config, Any], LanguageModel]
    reads: str
    options: tuple[str, ...]
    weight_decay: float = 0.01
    alpha: float = 0.0
    beta: float = 0.0
    stateful: bool = True
    recurrent: bool = True
    compare: bool = False
    least_steps: int = 0
    defaults: dict[str, Any] = field(default_factory=dict)


CELLS = ("lstm", "gru")
DROPOUT = 0.4  # dropout probability of LMModel7, as in fastbook
CHARACTER_DROPOUT = 0.5  # dropout probability of CharLSTM, as in the lectures
# On texts of 22 to 100 kB char-gru writes blanks after 20 to 80 steps, fragments after 150 and mostly words after 300;
# after 600 steps it has memorised 22 kB. A million characters in the default 4 epochs are 780 steps.
CHARACTER_STEPS = 400

_WORDS = ("data",)
_RECURRENT_WORDS = (*_WORDS, "seq_len", "layers")
_CHARACTERS = ("text", "limit", "embedding")
_SUBWORDS = ("text", "subwords", "embedding", "layers", "dropout", "seq_len")


def _word(model: type[LanguageModel], lr: float, epochs: int, seq_len: int = 3) -> Recipe:
    """Recipe of a model of words without a recurrent layer."""
    options = _WORDS if model.window else (*_WORDS, "seq_len")
    defaults = {"lr": lr, "epochs": epochs, "seq_len": seq_len}
    return Recipe(
        lambda V, c, layers: model(V, c.hidden),
        "words",
        options,
        stateful=model.window is None,
        recurrent=False,
        defaults=defaults,
    )


def _cell(c: Config, layers: Any) -> type[nn.Module]:
    return getattr(layers, c.cell.upper())


def _character(model: type[LanguageModel], rnn: str | None = None, **defaults: Any) -> Recipe:
    """Recipe of a model of characters; ``rnn`` is the name of its recurrent layer's class, if it has one."""

    def make(V: int, c: Config, layers: Any) -> LanguageModel:
        several = (c.layers, CHARACTER_DROPOUT) if "layers" in options else ()
        return model(V, c.embedding, c.hidden, *several, **({"rnn": getattr(layers, rnn)} if rnn else {}))

    options = _CHARACTERS
    if model.window is None:
        options += ("seq_len",)
    if model is characters.CharLSTM:
        options += ("layers",)
    shape = {"seq_len": model.window, "batch_size": 512} if model.window else {"seq_len": 32, "batch_size": 128}
    defaults = {"lr": 3e-3, "epochs": 4, "hidden": 256, "embedding": 42, **shape}
    stateful, recurrent = model.window is None, rnn is not None
    return Recipe(
        make,
        "characters",
        options,
        stateful=stateful,
        recurrent=recurrent,
        least_steps=CHARACTER_STEPS,
        defaults=defaults,
    )


def _awd_lstm(V: int, c: Config, layers: Any) -> LanguageModel:
    drop = Dropouts().times(c.dropout)
    return AWDLSTM(Encoder(V, c.embedding, c.hidden, c.layers, drop, layers.LSTM), drop.output)


RECIPES = {
    "lm1": _word(ladder.LMModel1, 1e-3, 4),
    "lm2": _word(ladder.LMModel2, 1e-3, 4),
    "lm3": _word(ladder.LMModel3, 3e-3, 10),
    "lm4": _word(ladder.LMModel4, 3e-3, 15, seq_len=16),
    "lm5": Recipe(
        lambda V, c, layers: ladder.LMModel5(V, c.hidden, c.layers, rnn=layers.RNN),
        "words",
        _RECURRENT_WORDS,
        compare=True,
        defaults={"lr": 3e-3},
    ),
    "lm6": Recipe(
        lambda V, c, layers: ladder.LMModel6(V, c.hidden, c.layers, rnn=_cell(c, layers)),
        "words",
        (*_RECURRENT_WORDS, "cell"),
        compare=True,
    ),
    "lm7": Recipe(
        lambda V, c, layers: ladder.LMModel7(V, c.hidden, c.layers, DROPOUT, rnn=_cell(c, layers)),
        "words",
        (*_RECURRENT_WORDS, "cell"),
        weight_decay=0.1,
        alpha=2.0,
        beta=1.0,
        compare=True,
    ),
    "char-three": _character(characters.Char3),
    "char-loop": _character(characters.CharLoop),
    "char-concat": _character(characters.CharConcat),
    "char-rnn": _character(characters.CharRNN, "RNN"),
    "char-multi": _character(characters.CharMultiOutput, "RNN"),
    "char-stateful": _character(characters.CharStateful),
    "char-gru-cell": _character(characters.CharGRUCell),
    "char-gru": _character(characters.CharGRU, "GRU"),
    "char-lstm": _character(characters.CharLSTM, "LSTM"),
    "awd-lstm": Recipe(
        _awd_lstm,
        "subwords",
        _SUBWORDS,
        weight_decay=0.05,
        alpha=2.0,
        beta=1.0,
        least_steps=600,  # 100 kB: perplexity 500 after 120 steps, 190 after 300, 120 after 600
        defaults={
            "lr": 1e-2,
            "epochs": 8,
            "seq_len": 48,
            "batch_size": 32,
            "hidden": 192,
            "embedding": 96,
            "layers": 3,
            "clip": 0.5,
            "dropout": 0.5,
        },
    ),
}


def recipe_of(model: str) -> Recipe:
    """The recipe of a model.

    Args:
        model: a name in ``RECIPES``.

    Raises:
        InputError: there is no such model.
    """
    if model not in RECIPES:
        raise InputError(f"there is no model {model!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[model]
