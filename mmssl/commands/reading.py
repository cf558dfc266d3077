"""How media are read for a frozen encoder: what `mmssl embed` and `mmssl evaluate` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Batches, pooling, labels, and which clips of a video or sound."""

    pool: Literal["mean", "class"] = "mean"
    batch_size: int = 64
    workers: int = 2
    device: str = "auto"
    label: str | None = None
    """What a manifest, a file of texts, or the JSON beside a sample in tar shards, calls the class; where not given
    `label` in manifests, or `labels` for several each, in shards the text of `.cls`, and nothing in texts."""
    clips: int = 1
    """Clips of each video or sound, evenly spread; their features are averaged."""
    stride: int = 4
    """From one frame of a clip to the next, in the video's average frame intervals."""
    frames: int = 0
    """Ask a model of pictures about videos: frames of a clip, whose features are joined."""
    field: str = "text"
    """What .jsonl, .csv and .parquet call the text, for a model of texts; what manifests and JSON call the caption of
    pairs, one of the usual names where this is left as it is."""
    tokenizer: Path | None = None
    """Folder with the tokenizer.json of a model of texts; where not given, the one beside the model."""
    background: str = "white"
    """What transparent parts of pictures show: white, black, grey, #rrggbb or R,G,B."""
    modalities: tuple[str, ...] = ()
    """Of aligned data, one folder a modality (or a column of a manifest, or members of shards): name=folder for each of
    image, depth and semseg, or a .toml file that declares any; modalities.toml in or beside the data where not
    given."""
    inputs: tuple[str, ...] = ()
    """Modalities to read, by name or folder, of a model that reads several; all that it and the data have where not
    given."""
