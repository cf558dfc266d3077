"""Towers of a model of pairs that others trained: how they are taken, and what a locked one makes of pictures."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from mmssl.data import KnownPictures, Ledger, PairView, Source, evaluation_batches
from mmssl.data.corpus import kept, mapped
from mmssl.data.source import FileSource, whole_of
from mmssl.encoder import Encoder, Pool
from mmssl.errors import UserError
from mmssl.objectives import CLIP, CLIPConfig, load
from mmssl.pretraining.initial import found, take
from mmssl.pretraining.pretrain import fingerprint
from mmssl.training import distributed
from mmssl.training.run_folder import model_in

C = TypeVar("C", bound=CLIPConfig)


def image_tower(source: str) -> tuple[Encoder, Pool | None]:
    """The encoder of pictures that `source` holds (see `found`), and of a model of pairs the tokens that it compares.

    Raises UserError where there is none, or it reads other media.
    """
    method, encoder = _held(source)
    _check(encoder, "image", source)
    return encoder, method.config.image_pool if method else None


def text_tower(source: str) -> tuple[Encoder, Pool]:
    """The same of texts: an MLM's encoder, or that of a model of pairs; a text's vector is its first token's, of causal
    encoders its last one's."""
    method, encoder = _held(source)
    if method is not None:
        return method.text_encoder, method.config.text_pool
    _check(encoder, "text", source)
    return encoder, "last" if encoder.config.transformer.causal else "class"


def _held(source: str) -> tuple[CLIP | None, Encoder]:
    """What `found` gives, the model of pairs of whichever method."""
    path = Path(source)
    with warnings.catch_warnings(action="ignore"):  # `found` says what there is to say
        try:
            method = load(model_in(path)) if path.is_dir() else None
        except UserError:  # an encoder alone, or nothing
            method = None
    held, encoder = found(CLIP, source) if method is None else (method, method.encoder)
    return (held if isinstance(held, CLIP) else None), encoder


def _check(encoder: Encoder, modality: str, source: str) -> None:
    if list(encoder.tokenizers) != [modality]:
        raise UserError(f"{source}: its encoder reads {', '.join(encoder.tokenizers)}, and one of {modality} is needed")


def with_image_tower(config: C, source: str, pool: Pool | None = None) -> C:
    """The config with the encoder of `source`, which reads pictures of the size that the config says.

    A picture's vector is taken as that model of pairs takes it; for other models as `pool` says, the config's own where
    None, and as the mean of the patches where there is no class token.
    """
    encoder, trained = image_tower(source)
    own, (tokenizer,) = config.encoder, encoder.config.tokenizers
    (size, _), patch = own.tokenizers[0].size, tokenizer.modality.patch
    if any(size % side for side in patch):
        raise UserError(f"{source}: its patches of {' x '.join(map(str, patch))} do not divide --size {size}")
    if tokenizer.modality.channels != own.tokenizers[0].modality.channels:
        raise UserError(f"{source}: its encoder reads {tokenizer.modality.channels} channels, and pairs have colours")
    blocks = replace(
        encoder.config.transformer,
        drop_path=own.transformer.drop_path,
        final_norm=own.transformer.final_norm,
    )
    tower = replace(
        encoder.config,
        tokenizers=(replace(tokenizer, size=own.tokenizers[0].size),),
        transformer=blocks,
        pool_norm=False,
        classes=0,
        head_norm=False,
        labels=(),
    )
    usual: Pool = (pool or config.image_pool) if tower.prefix else "mean"
    return replace(config, encoder=tower, image_pool=trained or usual)


def with_text_tower(config: C, source: str, vocab: int) -> C:
    """The config with the text encoder of `source`, for texts of as many tokens as the config says, of a vocabulary of
    `vocab`."""
    encoder, pool = text_tower(source)
    (tokenizer,), (asked,) = encoder.config.tokenizers, config.text_encoder.tokenizers
    (longest,), (length,) = tokenizer.size, asked.size
    if length > longest:
        raise UserError(f"{source}: its encoder reads texts of at most {longest} tokens: give --length {longest}")
    if vocab > tokenizer.modality.channels:
        raise UserError(
            f"{source}: its encoder knows {tokenizer.modality.channels} tokens, and --tokenizer has {vocab}: take its "
            "own"
        )
    return replace(
        config, text_encoder=replace(encoder.config, tokenizers=(replace(tokenizer, size=(length,)),)), text_pool=pool
    )


def take_towers(objective: CLIP, image: str | None, text: str | None) -> None:
    """Load the encoders of the sources that are given into an objective of their configs."""
    if image is not None:
        take(objective.encoder, image_tower(image)[0], image)
    if text is not None:
        take(objective.text_encoder, text_tower(text)[0], text)


def known_pictures(
    source: Source,
    objective: CLIP,
    view: PairView,
    folder: Path,
    device: torch.device,
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> KnownPictures:
    """The pairs of `source` with what the image encoder makes of their pictures, each seen once, as `view` shows it.

    The vectors, float32, are made by the first rank and kept in `folder`, by a hash of the weights, the view and the
    files' names, sizes and times: a resumed run, and any other that asks for the same, finds them.
    """
    key = _key(source, objective, view)

    def make(aside: Path) -> None:
        ledger, seen = Ledger(), np.zeros(len(source), np.bool_)
        shape = (len(source), objective.encoder.dim)
        vectors = np.lib.format.open_memmap(aside / "features.npy", "w+", np.float32, shape)
        batches = evaluation_batches(source, view, batch_size=batch_size, workers=workers, ledger=ledger)
        objective.to(device).eval()
        with torch.no_grad():
            for batch in batches:
                rows = batch["sample_id"].numpy()
                vectors[rows] = objective.image_vector({"image": batch["image"].to(device)}).float().cpu().numpy()
                seen[rows] = True
        vectors.flush()
        reasons = (reason for _, reason in ledger.skipped)  # in the order of the samples, as is what was not seen
        broken = dict(zip(np.flatnonzero(~seen).tolist(), reasons, strict=True))
        (aside / "broken.json").write_text(json.dumps(broken))

    place = distributed.on_first_rank(lambda: kept(folder / key, make))
    broken = {int(number): reason for number, reason in json.loads((place / "broken.json").read_text()).items()}
    return KnownPictures(source, mapped(place / "features.npy"), broken, key)


def _key(source: Source, objective: CLIP, view: PairView) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (objective.config.encoder, objective.config.image_pool, view.image, fingerprint(source)):
        digest.update(f"{part}\0".encode())
    whole = whole_of(source)
    for file in whole.read_from if isinstance(whole, FileSource) else ():
        try:
            state = file.stat()
        except OSError:  # it will be found broken
            continue
        digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    for name, value in objective.encoder.state_dict().items():
        content = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        digest.update(f"{name}\0".encode() + content.tobytes())
    return digest.hexdigest()
