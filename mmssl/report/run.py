"""The report of one run folder, drawn from what the run left there; `mmssl report` draws it again."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmssl.audio import RATE
from mmssl.encoder import single_modality
from mmssl.errors import UserError, as_text
from mmssl.evaluation import Row
from mmssl.objectives import Figure, Objective, load
from mmssl.report.axes import with_axes
from mmssl.report.card import ACCURACIES, leave_card, own_card
from mmssl.report.classes import CLASSES, draw_classes
from mmssl.report.dense import DENSE, DENSE_PICTURE, dense_told
from mmssl.report.page import Report
from mmssl.report.pairs import RETRIEVAL, ZERO_SHOT, retrieval_told, zero_shot_told
from mmssl.report.pictures import attention_maps, coloured, patch_components, side_by_side, strips, tracks
from mmssl.report.sounds import LONGEST, ogg
from mmssl.report.words import WORDS, Spelling, numbers, pieces, spelling, words_told
from mmssl.training import TrainSettings, read_metrics
from mmssl.training.checkpoints import replace_file
from mmssl.training.run_folder import model_in
from mmssl.training.settings import record

PICTURES, TRACKS = "pictures.safetensors", "tracks.safetensors"
TRACK_PARTS = ("frames", "predicted", "truth")
PIXELS = "What its patch features know of every pixel"
# What `mmssl evaluate` leaves beside accuracies, by heading and file.
_TOLD: dict[str, dict[str, Callable[[Any], list[str]]]] = {
    "What it knows of words": {WORDS: words_told},
    "What it knows of pictures by their texts": {ZERO_SHOT: zero_shot_told, RETRIEVAL: retrieval_told},
    PIXELS: {DENSE: dense_told},
}
# Media in a figure: what is seen well at a page's width.
_SHOWN, _CLIPS, _SPECTROGRAMS = 6, 2, 4


@torch.no_grad()
def draw(report: Report, objective: Objective, batch: dict[str, Tensor], spelt: Spelling = numbers) -> None:
    """What a trained method does with some media: what it has to show, and of media that lie on a grid patch features,
    and attention where there is a class token. spelt: how the ids of words are written out."""
    objective = objective.cpu().eval()
    # Samples that are compared are the more telling the more there are.
    asked = batch if objective.compares_samples else _first(batch)
    count = len(next(iter(asked.values())))
    draw_figures(report, objective.figures({**asked, "sample_id": torch.arange(count)}), spelt)
    batch = _first(batch)
    if "waveform" in batch:
        draw_sounds(report, batch)
    encoder = objective.encoder
    if len(encoder.tokenizers) > 1:  # those of the first modality alone
        encoder = encoder.only(next(iter(encoder.tokenizers)))
    modality = single_modality(encoder)
    if not modality.patch:
        return
    there = batch.get(f"{modality.name}.present", torch.ones(len(batch[modality.name]), dtype=torch.bool))
    if not there.any():
        return
    batch = {modality.name: batch[modality.name][there]}
    original = modality.brightness(batch[modality.name])
    report.heading("What its features say")
    tokens = encoder(batch)
    sizes = original.shape[2:]
    grid = [side // patch for side, patch in zip(sizes, modality.patch, strict=True)]
    patches = tokens.x[:, tokens.prefix :].unflatten(1, grid)
    if len(grid) == 2:
        original, patches = modality.upright(original), modality.upright(patches.movedim(-1, 1)).movedim(1, -1)
        if original.shape[-1] > 2 * original.shape[-2]:
            original, patches = original[:_CLIPS], patches[:_CLIPS]
    if original.ndim == 5:  # one picture a slice of tubes: its first frame
        original = original[:_CLIPS, :, :: modality.patch[0]].transpose(1, 2).flatten(0, 1)
        patches = patches[:_CLIPS].flatten(0, 1)
    report.figure(
        patch_components(original, patches, across=3),
        "First three principal components of the patch features as red, green, blue: equal colours, similar features.",
        name="features",
    )
    if encoder.config.prefix and len(grid) == 2:
        weights = modality.upright(encoder.class_attention(batch))[: len(original)]
        report.figure(
            attention_maps(original, weights.mean(1, keepdim=True), across=3),
            "Where the class token of the last block looks: the mean over its heads.",
            name="attention",
        )
        with report.folded("Each head's attention"):
            report.figure(attention_maps(original, weights), "A picture a head.", name="heads")


def _first(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[:_SHOWN] for name, values in batch.items()}


def draw_figures(report: Report, figures: Sequence[Figure], spelt: Spelling = numbers) -> None:
    """What a method has to show, under its headings."""
    heading = ""
    for figure in figures:
        if figure.heading != heading:
            report.heading(heading := figure.heading)
        if figure.table:
            rows = [[pieces(cell, spelt, figure.table.special) for cell in row] for row in figure.table.rows]
            lines = range(len(rows)) if figure.columns else ()
            pictures = [side_by_side([each[line : line + 1] for each in figure.columns]) for line in lines]
            report.words(figure.table.head, rows, figure.caption, pictures)
            continue
        if figure.axes:
            png = with_axes([each[:_SPECTROGRAMS] for each in figure.columns], figure.axes)
        elif figure.columns[0].ndim == 5:
            png = strips([each[:_CLIPS] for each in figure.columns])
        else:
            columns = figure.columns
            if figure.palettes:
                columns = tuple(coloured(*each) for each in zip(columns, figure.palettes, strict=True))
            png = side_by_side(columns, across=1 if len(columns) > 3 else 2)
        report.figure(png, figure.caption, name=figure.name, enlarged=figure.axes is None)


def draw_sounds(report: Report, batch: Mapping[str, Tensor]) -> None:
    """The sounds that a batch's spectrograms were made of (see `mmssl.audio.spectrograms`), to be heard."""
    lengths = batch["waveform.length"].tolist()
    rows = [row[:length] for row, length in zip(batch["waveform"], lengths, strict=True)][:_SPECTROGRAMS]
    longer = f", the first {LONGEST} seconds of each" if max(lengths) > LONGEST * RATE else ""
    report.sounds([ogg(row) for row in rows], f"What there was, to listen to: mono, 16 kHz{longer}.")


