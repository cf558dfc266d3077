"""Where a run's weights come from that does not start at random ones: `--init`, for continued pretraining."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from mmssl.encoder import SIZES, Encoder, EncoderConfig
from mmssl.errors import UserError
from mmssl.objectives import Objective
from mmssl.position import Position, mark_trained
from mmssl.training.run_folder import model_in


def start_from(objective: Objective, source: str, *, own_decoder: bool = False) -> tuple[Objective, str]:
    """`objective` with the weights of `source` (see `found`), and a sentence on what was taken.

    The architecture is the source's, in what leaves the sizes as they are (norm's eps, positions, statistics of the
    pixels), since its weights were trained with it; positions for other sizes of input are interpolated. The decoder is
    taken from a source of the same method; with `own_decoder` true it must then have the asked sizes. All else, such as
    masks, is `objective`'s. Raises UserError where sizes or modality differ, or nothing is found.
    """
    method, given = found(type(objective), source)
    _same_sizes(objective.config.encoder, given.config, source)
    config = dataclasses.replace(objective.config, encoder=_adopted(objective.config.encoder, given.config))
    decodes = hasattr(objective.config, "decoder")
    if method is not None and decodes:
        asked, has = objective.config.decoder, method.config.decoder
        sizes = [(each.transformer.dim, each.transformer.depth) for each in (asked, has)]
        if own_decoder and sizes[0] != sizes[1]:
            raise UserError(
                f"{source}: its decoder has {sizes[1][1]} blocks of {sizes[1][0]}, and {sizes[0][1]} of {sizes[0][0]} "
                "are asked for: leave --decoder-dim and --decoder-depth out"
            )
        config = dataclasses.replace(config, decoder=has)
    fresh = type(objective)(config)
    take(fresh if method is not None else fresh.encoder, method or given, source)
    if method is not None:
        what = "encoder and decoder" if decodes else "all of it"
    else:
        what = f"the encoder; {'the decoder' if decodes else 'all else'} starts from random weights"
    return fresh, f"{'starts':<9} from {source}: {what}"


def found(kind: type[Objective], source: str) -> tuple[Objective | None, Encoder]:
    """What `source` holds: the whole method where it is of this kind, and the encoder.

    A folder of ours (a model's, or a run's: its `final`) or of transformers, an authors' file, or a Hugging Face id.
    """
    path = Path(source)
    path = model_in(path) if path.is_dir() else path
    reader = "from_official" if path.is_file() else "from_pretrained"
    place: Any = path if path.exists() else source
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            method = getattr(kind, reader)(place)
        except (UserError, AttributeError):  # of another method, or an encoder alone; else the encoder's error tells
            return None, getattr(Encoder, reader)(place)
    missing = [each for each in said if "holds no decoder" in str(each.message)]
    for each in said:
        if each not in missing:  # its sentence is this run's to say
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return None if missing else method, method.encoder


def _same_sizes(asked: EncoderConfig, given: EncoderConfig, source: str) -> None:
    """UserError that names the first thing that keeps the weights from fitting."""
    ours, theirs = asked.transformer, given.transformer
    sizes = [(each.dim, each.depth, each.heads) for each in (ours, theirs)]
    if sizes[0] != sizes[1]:
        names = {size: name for name, size in SIZES.items()}
        told = [f"{depth} blocks of {dim} with {heads} heads" for dim, depth, heads in sizes]
        remedy = f"give --model {names[sizes[1]]}" if sizes[1] in names else "no --model has these sizes"
        raise UserError(f"{source}: its encoder has {told[1]}, this run's {told[0]}: {remedy}")
    kinds = [[tokenizer.modality for tokenizer in each.tokenizers] for each in (asked, given)]
    for name in ("name", "channels", "patch"):
        values = [[getattr(modality, name) for modality in each] for each in kinds]
        if values[0] != values[1]:
            raise UserError(
                f"{source}: its {'modality' if name == 'name' else name} is {_plain(values[1])}, this run's "
                f"{_plain(values[0])}: choose the same, or another --init"
            )
    if asked.prefix != given.prefix:
        raise UserError(
            f"{source}: its encoder has {given.prefix} class or register tokens, this method's has {asked.prefix}"
        )


def _plain(values: list[Any]) -> str:
    return ", ".join(" x ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)


def _adopted(asked: EncoderConfig, given: EncoderConfig) -> EncoderConfig:
    """The source's encoder at this run's input size; a classifier's head, and its norm, are no part of pretraining."""
    tokenizers = tuple(
        dataclasses.replace(theirs, size=ours.size)
        for ours, theirs in zip(asked.tokenizers, given.tokenizers, strict=True)
    )
    transformer = dataclasses.replace(
        given.transformer, drop_path=asked.transformer.drop_path, final_norm=asked.transformer.final_norm
    )
    return dataclasses.replace(asked, tokenizers=tokenizers, transformer=transformer)


def take(fresh: nn.Module, given: nn.Module, source: str, but: tuple[str, ...] = ()) -> None:
    """Load `given`'s weights, positions made for the grids of `fresh`; but: beginnings of names that stay fresh."""
    state = fresh.state_dict()
    there = {name: value for name, value in given.state_dict().items() if not name.startswith(but)}
    tables = {name: part for name, part in given.named_modules() if isinstance(part, Position)}
    mark_trained(given)
    for name, part in fresh.named_modules():
        if isinstance(part, Position) and f"{name}.table" in there:
            there[f"{name}.table"] = tables[name](part.grid)
    for name, value in state.items():
        if name in there and there[name].shape != value.shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(there[name].shape)}, this run's has {tuple(value.shape)}"
            )
    fresh.load_state_dict({name: there.get(name, value) for name, value in state.items()})
    mark_trained(fresh)
