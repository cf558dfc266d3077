"""The method in a folder, for what `mmssl evaluate` asks of more than its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from mmssl.errors import UserError
from mmssl.objectives import Objective, load

O = TypeVar("O", bound=Objective)  # noqa: E741


def method_in(folder: Path, kind: type[O], alone: str, other: str) -> O:
    """The method that a folder holds, one of a `kind`. Raises UserError, in whose sentence `alone` says what an encoder
    lacks, and `other` what another method does."""
    try:
        method = load(folder)
    except UserError as error:
        raise UserError(f"{folder} holds an encoder alone, {alone} ({error})") from error
    if not isinstance(method, kind):
        raise UserError(f"{folder} holds {type(method).__name__}, {other}")
    return method
