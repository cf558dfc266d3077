"""The report of one run folder, drawn from what the run left there; `mmssl report` draws it again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Float
from mmssl_kernels import unpatchify
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.evaluation import Row
from mmssl.objectives import MAE
from mmssl.report.page import Report
from mmssl.report.pictures import attention_maps, patch_components, reconstructions
from mmssl.tokenizer import Batch
from mmssl.training import read_metrics
from mmssl.transformer import Attention, Block

PICTURES, ACCURACIES = "pictures.safetensors", "accuracies.json"


@torch.no_grad()
def class_attention(encoder: Encoder, batch: Batch) -> Float[Tensor, "batch heads rows columns"]:
    """How the class token of the last block attends to the patches of a picture, each head's weights on the grid.

    Raises ValueError for an encoder without a class token.
    """
    if not encoder.config.prefix:
        raise ValueError("this encoder has no class token whose attention could be drawn")
    name = next(iter(encoder.sizes(batch)))
    x, *_ = encoder.sequence(batch)
    *before, last = cast(list[Block], list(encoder.transformer.blocks))
    x = encoder.transformer.input_norm(x)
    for block in before:
        x = block(x)
    attention = cast(Attention, last.attn.layer)
    q, k, _ = attention.packed(x if last.attn.post_norm else last.attn.norm(x)).unbind(2)
    scores = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) * q.shape[-1] ** -0.5
    return scores.softmax(-1)[..., encoder.config.prefix :].unflatten(-1, encoder.tokenizer(name).grid(batch))


@torch.no_grad()
def draw_pictures(report: Report, objective: MAE, pictures: Tensor) -> None:
    """Reconstructions, patch features and attention of a trained MAE on some pictures."""
    objective = objective.cpu().eval()
    batch = {"image": pictures, "sample_id": torch.arange(len(pictures))}
    out = objective(batch)
    grid, patch = objective.tokenizer.grid(batch), objective.modality.patch
    original = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    report.heading("What it predicts")
    report.figure(
        reconstructions(
            original,
            hidden_pixels(out.mask.hide.boolean(out.mask.count), patch, grid),
            objective.reconstruct(batch, out),
        ),
        f"Held-out pictures: {objective.config.mask_ratio:.0%} hidden, what the model predicts there, the original.",
        name="reconstructions",
    )
    report.heading("What its features say")
    tokens = objective.encoder(batch)
    report.figure(
        patch_components(original, tokens.x[:, tokens.prefix :].unflatten(1, grid)),
        "First three principal components of the patch features as red, green, blue: equal colours, similar features.",
        name="features",
    )
    report.figure(
        attention_maps(original, class_attention(objective.encoder, batch)),
        "Where the class token of the last block looks, a picture a head.",
        name="attention",
    )


def hidden_pixels(
    hidden: Bool[Tensor, "batch patches"], patch: tuple[int, ...], grid: tuple[int, ...]
) -> Bool[Tensor, "batch 1 *axes"]:
    """Hidden patches as hidden pixels."""
    return unpatchify(hidden[..., None].expand(-1, -1, math.prod(patch)), patch, grid)


def write_report(run_dir: Path) -> Path:
    """Draw report.html and pictures/ from a run folder; the page's path.

    Raises UserError where the folder holds no finished run.
    """
    if not (run_dir / "final").is_dir():
        raise UserError(f"{run_dir}: no finished run here (no folder `final`); run the training to its end first")
    objective = MAE.from_pretrained(run_dir / "final")
    try:
        pictures = load_file(run_dir / PICTURES)["image"]
        settings = json.loads((run_dir / "settings.json").read_text())
        found = (run_dir / ACCURACIES).is_file()
        rows = [Row(**row) for row in json.loads((run_dir / ACCURACIES).read_text())] if found else []
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{run_dir}: a file of the run is damaged or missing ({error}); run the same command again"
        ) from error
    report = Report(f"{run_dir.name}: masked autoencoder")
    if rows:
        report.heading("What the features are worth")
        report.accuracies(rows)
    draw_pictures(report, objective, pictures)
    report.heading("How it learned")
    report.curves(read_metrics(run_dir))
    report.heading("Settings")
    report.settings(settings)
    return report.write(run_dir, pictures=True)
