"""The encoder: tokenizers, class or register tokens, and the transformer. What users keep after pretraining."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmssl import interop, version
from mmssl.errors import UserError, nearest
from mmssl.heads import GlobalBatchNorm
from mmssl.masking import Mask, Positions
from mmssl.modality import IMAGE, Modality, image
from mmssl.position import mark_trained
from mmssl.tokenizer import Batch, PatchTokenizer, TextTokenizer, TokenizerConfig, build_tokenizer
from mmssl.transformer import Transformer, TransformerConfig, told, xavier_init

# Width, depth and heads of the ViT family (Dosovitskiy et al. 2021; tiny and small from DeiT).
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


Pool = Literal["mean", "class", "last"]
"""How tokens become one vector (see `Tokens.pooled`)."""


@dataclass(frozen=True)
class EncoderConfig:
    """tokenizers: one a modality. prefix: class and register tokens before the others. bare_prefix: they have no
    positions, as MultiMAE's global token; MAE's table has a row of zeros for the class token. modality_embedding: each
    token has a learned vector of its modality added (M3AE).

    pool_norm: a norm behind the pooling, as MAE's fine-tuned models have, with pool_norm_eps where that is not the
    transformer's. classes: outputs of a linear head on it. pool: what that head sees, the mean where None. head_norm: a
    batch norm before it, without scale and shift, as MAE's linear probe has. pooler: a layer of tanh before these, as
    BERT's classifiers have. labels: the names of the classes, in their order. several: whether a sample may have
    several of them, each output then being a yes or no.
    """

    tokenizers: tuple[TokenizerConfig, ...]
    transformer: TransformerConfig
    prefix: int = 1
    pool_norm: bool = False
    pool_norm_eps: float | None = None
    classes: int = 0
    bare_prefix: bool = False
    modality_embedding: bool = False
    pool: Pool | None = None
    head_norm: bool = False
    labels: tuple[str, ...] = ()
    pooler: bool = False
    several: bool = False

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != self.classes:
            raise UserError(f"{len(self.labels)} labels name the classes of a head with {self.classes} outputs")


def vit_config(
    size: str = "base", *, modality: Modality = IMAGE, input_size: tuple[int, ...] = (224, 224), drop_path: float = 0.0
) -> EncoderConfig:
    """A plain ViT of the family's sizes on one modality, with MAE's fixed sin-cos positions."""
    if size not in SIZES:
        raise UserError(f"unknown model size {size!r}: choose one of {', '.join(SIZES)}")
    dim, depth, heads = SIZES[size]
    transformer = TransformerConfig(dim, depth, heads, drop_path=drop_path)
    return EncoderConfig((TokenizerConfig(modality, input_size),), transformer)


def square_pictures(size: int, patch: int, channels: int) -> tuple[Modality, tuple[int, int]]:
    """The modality and the input size of square pictures in square patches. UserError where they do not fit."""
    if min(patch, size, channels) < 1 or size % patch:
        raise UserError(
            f"patch {patch} does not divide pictures of {size} pixels and {channels} channels: "
            "choose another --size or --patch, all of them above 0"
        )
    return image(channels, (patch, patch)), (size, size)


@dataclass(frozen=True)
class Tokens:
    """What an encoder gives.

    x: `[B, prefix + K, dim]`, the class and register tokens first; packed: `[S, dim]`, each sample's valid rows of that
    behind those of the one before. positions: where the others came from. lengths: valid rows of x for each sample,
    where they differ (None: all).
    """

    x: Float[Tensor, "*batch tokens dim"]
    prefix: int
    positions: Positions
    lengths: Int64[Tensor, " batch"] | None = None

    @property
    def _starts(self) -> Int64[Tensor, " batch"]:
        """The row of each sample's first token, x taken as `[rows, dim]`."""
        if self.x.ndim == 3:
            return torch.arange(len(self.x), device=self.x.device) * self.x.shape[1]
        assert self.lengths is not None
        return self.lengths.cumsum(0) - self.lengths

    def at(self, wanted: Positions) -> Float[Tensor, "flat dim"]:
        """The tokens of some of `positions`, flat, in their order. What was not kept must not be asked for."""
        keep, wanted = self.positions.flat(), wanted.flat()
        rows, kept_rows = wanted.rows, keep.rows
        assert rows is not None and kept_rows is not None and keep.lengths is not None
        # Positions ascend within samples: with the sample above them, in bits that no position has, all of them do.
        slots = torch.searchsorted(kept_rows << 32 | keep.index, rows << 32 | wanted.index)
        columns = slots - (keep.lengths.cumsum(0) - keep.lengths)[rows] + self.prefix
        return self.x.flatten(0, -2)[self._starts[rows] + columns]

    def pooled(self, pool: Pool = "mean") -> Float[Tensor, "batch dim"]:
        """One vector a sample: the mean of its patch tokens, its class token (of text without one, its first), or the
        last of its tokens (of text CLIP's)."""
        if pool == "class":
            return self.x[:, 0] if self.x.ndim == 3 else self.x[self._starts]
        if pool == "last":
            lengths = self.x.shape[1] if self.lengths is None else self.lengths
            return self.x.flatten(0, -2)[self._starts + lengths - 1]
        if self.x.ndim == 2:
            return dataclasses.replace(self, x=self.positions.padded(self.x)).pooled()
        patches = self.x[:, self.prefix :]
        if self.lengths is None:
            return patches.mean(dim=1)
        counts = self.lengths - self.prefix
        valid = torch.arange(patches.shape[1], device=patches.device) < counts[:, None]
        return (patches * valid[..., None]).sum(dim=1) / counts[:, None].clamp(min=1)


