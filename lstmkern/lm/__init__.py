"""Language models on lstmkern's recurrent layers, and what it takes to train them."""

from .awd import AWDLSTM, TextClassifier
from .ladder import LMModel1, LMModel2, LMModel3, LMModel4, LMModel5, LMModel6, LMModel7

__all__ = [
    "AWDLSTM",
    "LMModel1",
    "LMModel2",
    "LMModel3",
    "LMModel4",
    "LMModel5",
    "LMModel6",
    "LMModel7",
    "TextClassifier",
]
