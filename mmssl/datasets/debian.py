"""Files out of a Debian package, without root and without installing it."""

from __future__ import annotations

import subprocess
from pathlib import Path

CONNECT_SECONDS = 10
DOWNLOAD_SECONDS = 300


def unpack_package(package: str, scratch: Path) -> Path:
    """Fetches a Debian package with apt-get into the empty folder `scratch`; the folder it was unpacked to.

    Raises OSError where there is no apt-get, and subprocess.SubprocessError where it fails or takes too long.
    """
    patience = ["Acquire::Retries=0", *(f"Acquire::{kind}::Timeout={CONNECT_SECONDS}" for kind in ("http", "https"))]
    apt = ["apt-get", *_options(*patience, "APT::Sandbox::User=root")]
    private = _options(f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}/cache")
    try:
        run(*apt, "download", package, cwd=scratch)
    except subprocess.CalledProcessError:  # a fresh machine has no package lists, and the system's need root
        for folder in ("lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        run(*apt, *private, "update", cwd=scratch)
        run(*apt, *private, "download", package, cwd=scratch)
    for file in scratch.glob("*.deb"):
        run("dpkg-deb", "-x", str(file), "unpacked", cwd=scratch)
    return scratch / "unpacked"


def run(*command: str, cwd: Path) -> None:
    """A command that must succeed within `DOWNLOAD_SECONDS`; its output is kept for `last_line`."""
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)


def last_line(error: Exception) -> str:
    """What an error says in one line: a command's last line on stderr, or the error's own."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = (text or type(error).__name__).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]