class Encoder(nn.Module):
    """Tokens of every modality in the batch through one transformer; hidden positions are never embedded."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config, self.dim = config, config.transformer.dim
        self.tokenizers = nn.ModuleDict(
            {tokenizer.modality.name: build_tokenizer(tokenizer, self.dim) for tokenizer in config.tokenizers}
        )
        # Without a prefix they are empty and never get a gradient, for which DistributedDataParallel would wait.
        some = config.prefix > 0
        self.prefix_tokens = nn.Parameter(torch.empty(config.prefix, self.dim).normal_(std=0.02), requires_grad=some)
        # MAE's table has a row of zeros for the class token; models with learned positions learn this one too.
        learned = some and any(self.tokenizer(name).position.trainable for name in self.tokenizers)
        position = torch.zeros(config.prefix, self.dim)
        self.prefix_position = nn.Parameter(position, requires_grad=learned) if not config.bare_prefix else None
        kinds = torch.empty(len(config.tokenizers), self.dim).normal_(std=0.02) if config.modality_embedding else None
        self.modalities = None if kinds is None else nn.Parameter(kinds)
        self.transformer = Transformer(config.transformer)
        eps = config.transformer.norm_eps if config.pool_norm_eps is None else config.pool_norm_eps
        self.pool_norm = nn.LayerNorm(self.dim, eps=eps) if config.pool_norm else nn.Identity()
        self.head_norm = GlobalBatchNorm(self.dim, scale=False, eps=1e-6) if config.head_norm else nn.Identity()
        self.pooler = nn.Sequential(nn.Linear(self.dim, self.dim), nn.Tanh()) if config.pooler else nn.Identity()
        self.head = nn.Linear(self.dim, config.classes) if config.classes else None
        xavier_init(self)

    def __repr__(self) -> str:
        reads = []
        for config in self.config.tokenizers:
            size, patch = (" x ".join(map(str, each)) for each in (config.size, config.modality.patch))
            reads.append(f"{config.modality.name} {size}" + f" in patches of {patch}" * bool(patch))
        return f"Encoder({', '.join(reads)}; {told(self.config.transformer, self)})"

    def tokenizer(self, modality: str) -> PatchTokenizer | TextTokenizer:
        """The tokenizer of a modality."""
        return cast(PatchTokenizer | TextTokenizer, self.tokenizers[modality])

    def sizes(self, batch: Batch) -> dict[str, int]:
        """Positions of each modality that is in the batch, in the encoder's order."""
        present = [name for name in self.tokenizers if name in batch]
        if not present:
            raise UserError(f"the batch holds {sorted(batch)}, but this encoder reads {sorted(self.tokenizers)}")
        return {name: math.prod(self.tokenizer(name).grid(batch)) for name in present}

    def valid(self, batch: Batch) -> Bool[Tensor, "batch positions"] | None:
        """Which positions exist: not padding, not a missing modality. None where all do."""
        parts, partial = [], False
        for name, count in self.sizes(batch).items():
            values = batch[name]
            part = torch.ones(values.shape[0], count, dtype=torch.bool, device=values.device)
            if (lengths := batch.get(f"{name}.length")) is not None:
                part, partial = part & (torch.arange(count, device=values.device) < lengths[:, None]), True
            if (present := batch.get(f"{name}.present")) is not None:
                part, partial = part & present[:, None], True
            parts.append(part)
        return torch.cat(parts, dim=1) if partial else None

    def everything(self, batch: Batch) -> Positions:
        """All positions that exist."""
        if (valid := self.valid(batch)) is not None:
            return Positions.from_boolean(valid)
        values = next(batch[name] for name in self.tokenizers if name in batch)
        count = sum(self.sizes(batch).values())
        # not len(), here and below: tracing would take the batch for a number
        return Positions(torch.arange(count, device=values.device).expand(values.shape[0], count))

    def embed(self, batch: Batch, keep: Positions) -> Float[Tensor, "*batch kept dim"]:
        """Tokens of the kept positions, `[B, K, dim]`, or `[S, dim]` of ragged ones."""
        sizes = self.sizes(batch)
        if len(sizes) == 1:
            return self._embedded(next(iter(sizes)), batch, keep)
        parts, slots, start = [], [], 0
        for name, count in sizes.items():
            inside, slot = keep.within(start, start + count)
            parts.append(self._embedded(name, batch, inside))
            slots.append(slot)
            start += count
        # Ascending positions of a concatenated grid: undoing the split by modality is one gather.
        tokens = torch.cat(parts)[torch.cat(slots).argsort()]
        return tokens if keep.lengths is not None else tokens.unflatten(0, keep.index.shape)

    def _embedded(self, name: str, batch: Batch, keep: Positions) -> Float[Tensor, "*batch kept dim"]:
        """Tokens of one modality's kept positions."""
        tokens = self.tokenizers[name](batch, keep)
        return tokens if self.modalities is None else tokens + self.modalities[list(self.tokenizers).index(name)]

    def sequence(
        self, batch: Batch, mask: Mask | None = None, packed: bool = False
    ) -> tuple[Float[Tensor, "*batch tokens dim"], Positions, Int64[Tensor, " batch"] | None]:
        """What the transformer reads: prefix and kept tokens, their positions, and valid lengths where they differ."""
        keep = self.everything(batch) if mask is None else mask.keep
        tokens, prefix, lengths = self.embed(batch, keep), self.config.prefix, keep.lengths
        if lengths is not None and packed:
            if prefix:
                raise ValueError(f"packed tokens of an encoder with {prefix} prefix tokens: it must have none")
            places = sum(self.sizes(batch).values())
            if len(tokens) == len(lengths) * places:  # rows that are all full need neither offsets nor padding
                tokens, lengths = tokens.unflatten(0, (len(lengths), places)), None
        elif lengths is not None:
            tokens = keep.padded(tokens)
        if prefix:
            first = self.prefix_tokens if self.prefix_position is None else self.prefix_tokens + self.prefix_position
            first = first.to(tokens.dtype)
            tokens = torch.cat([first.expand(tokens.shape[0], prefix, self.dim), tokens], dim=1)
        return tokens, keep, None if lengths is None else lengths + prefix

    def forward(self, batch: Batch, mask: Mask | None = None, packed: bool = False) -> Tokens:
        """Encode the kept positions of each sample, or all of them.

        packed: where samples keep different numbers, the tokens stay packed (see `Tokens`), which an encoder without
        prefix tokens can do; otherwise shorter samples are padded with zeros.
        """
        x, keep, lengths = self.sequence(batch, mask, packed)
        return Tokens(self.transformer(x, lengths), self.config.prefix, keep, lengths)

    def features(self, media: Any, pool: Pool = "mean", mask: Mask | None = None) -> Float[Tensor, "batch dim"]:
        """One vector a sample, from all its positions, or those that `mask` keeps. Texts of different lengths run
        packed, without padding; their "mean" is that of all tokens, those at the ends, such as [CLS] and [SEP],
        included, as sentence-transformers' pooling has it, and of an encoder without a class token "class" is the first
        token, BERT's [CLS].

        media: a batch as everywhere, its values tensors or numpy arrays; or where the encoder reads one modality that
        alone, e.g. pictures `[B, C, H, W]`, uint8 0-255 or floating point 0-1. Arrays go to the encoder's device.
        Raises UserError for anything else.
        """
        packed = not self.config.prefix
        return self.pool_norm(self(self._batch(media), mask, packed).pooled(pool))

    def _batch(self, media: Any) -> dict[str, Tensor]:
        names = list(self.tokenizers)
        if not isinstance(media, Mapping):
            if len(names) > 1:
                raise UserError(f"this encoder reads {names}: give a dict that says which of them this is")
            media = {names[0]: media}
        batch = {}
        for name, values in media.items():
            if isinstance(values, np.ndarray) and values.dtype.kind in "buif":
                values = torch.from_numpy(np.ascontiguousarray(values)).to(self.prefix_tokens.device)
                values = values.float() if values.dtype == torch.float64 else values
            if not isinstance(values, Tensor):
                kind = f"numpy array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
                raise UserError(f"{name}: got a {kind}, expected a tensor or numpy array [B, ...], raw values")
            pixels = name in names and self.tokenizer(name).modality.kind == "continuous"
            if pixels and values.dtype != torch.uint8 and not values.is_floating_point():
                raise UserError(f"{name}: got {values.dtype}, but media are uint8 0-255 or floating point 0-1")
            batch[name] = values
        return batch

    def classify(
        self, media: Any, pool: Pool | None = None, mask: Mask | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Logits of the linear head, in the order of `config.labels`, for what `features` takes; pool: what the head
        was trained on, unless given. Raises ValueError where the encoder has no head."""
        if self.head is None:
            raise ValueError("this encoder has no classification head; use features() and train one")
        features = self.features(media, pool or self.config.pool or "mean", mask)
        return self.head(self.head_norm(self.pooler(features)))

    def class_attention(self, batch: Batch) -> Float[Tensor, "batch heads *grid"]:
        """How the class token attends to the patches in the last block: each head's weights on the grid, to look at.

        Raises ValueError for an encoder without a class token.
        """
        if not self.config.prefix:
            raise ValueError("this encoder has no class token whose attention could be drawn")
        (name,) = self.sizes(batch)
        x, *_ = self.sequence(batch)
        weights = self.transformer.last_attention(x, 1)[:, :, 0, self.config.prefix :]
        return weights.unflatten(-1, self.tokenizer(name).grid(batch))

    # Checkpoints

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors, for `Encoder.from_pretrained`.

        What is saved counts as trained from here on, in memory as in the folder: at other sizes both then interpolate
        the same tables.
        """
        mark_trained(self)
        config = {"mmssl": "Encoder", **version.stamp(), "config": self._settings}
        return interop.save_folder(folder, config, self.state_dict())

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> Encoder:
        """From a folder of ours (an encoder's or an objective's), of transformers' ViT, ViTMAE, BEiT, VideoMAE, BERT or
        RoBERTa, or timm's, of classifiers with their heads.

        Raises UserError for any other.
        """
        folder = interop.resolve(path_or_hub_id)
        config, state = interop.read_config(folder), interop.read_weights(folder)
        with interop.loading(folder):
            if (kind := config.get("mmssl")) is None:
                form = interop.form_read(["Encoder"], ["transformers", "timm"], config, state, str(folder))
                return cls._of(form.read(config, state, str(folder)), str(folder))
            own = kind == "Encoder"
            encoder = cls(
                interop.config_from_dict(EncoderConfig, config["config"] if own else config["config"]["encoder"])
            )
            part = "" if own else "encoder."
            encoder.load_state_dict({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})
            mark_trained(encoder)
            return encoder

    @classmethod
    def from_official(
        cls,
        source: str | Path | Mapping[str, Any],
        *,
        heads: int | None = None,
        eps: float = 1e-6,
        size: int | tuple[int, ...] | None = None,
    ) -> Encoder:
        """From the files of MAE's, CropMAE's, MultiMAE's or VideoMAE's authors (pretrained or fine-tuned) or timm's
        ViT names.

        Sizes are read off the shapes. heads: the paper's number for the width where None. A decoder is left aside.

        size: what the file was trained on, (height, width), or one side for both; of clips (frames, height, width). A
        table of positions tells their number alone: without `size` pictures are taken for square, and UserError is
        raised where that cannot be or the given size does not fit. VideoMAE's files have no table: without `size`
        positions are computed for the grid of each input, as at 16 x 224 x 224; with it, interpolated for all others.
        """
        state, name = interop.official_state(source)
        form = interop.form_read(["Encoder"], ["official"], {}, state, name)
        return cls._of(form.read({}, state, name, heads=heads, eps=eps, size=size), name)

    @classmethod
    def _of(cls, found: interop.Found, source: str) -> Encoder:
        encoder = cls(interop.config_from_dict(EncoderConfig, found.settings))
        interop.load(encoder, found, source)
        mark_trained(encoder)
        return encoder

    @property
    def _settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)

    def save_as(self, form: interop.Form, folder: str | Path) -> Path:
        """Write a folder of one of the forms in `forms`."""
        plain = self.plain()
        return interop.save_as(form, plain._settings, plain.state_dict(), folder)

    @property
    def forms(self) -> dict[str, interop.Form]:
        """What this encoder can be written as, by the names of `mmssl export --to`, for pictures where it reads
        several modalities."""
        return interop.forms_of(["Encoder"], self.plain()._settings)

    def to_transformers(self, folder: str | Path) -> Path:
        """Write a folder that transformers' `ViTModel` reads, or its `VideoMAEModel`, of text its `BertModel` or
        `RobertaModel`; with a head the classifier of the same family that computes it, of pictures
        `ViTForImageClassification` from the class token and `BeitForImageClassification` from the mean. Outputs are
        equal. Raises UserError for an encoder they cannot express; of several modalities that of pictures is
        written."""
        return self._save_for("transformers", folder)

    def save_timm(self, folder: str | Path) -> Path:
        """Write the folder that `timm.create_model("local-dir:...", pretrained=True)` loads, of pictures where it reads
        several modalities. Raises UserError for an encoder that timm's ViT cannot express."""
        return self._save_for("timm", folder)

    def _save_for(self, library: interop.Library, folder: str | Path) -> Path:
        what = f"an encoder of {', '.join(self.tokenizers)}"
        return self.save_as(interop.form_of(self.forms, library, what, self._settings), folder)

    def to_timm(self) -> nn.Module:
        """timm's VisionTransformer with these weights: equal `forward_features`, and equal logits of the head; of an
        encoder of several modalities that of pictures. Raises UserError for an encoder that it cannot express."""
        plain = self.plain()
        model, rules = interop.vit.timm_model(plain._settings), interop.vit.write_timm(plain._settings).rules
        model.load_state_dict(interop.to_theirs(plain.state_dict(), rules, plain.config.tokenizers[0].modality.patch))
        return model

    def only(self, *modalities: str) -> Encoder:
        """A copy that reads one of the modalities, or some: a plain ViT, whose prefix tokens have a position, zeros
        where they had none. Raises UserError for a modality that it does not read."""
        for name in modalities:
            if name not in self.tokenizers:
                raise UserError(f"this encoder reads {sorted(self.tokenizers)}: {nearest(name, list(self.tokenizers))}")
        kept = tuple(each for each in self.config.tokenizers if each.modality.name in modalities)
        encoder = Encoder(dataclasses.replace(self.config, tokenizers=kept, bare_prefix=False))
        fresh = encoder.to(self.prefix_tokens.device, self.prefix_tokens.dtype).state_dict()
        state = {key: value for key, value in self.state_dict().items() if key in fresh}
        if self.modalities is not None:
            names = list(self.tokenizers)
            state["modalities"] = self.modalities[[names.index(name) for name in encoder.tokenizers]]
        encoder.load_state_dict({"prefix_position": fresh["prefix_position"], **state})
        if any(self.tokenizer(name).position.trained for name in modalities):
            mark_trained(encoder)
        return encoder.train(self.training)

    def plain(self) -> Encoder:
        """What other libraries' encoders of one modality can express; a batch norm before the head is within it."""
        if self.config.head_norm:
            return self._folded().plain()
        if len(self.tokenizers) == 1 and not self.config.bare_prefix:
            return self
        return self.only("image" if "image" in self.tokenizers else next(iter(self.tokenizers)))

    def _folded(self) -> Encoder:
        """A copy of equal logits without the batch norm before the head: W (x - mean) / std + b is linear in x."""
        norm, state = self.head_norm, {k: v for k, v in self.state_dict().items() if not k.startswith("head_norm.")}
        assert isinstance(norm, GlobalBatchNorm) and norm.running_var is not None and norm.running_mean is not None
        weight = state["head.weight"] * (norm.running_var + norm.eps).rsqrt()
        state |= {"head.weight": weight, "head.bias": state["head.bias"] - weight @ norm.running_mean}
        folded = Encoder(dataclasses.replace(self.config, head_norm=False)).to(self.prefix_tokens.device)
        folded.load_state_dict(state)
        if any(self.tokenizer(name).position.trained for name in self.tokenizers):
            mark_trained(folded)
        return folded.train(self.training)


def single_modality(encoder: Encoder) -> Modality:
    """The modality of an encoder that reads just one; ValueError otherwise."""
    names = [tokenizer.modality.name for tokenizer in encoder.config.tokenizers]
    if len(names) != 1:
        raise ValueError(f"this method reads one modality, but the encoder has {len(names)}: {names}")
    return encoder.config.tokenizers[0].modality
