"""Errors that a user can mend, and how errors are shown."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with `exit_code`.
    Raise it for what the user gave (files, options, configs); leave programming errors to
    the built-in exceptions.
    """

    exit_code = 2


def in_one_line(error: BaseException | None) -> str:
    """An error and what caused it, the first line of each."""
    said = []
    while error is not None:
        said += str(error).strip().splitlines()[:1] or [type(error).__name__]
        error = error.__cause__
    return ": ".join(said)
