"""Raw values to tokens: patches of any grid (picture, clip, spectrogram, label map) and text.

Tokenizers take raw values and apply the modality's statistics themselves; they embed only the positions asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from mmssl_kernels import gather_patches, grid_of, masked_patch_embed
from mmssl_kernels.frame.dispatch import values_are_checked
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import UserError
from mmssl.masking import Positions
from mmssl.modality import ZERO_TO_ONE, Modality, zero_to_one
from mmssl.position import Layout, Position, Resize

Batch = Mapping[str, Tensor]
# Resampling along both axes takes 0-1 to -0.69 and 1.69 at the very worst (Lanczos; cubic 0.28 or 0.45 beyond);
# pictures whose statistics were taken off begin at -1 (mean and deviation 0.5) or -2 (ImageNet's).
OVERSHOOT = 0.7


def view(batch: Batch, number: int) -> dict[str, Tensor]:
    """The batch with its `number`-th views (`image.1`, ...) under the plain names (`image`)."""
    ending = f".{number}"
    return {**batch, **{key.removesuffix(ending): value for key, value in batch.items() if key.endswith(ending)}}


@dataclass(frozen=True)
class TokenizerConfig:
    """How one modality becomes tokens.

    size: the axes the positions are made for, e.g. (224, 224), or (77,) for text. position: the table's layout.
    trainable: whether it learns (None: only where the layout is "learned"). recompute: whether other sizes of input get
    a fixed table computed anew or interpolated (None: computed until weights were trained against it, see `Position`).
    segments: segment ids of text (BERT: 2). offset: the position of a text's first token; the rows of the table before
    it are never read (RoBERTa: 2). unbiased: the projection of patches has no bias (CLIP's).
    """

    modality: Modality
    size: tuple[int, ...]
    position: Layout = "sincos"
    trainable: bool | None = None
    recompute: bool | None = None
    segments: int = 0
    offset: int = 0
    unbiased: bool = False


class PatchTokenizer(nn.Module):
    """Patches of a continuous or categorical grid: one linear projection of the flattened patch, plus its position.

    The weight is `[dim, prod(patch) * channels]`, its columns in the order of `patchify` (channel fastest).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TokenizerConfig, dim: int):
        super().__init__()
        modality = config.modality
        self.config, self.modality, self.patch = config, modality, modality.patch
        self.size_grid = grid_of((1, 1, *config.size), self.patch)
        categorical = modality.kind == "categorical"
        self.classes = nn.Embedding(modality.channels, modality.embedding) if categorical else None
        if self.classes is not None:
            nn.init.trunc_normal_(self.classes.weight, std=0.02)
        values = math.prod(self.patch) * (modality.embedding if categorical else modality.channels)
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, values)))
        # The authors' patch embedding is a convolution whose bias keeps PyTorch's default, not zero.
        bound = values**-0.5
        self.bias = None if config.unbiased else nn.Parameter(torch.empty(dim).uniform_(-bound, bound))
        resize: Resize = "bilinear" if categorical else "bicubic"  # as MultiMAE's authors do, and others the latter
        self.position = Position(self.size_grid, dim, config.position, config.trainable, config.recompute, resize)
        self.register_buffer("mean", torch.tensor(modality.mean), persistent=False)
        self.register_buffer("std", torch.tensor(modality.std), persistent=False)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        """Patches along each axis of this batch. Raises UserError naming the modality, both shapes and the remedy, and
        for a batch without samples."""
        pixels, modality = _values(batch, self.modality.name), self.modality
        channels = () if self.classes is not None else (modality.channels,)
        fits = (
            pixels.ndim == 1 + len(channels) + len(self.patch) and tuple(pixels.shape[1:][: len(channels)]) == channels
        )
        axes = tuple(pixels.shape[1 + len(channels) :])
        if not fits or any(size % side for size, side in zip(axes, self.patch, strict=True)):
            expected = ("B", *channels, *(f"{side}*n" for side in self.patch))
            raise UserError(
                f"{modality.name}: got shape {tuple(pixels.shape)}, expected ({', '.join(map(str, expected))}); "
                f"resize or crop the input, or choose another patch than {self.patch}"
            )
        return grid_of((1, 1, *axes), self.patch)

    def _check_values(self, pixels: Tensor, positions: Positions) -> None:
        """Raises UserError where floating-point pictures or clips are not 0-1 at these positions, as they come out of
        `ToTensor` and resampling: 0-255, or normalised already.

        On a GPU only with MMSSL_DEBUG=1, because it waits for the device; never while compiling.
        """
        if self.modality.name not in ZERO_TO_ONE or not pixels.is_floating_point() or not positions.index.numel():
            return
        if torch.compiler.is_compiling() or not values_are_checked(pixels):
            return
        if _are_zero_to_one(pixels):
            return
        # Slower, and seldom needed: what is hidden may hold anything.
        kept = gather_patches(pixels.detach(), positions.index, self.patch, positions.rows)
        kept = kept[kept.isfinite()]  # what is not is found by its loss
        if not _are_zero_to_one(kept):
            low, high = (float(value) for value in kept.aminmax())
            raise UserError(
                f"{self.modality.name}: floating-point values from {low:.4g} to {high:.4g}, but media are raw, uint8 "
                "0-255 or floating point 0-1: divide by 255, or leave normalisation out (the model does it)"
            )

    def forward(self, batch: Batch, positions: Positions) -> Float[Tensor, "*kept dim"]:
        """Tokens `[B, K, dim]` of rectangular positions, `[S, dim]` of ragged ones."""
        pixels, table = batch[self.modality.name], self.position(self.grid(batch))
        if self.classes is None:
            self._check_values(pixels, positions)
            return masked_patch_embed(
                self._filled(batch),
                self.weight,
                self.bias,
                table,
                positions.index,
                patch=self.patch,
                mean=self.mean,
                std=self.std,
                rows=positions.rows,
            )
        if pixels.is_floating_point():
            raise UserError(f"{self.modality.name}: got {pixels.dtype}, but labels are whole numbers, one a class")
        ids = gather_patches(pixels[:, None], positions.index, self.patch, positions.rows)
        classes, there = self.modality.labelled(ids)
        values = (self.classes(classes) * there[..., None]).flatten(-2)
        return F.linear(values, self.weight, self.bias) + F.embedding(positions.index, table)

    def _filled(self, batch: Batch) -> Shaped[Tensor, "batch channels *axes"]:
        """Raw media, of a modality that asks for it standardised by sample, the mean where there is nothing."""
        pixels = standardised(batch, self.modality)
        if not self.modality.gaps or not pixels.is_floating_point():
            return pixels
        return torch.where(self.modality.there(pixels), pixels, self.mean.view(-1, *(1 for _ in self.patch)))


