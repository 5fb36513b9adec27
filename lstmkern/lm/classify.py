"""Classify texts with the encoder of an AWD-LSTM: gradual unfreezing, discriminative learning rates.

Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (2018).
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .awd import TextClassifier
from .checkpoint import atomic_path, damage, in_directory, load, save
from .corpora import DOCSTRINGS, Document
from .dataset import documents
from .errors import Diverged, InputError
from .generate import encode_prompt
from .pretrained import Pretrained, encoder_of, new_encoder
from .train import Config, one_cycle
from .vocabulary import Vocabulary, vocabulary_from

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "lstmkern text classifier, version 1"
CLASSIFIER = "classifier.pt"  # its name in the directory of a session
RATE = 2e-2  # learning rate of the head in the first stage
LOWER = 2.6  # each layer's learning rate is lower by this factor than that of the layer above
LONGEST = 400  # only the first tokens of a text are used


@dataclass(frozen=True)
class Texts:
    """Texts with their classes.

    Args:
        ids: token numbers of each text, int64 [tokens].
        labels: class of each text, int64 [texts].
    """

    ids: list[Tensor]
    labels: Tensor

    def batches(self, rows: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of texts of similar length.

        Args:
            rows: texts per batch.
            seed: of the order of the batches; None for the longest texts first.

        Yields:
            Tokens int64 [N, T], padded with 0 at the end; lengths int64 [N]; labels int64 [N].
        """
        order = sorted(range(len(self.ids)), key=lambda i: -len(self.ids[i]))
        parts = [order[k : k + rows] for k in range(0, len(order), rows)]
        if seed is not None:
            # Batch normalisation cannot train on a single text, which has no variance.
            parts = [part for part in parts if len(part) > 1]
            shuffled = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed))
            parts = [parts[k] for k in shuffled]
        for part in parts:
            ids = [self.ids[i] for i in part]
            yield pad_sequence(ids, batch_first=True), torch.tensor([*map(len, ids)]), self.labels[part]


@dataclass(frozen=True)
class StageResult:
    """The result of one epoch.

    Args:
        epoch: its number, from 0.
        unfrozen: how many groups of layers were trained.
        train_loss: cross entropy per text in training, in nats.
        valid_loss: cross entropy per held-out text, in nats.
        accuracy: share of held-out texts that were classified correctly.
    """

    epoch: int
    unfrozen: int
    train_loss: float
    valid_loss: float
    accuracy: float


@dataclass(frozen=True)
class Classifier:
    """A classifier with everything that is needed to use it.

    Args:
        model: the network.
        config: configuration of the language model whose encoder it uses.
        vocab: vocabulary of subwords.
        classes: name of each class.
    """

    model: TextClassifier
    config: Config
    vocab: Vocabulary
    classes: list[str]


def load_texts(
    path: str | None, vocab: Vocabulary, most: int, tell: Callable[[str], None] = lambda what: None
) -> tuple[Texts, Texts, list[str]]:
    """Read texts with their classes.

    The held-out texts are those that a language model trained on ``path`` has not seen either.

    Args:
        path: folder with one folder of text files per class, or None for the docstrings of the standard library.
        vocab: vocabulary of subwords.
        most: use only this many of the largest classes.
        tell: called with a description of the work whenever that changes.

    Returns:
        Texts for training, held-out texts, and the names of the classes, the largest first.

    Raises:
        InputError: there are fewer than two classes, or no held-out text belongs to one of them.
    """
    parts = documents(path)
    sizes = Counter(document.label for document in parts[0] if document.label)
    classes = [name for name, size in sizes.most_common(most) if size > 1]
    if len(classes) < 2:
        raise InputError(
            f"{path or DOCSTRINGS} has {len(classes)} class(es) of at least two texts: a classifier needs two, as "
            "folders of text files, and --classes above 1"
        )
    tell(f"splitting {sum(map(len, parts)):,} texts into {len(vocab):,} subwords ...")
    train, valid = (_encoded([d for d in part if d.label in classes], vocab, classes) for part in parts)
    if not valid.ids:
        raise InputError(f"{path or DOCSTRINGS} is too small: no text of any of the classes was held out")
    return train, valid, classes


def _encoded(chosen: Sequence[Document], vocab: Vocabulary, classes: list[str]) -> Texts:
    ids = vocab.encode_all([document.text for document in chosen]) if chosen else []
    labels = torch.tensor([classes.index(document.label) for document in chosen], dtype=torch.int64)
    return Texts([torch.tensor(text[:LONGEST]) for text in ids], labels)


