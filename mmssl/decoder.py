"""The light decoders: uses of the one transformer that are thrown away after pretraining."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from mmssl_kernels import restore_tokens
from torch import Tensor, nn

from mmssl.encoder import Tokens
from mmssl.masking import Positions
from mmssl.position import Layout, Position
from mmssl.transformer import Transformer, TransformerConfig, xavier_init


@dataclass(frozen=True)
class DecoderConfig:
    """transformer: with `cross` the decoder reads the visible tokens as context. position: its table's layout."""

    transformer: TransformerConfig
    position: Layout = "sincos"


def mae_decoder_config(dim: int = 512, depth: int = 8, heads: int = 16, norm_eps: float = 1e-6) -> DecoderConfig:
    """MAE's decoder, the same for every size of encoder (arXiv 2111.06377, table 1)."""
    return DecoderConfig(TransformerConfig(dim, depth, heads, norm_eps=norm_eps))


class Decoder(nn.Module):
    """Predict the hidden patches of one grid from the visible tokens.

    A self-attention decoder restores the full sequence, mask tokens included. A cross-attention decoder (`cross`) holds
    only the hidden positions and reads the visible tokens as context (MultiMAE, SiamMAE).
    """

    def __init__(self, config: DecoderConfig, encoder_dim: int, grid: tuple[int, ...], prefix: int, values: int):
        super().__init__()
        dim = config.transformer.dim
        self.config, self.prefix = config, prefix
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.position = Position(grid, dim, config.position)
        cross = config.transformer.cross
        self.prefix_position = None if cross else nn.Parameter(torch.zeros(prefix, dim), requires_grad=False)
        self.transformer = Transformer(config.transformer)
        self.pred = nn.Linear(dim, values)
        xavier_init(self)

    def forward(self, tokens: Tokens, hide: Positions, grid: tuple[int, ...]) -> Float[Tensor, "*hidden values"]:
        """Predictions `[B, M, values]` for rectangular hidden positions, `[S, values]` for ragged ones."""
        x, table = self.embed(tokens.x), self.position(grid)
        if self.prefix_position is None:
            return self._predict_from_context(x, tokens, hide, table)
        keep, position = tokens.positions, torch.cat([self.prefix_position, table])
        full = restore_tokens(x, keep.index, self.mask_token, position, prefix=self.prefix, rows=keep.rows)
        decoded = self.transformer(full)[:, self.prefix :]
        rows = hide.rows
        if rows is not None:
            return self.pred(decoded[rows, hide.index])
        return self.pred(decoded.gather(1, hide.index[..., None].expand(-1, -1, decoded.shape[-1])))

    def _predict_from_context(
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
