"""Language models on lstmkern's recurrent layers, and what it takes to train them."""

from .models import LMModel6, LMModel7

__all__ = ["LMModel6", "LMModel7"]
