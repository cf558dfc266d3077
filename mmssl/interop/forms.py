"""What it takes to read a method or an encoder of another library, and to write one of ours as theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from mmssl.interop.rules import KeyMap, State

Library = Literal["official", "transformers", "timm", "open_clip"]
# A config as `dataclasses.asdict` gives it; defaults may be left out of what is read.
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What is in their files: settings of the config, key map and tensors; `whole` unless the decoder is missing."""

    settings: dict[str, Any]
    rules: KeyMap
    tensors: Mapping[str, Tensor]
    whole: bool = True


@dataclass(frozen=True)
class Written:
    """What their files will hold: config.json, or another `name` for it, our tensors by the key map, `extra` tensors
    that they expect besides, and preprocessor_config.json where they have one."""

    config: dict[str, Any]
    rules: KeyMap
    processor: dict[str, Any] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "config.json"


@dataclass(frozen=True)
class Form:
    """A method's (or "Encoder"'s) form in a library.

    matches: whether a config and tensors are of this form (authors' files have no config: {}). read: their config,
    tensors and the name of their source, and options that neither tells (`heads=`); UserError where it is none.
    name: what `mmssl export --to` calls it, with `what` that is. media: the modality it is for. write: from settings;
    UserError for what they cannot express. fits: which models are written so, where those of one modality differ.
    """

    method: str
    library: Library
    what: str
    matches: Callable[[Mapping[str, Any], State], bool]
    read: Callable[..., Found]
    name: str = ""
    media: str = "image"
    write: Callable[[Settings], Written] | None = None
    fits: Callable[[Settings], bool] = lambda settings: True

    @property
    def options(self) -> list[str]:
        """The names of what `read` can be told besides."""
        parameters = inspect.signature(self.read).parameters.values()
        return [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
