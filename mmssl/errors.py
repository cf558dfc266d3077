"""What is written for the person at the keyboard: the one exception, what a command ends with, names as text."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

# Who imports what the base installation lacks, and the extra that brings it. A command that lacks tyro will read media.
EXTRAS = {"tyro": "cli,media", "rich": "cli", "tensorboard": "cli"}
EXTRAS |= dict.fromkeys(
    ("torchvision", "PIL", "sklearn", "pyarrow", "decord", "av", "soundfile", "torchaudio"), "media"
)
EXTRAS |= dict.fromkeys(("datasets", "tokenizers", "ftfy"), "text")
EXTRAS |= dict.fromkeys(("transformers", "timm", "huggingface_hub"), "interop") | {"onnxscript": "onnx"}


class UserError(ValueError):
    """Bad input or a run that cannot go on: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def as_text(name: str) -> str:
    r"""A file's name as text that can be printed and stored: bytes of it that are not UTF-8 read `\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


@contextmanager
def extras_named() -> Iterator[None]:
    """Where a module is missing that an extra brings, UserError says which."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (module := (error.name or "").partition(".")[0]) not in EXTRAS:
            raise
        raise UserError(f"{module} is not installed: pip install 'mmssl[{EXTRAS[module]}]'") from error


def run(command: Callable[[], object]) -> int:
    """Run a command for a person: bad input gives one sentence and exit code 2, Ctrl-C exit code 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text; on stderr Python does so itself
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with extras_named():
            command()
    except (UserError, OSError) as error:
        print(f"mmssl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def nearest(name: str, known: list[str]) -> str:
    """What to write instead of an unknown name: the one that is spelt most like it, or all there are."""
    close = get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
