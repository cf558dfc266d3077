"""The light decoders: uses of the one transformer that are thrown away after pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from mmssl_kernels import restore_tokens
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.encoder import Tokens
from mmssl.errors import UserError
from mmssl.masking import Mask, Positions
from mmssl.position import Layout, Position
from mmssl.transformer import (
    MLP,
    Branch,
    CrossAttention,
    Transformer,
    TransformerConfig,
    apart_init,
    padding_of,
    told,
    xavier_init,
)


@dataclass(frozen=True)
class DecoderConfig:
    """transformer: a "cross" branch reads a context. position: its table's layout. sequence: what is decoded,

    "grid": every position in its place, visible or mask token (MAE); a context is another view's tokens (SiamMAE);
    "visible_hidden": the visible tokens, then mask tokens for the hidden positions (VideoMAE);
    "hidden": mask tokens for the hidden positions, whose context are the visible tokens.

    With attention in windows the "grid" is decoded without class tokens (Audio-MAE).

    context_position: add positions to the tokens of another view as well. bias: of the layer that changes the width.
    """

    transformer: TransformerConfig
    position: Layout = "sincos"
    sequence: Literal["grid", "visible_hidden", "hidden"] = "grid"
    context_position: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        if self.sequence == "hidden" and "cross" not in self.transformer.branches:
            raise UserError('a decoder of the hidden positions alone reads the visible ones by a "cross" branch')


DecoderSize = tuple[int, int, int]

# Width, depth and heads of MAE's decoder beside each encoder. The paper has one for base and above (arXiv 2111.06377,
# table 1), which would take nine tenths of a small encoder's step: tiny and small get two thirds of the encoder's
# width, as base does, half the blocks, and heads of 32 as all do. That is CropMAE's decoder beside ViT-S.
MAE_DECODERS: Mapping[str, DecoderSize] = {
    "tiny": (128, 4, 4),
    "small": (256, 4, 8),
    "base": (512, 8, 16),
    "large": (512, 8, 16),
    "huge": (512, 8, 16),
}


def decoder_size(
    model: str,
    dim: int | None = None,
    depth: int | None = None,
    *,
    family: Mapping[str, DecoderSize] = MAE_DECODERS,
) -> DecoderSize:
    """Width, depth and heads of the decoder beside the encoder `model` of the ViT family.

    family: the decoders of a method, base and above as in its paper. dim, depth: instead of the family's; the heads
    keep their width. Raises UserError for an unknown model, a depth below 1, or a width that heads do not divide.
    """
    if model not in family:
        raise UserError(f"unknown model size {model!r}: choose one of {', '.join(family)}")
    width, blocks, heads = family[model]
    channels = width // heads
    dim, depth = width if dim is None else dim, blocks if depth is None else depth
    if depth < 1 or dim < 1 or dim % channels:
        raise UserError(
            f"a decoder of {depth} blocks, {dim} wide: give --decoder-depth 1 or more and --decoder-dim a multiple of "
            f"{channels}, the width of its heads"
        )
    return dim, depth, dim // channels


def mae_decoder_config(dim: int = 512, depth: int = 8, heads: int = 16, norm_eps: float = 1e-6) -> DecoderConfig:
    """MAE's decoder; the default is the paper's (arXiv 2111.06377, table 1), see `decoder_size` for others."""
    return DecoderConfig(TransformerConfig(dim, depth, heads, norm_eps=norm_eps))


class Decoder(nn.Module):
    """Predict the hidden patches of one grid from the visible tokens, and from another view's where one is given.

    recompute: how its table follows other grids, as the encoder's does (see `Position`). transformers resizes the table
    of its ViTMAE decoder along the flattened grid, which tears the rows apart: not followed here.
    """

    def __init__(
        self,
        config: DecoderConfig,
        encoder_dim: int,
        grid: tuple[int, ...],
        prefix: int,
        values: int,
        recompute: bool | None = None,
    ):
        super().__init__()
        dim = config.transformer.dim
        self.config, self.prefix = config, prefix
        self.embed = nn.Linear(encoder_dim, dim, bias=config.bias)
        self.mask_token = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.position = Position(grid, dim, config.position, recompute=recompute)
        hidden = config.sequence == "hidden"
        self.prefix_position = None if hidden else nn.Parameter(torch.zeros(prefix, dim), requires_grad=False)
        self.transformer = Transformer(config.transformer)
        self.pred = nn.Linear(dim, values)
        xavier_init(self)

    def __repr__(self) -> str:
        return f"Decoder({told(self.config.transformer, self)})"

    def forward(
        self, tokens: Tokens, hide: Positions, grid: tuple[int, ...], context: Tokens | None = None
    ) -> Float[Tensor, "*hidden values"]:
        """Predictions `[B, M, values]` for rectangular hidden positions, `[S, values]` for ragged ones.

        context: all tokens of another view, for "cross" branches of a "grid" decoder.
        """
        x, table = self.embed(tokens.x), self.position(grid)
        if self.prefix_position is None:
            return self._from_hidden(x, tokens, hide, table)
        keep, table = tokens.positions, torch.cat([self.prefix_position, table])
        if self.config.sequence == "visible_hidden":
            return self._from_visible_hidden(x, keep, hide, table)
        full = restore_tokens(x, keep.index, self.mask_token, table, prefix=self.prefix, rows=keep.rows)
        read = None
        if context is not None:
            read = self.embed(context.x)
            if self.config.context_position:
                read = read + table
        if self.config.transformer.window is not None:
            decoded = self.transformer(full[:, self.prefix :], grid=grid)
        else:
            decoded = self.transformer(full, context=read)[:, self.prefix :]
        rows = hide.rows
        if rows is not None:
            return self.pred(decoded[rows, hide.index])
        return self.pred(decoded.gather(1, hide.index[..., None].expand(-1, -1, decoded.shape[-1])))

    def _from_visible_hidden(
        self, x: Float[Tensor, "batch visible dim"], keep: Positions, hide: Positions, table: Float[Tensor, "all dim"]
    ) -> Float[Tensor, "batch hidden values"]:
        if keep.lengths is not None or hide.lengths is not None:
            raise ValueError(
                "this decoder reads the visible, then the hidden tokens: as many in each sample of a batch"
            )
        order = torch.cat([keep.index, hide.index], dim=1)
        sequence = restore_tokens(x, keep.index, self.mask_token, table, prefix=self.prefix, restore=order)
        return self.pred(self.transformer(sequence)[:, x.shape[1] :])

    def _from_hidden(
        self,
        x: Float[Tensor, "batch visible dim"],
        tokens: Tokens,
        hide: Positions,
        table: Float[Tensor, "patches dim"],
    ) -> Float[Tensor, "*hidden values"]:
        nothing = hide.index.new_empty(len(x), 0)
        queries = restore_tokens(x[:, :0], nothing, self.mask_token, table, restore=hide.index, restore_rows=hide.rows)
        if hide.lengths is None:
            return self.pred(self.transformer(queries, context=x, context_lengths=tokens.lengths))
        decoded = self.transformer(hide.padded(queries), hide.lengths, x, tokens.lengths)
        valid = torch.arange(decoded.shape[1], device=decoded.device) < hide.lengths[:, None]
        return self.pred(decoded[valid])


class JointDecoder(nn.Module):
    """Predict the hidden patches of one modality from the visible tokens of all of them (MultiMAE, arXiv 2204.01678,
    section 3.3).

    The modality's whole grid, visible or mask token at each place, attends once to all visible tokens: what comes out
    replaces what went in (no residual). An MLP and the blocks of `config` follow.
    grids: of every modality, in the encoder's order. modality: the one that is predicted. values: numbers in a patch.
    """

    def __init__(
        self,
        config: TransformerConfig,
        encoder_dim: int,
        grids: Mapping[str, tuple[int, ...]],
        modality: str,
        prefix: int,
        values: int,
        position: Layout = "sincos_row_first",
    ):
        super().__init__()
        dim = config.dim
        self.config, self.modality, self.prefix, self.names = config, modality, prefix, list(grids)
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.modalities = nn.Parameter(nn.init.trunc_normal_(torch.empty(len(grids), dim), std=0.02))
        # Grids that are alike share a table, as all do in the paper.
        self.bases = list(dict.fromkeys(grids.values()))
        self.table_of = {name: self.bases.index(grid) for name, grid in grids.items()}
        self.positions = nn.ModuleList(Position(grid, dim, position, resize="bilinear") for grid in self.bases)
        self.query_norm, self.context_norm = (nn.LayerNorm(dim, eps=config.norm_eps) for _ in range(2))
        self.cross, self.mlp = CrossAttention(config), Branch(MLP(config), config, 0.0)
        self.transformer = Transformer(config)
        self.pred = nn.Linear(dim, values)
        apart_init(self)

    def __repr__(self) -> str:
        return f"JointDecoder({told(self.config, self)})"

    def forward(
        self, tokens: Tokens, mask: Mask, grids: Mapping[str, tuple[int, ...]]
    ) -> tuple[Float[Tensor, "hidden values"], Positions]:
        """Predictions `[S, values]` of the modality's hidden patches, and which these are, within its own grid.

        grids: of the modalities in the batch.
        """
        queries, context = self.restored(self.embed(tokens.x), mask, grids)
        padding = padding_of(tokens.lengths, context)
        decoded = self.cross(self.query_norm(queries), self.context_norm(context), padding)
        decoded = self.transformer(self.mlp(decoded))
        hide, _ = mask.hidden(self.modality)
        return self.pred(decoded[hide.rows, hide.index]), hide

    def restored(
        self, x: Float[Tensor, "batch visible dim"], mask: Mask, grids: Mapping[str, tuple[int, ...]]
    ) -> tuple[Float[Tensor, "batch patches dim"], Float[Tensor, "batch visible dim"]]:
        """The modality's own grid, of the visible tokens and mask tokens, and all visible tokens, both with their
        positions; other modalities' mask tokens are never made."""
        keep, span, first, seen = mask.keep, mask.span(self.modality), x[:, : self.prefix], x[:, self.prefix :]
        place = torch.cat([self.positions[self.table_of[name]](grid) for name, grid in grids.items()])
        own = torch.arange(*span, device=x.device).expand(len(x), -1)
        queries = restore_tokens(seen, keep.index, self.mask_token, place, rows=keep.rows, restore=own)
        # What learns is added apart: the gradient of a table as long as the grid would cost more than the rest.
        kinds = _kinds(self.names, mask, x.device)[keep.index]
        at = F.embedding(keep.index, place) + F.embedding(kinds, self.modalities)
        context = torch.cat([first, seen + (at if keep.lengths is None else keep.padded(at))], dim=1)
        return queries + self.modalities[self.names.index(self.modality)], context


