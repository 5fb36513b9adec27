"""HUMAN_NUMBERS has the same size as in fastbook, and batches continue each other."""

import pytest
import torch

from lstmkern.lm.corpora import read_documents, read_text
from lstmkern.lm.data import (
    InputError,
    human_numbers,
    load_corpus,
    make_batches,
    make_corpus,
    number_name,
)
from lstmkern.lm.dataset import load_dataset
from lstmkern.lm.train import config_of


@pytest.mark.parametrize(
    ("n", "name"),
    [
        (1, "one"),
        (10, "ten"),
        (13, "thirteen"),
        (20, "twenty"),
        (42, "forty two"),
        (100, "one hundred"),
        (118, "one hundred eighteen"),
        (1000, "one thousand"),
        (1234, "one thousand two hundred thirty four"),
        (5007, "five thousand seven"),
        (9999, "nine thousand nine hundred ninety nine"),
    ],
)
def test_number_names(n, name):
    assert number_name(n) == name


@pytest.mark.parametrize("n", [-1, 0, 10000])
def test_number_name_out_of_range(n):
    with pytest.raises(ValueError, match=f"1 to 9999, got {n}"):
        number_name(n)


def test_counts_of_human_numbers():
    train, valid = human_numbers()
    corpus = load_corpus()
    assert (len(train), len(valid), len(train) + len(valid)) == (7999, 1999, 9998)
    assert len(corpus.ids) == 63_095
    assert len(corpus.vocab) == 30
    assert (valid[0], valid[-1]) == (number_name(8001), number_name(9999))
    words = [corpus.vocab[i] for i in corpus.ids[:8]]
    assert words == ["one", ".", "two", ".", "three", ".", "four", "."]


def test_batches_of_human_numbers():
    train, valid = make_batches(load_corpus().ids)
    assert len(train) == 49 and {t.shape for t in (*train.x, *train.y)} == {(64, 16)}
    assert len(valid) == 12 and {t.shape for t in (*valid.x, *valid.y)} == {(64, 16)}
    assert train.tokens == 49 * 64 * 16


