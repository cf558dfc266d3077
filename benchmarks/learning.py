"""What VideoMAE and SiamMAE learn, against random initialisation and MAE on single frames, on a SEMI-SYNTHETIC set.

    python -m benchmarks.learning                       # everything; an hour on two CPU cores
    python -m benchmarks.learning --steps 20 --clips 64 --test-clips 32     # does it run at all

Training media: the clips that `mmssl data moving-objects` makes (Fashion-MNIST items moving over real videos) and the
real videos that are the backgrounds of its training part, all read from their files. Every method
trains an encoder of the same width and depth for the same number of steps on the same number of clips, one frame or
pair of frames of a clip for the methods that read pictures; the recipes' objectives, views, schedule and loop are used.

Measured on the test part (other items, other backgrounds): top-1 accuracy of a linear probe and of kNN, trained on all
labelled training clips, on the motion of the moving item (8 classes, in pairs that only the order of frames tells
apart) and on its kind (10 classes); and J&F of label propagation. Features of picture encoders are those of all 8
frames joined in order, so that they, too, can tell a movement from its reverse; of video encoders, the mean of all
tokens.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, device_name, markdown, write
from mmssl import MAE, Encoder, SiamMAE, VideoMAE
from mmssl.data import (
    Clips,
    DavisFolder,
    EvalView,
    MultiScaleView,
    Pairs,
    TrainView,
    VideoSource,
    View,
    evaluation_batches,
)
from mmssl.datasets import MOTIONS, fetch_clips, part_clips, write_moving_objects
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import vit_config
from mmssl.evaluation import (
    FeatureSet,
    FrameEncoder,
    evaluate_masks,
    extract,
    knn,
    linear_probe,
    mask_means,
    mask_rows,
    propagate_masks,
)
from mmssl.modality import VIDEO, image
from mmssl.objectives import MAEConfig, Objective, SiamMAEConfig, VideoMAEConfig
from mmssl.objectives.siammae import siammae_decoder_config
from mmssl.objectives.videomae import videomae_decoder_config, videomae_encoder_config
from mmssl.pretraining.pretrain import pretrain
from mmssl.report.run import save_tracks, write_report
from mmssl.training import TrainSettings, read_metrics

SIZE, PATCH, FRAMES, STRIDE, DEPTH = 64, 8, 8, 2, 6
REPEATS = 4
# What README.md and learning.md show of the runs.
PICTURES = {
    "videomae.png": Path("videomae", "pictures", "reconstructions.png"),
    "siammae.png": Path("siammae", "pictures", "reconstructions.png"),
    "siammae-track.png": Path("siammae", "pictures", "track0.png"),
}


@dataclass(frozen=True)
class Entry:
    """One method: its objective, what it reads of a clip, and how that is cut."""

    objective: Objective
    clips: Clips | Pairs
    view: View


def entries() -> dict[str, Entry]:
    """The methods, every encoder 192 wide with 6 blocks of 3 heads, every decoder two blocks of 96."""
    torch.manual_seed(0)
    pictures = vit_config("tiny", modality=image(3, (PATCH, PATCH)), input_size=(SIZE, SIZE))
    pictures = replace(pictures, transformer=replace(pictures.transformer, depth=DEPTH))
    tubes = replace(VIDEO, patch=(2, PATCH, PATCH))
    clips = videomae_encoder_config("tiny", modality=tubes, input_size=(FRAMES, SIZE, SIZE))
    clips = replace(clips, transformer=replace(clips.transformer, depth=DEPTH))
    crops = TrainView(SIZE, scale=(0.5, 1.0))
    return {
        "MAE on single frames": Entry(
            MAE(MAEConfig(pictures, mae_decoder_config(96, 2, 3), norm_pix=True)), Pairs(), crops
        ),
        "SiamMAE": Entry(SiamMAE(SiamMAEConfig(pictures, siammae_decoder_config(96, 2, 3))), Pairs(), crops),
        "VideoMAE": Entry(
            VideoMAE(VideoMAEConfig(clips, videomae_decoder_config(96, 2, 3))),
            Clips(FRAMES, STRIDE),
            MultiScaleView(SIZE),
        ),
    }


def training_list(data: Path, videos: Path) -> Path:
    """A manifest of the training clips and, for a fifth of the samples, the real videos behind them."""
    made = sorted((data / "train").rglob("*.mp4"))
    real = part_clips(videos, "train")
    path = data / "train-all.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        rows.writerows([str(clip.resolve())] for clip in [*made, *real * (len(made) // 4 // len(real))])
    return path


def accuracies(encoder: Encoder, data: Path) -> dict[str, float]:
    """Linear probe and kNN on motion and item, in per cent."""
    found: dict[str, FeatureSet] = {}
    for part in ("train", "test"):
        source = VideoSource(data / f"{part}-items.csv", Clips(FRAMES, STRIDE, spread=1), short_side=SIZE)
        batches = evaluation_batches(source, EvalView(SIZE, resize=SIZE), batch_size=50)
        reader = encoder if "video" in encoder.tokenizers else FrameEncoder(encoder)
        found[part] = extract(reader, batches, names=source.paths)
    train, test = found["train"], found["test"]
    assert train.labels is not None and test.labels is not None
    columns: dict[str, float] = {}
    for label, shown, asked in (
        ("motion", motions(train), motions(test)),
        ("item", train.labels, test.labels),
    ):
        for probe, predicted in (
            ("linear", linear_probe(train.features, shown).predict(test.features)),
            ("kNN", knn(train.features, shown, test.features)),
        ):
            columns[f"{label}, {probe}"] = round(100 * (predicted == asked).float().mean().item(), 1)
    return columns


def motions(clips: FeatureSet) -> torch.Tensor:
    """The motion class of each clip, by its folder."""
    return torch.tensor([MOTIONS.index(name.split("/")[-2]) for name in clips.names or []])


def following(encoder: Encoder, data: Path) -> dict[str, float]:
    """J&F of label propagation, in per cent, on frames of their own size and of twice that."""
    folders = {side: DavisFolder(data / "davis", short_side=side) for side in (SIZE, 2 * SIZE)}
    scores = {side: mask_means(evaluate_masks(encoder, folder)).both for side, folder in folders.items()}
    return {f"J&F, {side} px": round(100 * score, 1) for side, score in scores.items()}


def left_in_place(data: Path) -> dict[str, float]:
    """The same for a tracker that leaves the first mask where it is."""
    scores = {}
    for side in (SIZE, 2 * SIZE):
        folder = DavisFolder(data / "davis", short_side=side)
        rows = [row for s in folder for row in mask_rows(s.name, s.masks[:1].expand_as(s.masks), s.masks)]
        scores[f"J&F, {side} px"] = round(100 * mask_means(rows).both, 1)
    return scores


def pretrained(name: str, entry: Entry, manifest: Path, held_out: Path, run: Path, options: argparse.Namespace) -> None:
    """Train one method into its run folder, or go on with what is there."""
    settings = TrainSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        warmup_epochs=options.steps / 20 * options.batch_size / (REPEATS * 1.25 * options.clips),
        base_lr=1e-3 * 256 / options.batch_size,
        log_every=20,
        save_every=500,
        validate_every=max(1, options.steps // 4),
    )
    pretrain(
        entry.objective,
        VideoSource(manifest, entry.clips, short_side=SIZE),
        VideoSource(held_out, replace(entry.clips, spread=1), short_side=SIZE),
        settings,
        run,
        view=entry.view,
        held_out_view=EvalView(SIZE, resize=SIZE),
        device=torch.device("cpu"),
        workers=options.workers,
        repeats=REPEATS,
        watch=64,
        context={"method": name},
    )


def minutes(run: Path, batch_size: int) -> float:
    """What the training took, whichever calls did it."""
    seconds, before = 0.0, 0
    for row in read_metrics(run):
        seconds, before = seconds + (row["step"] - before) * batch_size / row["samples_per_second"], row["step"]
    return round(seconds / 60, 1)


def draw(encoder: Encoder, data: Path, run: Path) -> Path:
    """The run's report, with objects followed through three test clips."""
    sequences = list(itertools.islice(DavisFolder(data / "davis", short_side=SIZE), 3))
    followed = [propagate_masks(encoder, each.frames, each.masks[0]) for each in sequences]
    save_tracks(run, [(each.frames, masks, each.masks) for each, masks in zip(sequences, followed, strict=True)])
    return write_report(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--test-clips", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    videos = fetch_clips(options.out.parent / "data" / "clips")
    sizes = {"train": options.clips, "test": options.test_clips, "size": SIZE}
    shown = write_moving_objects(options.out / f"moving-objects-{options.clips}", videos, frames=16, **sizes)
    # of 15 frames, every second from the first to the last: a movement and its reverse show the same ones
    data = write_moving_objects(
        options.out / f"labelled-{options.clips}", videos, frames=(FRAMES - 1) * STRIDE + 1, **sizes
    )
    manifest = training_list(shown, videos)
    rows: list[dict[str, Any]] = [{"encoder": "none: the first mask stays where it is", **left_in_place(data)}]
    for name, entry in entries().items():
        encoder = entry.objective.encoder
        untrained = f"random initialisation, {'tubes' if 'video' in encoder.tokenizers else 'frames'}"
        if untrained not in [row["encoder"] for row in rows]:
            rows.append({"encoder": untrained, **accuracies(encoder, data), **following(encoder, data)})
        run = options.out / name.lower().replace(" ", "-")
        pretrained(name, entry, manifest, shown / "test", run, options)
        measured = {**accuracies(encoder, data), **following(encoder, data)}
        rows.append({"encoder": name, **measured, "training, minutes": minutes(run, options.batch_size)})
        print(f"{markdown(aligned(rows))}\n{draw(encoder, data, run)}", flush=True)
    for name, picture in PICTURES.items():
        shutil.copyfile(options.out / picture, RESULTS / name)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    content = {"settings": settings, "rows": aligned(rows)}
    print(f"\n{device_name(torch.device('cpu'))}\n\n{write('learning-video', torch.device('cpu'), content)}")


def aligned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the same columns, those that have no value left empty."""
    columns = dict.fromkeys(column for row in rows for column in row)
    order = sorted(columns, key=lambda column: (column[:8] == "training", column[:3] == "J&F", column != "encoder"))
    return [{column: row.get(column, "") for column in order} for row in rows]


if __name__ == "__main__":
    main()
