"""The one exception type for mistakes a user can mend; the command prints it as a sentence, without a traceback."""


class UserError(Exception):
    """Says what was got, what was expected, and the remedy, in one sentence."""
