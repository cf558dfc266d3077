"""The encoder that tuning starts from: from any model that can be read, with a head for the classes of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mmssl.encoder import Encoder, EncoderConfig, Pool
from mmssl.errors import UserError
from mmssl.modality import TEXT
from mmssl.objectives import MLM
from mmssl.pretraining.initial import found
from mmssl.training.run_folder import model_in


def encoder_of(source: str, modality: str) -> Encoder:
    """The encoder of one modality in a folder of ours (a model's, or a run's: its `final`), of transformers or timm, an
    authors' file, or a Hugging Face id; of texts with the pooler that next sentences were told by, where there is one.
    Raises UserError where there is none, or it reads other media."""
    path = Path(source)
    if modality == TEXT.name:
        method, encoder = found(MLM, source)
        if isinstance(method, MLM) and method.pooler is not None:
            encoder.config = dataclasses.replace(encoder.config, pooler=True)
            encoder.pooler = nn.Sequential(method.pooler, nn.Tanh())
    elif path.is_file():
        encoder = Encoder.from_official(path)
    else:
        encoder = Encoder.from_pretrained(model_in(path) if path.is_dir() else source)
    if modality not in encoder.tokenizers:
        raise UserError(f"{source}: its encoder reads {', '.join(encoder.tokenizers)}, and {modality} is needed")
    return encoder if len(encoder.tokenizers) == 1 else encoder.only(modality)


def keeps_head(encoder: Encoder, labels: Sequence[str], several: bool = False) -> bool:
    """Whether it has a head for just these classes by their names, of which a sample may have `several`. Then that is
    put in the order of `labels`."""
    known, head = encoder.config.labels, encoder.head
    if not known or sorted(known) != sorted(labels) or encoder.config.several != several:
        return False
    assert isinstance(head, nn.Linear)
    rows = torch.tensor([known.index(label) for label in labels])
    with torch.no_grad():
        head.weight.copy_(head.weight[rows])
        head.bias.copy_(head.bias[rows])
    encoder.config = dataclasses.replace(encoder.config, labels=tuple(labels))
    return True


def with_head(
    given: EncoderConfig,
    labels: Sequence[str],
    pool: Pool,
    *,
    head_norm: bool = False,
    pooler: bool = False,
    several: bool = False,
) -> EncoderConfig:
    """`given` with a fresh head for these classes.

    pool "mean": of the patches, then a norm of its own in the place of the transformer's last (MAE's and VideoMAE's
    tuning); "class": the class token behind the model's last norm (MAE's linear probe). head_norm, pooler,
    several: see `EncoderConfig`. Raises UserError where there is no class token.
    """
    words = any(each.modality.name == TEXT.name for each in given.tokenizers)  # whose first token is of the class
    if pool == "class" and not (given.prefix or words):
        raise UserError("this encoder has no class token: pool the mean of its patches")
    mean = pool == "mean"
    # a model that was tuned on the mean has no other norm
    normed = mean or (given.pool_norm and not given.transformer.final_norm)
    blocks = dataclasses.replace(given.transformer, final_norm=given.transformer.final_norm and not mean)
    return dataclasses.replace(
        given,
        transformer=blocks,
        pool_norm=normed,
        pool_norm_eps=given.pool_norm_eps if normed else None,
        classes=len(labels),
        labels=tuple(labels),
        pool=pool,
        head_norm=head_norm,
        pooler=pooler,
        several=several,
    )


def tuned(
    given: EncoderConfig, *, size: tuple[int, ...] | None = None, drop_path: float = 0.0, positions_learn: bool = False
) -> EncoderConfig:
    """`given` as it is trained on: at another size of input, with blocks that are skipped, and with tables of positions
    that learn, as MAE's do when tuned. What was learnt before still does. Raises UserError where the patches do not
    divide the size."""
    patch = given.tokenizers[0].modality.patch
    if size and any(side % part for side, part in zip(size, patch)):
        sides, parts = (" x ".join(map(str, each)) for each in (size, patch))
        raise UserError(f"the model's patches of {parts} do not divide an input of {sides}: choose another --size")
    tokenizers = tuple(
        dataclasses.replace(
            each, size=size or each.size, trainable=positions_learn or each.position == "learned", recompute=None
        )
        for each in given.tokenizers
    )
    return dataclasses.replace(
        given, tokenizers=tokenizers, transformer=dataclasses.replace(given.transformer, drop_path=drop_path)
    )
