"""The directory of a session: locking, which files remain in it, and full disks."""

import errno
import resource
from pathlib import Path

import pytest
from language import TRAIN, assert_one_sentence, listing

from lstmkern.command import main
from lstmkern.lm import session
from lstmkern.lm.errors import Failed, Interrupted
from lstmkern.lm.output import output_directory

pytestmark = pytest.mark.usefixtures("one_thread", "text_file")


def test_sessions_that_start_together_get_different_directories(here, monkeypatch):
    """Another session creates the directory between the check and mkdir."""
    mkdir, taken = Path.mkdir, []

    def late(path, *args, **kwargs):
        if path.name == "lm7-1" and not taken:
            taken.append(path)
            mkdir(path, parents=True)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    assert output_directory(None, "lm7").make() == Path("runs/lm7-2")
    assert taken


def test_empty_directories_are_removed(here):
    with output_directory(None, "lm7") as output:
        assert output.make().is_dir()
    assert not (here / "runs").exists()
    with output_directory("a/b", "lm7") as output:
        output.subdirectory("lm6")
        (output.subdirectory("lm7") / "file").write_text("kept")
    assert listing(here / "a") == {here / "a/b": None, here / "a/b/lm7": None, here / "a/b/lm7/file": b"kept"}
    (here / "mine" / "empty").mkdir(parents=True)
    with output_directory("mine", "lm7", force=True) as output:
        output.make()
    assert (here / "mine" / "empty").is_dir()


def test_the_message_says_why_a_session_ended_and_what_it_kept(here):
    for error, expected in (
        (KeyboardInterrupt(), Interrupted),
        (OSError(errno.ENOSPC, "No space left on device"), Failed),
        (Failed("it failed"), Failed),
    ):
        with pytest.raises(expected, match="; nothing was kept$"), output_directory("out", "lm7") as output:
            output.make()
            raise error
        with pytest.raises(expected, match="; out holds a, b/c$"), output_directory("out", "lm7") as output:
            (output.make() / "a").write_text("")
            (output.subdirectory("b") / "c").write_text("")
            raise error
        with pytest.raises(expected, match="; out is as it was$"), output_directory("out", "lm7", force=True) as output:
            output.make()
            raise error
        (here / "out" / "b" / "c").unlink()
        (here / "out" / "b").rmdir()
        (here / "out" / "a").unlink()
        (here / "out").rmdir()
    with pytest.raises(BrokenPipeError), output_directory("out", "lm7"):
        raise BrokenPipeError


def test_two_sessions_do_not_share_a_directory(here, capsys):
    pytest.importorskip("fcntl")
    with output_directory("out", "lm7") as output:
        output.make()
        assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 2
        assert_one_sentence(capsys, "another session is writing into out: choose another directory")
        assert not any((here / "out").iterdir())
    assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 0
    before = listing(here)
    with output_directory("out", "lm7", force=True) as output:
        output.make()
        assert main(["train", "--resume", "out", "--epochs", "2"]) == 2
        assert_one_sentence(capsys, "another session is writing into out")
    assert listing(here) == before


@pytest.mark.parametrize("command", [["ladder"], ["classify", "--encoder", "none.pt"]])
def test_one_of_several_processes_writes(here, monkeypatch, capsys, command):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    with output_directory(None, "demo") as output:
        assert output.make() == Path() and output.subdirectory("lm6") == Path("lm6")
    monkeypatch.setenv("RANK", "0")
    assert main(command) == 2
    assert_one_sentence(capsys, f"{command[0]} trains in one process: start it without torchrun")
    assert [path.name for path in here.iterdir()] == ["text.txt"]


# ---- full disks ----


@pytest.fixture
def file_size():
    """file_size(n): files of more than n bytes cannot be written, like on a full disk; None removes the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


def test_a_checkpoint_that_does_not_fit(here, capsys, file_size):
    file_size(5_000)
    code = main([*TRAIN, "--epochs", "1", "--out", "out"])
    file_size(None)
    assert code == 1
    assert_one_sentence(capsys, "^lstmkern: cannot write out/checkpoint.pt: .*; nothing was kept\n")
    assert not (here / "out").exists()


def test_a_checkpoint_that_no_longer_fits_leaves_the_one_before(here, capsys, file_size):
    assert main([*TRAIN, "--epochs", "1", "--out", "out"]) == 0
    before = listing(here)
    capsys.readouterr()
    file_size(5_000)
    code = main(["train", "--resume", "out", "--epochs", "2"])
    file_size(None)
    assert code == 1
    assert_one_sentence(capsys, "^lstmkern: cannot write out/checkpoint.pt: .*; out is as it was\n")
    assert listing(here) == before


def test_a_plot_that_does_not_fit(here, monkeypatch, capsys, file_size):
    real = session.write_plot

    def full(path, runs):
        file_size(1_000)
        real(path, runs)

    monkeypatch.setattr(session, "write_plot", full)
    code = main([*TRAIN, "--epochs", "1", "--out", "out"])
    file_size(None)
    assert code == 1
    assert_one_sentence(capsys, "^lstmkern: cannot write out/metrics.png: .*; out holds checkpoint.pt, metrics.csv\n")
    assert sorted(path.name for path in (here / "out").iterdir()) == ["checkpoint.pt", "metrics.csv"]
