"""Classification: an encoder and a linear head on what it pools, tuned on labelled media; the head alone is a probe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.encoder import Encoder, EncoderConfig, square_pictures, vit_config
from mmssl.errors import UserError
from mmssl.finetune.mixing import Mixer, Mixing
from mmssl.masking import Mask, axes_mask, batch_bits
from mmssl.objectives import Objective, Output
from mmssl.tokenizer import Batch, PatchTokenizer


@dataclass(frozen=True)
class ClassifierConfig:
    """The defaults are those by which MAE's authors tune ViT-B.

    encoder: with a head (`classes`), what that pools, and whether samples may have several classes each. layer_decay:
    what the learning rate of a layer is, of that above it (see `layer_scales`). tuned_blocks: how many of the last
    blocks learn, with the norms behind them and the head; None is all of the encoder, 0 the head alone, a probe.
    smoothing: the share of a label that is spread over all classes. head_std: of the head's first weights. hidden: the
    shares of the grid's rows and columns (of sounds: times and mel bands) that are left out while it trains, as
    Audio-MAE's tuning does; none by default. seed: of what is mixed and hidden.
    """

    encoder: EncoderConfig = dataclasses.replace(vit_config("base"), classes=1000, pool_norm=True)
    layer_decay: float = 0.65
    tuned_blocks: int | None = None
    smoothing: float = 0.1
    mixing: Mixing = Mixing(mixup=0.8, cutmix=1.0)
    head_std: float = 2e-5
    hidden: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        depth = self.encoder.transformer.depth
        if self.tuned_blocks is not None and not 0 <= self.tuned_blocks <= depth:
            raise UserError(f"tuned_blocks={self.tuned_blocks}: the encoder has {depth} blocks")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay={self.layer_decay} must be above 0 and at most 1, which is no decay")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing={self.smoothing} must be a share below 1")
        if self.head_std <= 0:
            raise UserError(f"head_std={self.head_std} must be a number above 0")
        if not all(0 <= share < 1 for share in self.hidden):
            raise UserError(f"hidden={self.hidden} must be two shares below 1")
        if self.encoder.classes < 2 - self.encoder.several:
            raise UserError(f"a classifier tells classes apart, and {self.encoder.classes} is not enough of them")


def classifier_config(
    model: str = "base", *, labels: tuple[str, ...], size: int = 224, patch: int = 16, channels: int = 3
) -> ClassifierConfig:
    """A classifier of square pictures, from random weights. model: tiny, small, base, large or huge."""
    modality, input_size = square_pictures(size, patch, channels)
    plain = vit_config(model, modality=modality, input_size=input_size)
    blocks = dataclasses.replace(plain.transformer, final_norm=False)
    headed = dataclasses.replace(plain, transformer=blocks, classes=len(labels), labels=tuple(labels), pool_norm=True)
    return ClassifierConfig(headed)


class Classifier(Objective):
    """Encode everything, pool it, and tell the class: cross-entropy, or of several classes a sample, yes or no to each.

    While it trains, samples are mixed with the partners that the batch holds (see `Mixer`), and labels are smoothed.
    """

    config_class = ClassifierConfig
    named = staticmethod(classifier_config)
    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig | str = "base", **settings: Any):
        super().__init__()
        self.config = made = self.configured(config, settings)
        self.encoder = Encoder(made.encoder)
        self.mixer = Mixer(made.mixing, made.seed) if made.mixing.mixes else None
        assert self.encoder.head is not None
        nn.init.trunc_normal_(self.encoder.head.weight, std=made.head_std)
        self.lr_scales = layer_scales(self.encoder, made.layer_decay)
        grids = [name for name, part in self.named_modules() if isinstance(part, PatchTokenizer)]  # BERT's words decay
        tables = (f"{name}.position.table" for name in grids)
        self.undecayed = ("encoder.prefix_tokens", "encoder.prefix_position", *tables)
        if made.tuned_blocks is not None:
            self._freeze(made.tuned_blocks)

    def _freeze(self, tuned: int) -> None:
        """All but the last `tuned` blocks, the norms behind them, and the head; of none all but the head."""
        encoder = self.encoder
        encoder.requires_grad_(False)
        blocks = encoder.transformer.blocks[len(encoder.transformer.blocks) - tuned :]
        behind = [*blocks, encoder.transformer.final_norm, encoder.pool_norm] if tuned else []
        for part in [*behind, encoder.pooler, encoder.head]:
            assert part is not None
            part.requires_grad_(True)

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        targets, own = self.targets(batch["label"]), batch["label"]
        if self.training:
            batch, share = self._mixed(batch)
            if share is not None:
                targets = share * targets + (1 - share) * self.targets(batch["label.partner"])
            mask = self.hide(batch) if mask is None else mask
        logits = self.encoder.classify(batch, mask=mask).float()
        if self.config.encoder.several:
            loss = F.binary_cross_entropy_with_logits(logits, targets)
            return Output(loss, {"error": ((logits > 0) != own).float().mean()})
        loss = F.cross_entropy(logits, targets)
        return Output(loss, {"accuracy": (logits.argmax(dim=1) == own).float().mean()})

    def _mixed(self, batch: Batch) -> tuple[Batch, Float[Tensor, "batch 1"] | None]:
        """The batch with samples that are mixed with their partners, and the share of each that is its own; sounds come
        mixed, with their `share`."""
        if self.mixer is None:
            return batch, batch["share"][:, None] if "share" in batch else None
        (name,) = self.encoder.sizes(batch)
        mixed, share = self.mixer(batch, name)
        return {**batch, name: mixed}, share

    def hide(self, batch: Batch) -> Mask | None:
        """Whole rows and columns of the grid, drawn for each sample, where any are hidden."""
        if not any(self.config.hidden):
            return None
        (name,) = sizes = self.encoder.sizes(batch)
        grid = rows, columns = self.encoder.tokenizer(name).grid(batch)
        noise = batch_bits(batch, rows + columns, seed=self.config.seed, stream=f"mask/{name}")
        down, across = (max(1, int(side * (1 - share))) for side, share in zip(grid, self.config.hidden))
        return axes_mask((noise[:, :rows], noise[:, rows:]), (down, across), sizes)

    def targets(self, label: Tensor) -> Float[Tensor, "batch classes"]:
        """What the head shall say of labels: int64 `[B]`, or bool `[B, classes]` of several."""
        if self.config.encoder.several:
            return label.float()
        classes, smoothing = self.config.encoder.classes, self.config.smoothing if self.training else 0.0
        return F.one_hot(label, classes) * (1 - smoothing) + smoothing / classes


_LAST = ("transformer.final_norm", "pool_norm", "pooler", "head")


def layer_scales(encoder: Encoder, decay: float) -> dict[str, float]:
    """Multiples of the learning rate by the beginnings of parameters' names: `decay ** (layers - layer)`, where the
    embedding is layer 0, block i layer i + 1, and the head and the norms before it the last (ELECTRA, Clark et al.
    2020; BEiT, Bao et al. 2021; MAE's `param_groups_lrd`). Empty without decay."""
    if decay == 1:
        return {}
    depth = len(encoder.transformer.blocks)
    blocks = {f"transformer.blocks.{i}": decay ** (depth - i) for i in range(depth)}
    last = [name for name in _LAST if any(True for _ in encoder.get_submodule(name).parameters())]
    scales = {"": decay ** (depth + 1), **blocks, **dict.fromkeys(last, 1.0)}
    return {f"encoder.{name}".removesuffix("."): scale for name, scale in scales.items()}
