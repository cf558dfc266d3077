"""M3AE (Geng et al. 2022, arXiv 2205.14204): see a quarter of the patches and of the words, predict the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from mmssl_kernels import grid_of
from mmssl_kernels.frame.dispatch import values_are_checked
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.decoder import DecoderConfig, SharedDecoder, decoder_size, mae_decoder_config
from mmssl.encoder import Encoder, EncoderConfig, square_pictures, vit_config
from mmssl.errors import UserError
from mmssl.masking import Mask, batch_bits, separate_mask
from mmssl.modality import CC12M_MEAN, CC12M_STD, TEXT
from mmssl.objectives.figures import Figure
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.words import restored_words
from mmssl.target import SampleTarget, loss_of_texts
from mmssl.tokenizer import Batch, TokenizerConfig, check_texts
from mmssl.transformer import xavier_init


def m3ae_encoder_config(
    model: str = "base", size: int = 256, patch: int = 16, channels: int = 3, vocab: int = 30522, length: int = 64
) -> EncoderConfig:
    """A ViT on patches and words, both at fixed sin-cos positions, with a vector for each modality; its GELU is the
    tanh approximation, flax's default."""
    modality, input_size = square_pictures(size, patch, channels)
    if channels == len(CC12M_MEAN):
        modality = replace(modality, mean=CC12M_MEAN, std=CC12M_STD)
    vit = vit_config(model, modality=modality, input_size=input_size)
    tokenizers = (*vit.tokenizers, TokenizerConfig(replace(TEXT, channels=vocab), (length,)))
    blocks = replace(vit.transformer, activation="gelu_tanh")
    return replace(vit, tokenizers=tokenizers, transformer=blocks, bare_prefix=True, modality_embedding=True)


def m3ae_decoder_config(dim: int = 512, depth: int = 8, heads: int = 16) -> DecoderConfig:
    """MAE's decoder with that GELU; the default is the paper's."""
    decoder = mae_decoder_config(dim, depth, heads)
    return replace(decoder, transformer=replace(decoder.transformer, activation="gelu_tanh"))


@dataclass(frozen=True)
class M3AEConfig:
    """The defaults are those of the authors' README, at ViT-B/16.

    mask_ratio: int(patches * (1 - mask_ratio)) of a picture stay visible. text_mask_ratio: the same of a text's words,
    those of the longest text and padding counted, so that of any text about so many are hidden. special: ids that are
    always visible, such as those that begin and end a text; the authors' texts have none. image_weight, text_weight: of
    the two terms of the loss. seed: of the masks.
    """

    encoder: EncoderConfig = m3ae_encoder_config()
    decoder: DecoderConfig = m3ae_decoder_config()
    mask_ratio: float = 0.75
    text_mask_ratio: float = 0.75
    special: tuple[int, ...] = ()
    image_weight: float = 1.0
    text_weight: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("mask_ratio", "text_mask_ratio"):
            if not 0 < (ratio := getattr(self, name)) < 1:
                raise UserError(f"{name} is the share that is hidden, above 0 and below 1, not {ratio}")


def m3ae_config(
    model: str = "base",
    *,
    size: int = 256,
    patch: int = 16,
    channels: int = 3,
    vocab: int = 30522,
    length: int = 64,
    mask_ratio: float = 0.75,
    text_mask_ratio: float = 0.75,
    special: tuple[int, ...] = (),
    text_weight: float = 0.5,
    seed: int = 0,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
) -> M3AEConfig:
    """M3AE on square pictures and texts of at most `length` tokens. model: tiny, small, base, large or huge. patch: its
    side. The decoder is the paper's from base on and smaller below where not given, see `decoder_size`.
    """
    encoder = m3ae_encoder_config(model, size, patch, channels, vocab, length)
    decoder = m3ae_decoder_config(*decoder_size(model, decoder_dim, decoder_depth))
    return M3AEConfig(encoder, decoder, mask_ratio, text_mask_ratio, special, text_weight=text_weight, seed=seed)


