"""Every method by its name, mmssl's and users' own, and how a folder finds the class that reads it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mmssl import interop
from mmssl.errors import UserError

if TYPE_CHECKING:
    from mmssl.objectives.objective import Objective

METHODS: dict[str, type[Objective]] = {}
"""Every class that derives from `Objective` and has a `config_class`."""


def register(method: type[Objective]) -> None:
    """Note a method down by its name. Raises UserError where one of mmssl's has it."""
    name, known = method.__name__, METHODS.get(method.__name__)
    if known is not None and known.__module__ != method.__module__ and known.__module__.startswith("mmssl."):
        raise UserError(f"{method.__module__}: a method of the name {name} is in mmssl: choose another")
    METHODS[name] = method


def load(folder: str | Path) -> Objective:
    """The method that a folder holds, whichever it is: one of ours, or one of transformers that mmssl reads.

    A method that is not mmssl's is found in the module that config.json names, which is imported. Raises UserError
    where the folder holds none.
    """
    config = interop.read_config(Path(folder))
    kind = config.get("mmssl")
    if kind is None:
        state = interop.read_weights(Path(folder))
        kind = interop.form_read(list(METHODS), ["transformers", "open_clip"], config, state, str(folder)).method
    method, module = METHODS.get(kind), config.get("module")
    if module and (method is None or importable(method.__module__) != module):  # two modules may have the same name
        try:
            method = getattr(imported(module), kind, method)
        except UserError as error:
            if method is None:
                raise UserError(f"{folder}: holds {kind}: {error}") from error
    if method is None:
        raise UserError(
            f"{folder}: holds {kind or 'no method'}; methods are {', '.join(METHODS)}, and --import MODULE adds others"
        )
    return method.from_pretrained(folder)


def imported(name: str) -> ModuleType:
    """A user's module, from the working folder too. UserError where it cannot be imported."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{name!r} is no module's name, such as my_package.my_methods")
    if "" not in sys.path and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the module {name} cannot be imported ({error}): work in the folder it lies in, or set PYTHONPATH"
        ) from error


def importable(module: str) -> str | None:
    """The name by which others import a module; None for what is typed into an interpreter."""
    if module not in ("__main__", "__mp_main__"):  # the latter in processes that it spawns
        return module
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return spec.name
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else None
