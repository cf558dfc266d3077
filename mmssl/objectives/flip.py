"""FLIP (Li et al. 2022, arXiv 2212.00794): CLIP on a part of each picture's patches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmssl.encoder import EncoderConfig, Pool
from mmssl.errors import UserError
from mmssl.masking import Mask, batch_bits, random_mask
from mmssl.objectives.clip import CLIP, CLIPConfig
from mmssl.objectives.objective import Output
from mmssl.objectives.towers import flip_towers
from mmssl.tokenizer import Batch


@dataclass(frozen=True)
class FLIPConfig(CLIPConfig):
    """keep: round(patches * keep) of each picture are read, the others never embedded; 1 reads all, as the paper's
    short tuning at the end does. seed: of the masks."""

    encoder: EncoderConfig = flip_towers()[0]
    text_encoder: EncoderConfig = flip_towers()[1]
    image_pool: Pool = "mean"
    text_pool: Pool = "class"
    keep: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"keep is the share of the patches that is read, above 0 and at most 1, not {self.keep}")


def flip_config(
    model: str = "base",
    *,
    size: int = 224,
    patch: int | None = None,
    channels: int = 3,
    vocab: int = 30522,
    length: int = 32,
    packing: bool = True,
    keep: float = 0.5,
    seed: int = 0,
) -> FLIPConfig:
    """FLIP on square pictures and texts of at most `length` tokens. model: tiny, small, base, large or huge. patch: its
    side; None is 16, or 14 for huge. A picture's vector is the mean of its patches, at fixed positions; a text's that
    of its first token, BERT's [CLS], and the text encoder is not causal (the paper's section 3; facebookresearch/flip).
    """
    encoder, text = flip_towers(model, size=size, patch=patch, channels=channels, vocab=vocab, length=length)
    return FLIPConfig(encoder, text, text.transformer.dim, packing=packing, keep=keep, seed=seed)


class FLIP(CLIP):
    """Leave out many patches of each picture, and tell the pairs as CLIP does: several times as many pictures a second.

    In eval mode, and by `encode_image`, pictures are read whole.
    """

    config_class = FLIPConfig
    config: FLIPConfig

    named = staticmethod(flip_config)

    def hide(self, batch: Batch) -> Mask | None:
        """Which patches are left out; None where all are kept."""
        sizes = self.encoder.sizes(batch)
        count = sum(sizes.values())
        kept = max(1, round(count * self.config.keep))
        if kept == count or not self.training:
            return None
        noise = batch_bits(batch, count, seed=self.config.seed, stream="mask/image")
        return random_mask(noise, kept, sizes)

    def features(self, batch: Batch, mask: Mask | None = None) -> dict[str, Tensor]:
        return super().features(batch, self.hide(batch) if mask is None else mask)

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        return super().forward(batch, self.hide(batch) if mask is None else mask)