def sample_statistics(
    pixels: Shaped[Tensor, "batch channels *axes"], trim: float = 0.1
) -> Float[Tensor, "batch 2 channels"]:
    """Mean and deviation of each sample and channel without the lowest and the highest tenth of what is there:
    sqrt(variance + 1e-6), unbiased (EPFL-VILAB/MultiMAE, `run_pretraining_multimae.py`, `standardize_depth`).

    Where nothing is there the mean is 0.
    """
    values = zero_to_one(pixels).float().flatten(2).sort(dim=-1).values  # what is not a number comes last
    count = values.isfinite().sum(dim=-1, keepdim=True)
    low, high = ((count.double() * share).long() for share in (trim, 1 - trim))
    place = torch.arange(values.shape[-1], device=values.device)
    middle = (place >= low) & (place < torch.maximum(high, low + 1)) & (place < count)
    number = middle.sum(dim=-1)
    mean = torch.where(middle, values, 0.0).sum(dim=-1) / number.clamp(min=1)
    square = torch.where(middle, values - mean[..., None], 0.0).square().sum(dim=-1)
    return torch.stack([mean, (square / (number - 1).clamp(min=1) + 1e-6).sqrt()], dim=1)


def measured(batch: Batch, modalities: Iterable[Modality]) -> Batch:
    """The batch with `NAME.statistics` `[B, 2, C]`, mean and deviation, of the modalities that are standardised by
    sample, so that they are computed once."""
    found = {
        f"{each.name}.statistics": sample_statistics(batch[each.name])
        for each in modalities
        if each.per_sample and each.name in batch and f"{each.name}.statistics" not in batch
    }
    return {**batch, **found}


