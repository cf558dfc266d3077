"""Folders of config.json and model.safetensors, and the files that others publish. Nothing is ever unpickled."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import types
import typing
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmssl import version
from mmssl.errors import UserError
from mmssl.interop.forms import Found
from mmssl.interop.rules import to_ours

Config = TypeVar("Config")

CONFIG, WEIGHTS, AVERAGE = "config.json", "model.safetensors", "ema.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
PROCESSOR = "preprocessor_config.json"


def config_from_dict(kind: type[Config], data: Mapping[str, Any]) -> Config:
    """A (nested) config dataclass from what `dataclasses.asdict` made of it and JSON gave back."""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(names)):
        raise UserError(f"{kind.__name__} has no setting {unknown[0]!r}: was it written by a newer version?")
    return kind(**{name: _value(hints[name], data[name]) for name in names if name in data})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(value, Mapping) and (kinds := [each for each in _flat(hint) if dataclasses.is_dataclass(each)]):
        return config_from_dict(typing.cast(type, kinds[0]), value)
    if isinstance(value, list):
        element = next((h for h in _flat(hint) if typing.get_origin(h) is tuple), tuple[Any, ...])
        return tuple(_value(typing.get_args(element)[0], item) for item in value)
    return value


def _flat(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def save_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    processor: Mapping[str, Any] | None = None,
    name: str = CONFIG,
) -> Path:
    """Write config.json, or what its library calls it, and model.safetensors, and transformers'
    preprocessor_config.json where `processor` is given; each appears whole or not at all."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # save_file would make a file that only its owner can read.
    (path / f"{WEIGHTS}.part").write_bytes(save({k: v.detach().cpu().contiguous() for k, v in state.items()}))
    (path / f"{name}.part").write_text(json.dumps(config, indent=2) + "\n")
    if processor is not None:
        (path / f"{PROCESSOR}.part").write_text(json.dumps(processor, indent=2) + "\n")
    for each in (WEIGHTS, name, *([] if processor is None else [PROCESSOR])):
        os.replace(path / f"{each}.part", path / each)
    return path


def resolve(path_or_hub_id: str | Path) -> Path:
    """A folder on this machine, or a download from the Hugging Face hub of the files a model needs."""
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise UserError(
            f"{name}: no such folder; give a folder with {CONFIG} and {WEIGHTS}, or a hub id like org/model"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{name}: not a folder, and reading the hub needs `pip install huggingface_hub`") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "pytorch_model.bin"]))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model could not be had
        raise UserError(f"{name}: not a folder here, and the hub did not give it ({type(error).__name__})") from error


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """A config that lacks what a model needs, or does not fit its weights, named as such."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[:2]
        reason = f"{type(error).__name__}: {' '.join(line.strip() for line in first)}"
        raise UserError(f"{folder}: {CONFIG} and the weights do not make a model ({reason})") from error


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds, or open_clip's own where that is missing."""
    name = OPEN_CLIP_CONFIG if not (folder / CONFIG).exists() and (folder / OPEN_CLIP_CONFIG).is_file() else CONFIG
    try:
        config = json.loads((folder / name).read_text())
        if not isinstance(config, dict):
            raise UserError(f"{folder / name}: holds no settings but a {type(config).__name__}")
        if "mmssl" in config:
            version.check(config, folder)
        return config
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no {CONFIG}; is it a model's folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / name}: not valid JSON ({error})") from None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder, a .safetensors file or an authors' .pth file.

    A .pth may wrap them under "model", "module" or "state_dict" beside other values; it is read with
    `weights_only=True`, and of all classes only `argparse.Namespace` is admitted. OpenAI's CLIP files are archives of
    TorchScript, of which nothing is run.
    """
    path = Path(path)
    if path.is_dir():
        names = ("model*.safetensors", "open_clip*.safetensors", "pytorch_model*.bin")
        shards = next((found for name in names if (found := sorted(path.glob(name)))), [])
        if not shards:
            raise UserError(f"{path}: holds neither {WEIGHTS} nor pytorch_model.bin")
        # a checkpoint of a run that averages its weights: the average is what is meant, where there is one
        shards += [path / AVERAGE] if (path / AVERAGE).is_file() else []
        return {key: value for shard in shards for key, value in read_weights(shard).items()}
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            with warnings.catch_warnings(action="ignore"):  # torch means to give TorchScript up
                return dict(torch.jit.load(path, map_location="cpu").state_dict())
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever their reader met first
        raise UserError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    return unwrap(content, str(path))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def official_state(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors of an authors' file or state dict, and a name for error messages."""
    if isinstance(source, Mapping):
        return unwrap(source), "the state dict"
    return read_weights(source), str(source)


def unwrap(content: Mapping[str, Any], source: str = "the state dict") -> dict[str, Tensor]:
    """The tensors themselves, from under "model", "module" or "state_dict" where they are wrapped."""
    for key in ("model", "module", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{source}: holds no tensors")
    return tensors


def load(module: nn.Module, found: Found, source: str) -> None:
    """Give `module` the tensors found; a decoder that is not among them keeps its own, with a warning."""
    values = to_ours(found.tensors, found.rules, module.state_dict(), source)
    if not found.whole:
        warnings.warn(f"{source} holds no decoder: it starts from fresh weights", stacklevel=4)
        values = {**module.state_dict(), **values}
    if missing := sorted(module.state_dict().keys() - values.keys()):
        raise UserError(f"{source}: {type(module).__name__} needs what it lacks: {missing[:4]}")
    module.load_state_dict(values)