def stages(groups: int, epochs: int) -> list[tuple[int, int, float]]:
    """The stages of gradual unfreezing.

    The first stage trains only the head for one epoch. Each further stage trains one more group of layers for one
    epoch; the last one trains all for ``epochs`` epochs.

    Args:
        groups: number of groups of layers, the head included.
        epochs: epochs of the last stage.

    Returns:
        For each stage: the number of groups that are trained, its epochs, and the learning rate of the head.
    """
    unfreezing = [(k, 1, RATE / 2 ** min(k - 1, 2)) for k in range(1, groups)]
    return [*unfreezing, (groups, epochs, RATE / 4)]


def count_batches(groups: int, train: Texts, valid: Texts, epochs: int, rows: int = 32) -> int:
    """The number of batches, of training and validation, in ``train_classifier``."""
    per_epoch = sum(1 for _ in train.batches(rows, 0)) + sum(1 for _ in valid.batches(rows))
    return per_epoch * sum(length for _, length, _ in stages(groups, epochs))


def train_classifier(
    model: TextClassifier,
    train: Texts,
    valid: Texts,
    epochs: int,
    rows: int = 32,
    seed: int = 0,
    after_epoch: Callable[[StageResult], None] = lambda result: None,
    after_batch: Callable[[], None] = lambda: None,
) -> list[StageResult]:
    """Train ``model`` with gradual unfreezing: first the head, then one more layer of the encoder per stage.

    Args:
        model: the classifier; trained in place, on the CPU.
        train: texts to train on.
        valid: held-out texts, for the loss and accuracy of every epoch.
        epochs: epochs of the last stage, in which all layers are trained.
        rows: texts per batch.
        seed: of dropout and of the order of the batches.
        after_epoch: called with the result of every epoch.
        after_batch: called after every batch, of training and of validation; may raise to stop.

    Returns:
        One result per epoch.

    Raises:
        Diverged: the loss of an epoch, in training or validation, is nan or inf.
    """
    groups, history = model.groups(), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for unfrozen, length, rate in stages(len(groups), epochs):
            steps = length * sum(1 for _ in train.batches(rows, seed))
            optimizer, schedule = _unfreeze(groups, unfrozen, rate, steps)
            for _ in range(length):
                batches = train.batches(rows, seed + len(history))
                loss = _train_epoch(model, batches, optimizer, schedule, after_batch)
                valid_loss, accuracy = evaluate(model, valid, rows, after_batch)
                history.append(StageResult(len(history), unfrozen, loss, valid_loss, accuracy))
                _check_losses(history[-1])
                after_epoch(history[-1])
    return history


