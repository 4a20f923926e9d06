"""The exception for errors that the user can correct. The command prints its message without a traceback."""


class UserError(Exception):
    """Its message is one sentence: what was found, what was expected, and the remedy."""
