"""LiT (Zhai et al. 2021, arXiv 2111.07991): teach a text encoder to read what a locked image encoder sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmssl.errors import UserError
from mmssl.masking import Mask
from mmssl.objectives.clip import CLIP, CLIPConfig
from mmssl.tokenizer import Batch


class LiT(CLIP):
    """CLIP whose image encoder is trained already and stays as it is: `lit.encoder.load_state_dict(...)`.

    Its vectors may be made once and kept: the batch then holds `image.features` `[B, width]`, what `image_vector` makes
    of the pictures, in their place. They have no projection, texts are projected to their width; a whole config with a
    `dim` adds one.
    """

    def __init__(self, config: CLIPConfig | str = "base", **settings: Any):
        super().__init__(config, **settings)
        self.encoder.requires_grad_(False).eval()

    @classmethod
    def completed(cls, config: CLIPConfig, **further: Any) -> CLIPConfig:
        return replace(config, dim=None)

    def train(self, mode: bool = True) -> LiT:
        super().train(mode)
        self.encoder.eval()
        return self

    def image_vector(self, batch: Batch, mask: Mask | None = None) -> Float[Tensor, "batch width"]:
        if (known := batch.get("image.features")) is None:
            with torch.no_grad():
                return super().image_vector(batch, mask)
        if known.ndim != 2 or known.shape[1] != self.encoder.dim:
            raise UserError(
                f"image.features: got shape {tuple(known.shape)}, expected (B, {self.encoder.dim}): make them anew "
                "with this encoder"
            )
        return known
