"""The encoder: tokenizers, class or register tokens, and the transformer. What users keep after pretraining."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmssl import interop
from mmssl.errors import UserError
from mmssl.masking import Mask, Positions
from mmssl.modality import IMAGE, Modality, image
from mmssl.tokenizer import Batch, PatchTokenizer, TextTokenizer, TokenizerConfig, build_tokenizer
from mmssl.transformer import Transformer, TransformerConfig, xavier_init

# Width, depth and heads of the ViT family (Dosovitskiy et al. 2021; tiny and small from DeiT).
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


@dataclass(frozen=True)
class EncoderConfig:
    """tokenizers: one a modality. prefix: class and register tokens before the others.

    pool_norm: a norm behind the pooling, as MAE's fine-tuned models have. classes: outputs of a linear head on it.
    """

    tokenizers: tuple[TokenizerConfig, ...]
    transformer: TransformerConfig
    prefix: int = 1
    pool_norm: bool = False
    classes: int = 0


def vit_config(
    size: str = "base", *, modality: Modality = IMAGE, input_size: tuple[int, ...] = (224, 224), drop_path: float = 0.0
) -> EncoderConfig:
    """A plain ViT of the family's sizes on one modality, with MAE's fixed sin-cos positions."""
    if size not in SIZES:
        raise UserError(f"unknown model size {size!r}: choose one of {', '.join(SIZES)}")
    dim, depth, heads = SIZES[size]
    transformer = TransformerConfig(dim, depth, heads, drop_path=drop_path)
    return EncoderConfig((TokenizerConfig(modality, input_size),), transformer)


@dataclass(frozen=True)
class Tokens:
    """What an encoder gives.

    x: `[B, prefix + K, dim]`, the class and register tokens first. positions: where the others came from.
    lengths: valid rows of x for each sample, where they differ (None: all).
    """

    x: Float[Tensor, "batch tokens dim"]
    prefix: int
    positions: Positions
    lengths: Int64[Tensor, " batch"] | None = None

    def pooled(self, pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "batch dim"]:
        """One vector a sample: the mean of its patch tokens, or its class token."""
        if pool == "class":
            return self.x[:, 0]
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
        self.prefix_tokens = nn.Parameter(torch.empty(config.prefix, self.dim).normal_(std=0.02))
        # MAE's table has a row of zeros for the class token; models with learned positions learn this one too.
        learned = any(self.tokenizer(name).position.trainable for name in self.tokenizers)
        self.prefix_position = nn.Parameter(torch.zeros(config.prefix, self.dim), requires_grad=learned)
        self.transformer = Transformer(config.transformer)
        self.pool_norm = nn.LayerNorm(self.dim, eps=config.transformer.norm_eps) if config.pool_norm else nn.Identity()
        self.head = nn.Linear(self.dim, config.classes) if config.classes else None
        xavier_init(self)

    def tokenizer(self, modality: str) -> PatchTokenizer | TextTokenizer:
        """The tokenizer of a modality."""
        return cast(PatchTokenizer | TextTokenizer, self.tokenizers[modality])

    def sizes(self, batch: Batch) -> dict[str, int]:
        """Positions of each modality that is in the batch, in the encoder's order."""
        present = [name for name in self.tokenizers if name in batch]
        if not present:
            raise ValueError(f"the batch holds {sorted(batch)}, but this encoder reads {sorted(self.tokenizers)}")
        return {name: math.prod(self.tokenizer(name).grid(batch)) for name in present}

    def valid(self, batch: Batch) -> Bool[Tensor, "batch positions"] | None:
        """Which positions exist: not padding, not a missing modality. None where all do."""
        parts, partial = [], False
        for name, count in self.sizes(batch).items():
            values = batch[name]
            part = torch.ones(len(values), count, dtype=torch.bool, device=values.device)
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
        return Positions(torch.arange(count, device=values.device).expand(len(values), count))

    def embed(self, batch: Batch, keep: Positions) -> Float[Tensor, "batch kept dim"]:
        """Tokens of the kept positions, `[B, K, dim]`, zeros behind the shorter rows."""
        sizes = self.sizes(batch)
        if len(sizes) == 1:
            tokens = self.tokenizers[next(iter(sizes))](batch, keep)
            return tokens if keep.lengths is None else keep.padded(tokens)
        parts, slots, start = [], [], 0
        for name, count in sizes.items():
            inside, slot = keep.within(start, start + count)
            parts.append(self.tokenizers[name](batch, inside))
            slots.append(slot)
            start += count
        # Ascending positions of a concatenated grid: undoing the split by modality is one gather.
        tokens = torch.cat(parts)[torch.cat(slots).argsort()]
        return keep.padded(tokens) if keep.lengths is not None else tokens.unflatten(0, keep.index.shape)

    def sequence(
        self, batch: Batch, mask: Mask | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Positions, Int64[Tensor, " batch"] | None]:
        """What the transformer reads: prefix and kept tokens, their positions, and valid lengths where they differ."""
        keep = self.everything(batch) if mask is None else mask.keep
        tokens, prefix = self.embed(batch, keep), self.config.prefix
        if prefix:
            first = (self.prefix_tokens + self.prefix_position).to(tokens.dtype)
            tokens = torch.cat([first.expand(len(tokens), prefix, self.dim), tokens], dim=1)
        return tokens, keep, None if keep.lengths is None else keep.lengths + prefix

    def forward(self, batch: Batch, mask: Mask | None = None) -> Tokens:
        """Encode the kept positions of each sample, or all of them."""
        x, keep, lengths = self.sequence(batch, mask)
        return Tokens(self.transformer(x, lengths), self.config.prefix, keep, lengths)

    def features(self, batch: Batch, pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "batch dim"]:
        """One vector a sample, from all its positions."""
        return self.pool_norm(self(batch).pooled(pool))

    def classify(self, batch: Batch, pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "batch classes"]:
        """Logits of the linear head. Raises ValueError where the encoder has none."""
        if self.head is None:
            raise ValueError("this encoder has no classification head; use features() and train one")
        return self.head(self.features(batch, pool))

    # Checkpoints

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors, for `Encoder.from_pretrained`."""
        config = {"mmssl": "Encoder", "config": dataclasses.asdict(self.config)}
        return interop.save_folder(folder, config, self.state_dict())

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> Encoder:
        """From a folder of ours (an encoder's or a whole objective's) or a transformers ViT or ViTMAE folder."""
        folder = interop.resolve(path_or_hub_id)
        config, state = interop.read_config(folder), interop.read_weights(folder)
        with interop.loading(folder):
            if (kind := config.get("mmssl")) is None:
                return cls._from_transformers(config, state, folder)
            own = kind == "Encoder"
            encoder = cls(
                interop.config_from_dict(EncoderConfig, config["config"] if own else config["config"]["encoder"])
            )
            part = "" if own else "encoder."
            encoder.load_state_dict({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})
            return encoder

    @classmethod
    def _from_transformers(cls, config: dict[str, Any], state: dict[str, Tensor], folder: Path) -> Encoder:
        model_type = config.get("model_type")
        if model_type not in ("vit", "vit_mae"):
            raise UserError(f"{folder}: model type {model_type!r} is not a ViT; mmssl reads vit and vit_mae")
        encoder = cls(encoder_config_from_transformers(config))
        prefix = "vit." if any(key.startswith("vit.") for key in state) else ""
        # Pooler, classifier and decoder are heads of other tasks.
        names = {k: v for k, v in interop.hub_names(state).items() if k.startswith(prefix) and "pooler." not in k}
        rules = interop.transformers_vit("", prefix)
        encoder.load_state_dict(interop.to_ours(names, rules, encoder.state_dict(), str(folder)))
        return encoder

    @classmethod
    def from_official(
        cls, source: str | Path | Mapping[str, Any], *, heads: int | None = None, eps: float = 1e-6
    ) -> Encoder:
        """From the MAE authors' files (pretrained or fine-tuned) or timm's ViT names; sizes are read off the shapes.

        heads: the paper's number for the width where None. A decoder in the file is left aside.
        """
        state, name = official_state(source)
        encoder = cls(encoder_config_from_official(state, heads, eps))
        state = {key: value for key, value in state.items() if not key.startswith(("decoder", "mask_token"))}
        encoder.load_state_dict(interop.to_ours(state, interop.timm_vit(), encoder.state_dict(), name))
        return encoder

    def to_transformers(self, folder: str | Path) -> Path:
        """Write a folder that transformers' `ViTModel` reads; its `last_hidden_state` equals our tokens."""
        config = {"architectures": ["ViTModel"], "model_type": "vit", **self.transformers_config()}
        return interop.save_folder(
            folder, config, interop.to_theirs(self.state_dict(), interop.transformers_vit(), self._patch)
        )

    def transformers_config(self) -> dict[str, Any]:
        """The settings that ViTModel and ViTMAE share. Raises UserError for an encoder they cannot express."""
        t, tokenizers = self.config.transformer, self.config.tokenizers
        modality, size = tokenizers[0].modality, tokenizers[0].size
        square = len(size) == 2 and size[0] == size[1] and modality.patch[0] == modality.patch[1]
        if not self._is_plain_vit or not square or self.config.pool_norm:
            raise UserError(f"transformers' ViT is a plain encoder of square pictures; this one is {self.config}")
        return interop.transformers_vit_config(
            dim=t.dim,
            depth=t.depth,
            heads=t.heads,
            hidden=t.mlp_width,
            eps=t.norm_eps,
            image=size[0],
            patch=modality.patch[0],
            channels=modality.channels,
        )

    def to_timm(self) -> nn.Module:
        """timm's VisionTransformer with these weights: equal `forward_features`, and equal logits of the head."""
        from timm.models.vision_transformer import VisionTransformer

        if not self._is_plain_vit:
            raise UserError(f"timm's ViT is a plain encoder of pictures; this one is {self.config}")
        t, tokenizer = self.config.transformer, self.config.tokenizers[0]
        model = VisionTransformer(
            img_size=(tokenizer.size[0], tokenizer.size[1]),
            patch_size=(tokenizer.modality.patch[0], tokenizer.modality.patch[1]),
            in_chans=tokenizer.modality.channels,
            num_classes=self.config.classes,
            global_pool="avg",
            fc_norm=self.config.pool_norm,
            embed_dim=t.dim,
            depth=t.depth,
            num_heads=t.heads,
            mlp_ratio=t.mlp_width / t.dim,
            norm_layer=partial(nn.LayerNorm, eps=t.norm_eps),
        )
        model.load_state_dict(interop.to_theirs(self.state_dict(), interop.timm_vit(), self._patch))
        return model

    @property
    def _is_plain_vit(self) -> bool:
        """One modality of pictures, a class token, pre-norm blocks with GELU and every bias: what other ViTs are."""
        t, tokenizers = self.config.transformer, self.config.tokenizers
        block = (t.norm_order, t.qkv_bias, t.activation, t.causal, t.layer_scale, t.input_norm)
        plain = block == ("pre", "all", "gelu", False, None, False) and t.final_norm != self.config.pool_norm
        return plain and self.config.prefix == 1 and [c.modality.name for c in tokenizers] == ["image"]

    @property
    def _patch(self) -> tuple[int, ...]:
        return self.config.tokenizers[0].modality.patch


