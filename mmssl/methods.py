"""The recipes by name: each file `MEDIA_METHOD.py` among them is a method of `mmssl train` and `mmssl methods`; what is
done with a trained model is called `MEDIA-finetune`.

A user's own class is one too, as `module:Class`.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from types import ModuleType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmssl.errors import UserError, extras_named, nearest

if TYPE_CHECKING:
    from mmssl.encoder import Encoder
    from mmssl.objectives import Objective
    from mmssl.training import TrainResult


_TASKS = ("finetune", "probe")
"""What is done with a trained model, of each kind of media in another way."""


@dataclass(frozen=True)
class Method:
    """A recipe: its name, the media it reads, its module and its dataclass of settings."""

    name: str
    media: str
    module: ModuleType
    config: type[Any]


@dataclass(frozen=True)
class Run:
    """What `train` made: its folder, and the steps and the last metrics of the training."""

    folder: Path
    result: TrainResult

    @property
    def encoder(self) -> Encoder:
        """The trained encoder."""
        from mmssl.encoder import Encoder

        return Encoder.from_pretrained(self.folder / "final")

    @property
    def objective(self) -> Objective:
        """The trained method, decoder included."""
        from mmssl.objectives import load

        return load(self.folder / "final")


@extras_named()
def train(method: str, *, data: str | Path, out: str | Path | None = None, **settings: Any) -> Run:
    """Pretrain on a folder of media, as `mmssl train METHOD` does: `settings` are its flags, with underscores.

    out: the run folder, `runs/` and the recipe's name where not given; a run that is there is gone on with. Raises
    UserError for unknown methods and settings, settings of a wrong kind, and whatever keeps the run from going on.
    """
    found = find(method)
    hints = get_type_hints(found.config, include_extras=True)
    given = {"data": data, **({} if out is None else {"out": out}), **settings}
    for name, value in given.items():
        if name not in hints:
            raise UserError(
                f"{method} has no setting {name!r}: {nearest(name, [f.name for f in fields(found.config)])}"
            )
        given[name] = _fitting(name, value, hints[name])
    if given.get("config") is not None:
        from mmssl.recipe import repeated

        config = replace(repeated(found.config, given["config"]), **given)
    else:
        config = found.config(**given)
    return Run(config.out, config.run())


def find(name: str) -> Method:
    """The method of this name, or a user's own: `module:Class`, a recipe, or an objective that derives from a method
    with a recipe, whose media, flags and defaults it takes. UserError, with the nearest name, where there is none."""
    if ":" in name:
        return _own(name)
    files = _files()
    if name not in files:
        raise UserError(f"unknown method {name!r}: {nearest(name, list(files))}")
    path = files[name]
    full_name = f"mmssl.recipes.{path.stem}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[full_name]
            raise
    module = sys.modules[full_name]
    configs = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == full_name]
    (config,) = (each for each in configs if hasattr(each, "run"))
    return Method(name, path.stem.rpartition("_")[0], module, config)


def _own(name: str) -> Method:
    from mmssl.objectives import Objective, imported

    where, _, kind = name.partition(":")
    module = imported(where)
    own = getattr(module, kind, None)
    if not inspect.isclass(own):
        classes = [each for each, value in vars(module).items() if inspect.isclass(value)]
        raise UserError(
            f"the module {where} has no class {kind!r}: {nearest(kind, classes) if classes else 'nor others'}"
        )
    if hasattr(own, "run"):
        return Method(kind, "", module, own)
    recipes = {method.config.objective: method for method in map(find, _files())}
    base = next((recipes[each] for each in own.__mro__ if each in recipes), None)
    if base is None or not issubclass(own, Objective):
        known = ", ".join(each.__name__ for each in recipes)
        raise UserError(
            f"{name} is neither a recipe nor an objective that derives from one of {known}: write a recipe beside it, "
            "as those in recipes/, and name that"
        )
    out = ("out", Path, field(default=Path("runs") / kind))
    config = make_dataclass(kind, [out], bases=(base.config,), frozen=True, namespace={"objective": own})
    return Method(kind, base.media, module, config)


def _files() -> dict[str, Path]:
    """The recipes by name: those inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    folder = next(each for each in (package / "recipes", package.parent / "recipes") if each.is_dir())
    return {_name(path.stem): path for path in sorted(folder.glob("[!_]*_*.py"))}


def _name(stem: str) -> str:
    media, _, name = stem.rpartition("_")
    return f"{media}-{name}" if name in _TASKS else name


def listing() -> str:
    """A table of the methods, read off their recipes and classes."""
    rows = [("name", "media", "paper", "defaults", "what it does")]
    for method in map(find, _files()):
        config = method.config(data=Path(), **({"model": "any"} if method.name.endswith(_TASKS) else {}))
        settings = method.config.objective.config_class()
        tokenizer = settings.encoder.tokenizers[0]
        paper = re.search(r"\((.*?)\)", method.module.__doc__ or "")
        size, patch = (" x ".join(map(str, each)) for each in (tokenizer.size, tokenizer.modality.patch))
        shape = f"{size} in {patch}" if patch else f"{size} tokens"
        hidden = f", {settings.mask_ratio:.0%} hidden" if hasattr(settings, "mask_ratio") else ""
        reads = "any model" if method.name.endswith(_TASKS) else f"{config.model}, {shape}{hidden}"
        defaults = f"{reads}, {config.epochs:g} epochs"
        does = (inspect.getdoc(method.config.objective) or "").partition("\n")[0]
        rows.append((method.name, method.media, paper[1] if paper else "", defaults, does))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _fitting(name: str, value: Any, hint: Any) -> Any:
    """`value` as a setting of this kind holds it; UserError where it is of another."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif get_origin(kind) is tuple:
            if isinstance(value, (tuple, list)):
                return tuple(value)
        elif kind is Path:
            if isinstance(value, (str, Path)):
                return Path(value)
        elif isinstance(value, (float, int) if kind is float else kind) and (kind is bool) == isinstance(value, bool):
            return float(value) if kind is float else value  # as the command line would, which a resumed run compares
    choices = [each for kind in kinds if get_origin(kind) is Literal for each in get_args(kind)]
    if choices:
        raise UserError(f"{name}={value!r}: {nearest(str(value), choices)}")
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise UserError(f"{name}={value!r} is of another kind than {wanted}, which this setting is")
