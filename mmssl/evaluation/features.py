"""Frozen features: one vector a sample, taken from an encoder or from the raw pixels, and their effective rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.answers import Labels
from mmssl.modality import zero_to_one

Batch = Mapping[str, Tensor]


@runtime_checkable
class FeatureEncoder(Protocol):
    """What is asked of an encoder: a torch module whose `features` gives float [batch, dim] for raw media."""

    def features(self, batch: Any, pool: Any = ...) -> Tensor: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def to(self, device: torch.device) -> Any: ...


@dataclass(frozen=True)
class FeatureSet:
    """Features of `samples` samples on the CPU, with their names and their labels, one or several each (see
    `mmssl.evaluation.answers`), where these are known.

    Raises UserError where a feature is not finite, ValueError where the lengths differ.
    """

    features: Float32[Tensor, "samples dim"]
    labels: Labels | None = None
    names: list[str] | None = None

    def __post_init__(self) -> None:
        for field, values in (("labels", self.labels), ("names", self.names)):
            if values is not None and len(values) != len(self.features):
                raise ValueError(f"{len(self.features)} features came with {len(values)} {field}; give one a sample.")
        broken = (~self.features.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            first = self.names[broken[0]] if self.names else f"number {broken[0]}"
            raise UserError(
                f"The features of {len(broken)} of {len(self.features)} samples are not finite, the first is sample "
                f"{first}; check the encoder's weights, or extract again with precision fp32."
            )

    def __len__(self) -> int:
        return len(self.features)


def extract(
    encoder: FeatureEncoder,
    batches: Iterable[Batch],
    *,
    pool: Literal["mean", "class"] = "mean",
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> FeatureSet:
    """The pooled features of every sample in `batches`: nothing hidden, evaluation mode, no gradients.

    The encoder is moved to `device`; its modules' training modes are put back afterwards. `precision` "bf16" runs the
    encoder under autocast, the features are float32 in either case. `names` are the source's, indexed by the batches'
    `sample_id`. `progress` is called after each batch with the number of samples done so far.

    Raises UserError where `batches` is empty, where a feature is not finite, or where only some batches have labels.
    """
    device = torch.device(device)
    encoder.to(device)

    def embed(batch: Batch) -> Tensor:
        on_device = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return encoder.features(on_device, pool=pool)

    with torch.no_grad(), evaluation_mode(encoder):
        return _collect(batches, embed, names, progress)


class PatchEncoder(nn.Module):
    """An encoder whose features are those of every patch, in the order of the grid, one after the other."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def features(self, batch: Any, pool: Any = None) -> Float[Tensor, "batch patches_dim"]:
        """The patch tokens of each sample in one row; there is nothing to pool."""
        return self.encoder(batch).x[:, self.encoder.config.prefix :].flatten(1)


class PooledAndPatches(nn.Module):
    """An encoder's feature and behind it what `PatchEncoder` gives, in one row and one pass."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def features(self, batch: Any, pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "batch dim_patches"]:
        """The first `dim` numbers are the pooled ones."""
        tokens = self.encoder(batch)
        return torch.cat([self.encoder.pool_norm(tokens.pooled(pool)), tokens.x[:, tokens.prefix :].flatten(1)], dim=1)


def pixels(
    batches: Iterable[Batch],
    *,
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> FeatureSet:
    """The raw pixels of `image` (uint8 0-255 or float 0-1, [B, C, H, W]), flattened and scaled to 0-1: the baseline.

    `names`, `progress` and the errors are those of `extract`.
    """

    return _collect(batches, lambda batch: zero_to_one(batch["image"]).flatten(1), names, progress)


def effective_rank(features: Float[Tensor, "samples dim"]) -> float:
    """RankMe: exp of the entropy of the singular values of the (uncentred) features, normalised to sum to one.

    Between 1 (every sample has the same feature up to its length: collapse) and min(samples, dim); 0 for features that
    are all zero. Values from different numbers of samples compare only where samples >> dim. Garrido et al., "RankMe:
    Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank", ICML 2023, eq. 1;
    its constant 1e-7 inside the logarithm is not needed, since 0 log 0 = 0 here.

    Raises ValueError where a feature is not finite.
    """
    if not features.isfinite().all():
        raise ValueError("The effective rank is defined for finite features only; these hold NaN or infinity.")
    singular = torch.linalg.svdvals(features.detach().double())
    if not singular.any():
        return 0.0
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


def _collect(
    batches: Iterable[Batch],
    embed: Callable[[Batch], Tensor],
    names: Sequence[str] | None,
    progress: Callable[[int], None] | None,
) -> FeatureSet:
    features: list[Tensor] = []
    labels: list[Tensor] = []
    ids: list[int] = []
    done = 0
    for batch in batches:
        features.append(embed(batch).float().cpu())
        labels += [batch["label"].cpu()] if "label" in batch else []
        ids += batch["sample_id"].tolist() if names is not None else []
        done += len(features[-1])
        if progress is not None:
            progress(done)
    if not done:
        raise UserError("There is no sample to take features of; give a source with at least one readable sample.")
    if labels and len(labels) != len(features):
        raise UserError(f"{len(labels)} of {len(features)} batches have labels; label every sample or none.")
    return FeatureSet(
        torch.cat(features),
        torch.cat(labels) if labels else None,
        [names[i] for i in ids] if names is not None else None,
    )


@contextmanager
def evaluation_mode(encoder: nn.Module | FeatureEncoder) -> Iterator[None]:
    """Every module in evaluation mode, put back as it was afterwards."""
    # One flag a module: a module that its owner froze in evaluation mode must not wake up in training mode.
    modes = [(module, module.training) for module in encoder.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
