"""The encoder of an AWD-LSTM in a separate file, with its vocabulary, as the start of another training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from .awd import AWDLSTM, Encoder
from .checkpoint import CHECKPOINT, FORMAT, damage, in_directory, load, load_checkpoint, save
from .errors import InputError
from .train import OURS, Config, build_model
from .vocabulary import Vocabulary, vocabulary_from

ENCODER = "lstmkern encoder, version 1"
MODEL = "awd-lstm"
ENCODER_FILE = "encoder.pt"  # its name in the directory of a session


@dataclass(frozen=True)
class Pretrained:
    """A pretrained encoder.

    Args:
        path: the file it was read from.
        config: configuration of its language model.
        vocab: its vocabulary.
        weights: its state_dict.
    """

    path: Path
    config: Config
    vocab: Vocabulary
    weights: Mapping[str, Tensor]


def save_encoder(path: str | Path, model: AWDLSTM, config: Config, vocab: Vocabulary) -> None:
    """Write an encoder to a file atomically; ``torch.load(path, weights_only=True)`` reads it.

    Args:
        path: the file.
        model: the language model that has the encoder.
        config: configuration of the model.
        vocab: its vocabulary.
    """
    weights = model.encoder.state_dict()
    save(path, {"format": ENCODER, "config": asdict(config), "vocab": vocab.state(), "encoder": weights})


def load_pretrained(path: str | Path) -> Pretrained:
    """Read an encoder.

    Args:
        path: a file that ``save_encoder`` wrote, a checkpoint of an AWD-LSTM, or the directory of a session.

    Raises:
        InputError: there is no such file, or it is neither.
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
    with damage(f"{path} is a damaged encoder: parts of it are missing"):
        return Pretrained(
            Path(path), Config(**content["config"]), vocabulary_from(content["vocab"]), content["encoder"]
        )


def load_encoder_weights(encoder: Encoder, vocab: Vocabulary, pretrained: Pretrained) -> None:
    """Load pretrained weights into an encoder.

    Args:
        encoder: gets the weights.
        vocab: the vocabulary whose tokens it reads.
        pretrained: the weights.

    Raises:
        InputError: they are of another vocabulary or of other sizes; the encoder is unchanged.
    """
    if vocab != pretrained.vocab:
        raise InputError(f"encoder {pretrained.path} has another vocabulary")
    current = encoder.state_dict()
    if {n: v.shape for n, v in current.items()} != {n: v.shape for n, v in pretrained.weights.items()}:
        raise InputError(f"encoder {pretrained.path} has other layers or sizes than this model")
    encoder.load_state_dict(pretrained.weights)


def new_encoder(config: Config, vocab_sz: int) -> Encoder:
    """A new encoder on lstmkern's kernels, on the CPU and in fp32 whatever ``config`` says."""
    return build_model(replace(config, device="cpu", dtype="fp32"), vocab_sz).encoder


def encoder_of(pretrained: Pretrained) -> Encoder:
    """A new encoder with pretrained weights, on the CPU and in fp32."""
    encoder = new_encoder(pretrained.config, len(pretrained.vocab))
    load_encoder_weights(encoder, pretrained.vocab, pretrained)
    return encoder
