"""SigLIP (Zhai et al. 2023, arXiv 2303.15343): tell of each picture and each caption alone whether they are a pair."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from mmssl_kernels import siglip_loss
from torch import Tensor, nn

from mmssl.encoder import EncoderConfig, Pool
from mmssl.heads import AttentionPool
from mmssl.masking import Mask
from mmssl.objectives.clip import CLIP, CLIPConfig
from mmssl.objectives.towers import siglip_towers
from mmssl.tokenizer import Batch
from mmssl.transformer import normal_init, xavier_init


@dataclass(frozen=True)
class SigLIPConfig(CLIPConfig):
    """attend_padding: texts are filled with the id `pad` to the encoder's length, and all of that is read, the vector
    being that of the last place: as the released models were trained. Otherwise padding is left out, and the vector is
    that of the last token."""

    encoder: EncoderConfig = siglip_towers()[0]
    text_encoder: EncoderConfig = siglip_towers()[1]
    dim: int | None = None
    image_pool: Pool = "mean"
    temperature: float = 0.1
    attend_padding: bool = True
    pad: int = 1


def siglip_config(
    model: str = "base",
    *,
    size: int = 224,
    patch: int = 16,
    channels: int = 3,
    vocab: int = 32000,
    length: int = 64,
    packing: bool = True,
    attend_padding: bool = True,
    pad: int = 1,
) -> SigLIPConfig:
    """SigLIP on square pictures and texts of at most `length` tokens, both encoders of one size. model: tiny, small,
    base, large or huge."""
    towers = siglip_towers(model, size=size, patch=patch, channels=channels, vocab=vocab, length=length)
    return SigLIPConfig(*towers, packing=packing, attend_padding=attend_padding, pad=pad)


class SigLIP(CLIP):
    """Encode pictures and captions apart, and tell of every picture and caption of the batch whether they are a pair.

    A picture's vector is what a learned query finds in its patches. The scale of similarities is not bounded.
    """

    config_class = SigLIPConfig
    config: SigLIPConfig

    named = staticmethod(siglip_config)

    @classmethod
    def _names(cls) -> list[str]:
        """Without CLIP's: its files have neither the head nor the bias."""
        return [name for name in super()._names() if name != CLIP.__name__]

    def initialise(self) -> None:
        """Xavier's, and tables with deviation 1 / sqrt(width) (google-research/big_vision)."""
        self.pool = AttentionPool(self.config.encoder.transformer)
        self.text_projection = nn.Linear(self.text_encoder.dim, self.encoder.dim)
        self.logit_bias = nn.Parameter(self.logit_scale.detach().new_tensor(-10.0))
        xavier_init(self)
        for tower in (self.encoder, self.text_encoder):
            normal_init(tower, dict.fromkeys(("words.weight", "position.table"), tower.dim**-0.5))

    def texts(self, batch: Batch) -> Batch:
        batch = super().texts(batch)
        if not self.config.attend_padding:
            return batch
        text, pad, (length,) = batch["text"], self.config.pad, self.config.text_encoder.tokenizers[0].size
        if (valid := self.text_encoder.valid(batch)) is not None:
            text = text.masked_fill(~valid, pad)
        return {"text": nn.functional.pad(text, (0, length - text.shape[1]), value=pad)}

    def image_vector(self, batch: Batch, mask: Mask | None = None) -> Float[Tensor, "batch width"]:
        return self.pool(self.encoder(batch, mask).x)

    def loss(self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """A sigmoid for each pair of a picture and a caption, over those of all ranks."""
        return siglip_loss(image, text, self.logit_scale.exp(), self.logit_bias, group=self.group)

    def after_step(self, progress: float) -> None:
        """The scale is free."""
