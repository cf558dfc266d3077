"""The encoders of pictures and of text that methods of pairs compare, by the sizes of their papers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmssl.encoder import SIZES, EncoderConfig, square_pictures, vit_config
from mmssl.modality import CLIP_MEAN, CLIP_STD, TEXT
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig

# Width, depth and heads of the text encoder beside each image encoder; features have its width. The paper's for base
# and large, for small and huge those of open_clip's ViT-S-16 and ViT-H-14.
TEXT_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (512, 12, 8),
    "large": (768, 12, 12),
    "huge": (1024, 24, 16),
}
Towers = tuple[EncoderConfig, EncoderConfig]


def text_config(size: tuple[int, int, int], *, vocab: int, length: int, **transformer: Any) -> EncoderConfig:
    """An encoder of texts of at most `length` tokens, with learned positions. size: width, depth and heads."""
    tokenizer = TokenizerConfig(replace(TEXT, channels=vocab), (length,), "learned")
    return EncoderConfig((tokenizer,), TransformerConfig(*size, **transformer), prefix=0)


def clip_towers(
    model: str = "base",
    *,
    size: int = 224,
    patch: int | None = None,
    channels: int = 3,
    vocab: int = 49408,
    length: int = 77,
    quick_gelu: bool = True,
) -> Towers:
    """CLIP's: learned positions, a norm before the image encoder's blocks, causal text. See `clip_config`."""
    patch = (14 if model in ("large", "huge") else 16) if patch is None else patch
    modality, input_size = square_pictures(size, patch, channels)
    if channels == len(CLIP_MEAN):
        modality = replace(modality, mean=CLIP_MEAN, std=CLIP_STD)
    vit = vit_config(model, modality=modality, input_size=input_size)
    blocks: dict[str, Any] = {"activation": "quick_gelu" if quick_gelu else "gelu", "norm_eps": 1e-5}
    tokenizer = replace(vit.tokenizers[0], position="learned", unbiased=True)
    encoder = replace(vit, tokenizers=(tokenizer,), transformer=replace(vit.transformer, input_norm=True, **blocks))
    return encoder, text_config(TEXT_SIZES[model], vocab=vocab, length=length, causal=True, **blocks)


def flip_towers(
    model: str = "base",
    *,
    size: int = 224,
    patch: int | None = None,
    channels: int = 3,
    vocab: int = 30522,
    length: int = 32,
) -> Towers:
    """FLIP's: MAE's ViT, with its fixed positions, and text that is not causal. See `flip_config`."""
    modality, input_size = square_pictures(size, (14 if model == "huge" else 16) if patch is None else patch, channels)
    encoder = vit_config(model, modality=modality, input_size=input_size)
    return encoder, text_config(TEXT_SIZES[model], vocab=vocab, length=length)


def siglip_towers(
    model: str = "base",
    *,
    size: int = 224,
    patch: int = 16,
    channels: int = 3,
    vocab: int = 32000,
    length: int = 64,
) -> Towers:
    """SigLIP's: two of one size, no class token, learned positions, text that is not causal. See `siglip_config`."""
    modality, input_size = square_pictures(size, patch, channels)
    modality = replace(modality, mean=(0.5,) * channels, std=(0.5,) * channels)
    vit = vit_config(model, modality=modality, input_size=input_size)
    tokenizer, blocks = replace(vit.tokenizers[0], position="learned"), replace(vit.transformer, activation="gelu_tanh")
    text = text_config(SIZES[model], vocab=vocab, length=length, activation="gelu_tanh")
    return replace(vit, tokenizers=(tokenizer,), transformer=blocks, prefix=0), text
