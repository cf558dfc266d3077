"""Key maps as data: each rule ties our tensors to another library's, and is read in both directions."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmssl.errors import UserError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """ours and theirs: keys, `{i}` standing for a layer's number. kind says how the values differ:

    "same": not at all. "shape": theirs has the one given. "rows": theirs are equal row chunks of ours.
    "conv": our `[D, prod(patch) * C]` (channel fastest) is their convolution `[D, C, *patch]`.
    "position": their `[1, P + N, D]` is our P prefix rows and N grid rows. "split": their rows are those of ours, one
    tensor after the other. "transpose": their rows are our columns. "plane": their `[1, D, *shape]` is our
    `[prod(shape), D]`. "stack": their tensors of the shape given are our rows. "channels": their rows have the
    channels, as many as the shape says, slowest, ours fastest. "keyless": theirs are the first and the last third of
    ours, a bias of queries, keys and values; that of keys adds the same to all logits of a query, which no softmax
    sees, and is read as zeros. optional: the file may lack it.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    kind: Literal[
        "same", "shape", "rows", "conv", "position", "split", "transpose", "plane", "stack", "channels", "keyless"
    ] = "same"
    shape: tuple[int, ...] = ()
    optional: bool = False

    def to_ours(self, values: list[Tensor], like: list[Tensor]) -> list[Tensor]:
        if self.kind == "rows":
            return [torch.cat(values)]
        if self.kind == "keyless":
            return [torch.cat([values[0], torch.zeros_like(values[0]), values[1]])]
        if self.kind == "conv":
            return [values[0].flatten(2).transpose(1, 2).flatten(1)]
        if self.kind in ("transpose", "plane"):
            return [values[0].T if self.kind == "transpose" else values[0][0].flatten(1).T]
        if self.kind == "stack":
            return [torch.cat([value.flatten()[None] for value in values])]
        if self.kind == "channels":
            return [values[0].unflatten(0, (*self.shape, -1)).transpose(0, 1).flatten(0, 1)]
        if self.kind in ("position", "split"):
            rows = values[0][0] if self.kind == "position" else values[0]
            return list(rows.tensor_split(list(itertools.accumulate(len(tensor) for tensor in like[:-1]))))
        # What does not fit keeps its shape, for the function `to_ours` to name.
        return [
            value.reshape(tensor.shape) if value.numel() == tensor.numel() else value
            for value, tensor in zip(values, like, strict=True)
        ]

    def to_theirs(self, values: list[Tensor], patch: tuple[int, ...]) -> list[Tensor]:
        if self.kind == "rows":
            return list(values[0].chunk(len(self.theirs)))
        if self.kind == "keyless":
            return list(values[0].chunk(3)[::2])
        if self.kind in ("transpose", "plane"):
            return [values[0].T if self.kind == "transpose" else values[0].T.unflatten(1, self.shape)[None]]
        if self.kind == "stack":
            return [row.reshape(self.shape) for row in values[0]]
        if self.kind == "channels":
            return [values[0].unflatten(0, (-1, *self.shape)).transpose(0, 1).flatten(0, 1)]
        if self.kind == "conv":
            return [values[0].unflatten(1, (math.prod(patch), -1)).transpose(1, 2).unflatten(2, patch)]
        if self.kind in ("position", "split"):
            rows = torch.cat(values)
            return [rows[None] if self.kind == "position" else rows]
        return [value.reshape(self.shape) if self.kind == "shape" else value for value in values]


KeyMap = tuple[Rule, ...]


def _expanded(rules: KeyMap, side: Literal["ours", "theirs"], state: State) -> list[Rule]:
    """The rules with `{i}` replaced by every layer that occurs in `state` on this side."""
    out = []
    for rule in rules:
        first = getattr(rule, side)[0]
        if "{i}" not in first:
            out.append(rule)
            continue
        pattern = re.compile(re.escape(first).replace(r"\{i\}", r"(\d+)"))
        layers = sorted(int(match[1]) for key in state if (match := pattern.fullmatch(key)))
        for layer in layers:
            ours, theirs = (tuple(k.replace("{i}", str(layer)) for k in keys) for keys in (rule.ours, rule.theirs))
            out.append(Rule(ours, theirs, rule.kind, rule.shape, rule.optional))
    return out


def to_ours(theirs: State, rules: KeyMap, like: State, source: str) -> dict[str, Tensor]:
    """Their state dict under our names, in the shapes of `like` (our model's own state dict).

    Raises UserError naming `source`, the keys and both shapes where a key is missing, unknown or of another shape.
    """
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    for rule in _expanded(rules, "theirs", theirs):
        if absent := [key for key in rule.theirs if key not in theirs]:
            missing += [] if rule.optional else absent
            continue
        used.update(rule.theirs)
        if all(key in like for key in rule.ours):
            values = rule.to_ours([theirs[key] for key in rule.theirs], [like[key] for key in rule.ours])
            out.update(zip(rule.ours, values, strict=True))
    if missing or (unknown := sorted(set(theirs) - used)):
        problem = f"lacks {missing[:4]}" if missing else f"holds keys that are not of this model: {unknown[:4]}"
        raise UserError(f"{source}: {problem}; is it a checkpoint of another architecture?")
    out |= {key: value for key, value in like.items() if not value.numel()}  # no prefix: no file holds its zero rows
    for key, value in out.items():
        if value.shape != like[key].shape:
            raise UserError(
                f"{source}: {key} has shape {tuple(value.shape)}, the model expects {tuple(like[key].shape)}"
            )
    return out


def to_theirs(ours: State, rules: KeyMap, patch: tuple[int, ...]) -> dict[str, Tensor]:
    """Our state dict under their names; what has no rule there is left out."""
    out: dict[str, Tensor] = {}
    for rule in _expanded(rules, "ours", ours):
        if all(key in ours for key in rule.ours):
            values = rule.to_theirs([ours[key] for key in rule.ours], patch)
            out.update((key, value.contiguous()) for key, value in zip(rule.theirs, values, strict=True))
    return out
