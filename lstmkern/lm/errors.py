"""The one error of the language models that is the user's."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence; the command line exits with code 2."""
