"""Tiny models of every kind, exported by `mmssl export`: `make.py FOLDER`.

Beside each lie what it is given, raw, and what it makes of that here, as .npy files.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmssl import CLIP, MLM, Encoder
from mmssl.commands.export import export
from mmssl.encoder import EncoderConfig
from mmssl.modality import AUDIO, TEXT, VIDEO, image
from mmssl.objectives import CLIPConfig, MLMConfig
from mmssl.objectives.towers import text_config
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig

BLOCKS = TransformerConfig(32, 1, 2)
NORMED = replace(BLOCKS, final_norm=False)
LABELS = ("boot", "coat", "dress")
WORDS, LENGTH = 32, 12


def classifier(tokenizer: TokenizerConfig, pool: str = "mean", **settings) -> Encoder:
    blocks = {"transformer": BLOCKS if pool == "class" else NORMED, "pool_norm": pool == "mean"}
    head = {"classes": len(LABELS), "labels": LABELS, "pool": pool}
    return Encoder(EncoderConfig((tokenizer,), **{**blocks, **head, **settings}))


def pictures(colours) -> TokenizerConfig:
    return TokenizerConfig(colours, (16, 16), "learned")


@torch.no_grad()
def main(folder: Path) -> None:
    torch.manual_seed(0)

    def leave(name: str, model, made: Tensor, *forms: str, **media: Tensor) -> None:
        model.save_pretrained(folder / "ours" / name)
        for form in forms:
            export(folder / "ours" / name, folder / f"{name}-{form}", form)
        for key, values in {**media, "made": made}.items():
            np.save(folder / f"{name}.{key}.npy", values.numpy())

    def drawn(model: torch.nn.Module) -> torch.nn.Module:
        """Biases, tokens and positions that start at zero would hide what is left out."""
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.eval()

    colours = replace(image(3, (8, 8)), mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
    photos = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    mean, first = (drawn(classifier(pictures(colours), pool)) for pool in ("mean", "class"))
    leave("mean", mean, mean.classify(photos), "beit", "timm", "onnx", image=photos)
    leave("class", first, first.classify(photos), "vit", image=photos)

    tubes = TokenizerConfig(replace(VIDEO, patch=(2, 8, 8)), (4, 16, 16), "sincos_interleaved")
    clips = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    blocks = replace(NORMED, qkv_bias="query_value")
    video = drawn(classifier(tubes, transformer=blocks, prefix=0, pool_norm_eps=1e-5))
    leave("video", video, video.classify(clips), "vit", video=clips)

    sounds = torch.randn(3, 1, 32, 128) * 4 - 4
    audio = drawn(Encoder(EncoderConfig((TokenizerConfig(replace(AUDIO, patch=(8, 64)), (32, 128)),), BLOCKS)))
    leave("audio", audio, audio.features(sounds), "torch-export", audio=sounds)

    texts = torch.randint(3, WORDS - 1, (4, LENGTH))
    words = TokenizerConfig(replace(TEXT, channels=WORDS), (LENGTH,), "learned", segments=2)
    bert = replace(NORMED, norm_order="post", input_norm=True)
    mlm = drawn(MLM(MLMConfig(EncoderConfig((words,), bert, prefix=0), mask=3, special=(0, 1, 2))))
    leave("text", mlm, mlm.encoder({"text": texts}).x, "bert", text=texts)

    texts[:, -1] = WORDS - 1
    seen = replace(pictures(colours), unbiased=True)
    clip_blocks = replace(BLOCKS, norm_eps=1e-5, activation="quick_gelu")
    read = text_config((32, 1, 2), vocab=WORDS, length=LENGTH, causal=True, norm_eps=1e-5, activation="quick_gelu")
    clip = drawn(CLIP(CLIPConfig(EncoderConfig((seen,), replace(clip_blocks, input_norm=True)), read, 16)))
    found = clip.encode_image({"image": photos}) @ clip.encode_text({"text": texts}).T
    leave("pairs", clip, found, "clip", "open_clip", image=photos, text=texts)


main(Path(sys.argv[1]))