def official_state(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors of an authors' file or state dict, and a name for error messages."""
    if isinstance(source, Mapping):
        return interop.unwrap(source), "the state dict"
    return interop.read_weights(source), str(source)


def encoder_config_from_official(state: Mapping[str, Tensor], heads: int | None, eps: float) -> EncoderConfig:
    """Sizes of an authors' ViT, read off its tensors. Raises UserError where it is none."""
    needed = ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.mlp.fc1.weight")
    if absent := [key for key in needed if key not in state]:
        raise UserError(f"not a checkpoint of MAE's authors or of timm's ViT: it lacks {absent[0]}")
    weight = state["patch_embed.proj.weight"]
    dim, channels, *patch = weight.shape
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    default_heads = {size[0]: size[2] for size in SIZES.values()}.get(dim, max(1, dim // 64))
    fine_tuned = "fc_norm.weight" in state
    transformer = TransformerConfig(
        dim,
        depth,
        heads or default_heads,
        hidden=len(state["blocks.0.mlp.fc1.weight"]),
        norm_eps=eps,
        final_norm=not fine_tuned,
    )
    tokenizer = TokenizerConfig(
        image(channels, (patch[0], patch[1])), (side * patch[0], side * patch[1]), trainable=fine_tuned or None
    )
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    return EncoderConfig((tokenizer,), transformer, pool_norm=fine_tuned, classes=classes)


def encoder_config_from_transformers(config: Mapping[str, Any]) -> EncoderConfig:
    """The encoder of a transformers ViT or ViTMAE config.json."""
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"hidden_act {config['hidden_act']!r} of this transformers ViT is not supported, only 'gelu'")
    transformer = TransformerConfig(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        hidden=config["intermediate_size"],
        norm_eps=config.get("layer_norm_eps", 1e-12),
        qkv_bias="all" if config.get("qkv_bias", True) else "none",
    )
    patch, size = config["patch_size"], config["image_size"]
    layout: Literal["sincos", "learned"] = "sincos" if config["model_type"] == "vit_mae" else "learned"
    modality = image(config.get("num_channels", 3), (patch, patch))
    return EncoderConfig((TokenizerConfig(modality, (size, size), layout),), transformer)


def single_modality(encoder: Encoder) -> Modality:
    """The modality of an encoder that reads just one; ValueError otherwise."""
    names = [tokenizer.modality.name for tokenizer in encoder.config.tokenizers]
    if len(names) != 1:
        raise ValueError(f"this method reads one modality, but the encoder has {len(names)}: {names}")
    return encoder.config.tokenizers[0].modality
