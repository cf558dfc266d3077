"""Audio-MAE put together from timm's blocks and Swin's usual attention: what a user would write without mmssl.

Modules have the authors' names (facebookresearch/AudioMAE), so that weights go to and fro by `mmssl.interop`. Windows
are rolled, cut out, attended to with all logits in memory, put together and rolled back.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.interop import audiomae, to_theirs
from mmssl.objectives import AudioMAE


class MetaMLP(nn.Module):
    """The bias of an offset between two tokens, one a head."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, hidden), nn.Linear(hidden, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class WindowAttention(nn.Module):
    """Cosine attention within windows `[B * windows, tokens, dim]`."""

    relative_coordinates_log: Tensor

    def __init__(self, dim: int, window: tuple[int, int], heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.meta_mlp, self.tau = MetaMLP(384, heads), nn.Parameter(torch.ones(heads))
        places = torch.cartesian_prod(*(torch.arange(side) for side in window)).float()
        apart = places[:, None] - places[None]
        log = torch.sign(apart) * torch.log(1 + apart.abs())
        self.register_buffer("relative_coordinates_log", log, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        length = q.norm(dim=-1, keepdim=True) * k.norm(dim=-1, keepdim=True).transpose(2, 3)
        logits = q @ k.transpose(2, 3) / length.clamp(min=1e-6) / self.tau.clamp(min=0.01)[:, None, None]
        logits = logits + self.meta_mlp(self.relative_coordinates_log).permute(2, 0, 1)
        if mask is not None:
            logits = (logits.view(-1, len(mask), self.heads, tokens, tokens) + mask[:, None]).view_as(logits)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, dim))


class MLP(nn.Module):
    """Swin's, and timm's."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PatchEmbed(nn.Module):
    """A convolution, as everywhere."""

    def __init__(self, dim: int, patch: tuple[int, int]):
        super().__init__()
        self.proj = nn.Conv2d(1, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class SwinBlock(nn.Module):
    """Post-norm, windows of 4 x 4, shifted by `shift` rows."""

    attn_mask: Tensor | None

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], shift: int):
        super().__init__()
        self.grid, self.shift = grid, shift
        self.attn, self.mlp = WindowAttention(dim, (4, 4), heads), MLP(dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        mask = None
        if shift:
            rows, columns = grid
            region = torch.zeros(1, rows, columns, 1)
            for number, part in enumerate((slice(0, -4), slice(-4, -shift), slice(-shift, None))):
                region[:, part] = number
            region = self.cut(region)[..., 0]
            mask = (region[:, None] != region[:, :, None]) * -100.0
        self.register_buffer("attn_mask", mask, persistent=False)

    def cut(self, x: Tensor) -> Tensor:
        """`[B, rows, columns, dim]` to `[B * windows, 16, dim]`."""
        batch, rows, columns, dim = x.shape
        return x.view(batch, rows // 4, 4, columns // 4, 4, dim).transpose(2, 3).reshape(-1, 16, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        rows, columns = self.grid
        image = x.view(batch, rows, columns, dim)
        image = torch.roll(image, -self.shift, 1) if self.shift else image
        out = self.attn(self.cut(image), self.attn_mask)
        out = out.view(batch, rows // 4, columns // 4, 4, 4, dim).transpose(2, 3).reshape(batch, rows, columns, dim)
        out = torch.roll(out, self.shift, 1) if self.shift else out
        x = x + self.norm1(out.reshape(batch, tokens, dim))
        return x + self.norm2(self.mlp(x))


class PlainAudioMAE(nn.Module):
    """With the sizes and weights of `ours`."""

    def __init__(self, ours: AudioMAE):
        super().__init__()
        encoder, decoder = ours.config.encoder.transformer, ours.config.decoder.transformer
        (down, across), (rows, columns) = ours.modality.patch, ours.tokenizer.size_grid
        self.patch, self.local, count = (down, across), decoder.window is not None, rows * columns
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        plain = partial(Block, qkv_bias=True, norm_layer=norm)
        self.patch_embed = PatchEmbed(encoder.dim, self.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, encoder.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, encoder.dim), requires_grad=False)
        self.blocks = nn.ModuleList(plain(encoder.dim, encoder.heads) for _ in range(encoder.depth))
        self.norm = norm(encoder.dim)
        self.decoder_embed = nn.Linear(encoder.dim, decoder.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, count + 1, decoder.dim), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            SwinBlock(decoder.dim, decoder.heads, (rows, columns), 2 * (i % 2))
            if self.local
            else plain(decoder.dim, decoder.heads)
            for i in range(decoder.depth)
        )
        self.decoder_norm = norm(decoder.dim)
        self.decoder_pred = nn.Linear(decoder.dim, down * across)
        rules = audiomae.LOCAL if self.local else audiomae.GLOBAL
        self.load_state_dict(to_theirs(ours.state_dict(), rules, self.patch))

    def patchify(self, x: Tensor) -> Tensor:
        """`[B, 1, time, mel]` to `[B, patches, values]`."""
        batch, _, rows, columns = x.shape
        down, across = self.patch
        x = x.view(batch, rows // down, down, columns // across, across)
        return x.transpose(2, 3).reshape(batch, -1, down * across)

    def forward(self, x: Tensor, keep: Tensor, hide: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and predictions of normalised spectrograms for these visible and hidden positions."""
        tokens = self.patch_embed(x) + self.pos_embed[:, 1:]
        tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_embed(self.norm(tokens))
        order = torch.cat([keep, hide], dim=1).argsort(dim=1)
        full = torch.cat([tokens[:, 1:], self.mask_token.expand(len(x), hide.shape[1], -1)], dim=1)
        full = full.gather(1, order[..., None].expand(-1, -1, full.shape[-1])) + self.decoder_pos_embed[:, 1:]
        if not self.local:
            full = torch.cat([tokens[:, :1] + self.decoder_pos_embed[:, :1], full], dim=1)
        for block in self.decoder_blocks:
            full = block(full)
        full = self.decoder_pred(self.decoder_norm(full))[:, 0 if self.local else 1 :]
        target = self.patchify(x)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        where = hide[..., None].expand(-1, -1, target.shape[-1])
        prediction = full.gather(1, where)
        return (prediction - target.gather(1, where)).square().mean(), prediction
