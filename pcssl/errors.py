"""Errors that a user can mend."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with `exit_code`.
    Raise it for what the user gave (files, options, configs); leave programming errors to
    the built-in exceptions.
    """

    exit_code = 2
