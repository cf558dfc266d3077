"""MultiMAE (Bachmann et al. 2022, arXiv 2204.01678): see a sixth of the patches of all modalities, predict the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmssl.decoder import JointDecoder
from mmssl.encoder import Encoder, EncoderConfig, vit_config
from mmssl.errors import UserError, nearest
from mmssl.masking import (
    Mask,
    batch_bits,
    check_budget,
    dirichlet_shares,
    drawn_modalities,
    joint_mask,
)
from mmssl.modality import DEPTH, IMAGE, SEMSEG, Modality
from mmssl.objectives.figures import Figure
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.rasters import Columns, Task, raster_figures, raster_tasks
from mmssl.target import SampleTarget
from mmssl.tokenizer import Batch, PatchTokenizer, TokenizerConfig, measured
from mmssl.transformer import TransformerConfig, apart_init

MODALITIES = (IMAGE, DEPTH, SEMSEG)
"""The paper's: pictures, depth standardised by sample, COCO's 133 classes at a quarter of the pictures' size."""


def multimae_encoder_config(
    model: str = "base",
    modalities: Sequence[Modality] = MODALITIES,
    grid: tuple[int, int] = (14, 14),
    drop_path: float = 0.0,
) -> EncoderConfig:
    """A ViT of the family's sizes without a norm behind the last block, and one global token without a position."""
    tokenizers = tuple(
        TokenizerConfig(each, tuple(side * by for side, by in zip(grid, each.patch, strict=True)), "sincos_row_first")
        for each in modalities
    )
    blocks = dataclasses.replace(vit_config(model, drop_path=drop_path).transformer, final_norm=False)
    return EncoderConfig(tokenizers, blocks, bare_prefix=True)


def multimae_decoder_config(dim: int = 256, depth: int = 2, heads: int = 8) -> TransformerConfig:
    """The blocks behind the cross-attention; the default is the paper's for every encoder."""
    return TransformerConfig(dim, depth, heads, final_norm=False)


@dataclass(frozen=True)
class MultiMAEConfig:
    """The defaults are the paper's ViT-B/16.

    encoder: with a tokenizer a modality. tasks: what is predicted. decoder: of each task. visible: tokens of all
    modalities together that stay visible. alpha: of the Dirichlet distribution of their shares. subsets: draw a
    non-empty subset of the modalities first, which shares them. seed: of the masks.
    """

    encoder: EncoderConfig = multimae_encoder_config()
    tasks: tuple[Task, ...] = raster_tasks(MODALITIES)
    decoder: TransformerConfig = multimae_decoder_config()
    visible: int = 98
    alpha: float = 1.0
    subsets: bool = False
    seed: int = 0