def _unfreeze(
    groups: list[list[nn.Parameter]], unfrozen: int, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """Let only the last ``unfrozen`` groups be trained: their optimizer, with a lower rate for lower groups."""
    for k, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(k >= len(groups) - unfrozen)
    rates = [rate / LOWER ** (unfrozen - 1 - k) for k in range(unfrozen)]
    trained = [{"params": group} for group in groups[len(groups) - unfrozen :]]
    optimizer = torch.optim.AdamW(trained, betas=(0.95, 0.99), weight_decay=0.01)
    return optimizer, one_cycle(optimizer, rates, steps)


def _check_losses(result: StageResult) -> None:
    if not math.isfinite(result.train_loss + result.valid_loss):
        raise Diverged(
            f"the training of the classifier diverged: its losses are {result.train_loss} and {result.valid_loss} in "
            f"epoch {result.epoch}; use an encoder that was trained with a lower --lr, or another --seed"
        )


def _train_epoch(
    model: TextClassifier,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    after_batch: Callable[[], None],
) -> float:
    """Train on ``batches`` and return the mean cross entropy per text."""
    model.train()
    loss_sum, texts = 0.0, 0
    for x, lengths, labels in batches:
        loss = F.cross_entropy(model(x, lengths), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        loss_sum += loss.item() * len(labels)
        texts += len(labels)
        after_batch()
    return loss_sum / texts


@torch.no_grad()
def evaluate(
    model: TextClassifier, texts: Texts, rows: int = 32, after_batch: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Evaluate a classifier: cross entropy per text in nats, and the share of texts that it classifies correctly."""
    model.eval()
    loss, correct = 0.0, 0
    for x, lengths, labels in texts.batches(rows):
        logits = model(x, lengths)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        after_batch()
    return loss / len(texts.ids), correct / len(texts.ids)


def most_frequent(train: Texts, valid: Texts) -> float:
    """The accuracy on ``valid`` of always predicting the most frequent class of ``train``."""
    return (valid.labels == train.labels.mode().values).double().mean().item()


def classify_session(
    console: Console,
    pretrained: Pretrained,
    text: str | None,
    epochs: int,
    most: int,
    seed: int,
    make_directory: Callable[[], Path],
) -> Path:
    """Train a text classifier on a pretrained encoder, and write classifier.pt and metrics.csv.

    Prints a row per epoch, and compares the final accuracy with that of always predicting the most frequent class.

    Args:
        console: where progress is printed.
        pretrained: the encoder to start from.
        text: folder with one folder of texts per class, or None for the docstrings of the standard library.
        epochs: epochs in which all layers are trained.
        most: use only this many of the largest classes.
        seed: of new weights, of dropout and of the order of the batches.
        make_directory: makes the directory for the results and returns it.

    Returns:
        The directory of the results.

    Raises:
        InputError: the texts cannot be used, see ``load_texts``.
        Diverged: a loss is nan or inf.
    """
    from .progress import Bar, working  # needs rich; a trained classifier can be used without it

    with working(console, "reading the texts") as status:
        train, valid, classes = load_texts(text, pretrained.vocab, most, status.update)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextClassifier(encoder_of(pretrained), len(classes))
    directory, groups = make_directory(), len(model.groups())
    console.print(
        f"{len(classes)} classes; {len(train.ids):,} texts to train on, {len(valid.ids):,} held out\n"
        f"unfrozen: how many of the {groups} groups of layers an epoch trains, from the output back\n"
        "epoch  unfrozen  train_loss  valid_loss  accuracy",
        soft_wrap=True,
    )

    def print_row(result: StageResult) -> None:
        console.print(
            f"{result.epoch:5d}  {result.unfrozen:8d}  {result.train_loss:10.6f}  {result.valid_loss:10.6f}  "
            f"{result.accuracy:8.6f}"
        )

    with Bar(console, "classifier", count_batches(groups, train, valid, epochs)) as bar:
        history = train_classifier(
            model, train, valid, epochs, seed=seed, after_epoch=print_row, after_batch=bar.advance
        )
    save_classifier(directory / CLASSIFIER, Classifier(model, pretrained.config, pretrained.vocab, classes))
    _write_metrics(directory / "metrics.csv", history)
    console.print(against_chance(history[-1].accuracy, most_frequent(train, valid), classes[0]), soft_wrap=True)
    return directory


def _write_metrics(path: Path, history: Sequence[StageResult]) -> None:
    """Write one line per epoch with the fields of StageResult."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(StageResult)])
        writer.writeheader()
        writer.writerows(map(asdict, history))


def against_chance(accuracy: float, chance: float, frequent: str) -> str:
    """A sentence that compares a classifier's accuracy with ``chance``, that of always predicting ``frequent``."""
    start = f"accuracy {accuracy:.3f} on the texts held out; always the most frequent class, {frequent}: {chance:.3f}"
    if accuracy > chance:
        return f"{start}, a margin of {accuracy - chance:.3f}"
    return f"{start}, {'worse' if accuracy < chance else 'no better'} than that: it needs more texts, or more --epochs"


def save_classifier(path: str | Path, classifier: Classifier) -> None:
    """Write ``classifier`` to ``path`` atomically; ``torch.load(path, weights_only=True)`` reads it."""
    content = {
        "format": FORMAT,
        "config": asdict(classifier.config),
        "vocab": classifier.vocab.state(),
        "classes": classifier.classes,
        "model": classifier.model.state_dict(),
    }
    save(path, content)


def load_classifier(path: str | Path) -> Classifier:
    """Read a classifier, in eval mode.

    Args:
        path: the file, or its directory.

    Raises:
        InputError: there is no such file, or it is not a classifier.
    """
    path = in_directory(path, [CLASSIFIER])
    content = load(path, [FORMAT], "of a text classifier")
    with damage(f"{path} is of another model, or damaged"):
        config, vocab = Config(**content["config"]), vocabulary_from(content["vocab"])
        model = TextClassifier(new_encoder(config, len(vocab)), len(content["classes"]))
        model.load_state_dict(content["model"])
    return Classifier(model.eval(), config, vocab, content["classes"])


@torch.no_grad()
def most_likely(classifier: Classifier, text: str, count: int = 3) -> list[tuple[str, float]]:
    """Classify a text.

    Args:
        classifier: a trained classifier.
        text: the text.
        count: number of classes to return.

    Returns:
        The most likely classes with their probabilities, most likely first.

    Raises:
        InputError: the text is empty.
    """
    ids = torch.tensor([encode_prompt(text, classifier.vocab)[:LONGEST]])
    probabilities = classifier.model(ids, torch.tensor([ids.size(1)])).softmax(1)[0]
    best = probabilities.topk(min(count, len(classifier.classes)))
    return [(classifier.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
