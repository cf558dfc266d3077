"""CLIP ViT-B/32 beside open_clip's own model and loss, with the same weights: the whole step, and each tower alone.

A tower alone is stepped on the mean square of its features. "captions" are texts of the lengths that captions have, 8
to 24 tokens, which open_clip multiplies with their padding. "flip" is the image tower of a ViT-B/16 on half of its
patches against all of them, both of them ours.
"""

from __future__ import annotations

import open_clip
import torch
from torch import nn

from benchmarks.text_peer import Side
from mmssl import CLIP, FLIP
from mmssl.interop import clip, to_theirs

_SIZE, _LENGTH, _END = 224, 77, 49407


class Tower(nn.Module):
    """One encoder of a model as a module of its own: what the compiler takes, and the optimizer."""

    def __init__(self, model: nn.Module, encode: str, unused: tuple[str, ...]):
        super().__init__()
        self.model, self.encode = model, encode
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(unused))

    def forward(self, values: dict[str, torch.Tensor] | torch.Tensor) -> torch.Tensor:
        return getattr(self.model, self.encode)(values).square().mean()


def sides(model: str, batch_size: int, device: torch.device) -> dict[str, Side]:
    """Both models of one comparison, and what gives each one's loss on the same pairs."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (batch_size, 3, _SIZE, _SIZE), dtype=torch.uint8, device=device)
    if model == "flip-image":
        halves, whole = FLIP("base", keep=0.5).to(device), FLIP("base", keep=1.0).to(device)
        values = {"image": pixels, "sample_id": torch.arange(batch_size, device=device)}
        masked = lambda m: m.encode_image(values, m.hide(values)).square().mean()  # noqa: E731
        return {"mmssl": (halves, masked), "all patches": (whole, masked)}
    ours: CLIP = CLIP("base", patch=32)
    theirs = open_clip.create_model("ViT-B-32", force_quick_gelu=True)
    theirs.load_state_dict(to_theirs(ours.state_dict(), clip.OPEN_CLIP, (32, 32)))
    tokenizer = ours.encoder.tokenizer("image").to(device)
    mean, std = (getattr(tokenizer, name).view(-1, 1, 1) for name in ("mean", "std"))
    normalised = (pixels / 255 - mean) / std
    low, high = (8, 25) if model == "clip-captions" else (_LENGTH, _LENGTH + 1)
    lengths = torch.randint(low, high, (batch_size,), device=device)
    text = torch.randint(1, _END, (batch_size, _LENGTH), device=device)
    text = text.masked_fill(torch.arange(_LENGTH, device=device) >= lengths[:, None], 0)
    text[torch.arange(batch_size), lengths - 1] = _END
    values = {"image": pixels, "text": text}
    ours, theirs = ours.to(device), theirs.to(device).train()
    if model == "clip":
        loss = open_clip.ClipLoss()
        return {"mmssl": (ours, lambda m: m(values).loss), "open_clip": (theirs, lambda m: loss(*m(normalised, text)))}
    picture = ("encoder.", "image_projection.", "visual.", "logit_scale")
    if model == "clip-image":
        unused = ("text", "logit_scale", "transformer.", "token_embedding.", "positional_embedding", "ln_final.")
        one, other = Tower(ours, "encode_image", unused), Tower(theirs, "encode_image", unused)
        return {"mmssl": (one, lambda m: m(values)), "open_clip": (other, lambda m: m(normalised))}
    one, other = Tower(ours, "encode_text", picture), Tower(theirs, "encode_text", picture)
    return {"mmssl": (one, lambda m: m(values)), "open_clip": (other, lambda m: m(text))}
