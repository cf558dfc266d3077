"""The command `mmssl`, also `python -m mmssl`."""

from __future__ import annotations

import sys

from mmssl import __version__
from mmssl.errors import run


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print(f"mmssl {__version__}")
        return
    sys.exit(run(_command))


def _command() -> None:
    from mmssl.cli import main  # needs what the extra `cli` brings

    main()


if __name__ == "__main__":
    main()
