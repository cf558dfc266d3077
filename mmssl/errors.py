"""The one exception whose text is written for the person at the keyboard."""


class UserError(ValueError):
    """Bad input or a run that cannot go on: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
