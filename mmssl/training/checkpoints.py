"""Checkpoints that are whole or not there: written aside, fsynced, checksummed, renamed; the newest whole one wins.

    run_dir/step-00001234/model.safetensors       any number of groups of named tensors
                          optimizer.safetensors
                          meta.json               what is not a tensor
                          config.json             the model's architecture, with which the folder is a model's
                          manifest.json           size and sha256 of the files above, written last

A process killed during a save leaves a folder whose name starts with `.saving-`; the next save removes it. Nothing is
pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from mmssl import version
from mmssl.errors import UserError

_MANIFEST = "manifest.json"
_META = "meta.json"
CONFIG = "config.json"
_ASIDE = ".saving-"


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given: `state[group][name]` tensors on the CPU, bit for bit, and `meta`."""

    step: int
    state: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]


def save(
    run_dir: Path,
    step: int,
    state: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    keep: int = 2,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write `run_dir/step-{step:08d}`, then remove all but the newest `keep` up to this step (0 removes none).

    `meta` is anything JSON holds, and so is `config`, the architecture, which is written where it is given. Until the
    new checkpoint is whole, every earlier one stays. A damaged checkpoint of the same step is replaced, a whole one is
    left as it is. Raises UserError when the disk is full; other errors of the file system are raised as they come.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    for leftover in run_dir.glob(f"{_ASIDE}*"):
        shutil.rmtree(leftover)
    final = run_dir / f"step-{step:08d}"
    if final.exists() and damage(final) is None:
        return final
    aside = run_dir / f"{_ASIDE}{final.name}"
    needed = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
    with names_full_disk(run_dir, f"the checkpoint of step {step} needs {needed / 1e6:.1f} MB"):
        try:
            aside.mkdir()
            files: dict[str, dict[str, Any]] = {}
            for group, tensors in state.items():
                name = f"{group}.safetensors"
                files[name] = _write(aside / name, safetensors.save(_own_copies(tensors)))
            files[_META] = _write(aside / _META, _json({**version.stamp(), **meta}))
            if config is not None:
                files[CONFIG] = _write(aside / CONFIG, _json(config))
            _write(aside / _MANIFEST, _json({"step": step, "files": files}))
            _sync_folder(aside)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    if final.exists():
        shutil.rmtree(final)
    os.rename(aside, final)
    _sync_folder(run_dir)
    for old in [path for path in _steps(run_dir) if _number(path) <= step][:-keep]:
        shutil.rmtree(old)
    return final


def newest(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, if any, and a sentence on each damaged one that is newer."""
    problems: list[str] = []
    for path in reversed(_steps(run_dir)):
        problem = damage(path)
        if problem is None:
            return path, problems
        problems.append(f"{path} is damaged: {problem}.")
    return None, problems


def damage(path: Path) -> str | None:
    """Why the checkpoint at `path` is not whole, or None if each file has the size and checksum of the manifest."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        step, files = manifest["step"], manifest["files"]
        if path.name != f"step-{step:08d}":
            return f"{_MANIFEST} is that of step {step}"
        for name, expected in files.items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"the checksum of {name} differs"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is not a manifest"
    return None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that `newest` found whole. Raises UserError for one of a later version's format."""
    manifest = json.loads((path / _MANIFEST).read_bytes())
    groups = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
    state = {group: safetensors.load_file(path / f"{group}.safetensors") for group in groups}
    meta = json.loads((path / _META).read_bytes())
    version.check(meta, path)
    return Checkpoint(manifest["step"], state, {name: meta[name] for name in meta if name not in version.stamp()})


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as `{parameter name}/{key}`, so they do not depend on the order of parameters.

    Rates and decays are left out: they follow from the settings of the run.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave. Raises ValueError for a name that the optimizer does not hold."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    held = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    position = {name: index for index, name in enumerate(held)}
    entries: dict[int, dict[str, Tensor]] = {}
    for path, value in state.items():
        name, _, key = path.rpartition("/")
        if name not in position:
            raise ValueError(f"the checkpoint has optimizer state for {name}, which this optimizer does not train.")
        entries.setdefault(position[name], {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` so that whoever reads it finds the old content or the new, whole."""
    aside = path.with_name(f".{path.name}.new")
    with names_full_disk(path.parent, f"{path.name} needs {len(data) / 1e6:.1f} MB"):
        _write(aside, data)
    os.replace(aside, path)
    _sync_folder(path.parent)


@contextmanager
def names_full_disk(folder: Path, purpose: str) -> Iterator[None]:
    """Turn the system's "no space left" into a UserError that names the folder, its free space and the purpose."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free / 1e6
        raise UserError(
            f"{folder}: the disk is full: {purpose} and {free:.1f} MB are free; earlier checkpoints are intact: "
            "free some space and run the same command again."
        ) from error


def _steps(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        return []
    return sorted((path for path in run_dir.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _own_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory, and tied weights do
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
