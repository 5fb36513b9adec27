"""What ends a command of the language models early."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence; the command line exits with code 2."""


class Failed(Exception):
    """A command cannot finish. The message is one sentence that says what was kept; the exit code is 1."""


class Diverged(Failed):
    """A training's loss is nan or inf."""


class Interrupted(Exception):
    """Ctrl-C. The message is one sentence that says what was kept; the exit code is 130."""