def multimae_config(
    model: str = "base",
    *,
    modalities: tuple[Modality, ...] = MODALITIES,
    grid: tuple[int, int] = (14, 14),
    drop_path: float = 0.0,
    norm_rgb: bool = True,
    visible: int | None = None,
    alpha: float = 1.0,
    subsets: bool = False,
    seed: int = 0,
    decoder_dim: int = 256,
    decoder_depth: int = 2,
) -> MultiMAEConfig:
    """MultiMAE on aligned rasters. model: tiny, small, base, large or huge. modalities: any, continuous or labels.

    grid: rows and columns of patches, of which each modality has as many, in the patch it declares: 14 x 14 are
    pictures of 224 x 224 and label maps of 56 x 56. visible: a sixth of all tokens where None. Raises UserError for a
    budget that hides nothing or everything.
    """
    encoder = multimae_encoder_config(model, modalities, grid, drop_path)
    sizes = {each.name: math.prod(grid) for each in modalities}
    visible = sum(sizes.values()) // 6 if visible is None else visible
    check_budget(visible, sizes)
    decoder = multimae_decoder_config(decoder_dim, decoder_depth, max(1, decoder_dim // 32))
    return MultiMAEConfig(encoder, raster_tasks(modalities, norm_rgb), decoder, visible, alpha, subsets, seed)


class MultiMAE(Objective):
    """Hide most patches of all modalities, encode the visible ones together, decode each modality from all of them.

    The batch holds raw values under the modalities' names; `NAME.present` `[B]` where not every sample has one, and a
    batch may lack one altogether. Each part is a mean within samples, then over those that have hidden patches.
    """

    config_class = MultiMAEConfig
    undecayed: tuple[str, ...] = ("encoder.prefix_tokens",)

    named = staticmethod(multimae_config)

    def __init__(self, config: MultiMAEConfig | str = "base", **settings: Any):
        super().__init__()
        self.config = made = self.configured(config, settings)
        self.encoder = Encoder(made.encoder)
        apart_init(self.encoder)
        modalities = {name: self.tokenizer(name).modality for name in self.encoder.tokenizers}
        grids = {name: self.tokenizer(name).size_grid for name in modalities}
        if unread := [task for task in made.tasks if task.modality not in modalities]:
            wanted = unread[0].modality
            raise UserError(f"task {unread[0].name} predicts {wanted!r}: {nearest(wanted, list(modalities))}")
        self.tasks = {task.name: task for task in made.tasks}
        self.targets, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for name, task in self.tasks.items():
            self.targets[name] = target = SampleTarget(modalities[task.modality], task.distance, task.norm)
            self.decoders[name] = JointDecoder(
                made.decoder, self.encoder.dim, grids, task.modality, made.encoder.prefix, target.values
            )

    def tokenizer(self, modality: str) -> PatchTokenizer:
        """The encoder's tokenizer of a modality."""
        return cast(PatchTokenizer, self.encoder.tokenizer(modality))

    def target(self, task: str) -> SampleTarget:
        """What a task's prediction is compared with."""
        return cast(SampleTarget, self.targets[task])

    def hide(self, batch: Batch) -> Mask:
        """One budget of visible tokens, shared out by a Dirichlet draw among the modalities that a sample has."""
        sizes, valid, config = self.encoder.sizes(batch), self.encoder.valid(batch), self.config
        if (drawn := Mask.from_batch(batch, sizes)) is not None:
            return drawn
        every = {name: torch.ones(len(batch[name]), dtype=torch.bool, device=batch[name].device) for name in sizes}
        among = torch.stack([batch.get(f"{name}.present", every[name]).bool() for name in sizes], dim=1)

        def noise(count: int, purpose: str) -> Tensor:
            return batch_bits(batch, count, seed=config.seed, stream=f"{purpose}/multimae")

        if config.subsets:
            among = drawn_modalities(noise(1, "modalities"), among)
        shares = dirichlet_shares(noise(len(sizes), "shares"), config.alpha, among)
        return joint_mask(noise(sum(sizes.values()), "mask"), shares, config.visible, sizes, valid)

    def grids(self, batch: Batch, mask: Mask) -> dict[str, tuple[int, ...]]:
        """Patches along each axis of each modality. Raises UserError where modalities that were made to lie on one grid
        do not."""
        tokenizers = {name: self.tokenizer(name) for name in mask.sizes}
        grids = {name: tokenizer.grid(batch) for name, tokenizer in tokenizers.items()}
        made = {tokenizer.size_grid for tokenizer in tokenizers.values()}
        if len(made) == 1 and len(set(grids.values())) > 1:
            shapes = ", ".join(f"{name} {tuple(batch[name].shape)} has {grid}" for name, grid in grids.items())
            raise UserError(f"aligned rasters have as many patches each, but {shapes}: resample or crop them alike")
        return grids

    def measured(self, batch: Batch) -> Batch:
        """The batch with what is measured of its samples, once for all that read or predict them."""
        return measured(batch, [self.target(name).modality for name in self.tasks])

    def drawn(self, batch: Batch) -> Batch:
        """The batch with its mask, and with what is measured of its samples."""
        return {**self.measured(batch), **self.hide(batch).carried}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Samples that have something hidden for each task."""
        mask = self.hide(batch)
        return {
            f"{name}.samples": self.target(name).samples(batch, mask.hidden(task.modality)[0])
            for name, task in self.tasks.items()
            if task.modality in mask.sizes
        }

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        mask = self.hide(batch) if mask is None else mask
        batch = self.measured(batch)
        tokens = self.encoder(batch, mask)
        grids = self.grids(batch, mask)
        parts, predictions = {}, {}
        for name, task in self.tasks.items():
            if task.modality in grids:
                predictions[name], hide = self.decoders[name](tokens, mask, grids)
                mean, samples = self.target(name).loss_of_samples(predictions[name], batch, hide)
                parts[name] = self.part_of_mean(mean, batch, f"{name}.samples", samples)
        loss = torch.stack(list(parts.values())).sum()
        return Output(loss, {name: part.detach() for name, part in parts.items()}, None, mask, predictions)

    @torch.no_grad()
    def figures(self, batch: Batch) -> list[Figure]:
        """What each task makes of one draw of the mask, then of all of one modality without the others."""
        batch = self.measured(batch)

        def shown(some: Batch, mask: Mask) -> dict[str, Columns]:
            predictions = self(some, mask).predictions
            return {name: self.target(name).pictures(predictions[name], some, mask) for name in predictions}

        return raster_figures(shown, self.tasks, self.encoder, batch, self.hide(batch))
