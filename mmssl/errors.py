"""What is written for the person at the keyboard: the one exception, and names of files as text."""


class UserError(ValueError):
    """Bad input or a run that cannot go on: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def as_text(name: str) -> str:
    r"""A file's name as text that can be printed and stored: bytes of it that are not UTF-8 read `\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()