def test_rows_continue_from_batch_to_batch():
    ids = torch.arange(2000)
    train, valid = make_batches(ids, rows=4, seq_len=8)
    for batches in (train, valid):
        streams = torch.cat(batches.x, dim=1)  # [rows, batches * seq_len]
        assert torch.equal(torch.cat(batches.y, dim=1), streams + 1)  # the target is the next token
        assert torch.equal(streams, streams[:, :1] + torch.arange(streams.size(1)))
    sequences = (2000 - 1) // 8
    cut = int(sequences * 0.8)
    assert (len(train), len(valid)) == (cut // 4, (sequences - cut) // 4)
    assert train.x[0][0, 0] == 0
    assert valid.x[0][0, 0] == cut * 8


def test_the_last_incomplete_batch_has_fewer_rows():
    train, valid = make_batches(torch.arange(2000), rows=4, seq_len=8, keep_last=True)
    sequences = (2000 - 1) // 8
    cut = int(sequences * 0.8)
    for batches, count in ((train, cut), (valid, sequences - cut)):
        assert sum(len(x) for x in batches.x) == count
        assert [len(x) for x in batches.x] == [4] * (count // 4) + ([count % 4] if count % 4 else [])
        seen = torch.cat(batches.x).flatten().sort().values
        assert torch.equal(seen, seen[0] + torch.arange(count * 8))
        assert all(torch.equal(y, x + 1) for x, y in zip(batches.x, batches.y, strict=True))
        assert [b for b in range(len(batches)) if batches.starts(b)] == ([0, len(batches) - 1] if count % 4 else [0])
    assert len(train.x[-1]) < 4 and train.x[-1][0, 0] == cut // 4 * 4 * 8


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_are_all_rows_once(processes):
    """Each row belongs to one process, and the weighted mean over processes is the mean over all rows."""
    batches, _ = make_batches(torch.arange(2000), rows=8, seq_len=7, keep_last=True)
    shares = [batches.share(process, processes) for process in range(processes)]
    assert len(batches.x[-1]) not in (0, 8)
    for b, x in enumerate(batches.x):
        parts = [share.x[b] for share in shares if share.weight(b) > 0]
        assert torch.equal(torch.cat(parts), x)
        assert all(len(share.x[b]) > 0 and share.rows_of(b) == len(x) for share in shares)
        mean = sum(share.weight(b) * share.x[b].double().mean() for share in shares) / processes
        torch.testing.assert_close(mean, x.double().mean())
        assert all(share.starts(b) == batches.starts(b) for share in shares)
    assert all(share.tokens == batches.tokens for share in shares)


def test_smallest_corpus_that_fills_a_batch():
    # Ten sequences: eight to train, two to validate.
    train, valid = make_batches(torch.arange(10 * 3 + 1), rows=2, seq_len=3)
    assert (len(train), len(valid)) == (4, 1)
    with pytest.raises(InputError, match="validation part does not fill one batch of 2 sequences of 3 tokens"):
        make_batches(torch.arange(5 * 3 + 1), rows=2, seq_len=3)
    with pytest.raises(InputError, match="training part"):
        make_batches(torch.arange(0), rows=2, seq_len=3)


def test_written_corpus_reads_back_the_same(tmp_path):
    for name, lines in zip(("train.txt", "valid.txt"), human_numbers(), strict=True):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    corpus, default = load_corpus(tmp_path), load_corpus()
    assert torch.equal(corpus.ids, default.ids)
    assert corpus.vocab == default.vocab
    assert corpus.fingerprint == default.fingerprint
    assert make_corpus(["a b"]).fingerprint != make_corpus(["b a"]).fingerprint


@pytest.mark.parametrize(
    ("train", "valid", "message"),
    [
        (b"", b"", "the corpus is empty"),
        (b"\n \n", b"\n", "the corpus is empty"),
        (b"one one one\none\n", b"one\n", "only one distinct word, 'one'"),
        (b"\xff\xfe\x00", b"one two\n", "train.txt is not UTF-8"),
        (b"one two\n", None, "cannot read .*valid.txt: No such file"),
    ],
)
def test_unusable_corpus(tmp_path, train, valid, message):
    (tmp_path / "train.txt").write_bytes(train)
    if valid is not None:
        (tmp_path / "valid.txt").write_bytes(valid)
    with pytest.raises(InputError, match=message):
        load_corpus(tmp_path)


def test_missing_directory(tmp_path):
    with pytest.raises(InputError, match="no such data directory"):
        load_corpus(tmp_path / "nowhere")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32"])
def test_a_byte_order_mark_is_not_text(tmp_path, encoding):
    """It is removed from every file; UTF-16 and UTF-32 are recognized by it."""
    mark = "\ufeff" if encoding in ("utf-16-be", "utf-16-le") else ""  # the other encoders write it themselves
    lines = ["one two", "déjà vu 漢字"]
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_bytes((mark + "\r\n".join(lines)).encode(encoding))
    assert load_corpus(tmp_path).vocab == ["one", "two", ".", "déjà", "vu", "漢字"]
    assert read_text(tmp_path / "train.txt") == "\n".join(lines)
    assert read_text(tmp_path) == "\n".join(lines * 2)
    assert [document.text for document in read_documents(tmp_path)] == ["\n".join(lines)] * 2
    data = load_dataset(config_of("char-gru", text=str(tmp_path), batch_size=1, seq_len=2))
    assert data.vocab == sorted(set("\n".join(lines)))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\xff\xfea", b"\xef\xbb\xbf\xff", b"\xef\xbb\xbfa\0b"])
def test_a_byte_order_mark_in_front_of_no_text(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="file is not UTF-8 text"):
        read_text(tmp_path / "file")
