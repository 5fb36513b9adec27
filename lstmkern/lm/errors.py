"""The errors that end a command early."""


class InputError(ValueError):
    """An argument or a file from the user cannot be used. The message is one sentence; the exit code is 2."""


class Failed(Exception):
    """A command cannot finish. The message is one sentence that says which files were kept; the exit code is 1."""


class Diverged(Failed):
    """A loss of a training is nan or inf."""


class Interrupted(Exception):
    """Ctrl-C. The message is one sentence that says which files were kept; the exit code is 130."""
