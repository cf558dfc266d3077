"""MultiMAE put together the usual way from timm's blocks: what a user would write without mmssl.

Modules have the authors' names (EPFL-VILAB/MultiMAE), so that weights go to and fro by `mmssl.interop`. As there, every
token of every modality is embedded, the visible ones are gathered in a shuffled order, each decoder puts all tokens of
all modalities back in their places, and losses are those of whole rasters times the mask. The extreme values of depth
are left out before; the mask is given.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.text_peer import Side
from mmssl import Mask, MultiMAE
from mmssl.interop import multimae, to_theirs
from mmssl.objectives.multimae import MODALITIES
from mmssl.tokenizer import Batch, standardised

GRID, NAMES = (14, 14), {theirs: ours for theirs, ours in multimae.NAMES.items()}
PLACES = math.prod(GRID)
_norm: Any = partial(nn.LayerNorm, eps=1e-6)


def _blocks(dim: int, depth: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(Block(dim, heads, qkv_bias=True, norm_layer=_norm) for _ in range(depth))


class InputAdapter(nn.Module):
    """All patches of a raster, `[B, C, H, W]` or labels `[B, H, W]`, as tokens."""

    def __init__(self, channels: int, side: int, dim: int, classes: int | None):
        super().__init__()
        self.class_emb = None if classes is None else nn.Embedding(classes, channels)
        self.proj = nn.Conv2d(channels, dim, side, side)
        self.pos_emb = nn.Parameter(torch.zeros(1, dim, *GRID), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.class_emb is not None:
            x = self.class_emb(x).permute(0, 3, 1, 2)
        return (self.proj(x) + self.pos_emb).flatten(2).transpose(1, 2)


class CrossAttention(nn.Module):
    """Of `x` over `context`, without a residual."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OutputAdapter(nn.Module):
    """The whole raster of a task."""

    def __init__(self, predicted: str, channels: int, side: int, encoder_dim: int, dim: int, depth: int, heads: int):
        super().__init__()
        self.start, self.channels, self.side = list(NAMES).index(predicted) * PLACES, channels, side
        self.task_embeddings = nn.ParameterDict({name: torch.zeros(1, 1, dim) for name in NAMES})
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_emb = nn.Parameter(torch.zeros(1, dim, *GRID), requires_grad=False)
        self.proj_context = nn.Linear(encoder_dim, dim)
        self.decoder = CrossAttention(dim, heads)
        self.context_norm, self.query_norm, self.out_norm = (_norm(dim) for _ in range(3))
        self.mlp = Mlp(dim, 4 * dim)
        self.decoder_transformer = _blocks(dim, depth, heads)
        self.out_proj = nn.Linear(dim, channels * side**2)

    def restored(self, context: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The places of this task, and what is visible, from projected tokens whose last is the global one."""
        seen, last = context[:, :-1], context[:, -1:]
        hidden = self.mask_token.expand(len(seen), order.shape[1] - seen.shape[1], -1)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, seen.shape[2])
        full = torch.cat([seen, hidden], dim=1).gather(1, back)
        position = self.pos_emb.flatten(2).transpose(1, 2)
        full = full + torch.cat([position + self.task_embeddings[name] for name in NAMES], dim=1)
        keep = order[:, : seen.shape[1], None].expand_as(seen)
        return full[:, self.start : self.start + PLACES], torch.cat([full.gather(1, keep), last], dim=1)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        queries, context = self.restored(self.proj_context(tokens), order)
        x = self.decoder(self.query_norm(queries), self.context_norm(context))
        x = x + self.mlp(self.out_norm(x))
        for block in self.decoder_transformer:
            x = block(x)
        patches = self.out_proj(x).view(len(x), *GRID, self.channels, self.side, self.side)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(x), self.channels, *(n * self.side for n in GRID))


class PlainMultiMAE(nn.Module):
    """With the sizes and weights of `ours`, which has the paper's modalities."""

    def __init__(self, ours: MultiMAE):
        super().__init__()
        encoder, decoder = ours.config.encoder.transformer, ours.config.decoder
        modalities = [ours.tokenizer(name).modality for name in NAMES.values()]
        self.input_adapters = nn.ModuleDict()
        for theirs, each in zip(NAMES, modalities, strict=True):
            classes, channels = (each.channels, each.embedding) if each.embedding else (None, each.channels)
            self.input_adapters[theirs] = InputAdapter(channels, each.patch[0], encoder.dim, classes)
        self.global_tokens = nn.Parameter(torch.zeros(1, 1, encoder.dim))
        self.encoder = _blocks(encoder.dim, encoder.depth, encoder.heads)
        self.output_adapters = nn.ModuleDict()
        rules: multimae.KeyMap = ()
        for task in ours.tasks.values():
            predicted = ours.target(task.name).modality
            name, sizes = task.name.removeprefix("norm_"), (decoder.dim, decoder.depth, decoder.heads)
            self.output_adapters[task.name] = OutputAdapter(
                name, predicted.channels, predicted.patch[0], encoder.dim, *sizes
            )
            rules += multimae.decoder_rules(task.name, modalities, predicted, GRID)
        state = to_theirs(ours.state_dict(), rules, ())
        for each in modalities:
            state |= to_theirs(ours.state_dict(), multimae.encoder_rules("encoder.", [each], GRID), each.patch)
        self.load_state_dict(state)

    def embedded(self, media: dict[str, Tensor], keep: Tensor) -> Tensor:
        """The visible tokens, in the order of `keep`."""
        tokens = torch.cat([self.input_adapters[name](values) for name, values in media.items()], dim=1)
        return tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))

    def forward(self, media: dict[str, Tensor], order: Tensor, visible: int) -> Tensor:
        """The loss of normalised media `{"rgb", "depth", "semseg"}`, of which the first `visible` of `order` are
        seen."""
        tokens = self.embedded(media, order[:, :visible])
        tokens = torch.cat([tokens, self.global_tokens.expand(len(tokens), -1, -1)], dim=1)
        for block in self.encoder:
            tokens = block(tokens)
        hidden = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, :visible], False)
        losses = []
        for task, each in self.output_adapters.items():
            adapter = cast(OutputAdapter, each)
            own = hidden[:, adapter.start : adapter.start + PLACES].view(-1, 1, *GRID).float()
            losses.append(_loss(task, adapter(tokens, order), media[task.removeprefix("norm_")], own, adapter.side))
        return torch.stack(losses).sum()


