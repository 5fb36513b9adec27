"""How the command line is started: optional libraries, its name, waiting threads that sleep, and help."""

import os
import re
import shlex
import sys

import pytest
import torch
from language import ROOT, run_python

import lstmkern
from lstmkern import command
from lstmkern.command import main, options, waiting

COMMANDS = ["demo", "ladder", "train", "generate", "classify", "verify", "bench", "info"]


@pytest.fixture
def without(monkeypatch):
    """without(*names): as if these libraries were not installed."""

    def hide(*names):
        for name in [*sys.modules]:
            if name.partition(".")[0] in names:
                monkeypatch.delitem(sys.modules, name)
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def test_commands_that_need_neither_rich_nor_matplotlib():
    """In one process, because a module that one command imports is there for the next."""
    program = f"""
import sys
sys.modules["rich"] = sys.modules["matplotlib"] = None
from lstmkern.command import main
for words in [["info"], ["verify"], ["--help"], ["--version"], *([name, "--help"] for name in {COMMANDS})]:
    assert main(words) == 0, words
"""
    code, out, err = run_python("-c", program)
    assert (code, err) == (0, "")
    assert "all 10 checks passed" in out or torch.cuda.is_available()
    assert all(f"usage: python -m lstmkern {name}" in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "missing", "message"),
    [
        (["train"], ["matplotlib"], "train needs matplotlib: "),
        (["ladder"], ["rich"], "ladder needs rich: "),
        (["demo"], ["rich", "matplotlib"], "demo needs rich and matplotlib: "),
        (["classify", "--encoder", "encoder.pt"], ["rich"], "classify needs rich: "),
        (["bench"], ["rich"], "bench needs rich: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_missing_library_is_reported_first(tmp_path, monkeypatch, capsys, without, words, missing, message):
    monkeypatch.chdir(tmp_path)
    without(*missing)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"lstmkern: {message}") and err.count("\n") == 1
    assert 'pip install "lstmkern[lm]"' in err and "in a clone `pip install rich" in err
    assert list(tmp_path.iterdir()) == []


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lstmkern {lstmkern.__version__}\n"


@pytest.mark.parametrize(
    ("argument", "name"),
    [("/some/bin/lstmkern", "lstmkern"), ("lstmkern.exe", "lstmkern"), ("/x/__main__.py", "python -m lstmkern")],
)
def test_usage_shows_the_name_that_was_typed(monkeypatch, capsys, argument, name):
    monkeypatch.setattr(sys, "argv", [argument])
    assert main(["train", "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} train ")


def test_console_script(monkeypatch, capsys):
    """The function that pyproject.toml names runs sys.argv and returns the exit code."""
    (target,) = re.findall(r'^lstmkern = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert target == f"{command.__name__}:{command.start.__name__}"
    monkeypatch.setattr(sys, "argv", ["lstmkern", "--version"])
    assert command.start() == 0
    assert capsys.readouterr().out == f"lstmkern {lstmkern.__version__}\n"


# ---- threads that wait ----

# Instead of training, prints the id of the process that the command runs in.
TRAIN = """
import os, sys
from lstmkern import command
from lstmkern.command import train
train.run_train = lambda args: print(os.getpid(), os.environ.get("OMP_WAIT_POLICY")) or 0
print(os.getpid(), flush=True)
sys.exit(command.start())
"""


@pytest.fixture
def undecided(monkeypatch):
    """An environment in which the user has not chosen how threads wait."""
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(os.name != "posix", reason="replaces the process")
@pytest.mark.parametrize(
    ("words", "environment", "starts", "policy"),
    [
        (["--threads", "2"], {}, 2, "passive"),
        (["--threads", "1"], {}, 1, "None"),
        ([], {"OMP_NUM_THREADS": "1"}, 1, "None"),
        ([], {"OMP_NUM_THREADS": "2"}, 2, "passive"),
        (["--threads", "2"], {"OMP_WAIT_POLICY": "active"}, 1, "active"),
        (["--threads", "2"], {"GOMP_SPINCOUNT": "1000"}, 1, "None"),
    ],
    ids=str,
)
def test_threads_of_a_training_sleep_while_they_wait(undecided, words, environment, starts, policy):
    """The process is replaced once, with the same process id and arguments; a choice of the user is respected."""
    code, out, err = run_python("-c", TRAIN, "train", *words, **environment)
    assert (code, err) == (0, "")
    *begun, (number, found) = [line.split() for line in out.splitlines()]
    assert begun == [[number]] * starts
    assert found == policy


def test_a_program_on_stdin_runs_to_its_end(undecided):
    """Standard input cannot be read twice, so such a process is not replaced."""
    code, out, err = run_python("-", "train", "--threads", "2", stdin=TRAIN)
    assert (code, err) == (0, "")
    (number,), found = (line.split() for line in out.splitlines())
    assert found == [number, "None"]


def test_other_commands_are_not_replaced(undecided, monkeypatch, capsys):
    """Commands that do not train, and a command inside another program, are not replaced."""
    monkeypatch.setattr(waiting.os, "execv", lambda *words: pytest.fail("started again"))
    for words in (["info"], ["train", "--help"], ["train", "--epochs", "none"]):
        monkeypatch.setattr(sys, "argv", ["lstmkern", *words])
        assert command.start() in (0, 2)
    assert main(["train", "--data", "nowhere", "--threads", "2"]) == 2
    assert "OMP_WAIT_POLICY" not in os.environ


def test_every_option_has_a_help_text():
    """The text must not consist of a default only."""
    (commands,) = [action for action in command.make_parser()._actions if action.dest == "command"]
    assert list(commands.choices) == COMMANDS
    for name, parser in commands.choices.items():
        for action in parser._actions:
            assert action.help and re.match(r"\w", action.help), (name, action.option_strings)


def test_help_gives_defaults_and_examples(capsys):
    """Every option says what happens without it, unless it is a switch, must be given, or selects what is done."""
    parser = command.make_parser()
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    selects = {"help", "quick", "force", "resume", "checkpoint", "prompt"}
    for name, of_command in commands.choices.items():
        silent = {a.dest for a in of_command._actions if "default:" not in a.help and not a.required} - selects
        assert silent - ({"encoder"} if name == "classify" else set()) == set(), name
        for example in of_command.examples:
            parsed = parser.parse_args(shlex.split(example))
            assert parsed.command == name
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {options.program()} {example}\n" in out for example in of_command.examples)
    assert {name for name, p in commands.choices.items() if not p.examples} == {"verify", "info"}


def test_commands_that_train_have_threads():
    """main() needs both attributes: the number of threads, and whether the command trains."""
    parser = command.make_parser()
    assert isinstance(parser, options.Parser)
    needed = {"generate": ["--checkpoint", "c", "--prompt", "p"]}
    trains = {name for name in COMMANDS if parser.parse_args([name, *needed.get(name, [])]).trains}
    assert trains == {"demo", "ladder", "train", "classify"}
    assert all(hasattr(parser.parse_args([name]), "threads") for name in trains)


def test_an_error_of_one_process_only_is_reported(monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    waited = []
    monkeypatch.setattr(command.time, "sleep", waited.append)
    assert main(["generate", "--checkpoint", "missing", "--prompt", "one"]) == 2
    assert waited == [command.SECONDS_FOR_THE_FIRST]
    assert capsys.readouterr().err.startswith("lstmkern: ")