def draw_tracks(report: Report, followed: dict[str, Tensor]) -> None:
    """What `save_tracks` left: the propagated masks over the frames, above the true ones."""
    report.heading("What it follows")
    for number in range(len(followed) // 3):
        frames, predicted, truth = (followed[f"{number}.{part}"] for part in TRACK_PARTS)
        report.figure(
            tracks(frames, [predicted, truth]),
            "The first frame's masks carried on by the similarity of frozen features (above), and the true ones.",
            name=f"track{number}",
        )


def save_tracks(run_dir: Path, sequences: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Frames uint8 [T, C, H, W], predicted and true masks uint8 [T, H, W] of some sequences, for the report."""
    parts = {f"{i}.{part}": v.contiguous() for i, all_ in enumerate(sequences) for part, v in zip(TRACK_PARTS, all_)}
    replace_file(run_dir / TRACKS, save(parts))


def summary(objective: Objective, settings: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """What was trained on what, and for how long."""
    encoder = objective.encoder
    tokenizer, transformer = encoder.config.tokenizers[0], encoder.config.transformer
    count = sum(value.numel() for value in encoder.parameters()) / 1e6
    sides, patch = (" x ".join(map(str, each)) for each in (tokenizer.size, tokenizer.modality.patch))
    media = str(settings.get("media", "media")).partition(",")[0]
    where = f" of {as_text(str(settings['recipe.data']))}" if settings.get("recipe.data") else ""
    told = f"{type(objective).__name__} on {media}{where}."
    if metrics:
        last = metrics[-1]
        rates = [row["samples_per_second"] for row in metrics if row.get("samples_per_second")]
        seen = last["seen"] + last["skipped"]
        minutes = seen / (sum(rates) / len(rates)) / 60 if rates else 0
        told += (
            f" It trained for {last['step']:,} steps ({last['epoch']:.4g} epochs, about {minutes:.2g} minutes of "
            f"training alone) and ended at a loss of {last['loss']:.4g}."
        )
        if (held_out := next((row for row in reversed(metrics) if row.get("heldout_loss")), None)) is not None:
            told += f" On held-out media it is {held_out['heldout_loss']:.4g}."
    reads = f"{sides} in patches of {patch}" if patch else f"up to {sides} tokens"
    return (
        f"{told} Its encoder has {transformer.depth} blocks of {transformer.dim}, {count:.3g} M parameters, and reads "
        f"{reads}."
    )


def departures(objective: Objective, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not their defaults: the method's paper's, and MAE's of the training."""
    usual = record(TrainSettings(), {"method": dataclasses.asdict(type(objective.config)())})
    return {name: value for name, value in settings.items() if name in usual and usual[name] != value}


def _told(run_dir: Path, files: Mapping[str, Callable[[Any], list[str]]]) -> list[str]:
    """What those of the files that are there amount to."""
    there = {run_dir / name: tell for name, tell in files.items() if (run_dir / name).is_file()}
    return [line for path, tell in there.items() for line in tell(json.loads(path.read_text()))]


def write_report(run_dir: Path) -> Path:
    """Draw report.html and pictures/ from a run folder, and write the card of its `final`; the page's path.

    A run that still trains is drawn as its newest checkpoint is. Raises UserError where the folder holds no run, or one
    without a checkpoint yet.
    """
    if not (run_dir / "settings.json").is_file():
        raise UserError(f"{run_dir}: no run here (no settings.json); give the folder of one")
    model = model_in(run_dir)
    objective = load(model)
    try:
        media = load_file(run_dir / PICTURES)
        followed = load_file(run_dir / TRACKS) if (run_dir / TRACKS).is_file() else {}
        settings = json.loads((run_dir / "settings.json").read_text())
        told = {heading: _told(run_dir, files) for heading, files in _TOLD.items()}
        classes = json.loads((run_dir / CLASSES).read_text()) if (run_dir / CLASSES).is_file() else None
        found = (run_dir / ACCURACIES).is_file()
        rows = [Row(**row) for row in json.loads((run_dir / ACCURACIES).read_text())] if found else []
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{run_dir}: a file of the run is damaged or missing ({error}); run the same command again"
        ) from error
    if model.name == "final":
        leave_card(model, own_card(objective, model))
    metrics = read_metrics(run_dir)
    report, place = Report(f"{as_text(run_dir.name)}: {type(objective).__name__}"), as_text(shlex.quote(str(run_dir)))
    report.text(summary(objective, settings, metrics))
    if classes is not None:
        draw_classes(report, classes)
    for heading, lines in told.items():
        if lines:
            report.heading(heading)
            report.text("\n\n".join(lines))
        if lines and heading == PIXELS and (run_dir / DENSE_PICTURE).is_file():
            report.figure(
                (run_dir / DENSE_PICTURE).read_bytes(),
                "What is read, what the linear probe makes of the model's features, what is true (grey: not asked).",
                name="dense",
            )
    report.heading("What its features are worth")
    if rows:
        report.accuracies(rows)
    else:
        report.text(
            "Not measured yet. This does it, beside random initialisation and raw media, and draws the report again:"
        )
        report.command(f"mmssl evaluate --model {place} --data LABELLED_DIR --out {place}\nmmssl report {place}")
    if forms := list(objective.encoder.forms):
        report.text("To use the encoder elsewhere:")
        report.command(f"mmssl export --model {place} --to {forms[-1]} --out DIR")
    draw(report, objective, media, spelling(model))
    if followed:
        draw_tracks(report, followed)
    report.heading("How it learned")
    report.curves(metrics)
    report.heading("Settings")
    shown = {name: value for name, value in settings.items() if not name.startswith("recipe.")}
    other = departures(objective, shown)
    if other:
        report.text("What differs from the paper's defaults:")
        report.settings(other)
    with report.folded("All settings"):
        report.settings(shown)
    return report.write(run_dir, pictures=True)
