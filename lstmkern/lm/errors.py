"""What ends a command of the language models early."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence; the command line exits with code 2."""


class Interrupted(Exception):
    """Ctrl-C at a moment where the training state is complete."""
