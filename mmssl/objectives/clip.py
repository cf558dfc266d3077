"""CLIP (Radford et al. 2021, arXiv 2103.00020): find each picture's own caption among those of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from mmssl_kernels import info_nce, similarity_topk
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl import ranks
from mmssl.encoder import Encoder, EncoderConfig, Pool
from mmssl.errors import UserError
from mmssl.masking import Mask
from mmssl.objectives.figures import Figure
from mmssl.objectives.nearest import pair_figures
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.towers import clip_towers
from mmssl.tokenizer import Batch, check_texts
from mmssl.transformer import normal_init, openai_text_init, openai_vision_init

LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class CLIPConfig:
    """The defaults are the paper's ViT-B/16; any encoders of pictures and of text will do.

    dim: width of the features that are compared. None: that of the image encoder, whose pictures then have no
    projection. image_pool, text_pool: which tokens are a picture's, and a text's, vector; "last" is a text's end token.
    end: the id of the end token, where texts come without `text.length`; None: the largest id of each text, as in
    OpenAI's vocabulary. temperature: its initial value; its inverse is the scale of similarities. packing: texts of
    different lengths go through the transformer one behind the other, without padding; padded, the loss is the same.
    """

    encoder: EncoderConfig = clip_towers()[0]
    text_encoder: EncoderConfig = clip_towers()[1]
    dim: int | None = 512
    image_pool: Pool = "class"
    text_pool: Pool = "last"
    end: int | None = None
    temperature: float = 0.07
    packing: bool = True


def clip_config(
    model: str = "base",
    *,
    size: int = 224,
    patch: int | None = None,
    channels: int = 3,
    vocab: int = 49408,
    length: int = 77,
    quick_gelu: bool = True,
    packing: bool = True,
) -> CLIPConfig:
    """CLIP on square pictures and texts of at most `length` tokens. model: tiny, small, base, large or huge. patch: its
    side; None is 16, or 14 from large on ("base" with 32 is ViT-B/32). quick_gelu: x sigmoid(1.702 x) as in OpenAI's
    models, else the exact GELU of open_clip's.
    """
    encoder, text = clip_towers(
        model, size=size, patch=patch, channels=channels, vocab=vocab, length=length, quick_gelu=quick_gelu
    )
    return CLIPConfig(encoder, text, text.transformer.dim, packing=packing)


class CLIP(Objective):
    """Encode pictures and captions apart, project both to vectors of length one, tell the pairs from all others.

    The batch holds `image` and `text` ids `[B, N]`, and `text.length` `[B]` where rows are padded; a text's vector is
    that of its last token. Without lengths a causal text encoder takes the first end token of each row for the last
    one, whatever pads the row (zeros behind OpenAI's and open_clip's tokenizers): OpenAI's `argmax` of the ids. Text
    encoders that are not causal then read whole rows.

    Towers that others trained start it: with their configs as `encoder` and `text_encoder`, for example an MAE's and an
    MLM's (`text_pool="class"`), `clip.encoder.load_state_dict(mae.encoder.state_dict())` fits.
    """

    config_class = CLIPConfig
    undecayed = ("encoder.prefix_tokens",)  # of one axis in OpenAI's model

    named: ClassVar[Callable[..., Any]] = staticmethod(clip_config)

    def __init__(self, config: CLIPConfig | str = "base", **settings: Any):
        super().__init__()
        made: CLIPConfig = self.configured(config, settings)
        self.config = made
        self.encoder, self.text_encoder = Encoder(made.encoder), Encoder(made.text_encoder)
        width, text_width, dim = self.encoder.dim, self.text_encoder.dim, made.dim
        self.image_projection = nn.Identity() if dim is None else nn.Linear(width, dim, bias=False)
        self.text_projection = nn.Linear(text_width, width if dim is None else dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(made.temperature)))
        if made.image_pool == "class" and not made.encoder.prefix:
            raise UserError("the image encoder has no class token: set image_pool to 'mean'")
        self.initialise()

    def initialise(self) -> None:
        """As OpenAI's model (openai/CLIP, `VisionTransformer` and `initialize_parameters`)."""
        openai_vision_init(self.encoder.transformer)
        openai_text_init(self.text_encoder.transformer)
        for tokenizer in self.encoder.tokenizers.values():
            weight = tokenizer.get_parameter("weight")
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)  # of a convolution
        width, text_width = (tower.dim**-0.5 for tower in (self.encoder, self.text_encoder))
        normal_init(self.encoder, dict.fromkeys(("prefix_tokens", "prefix_position", "position.table"), width))
        normal_init(self.text_encoder, {"words.weight": 0.02, "position.table": 0.01})
        normal_init(self.image_projection, {"weight": width})
        normal_init(self.text_projection, {"weight": text_width})

    def texts(self, batch: Batch) -> Batch:
        """The batch with the lengths of its texts, where they are needed. UserError for a text without any token (on a
        GPU only with MMSSL_DEBUG=1)."""
        self.text_encoder.sizes(batch)
        text, lengths = batch["text"], batch.get("text.length")
        if lengths is None and self.config.text_encoder.transformer.causal:
            found = text if self.config.end is None else (text == self.config.end).int()
            return {**batch, "text.length": found.argmax(dim=1) + 1}
        check_texts(batch)
        return batch

    def image_vector(self, batch: Batch, mask: Mask | None = None) -> Float[Tensor, "batch width"]:
        """What the image encoder makes of each picture, before the projection."""
        return self.encoder(batch, mask).pooled(self.config.image_pool)

    def encode_image(self, batch: Batch, mask: Mask | None = None) -> Float[Tensor, "batch dim"]:
        """The features of pictures, of length one; float32."""
        return F.normalize(self.image_projection(self.image_vector(batch, mask)).float(), dim=-1)

    def encode_text(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """The features of texts, of length one; float32."""
        tokens = self.text_encoder(self.texts(batch), packed=self.config.packing)
        return F.normalize(self.text_projection(tokens.pooled(self.config.text_pool)).float(), dim=-1)

    def features(self, batch: Batch, mask: Mask | None = None) -> dict[str, Tensor]:
        return {"image": self.encode_image(batch, mask), "text": self.encode_text(batch)}

    def compare(self, features: dict[str, Tensor]) -> Output:
        image, text = features["image"], features["text"]
        parts = {"accuracy": self.accuracy(image, text), "scale": self.logit_scale.detach().exp()}
        return Output(self.loss(image, text), parts)

    def loss(self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """InfoNCE in both directions, over the pairs of all ranks."""
        return info_nce(image, text, self.logit_scale.exp(), group=self.group)

    @torch.no_grad()
    def accuracy(self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """The share of this rank's pictures whose nearest caption, among those of all ranks, is their own."""
        texts, own = ranks.everywhere(text, self.group), ranks.places(text, self.group)
        return (similarity_topk(image, texts, 1)[1][:, 0] == own).float().mean()

    @torch.no_grad()
    def figures(self, batch: Batch) -> list[Figure]:
        """The captions of the batch that are nearest to each picture, the pictures nearest to each caption, and how
        near all are to each other."""
        text, features = batch["text"], self.features(batch)
        lengths = batch.get("text.length", torch.full((len(text),), text.shape[1]))
        captions = [row[:length] for row, length in zip(text.tolist(), lengths.tolist(), strict=True)]
        return pair_figures(batch["image"], captions, features["image"], features["text"])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """The scale stays between 1 and 100 (the paper's section 2.5; open_clip's bounds)."""
        self.logit_scale.clamp_(0, math.log(LARGEST_SCALE))
