"""The exception for errors that the user can correct. The command prints its message without a traceback."""

import traceback


class UserError(Exception):
    """Its message is one sentence: what was found, what was expected, and the remedy."""


def describe_failure(what: str, error: BaseException) -> str:
    """A sentence on an error in the user's own code, with the line that raised it. `what` names the code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{what} raised {type(error).__name__}: {str(error)[:200]}{where}."
