"""Which version this is, and the number of the format in which models and checkpoints are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.errors import UserError

__version__ = "0.1.0"
# Raised when files are written that earlier versions would misread; what had no number yet is 0 as well.
FORMAT = 0


def stamp() -> dict[str, Any]:
    """What is noted down in every file of settings: by its number later versions know how to read it."""
    return {"format": FORMAT, "version": __version__}


def check(told: Mapping[str, Any], where: object) -> None:
    """UserError, which names the version that reads it, where `told` is of a later format than this version's; and
    where its format is no number."""
    if not isinstance(found := told.get("format", 0), int):
        raise UserError(f"{where}: its format is {found!r}, which is no number")
    if found > FORMAT:
        later = told.get("version", "a later version")
        raise UserError(
            f"{where}: written by mmssl {later} in format {found}, and {__version__} reads formats up to {FORMAT}: "
            f"read it with mmssl {later}"
        )