def standardised(batch: Batch, modality: Modality) -> Shaped[Tensor, "batch channels *axes"]:
    """A modality's raw media, standardised by sample where it asks for it."""
    pixels = batch[modality.name]
    if not modality.per_sample:
        return pixels
    statistics = measured(batch, [modality])[f"{modality.name}.statistics"]
    mean, deviation = statistics.view(*statistics.shape, *(1 for _ in modality.axes)).unbind(1)
    return (zero_to_one(pixels) - mean) / deviation


def _values(batch: Batch, name: str) -> Tensor:
    """The modality's values in the batch."""
    if name not in batch:
        raise UserError(f"the batch holds {sorted(batch)}, but {name!r} is read")
    if batch[name].shape[0] == 0:
        raise UserError(f"{name}: got shape {tuple(batch[name].shape)}, which holds no sample; give at least one")
    return batch[name]


def _are_zero_to_one(values: Tensor) -> bool:
    """Whether all are within 0-1 and what resampling adds; False where one is not a number."""
    if not values.numel():
        return True
    low, high = (float(value) for value in values.detach().aminmax())
    return low >= -OVERSHOOT and high <= 1 + OVERSHOOT


def check_texts(batch: Batch) -> None:
    """UserError for a text without any token (on a GPU only with MMSSL_DEBUG=1; never while compiling)."""
    lengths = batch.get("text.length")
    if lengths is None or torch.compiler.is_compiling() or not values_are_checked(lengths):
        return
    if (empty := ((lengths < 1) & batch.get("text.present", lengths == lengths)).nonzero()).numel():
        raise UserError(
            f"text: row {int(empty[0])} holds no token; an empty caption has its end token at least, and a sample "
            "without a text a False in `text.present`"
        )


class TextTokenizer(nn.Module):
    """Ids to tokens: word, position and, where there are any, segment embeddings.

    The batch holds `text` ids `[B, N]`, `text.length` `[B]` where rows are padded, `text.segment` `[B, N]` where there
    are several (BERT). Ids come from any Hugging Face tokenizer; N may be shorter than the table of positions.
    """

    def __init__(self, config: TokenizerConfig, dim: int):
        super().__init__()
        self.config, self.modality = config, config.modality
        self.words = nn.Embedding(config.modality.channels, dim)
        self.position = Position((config.offset + config.size[0],), dim, config.position, config.trainable)
        self.segments = nn.Embedding(config.segments, dim) if config.segments else None
        for table in (self.words, self.segments):
            if table is not None:
                nn.init.trunc_normal_(table.weight, std=0.02)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        name = self.modality.name
        ids = _values(batch, name)
        if ids.ndim != 2 or ids.shape[1] > self.config.size[0]:
            raise UserError(
                f"{name}: got ids of shape {tuple(ids.shape)}, expected (B, at most {self.config.size[0]}); "
                "truncate the text or give the tokenizer a longer table of positions"
            )
        return (ids.shape[1],)

    def forward(self, batch: Batch, positions: Positions) -> Float[Tensor, "*kept dim"]:
        """Tokens `[B, K, dim]` of rectangular positions, `[S, dim]` of ragged ones. UserError for ids that are no word
        or no segment of this model (on a GPU only with MMSSL_DEBUG=1)."""
        index, rows = positions.index, positions.rows
        if rows is None:
            rows = torch.arange(len(index), device=index.device)[:, None]
        tokens = F.embedding(index + self.config.offset, self.position.table) + self._looked_up(
            self.words, batch[self.modality.name][rows, index], "the tokenizer is another than the model's"
        )
        if self.segments is None:
            return tokens
        if (segment := batch.get(f"{self.modality.name}.segment")) is None:
            return tokens + self.segments.weight[0]
        return tokens + self._looked_up(self.segments, segment[rows, index], "segments are counted from 0")

    def _looked_up(self, table: nn.Embedding, ids: Tensor, remedy: str) -> Tensor:
        if not torch.compiler.is_compiling() and values_are_checked(ids) and ids.numel():
            (low, high), known = (int(value) for value in ids.aminmax()), table.num_embeddings
            if low < 0 or high >= known:
                raise UserError(f"{self.modality.name}: ids from {low} to {high}, but the model has {known}: {remedy}")
        return table(ids)


def build_tokenizer(config: TokenizerConfig, dim: int) -> PatchTokenizer | TextTokenizer:
    """The tokenizer of a modality: patches where it has a patch, text where each id is a token."""
    return (PatchTokenizer if config.modality.patch else TextTokenizer)(config, dim)