class M3AE(Objective):
    """Hide most patches and most words, encode the visible ones together, decode all, compare pixels and words.

    The batch holds `image`, `text` ids `[B, N]` or both, `text.length` `[B]` where rows are padded, and `image.present`
    and `text.present` `[B]` where only some samples have one. Each term is a mean within samples, then over those that
    have something hidden: squared error of normalised pixels, cross-entropy over the vocabulary.

    The prediction of words, scores of all for each hidden one, is made in eval mode and without gradients alone.
    """

    config_class = M3AEConfig
    undecayed: tuple[str, ...] = (
        *(f"encoder.{name}" for name in ("prefix_tokens", "modalities", "tokenizers.text.words.weight")),
        *(f"decoder.{name}" for name in ("mask_tokens", "modalities")),
    )

    named = staticmethod(m3ae_config)

    def __init__(self, config: M3AEConfig | str = "base", **settings: Any):
        super().__init__()
        self.config = made = self.configured(config, settings)
        self.encoder = Encoder(made.encoder)
        if list(self.encoder.tokenizers) != ["image", "text"]:
            raise UserError(f"M3AE's encoder reads image and text, in this order, not {list(self.encoder.tokenizers)}")
        pictures, texts = made.encoder.tokenizers
        self.target, self.context = SampleTarget(pictures.modality), texts.size[0]
        grids = {"image": grid_of((1, 1, *pictures.size), pictures.modality.patch), "text": texts.size}
        self.decoder = SharedDecoder(made.decoder, self.encoder.dim, grids, made.encoder.prefix)
        width = made.decoder.transformer.dim
        self.pixels, self.words = nn.Linear(width, self.target.values), nn.Linear(width, texts.modality.channels)
        for head in (self.pixels, self.words):
            xavier_init(head)
        nn.init.normal_(self.encoder.get_parameter("tokenizers.text.words.weight"))  # the authors' deviation is 1
        nn.init.zeros_(self.encoder.get_parameter("tokenizers.image.bias"))

    def hide(self, batch: Batch) -> Mask:
        """Patches and words, each by a draw of its own. UserError for a text without a word, and a sample without
        anything (on a GPU only with MMSSL_DEBUG=1)."""
        config, sizes, valid = self.config, self.encoder.sizes(batch), self.encoder.valid(batch)
        if (drawn := Mask.from_batch(batch, sizes)) is not None:
            return drawn
        check_texts(batch)
        if (
            valid is not None
            and not torch.compiler.is_compiling()
            and values_are_checked(valid)
            and (empty := (~valid.any(dim=1)).nonzero()).numel()
        ):
            raise UserError(f"sample {int(empty[0])} has neither a picture nor a text: there is nothing to learn from")
        counts = {name: self.context if name == "text" else count for name, count in sizes.items()}
        ratios = {"image": config.mask_ratio, "text": config.text_mask_ratio}
        noise = {name: batch_bits(batch, counts[name], seed=config.seed, stream=f"mask/{name}") for name in sizes}
        keep = {name: int(count * (1 - ratios[name])) for name, count in counts.items()}
        always = None
        if config.special and "text" in batch:
            framing = torch.isin(batch["text"], batch["text"].new_tensor(config.special))
            always = F.pad(framing, (sizes.get("image", 0), 0))
        return separate_mask(noise, keep, sizes, valid, always)

    def drawn(self, batch: Batch) -> Batch:
        """The batch with its mask."""
        return {**batch, **self.hide(batch).carried}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Samples that have something hidden, of each modality."""
        mask = self.hide(batch)
        return {f"{name}.samples": mask.hidden(name)[0].samples for name in mask.sizes}

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        mask = self.hide(batch) if mask is None else mask
        grids = {name: self.encoder.tokenizer(name).grid(batch) for name in mask.sizes}
        decoded = self.decoder(self.encoder(batch, mask), mask, grids)
        losses, parts, predictions = [], {}, {}
        if "image" in grids:
            hide, slots = mask.hidden("image")
            predictions["image"] = self.pixels(decoded[slots])
            mean, samples = self.target.loss_of_samples(predictions["image"], batch, hide)
            parts["image"] = self.part_of_mean(mean, batch, "image.samples", samples)
            losses.append(self.config.image_weight * parts["image"])
        if "text" in grids:
            hide, slots = mask.hidden("text")
            if not (self.training and torch.is_grad_enabled()):
                predictions["text"] = self.words(decoded[slots])
            mean, samples = loss_of_texts(decoded[slots], self.words, batch["text"], hide)
            parts["text"] = self.part_of_mean(mean, batch, "text.samples", samples)
            losses.append(self.config.text_weight * parts["text"])
        loss = torch.stack(losses).sum()
        return Output(loss, {name: part.detach() for name, part in parts.items()}, None, mask, predictions)

    @torch.no_grad()
    def figures(self, batch: Batch) -> list[Figure]:
        """Pictures and texts with most of them hidden, what the model predicts there, and what was there."""
        out, table = self(batch), None
        columns: tuple[Tensor, ...] = ()
        if "image" in batch:
            columns = self.target.pictures(out.predictions["image"], batch, out.mask)
        if "text" in batch:
            read, _ = out.mask.keep.within(*out.mask.span("text"))
            table = restored_words(batch["text"], read, out.mask.hidden("text")[0], out.predictions["text"])
        caption = (
            "Held-out samples: what the model sees, hidden patches grey and hidden words as _, what it predicts there, "
            "the right words marked, and what there was."
        )
        return [Figure("reconstructions", "What it predicts", caption, columns, table=table)]