def _loss(task: str, predicted: Tensor, wanted: Tensor, hidden: Tensor, side: int) -> Tensor:
    """The mean over hidden places of each sample, then over the samples that have some (their `criterion.py`)."""
    if task == "semseg":
        loss = F.cross_entropy(predicted, wanted, reduction="none")[:, None]
    elif task == "depth":
        loss = F.l1_loss(predicted, wanted, reduction="none")
    else:
        if task == "norm_rgb":
            patches = F.unfold(wanted, side, stride=side)
            mean, variance = patches.mean(1, keepdim=True), patches.var(1, keepdim=True)
            wanted = F.fold((patches - mean) / (variance + 1e-6).sqrt(), wanted.shape[2:], side, stride=side)
        loss = F.mse_loss(predicted, wanted, reduction="none").mean(dim=1, keepdim=True)
    where = F.interpolate(hidden, loss.shape[2:], mode="nearest")
    mean = (loss * where).flatten(1).sum(dim=1) / where.flatten(1).sum(dim=1)
    return mean.nanmean()


class Embedding(nn.Module):
    """The tokens that the encoder reads, and nothing else of a model."""

    def __init__(self, model: MultiMAE | PlainMultiMAE):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Tensor:
        embed = self.model.encoder.embed if isinstance(self.model, MultiMAE) else self.model.embedded
        return embed(*inputs).square().mean()


class Restoring(nn.Module):
    """What the cross-attention of each decoder reads, from tokens of the decoders' width, and nothing else."""

    def __init__(self, model: MultiMAE | PlainMultiMAE):
        super().__init__()
        self.decoders: Any = (model.decoders if isinstance(model, MultiMAE) else model.output_adapters).values()
        self.parts = nn.ModuleList(self.decoders)

    def forward(self, x: Tensor, *inputs: Any) -> Tensor:
        made = [part for each in self.decoders for part in each.restored(x, *inputs)]
        return torch.stack([part.square().mean() for part in made]).sum()


class Both(nn.Module):
    """Embedding and restoring."""

    def __init__(self, model: MultiMAE | PlainMultiMAE):
        super().__init__()
        self.embedding, self.restoring = Embedding(model), Restoring(model)

    def forward(self, embedded: tuple[Any, ...], restored: tuple[Any, ...]) -> Tensor:
        return self.embedding(*embedded) + self.restoring(*restored)


def normalised(ours: MultiMAE, batch: Batch) -> dict[str, Tensor]:
    """What the plain model reads of a batch."""
    image = ours.tokenizer("image")
    mean, std = (each.view(-1, 1, 1) for each in (image.mean, image.std))
    depth = standardised(batch, ours.tokenizer("depth").modality)
    return {"rgb": (batch["image"] / 255 - mean) / std, "depth": depth, "semseg": batch["semseg"]}


def shuffled(mask: Mask) -> Tensor:
    """All positions `[B, all]`: the visible ones in a random order, then the hidden ones."""
    parts = []
    for index in (mask.keep.index, mask.hide.index):
        parts.append(index.gather(1, torch.rand(index.shape, device=index.device).argsort(dim=1)))
    return torch.cat(parts, dim=1)


def sides(model: str, batch_size: int, device: torch.device) -> dict[str, Side]:
    """Both models of ViT-B on 3 x 224 x 224 with 98 visible tokens, or their parts that differ."""
    torch.manual_seed(0)
    ours = MultiMAE("base")
    theirs, ours = PlainMultiMAE(ours).to(device), ours.to(device)
    batch = {
        "image": torch.randint(0, 256, (batch_size, 3, 224, 224), dtype=torch.uint8, device=device),
        "depth": torch.rand(batch_size, 1, 224, 224, device=device),
        "semseg": torch.randint(0, MODALITIES[2].channels, (batch_size, 56, 56), device=device),
        "sample_id": torch.arange(batch_size, device=device),
    }
    mask, media = ours.hide(batch), normalised(ours, batch)
    order, visible = shuffled(mask), mask.keep.index.shape[1]
    if model == "multimae-base":
        return {
            "mmssl": (ours, lambda m: m(batch).loss),
            "plain PyTorch": (theirs, lambda m: m(media, order, visible)),
        }
    measured, grids = ours.measured(batch), ours.grids(batch, mask)
    x = torch.randn(batch_size, visible + 1, ours.config.decoder.dim, device=device, requires_grad=True)
    one, other = ((measured, mask.keep), (x, mask, grids)), ((media, order[:, :visible]), (x, order))
    if model == "multimae-parts":
        return {"mmssl": (Both(ours), lambda m: m(*one)), "plain PyTorch": (Both(theirs), lambda m: m(*other))}
    kind, place = (Embedding, 0) if model == "multimae-embed" else (Restoring, 1)
    return {
        "mmssl": (kind(ours), lambda m: m(*one[place])),
        "plain PyTorch": (kind(theirs), lambda m: m(*other[place])),
    }
