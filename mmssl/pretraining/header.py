"""What a run says before its first step and after its last."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmssl.data import PairFiles, Source, notes
from mmssl.data.source import FileSource, whole_of
from mmssl.encoder import SIZES
from mmssl.errors import as_text
from mmssl.objectives import Objective
from mmssl.training import TrainSettings, autocast_dtype, distributed
from mmssl.training.optim import MOMENTS, optimizer_name
from mmssl.transformer import Transformer


def header(
    objective: Objective,
    media: Source,
    held_out: Source,
    settings: TrainSettings,
    total: int,
    steps_per_epoch: float,
    run_dir: Path,
    device: torch.device,
) -> list[str]:
    """Data, model, length, place and expected size of a run of `total` steps, a line each."""
    whole = whole_of(media)
    kind = f"{whole.kind}s" if isinstance(whole, FileSource) else "samples"
    where = f" of {as_text(str(whole.given))}" if isinstance(whole, FileSource) else ""
    chunk = settings.batch_size // distributed.world_size() // settings.accumulate
    split = f", in {settings.accumulate} chunks of {chunk}" if settings.accumulate > 1 else ""
    processes = f" on each of {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    precision = "bf16 autocast" if autocast_dtype(settings.precision, device) else "float32"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    parts = ", ".join(f"{name} {_described(part)}" for name, part in objective.trained_parts())
    lines = {
        kind: f"{len(media)} to train on, {len(held_out)} held out{where}",
        "model": f"{type(objective).__name__}: {parts}",
        "steps": f"{total}, {total / steps_per_epoch:.4g} epochs of {steps_per_epoch:.4g}; batch "
        f"{settings.batch_size}{processes}{split}",
        "device": f"{device}{threads}, {precision}{', compiled' if settings.compile else ''}",
        "folder": f"{run_dir}: {_expected(objective, settings, total)}",
    }
    told = [f"{name:<9} {line}" for name, line in lines.items()]
    return told[:1] + [f"{'':<9} {note}" for note in notes(media, held_out)] + told[1:]


def _described(part: nn.Module) -> str:
    transformer = next((each for each in part.modules() if isinstance(each, Transformer)), None)
    count = sum(value.numel() for value in part.parameters()) / 1e6
    if transformer is None:
        return f"{count:.3g} M parameters"
    config = transformer.config
    names = {size: f"{name}, " for name, size in SIZES.items()}
    name = names.get((config.dim, config.depth, config.heads), "")
    return f"{count:.3g} M parameters ({name}{config.depth} blocks of {config.dim})"


def _expected(objective: Objective, settings: TrainSettings, total: int) -> str:
    """What the folder will weigh: checkpoints hold the weights, the optimizer's moments, and the average where kept."""
    weights = _bytes(objective.state_dict())
    trained = sum(value.nbytes for value in objective.parameters() if value.requires_grad)
    copies = MOMENTS[optimizer_name(settings, objective)] + (settings.ema is not None)
    checkpoint = weights + trained * copies
    saved = math.ceil(total / settings.save_every) if settings.save_every else 1
    kept = min(saved, settings.keep) if settings.keep else saved
    whole = kept * checkpoint + weights
    return f"about {_megabytes(whole)} at the end, {kept} x {_megabytes(checkpoint)} of it checkpoints"


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in tensors.values())


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def next_steps(objective: Objective, media: Source, data: Path, run_dir: Path, label: str | None = None) -> list[str]:
    """Where the encoder is, and the commands that use it on the data it was trained on, whose classes `label` names."""
    whole = whole_of(media)
    on_clips = isinstance(whole, FileSource) and whole.kind == "video"
    reads = objective.encoder.config.tokenizers[0].modality.name
    frames = " --frames 8" if on_clips and reads == "image" else ""
    model, where = shlex.quote(as_text(str(run_dir / "final"))), shlex.quote(as_text(str(data)))
    paired: list[str] = []
    pictures = where
    if isinstance(whole, PairFiles):
        pictures = "DIR" if whole.table else where  # a manifest of pairs is none of pictures alone
    if isinstance(whole, PairFiles) and objective.compares_samples:
        keys = {"--image-key": whole.image_key, "--caption-key": whole.caption_key}
        told = "".join(f" {flag} {shlex.quote(key)}" for flag, key in keys.items() if key)
        paired = [f"         mmssl evaluate --model {model} --data {where} --task retrieval{told}"]
    labelled = "LABELLED_DIR"
    if media.labels is not None and len(set(media.labels) - {-1}) > 1 and pictures == where:
        labelled = where + (f" --label {shlex.quote(label)}" if label else "")
    exports = [f"         mmssl export --model {model} --to {form} --out DIR" for form in objective.encoder.forms][-1:]
    return [
        f"encoder: {as_text(str(run_dir / 'final'))}",
        f"next:    mmssl evaluate --model {model} --data {labelled}{frames}",
        *paired,
        f"         mmssl embed --model {model} --data {pictures}{frames} --out features.parquet",
        *exports,
    ]