class SharedDecoder(nn.Module):
    """Decode all modalities in one sequence (M3AE, arXiv 2205.14204; young-geng/m3ae_public, `forward_decoder`): the
    prefix, then at every position that exists a visible token or its modality's mask token, with position and modality.

    grids: of every modality, in the encoder's order. prefix: class tokens, which have no positions here.
    """

    def __init__(self, config: DecoderConfig, encoder_dim: int, grids: Mapping[str, tuple[int, ...]], prefix: int):
        super().__init__()
        dim = config.transformer.dim
        self.config, self.prefix, self.names = config, prefix, list(grids)
        self.embed = nn.Linear(encoder_dim, dim, bias=config.bias)
        self.mask_tokens, self.modalities = (
            nn.Parameter(torch.empty(len(grids), dim).normal_(std=0.02)) for _ in range(2)
        )
        self.positions = nn.ModuleDict({name: Position(grid, dim, config.position) for name, grid in grids.items()})
        self.transformer = Transformer(config.transformer)
        xavier_init(self)

    def __repr__(self) -> str:
        return f"SharedDecoder({told(self.config.transformer, self)})"

    def forward(self, tokens: Tokens, mask: Mask, grids: Mapping[str, tuple[int, ...]]) -> Float[Tensor, "hidden dim"]:
        """The hidden positions decoded, `[S, dim]`, in the order of `mask.hide`. grids: of the batch's modalities."""
        keep, hide, count = mask.keep, mask.hide.flat(), mask.count
        kinds = _kinds(self.names, mask, tokens.x.device)
        table = torch.cat([self.positions[name](grid) for name, grid in grids.items()]) + self.modalities[kinds]
        there = keep.boolean(count) | hide.boolean(count)
        lengths = there.sum(dim=1)
        fewest, longest = (int(each) for each in lengths.aminmax())
        sequence = restore_tokens(
            self.embed(tokens.x),
            keep.index,
            self.mask_tokens,
            torch.cat([table.new_zeros(self.prefix, table.shape[1]), table]),
            prefix=self.prefix,
            rows=keep.rows,
            kind=kinds,
            # What is there comes first, in its order; the rest, of which some fills the shorter rows, is never read.
            restore=(~there).byte().argsort(dim=1, stable=True)[:, :longest],
        )
        decoded = self.transformer(sequence, None if fewest == longest else lengths + self.prefix)
        places = there.cumsum(dim=1) - 1
        return decoded[hide.rows, self.prefix + places[hide.rows, hide.index]]


def _kinds(names: Sequence[str], mask: Mask, device: torch.device) -> Int64[Tensor, " positions"]:
    """The number among `names` of the modality of each place in the concatenated grid."""
    numbers, sizes = [names.index(name) for name in mask.sizes], list(mask.sizes.values())
    return torch.tensor(numbers).repeat_interleave(torch.tensor(sizes), output_size=mask.count).to(device)
