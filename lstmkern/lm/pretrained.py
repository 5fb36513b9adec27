"""An AWD-LSTM's encoder in a file of its own, with its vocabulary: what another task starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from .awd import AWDLSTM, Encoder
from .checkpoint import CHECKPOINT, FORMAT, in_directory, load, load_checkpoint, save
from .errors import InputError
from .train import OURS, Config, build_model
from .vocabulary import Vocabulary, vocabulary_from

ENCODER = "lstmkern encoder, version 1"
MODEL = "awd-lstm"
ENCODER_FILE = "encoder.pt"  # of a session, in its directory


@dataclass(frozen=True)
class Pretrained:
    """An encoder's file: the configuration of its language model, its vocabulary and its weights."""

    path: Path
    config: Config
    vocab: Vocabulary
    weights: Mapping[str, Tensor]


def save_encoder(path: str | Path, model: AWDLSTM, config: Config, vocab: Vocabulary) -> None:
    """Write the encoder of ``model``, which ``config`` describes, and ``vocab`` to ``path`` atomically."""
    weights = model.encoder.state_dict()
    save(path, {"format": ENCODER, "config": asdict(config), "vocab": vocab.state(), "encoder": weights})


def load_pretrained(path: str | Path) -> Pretrained:
    """Read the encoder in ``path``: what ``save_encoder`` wrote, a checkpoint of an AWD-LSTM, or a session's directory.

    Raises:
        InputError: it is neither.
    """
    path = in_directory(path, [ENCODER_FILE, CHECKPOINT])
    content = load(path, (ENCODER, FORMAT), "of an encoder")
    if content["format"] == FORMAT:
        checkpoint = load_checkpoint(path)
        if checkpoint.config.model != MODEL:
            raise InputError(f"checkpoint {path} is of model {checkpoint.config.model}: only {MODEL} has an encoder")
        weights = checkpoint.runs[OURS]["model"]
        inside = "encoder."
        weights = {name.removeprefix(inside): value for name, value in weights.items() if name.startswith(inside)}
        return Pretrained(Path(path), checkpoint.config, checkpoint.vocab, weights)
    try:
        return Pretrained(
            Path(path), Config(**content["config"]), vocabulary_from(content["vocab"]), content["encoder"]
        )
    except InputError:
        raise
    except Exception:  # the tokenizers package raises plain Exceptions
        raise InputError(f"{path} is a damaged encoder: parts of it are missing") from None


def load_encoder_weights(encoder: Encoder, vocab: Vocabulary, pretrained: Pretrained) -> None:
    """Give ``encoder``, which reads tokens of ``vocab``, the weights of ``pretrained``.

    Raises:
        InputError: those are of another vocabulary, or of other sizes; the encoder is as it was.
    """
    if vocab != pretrained.vocab:
        raise InputError(f"encoder {pretrained.path} has another vocabulary")
    own = encoder.state_dict()
    if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in pretrained.weights.items()}:
        raise InputError(f"encoder {pretrained.path} has other layers or sizes than this model")
    encoder.load_state_dict(pretrained.weights)


def new_encoder(config: Config, vocab_sz: int) -> Encoder:
    """An encoder on lstmkern's kernels as ``config`` has it, on the CPU in fp32, wherever that was trained."""
    return build_model(replace(config, device="cpu", dtype="fp32"), vocab_sz).encoder


def encoder_of(pretrained: Pretrained) -> Encoder:
    """A new encoder as its language model was configured, with the weights of ``pretrained``."""
    encoder = new_encoder(pretrained.config, len(pretrained.vocab))
    load_encoder_weights(encoder, pretrained.vocab, pretrained)
    return encoder
