"""Raw media to batches: sources, decoding, views, and the deterministic loader.

`Loader(open_source(path), TrainView(224), batch_size=64).batches(0, 100)` is the whole of it for training,
`evaluation_batches(source, EvalView(224), batch_size=64)` for evaluation; for videos the source is
`open_videos(path, "train", Clips(frames=16, stride=4), short_side=256)`, and methods that match two views take
`MultiView((Crop(224, augmentation=SIMCLR_COLOURS),) * 2)`. Fine-tuning has labels, and partners to mix with, of
`Loader(..., labelled=True, partners=True)`, and `Crop(224, augmentation=Compose((RandAugment(), Erasing())))`.
For sounds the source is `open_sounds(path, "train", SoundClips(10.0))` and the view `SoundView(1024)`, for texts
`open_texts(path, tokenizer, "train", length=512)` and `TextView(512)`, for pictures with captions
`open_pairs(path, tokenizer, "train", length=77)` and `PairView(WindowView(224), 77)`, and for aligned rasters
`source = open_aligned(path, "train")` and `source.view(Crop(224))`.
"""

from mmssl.data.aligned import AlignedSource, AlignedView, AskedView, open_aligned
from mmssl.data.augment import BYOL_COLOURS, DINO_COLOURS, SIMCLR_COLOURS, Augmentation, Change, Compose
from mmssl.data.decode import BrokenSample, decode
from mmssl.data.erasing import Erasing
from mmssl.data.folders import NoTestPart
from mmssl.data.loader import Ledger, Loader, evaluation_batches
from mmssl.data.pairs import KnownPictures, PairFiles, PairSource, PairView, open_pair_files, open_pairs, text_batch
from mmssl.data.randaugment import RandAugment
from mmssl.data.rasters import Raster
from mmssl.data.sequences import DavisFolder, JhmdbFolder, MaskSequence, PointSequence
from mmssl.data.shards import Shards
from mmssl.data.sound import MixedSource, SoundClips, SoundSource, SoundView, open_sounds
from mmssl.data.source import (
    ArraySource,
    DrawnSource,
    FolderSource,
    JoinedSource,
    Source,
    Subset,
    blending_told,
    hold_out,
    label_sets,
    notes,
    open_source,
    read_slots,
    subset,
)
from mmssl.data.stages import Stage, StagedLoader
from mmssl.data.text import TextSource, TextView, open_texts
from mmssl.data.video import Clips, Pairs, Sampling, VideoSource, open_videos
from mmssl.data.views import Crop, EvalView, Keys, MultiScaleView, MultiView, TrainView, View, WindowView
from mmssl.data.vocabulary import Vocabulary

__all__ = [
    "BYOL_COLOURS",
    "DINO_COLOURS",
    "SIMCLR_COLOURS",
    "AlignedSource",
    "AlignedView",
    "ArraySource",
    "AskedView",
    "Augmentation",
    "BrokenSample",
    "Change",
    "Clips",
    "Compose",
    "Crop",
    "DavisFolder",
    "DrawnSource",
    "Erasing",
    "EvalView",
    "FolderSource",
    "JhmdbFolder",
    "JoinedSource",
    "Keys",
    "KnownPictures",
    "Ledger",
    "Loader",
    "MaskSequence",
    "MixedSource",
    "MultiScaleView",
    "MultiView",
    "NoTestPart",
    "PairFiles",
    "PairSource",
    "PairView",
    "Pairs",
    "PointSequence",
    "RandAugment",
    "Raster",
    "Sampling",
    "Shards",
    "SoundClips",
    "SoundSource",
    "SoundView",
    "Source",
    "Stage",
    "StagedLoader",
    "Subset",
    "TextSource",
    "TextView",
    "TrainView",
    "VideoSource",
    "View",
    "Vocabulary",
    "WindowView",
    "blending_told",
    "decode",
    "evaluation_batches",
    "hold_out",
    "label_sets",
    "notes",
    "open_aligned",
    "open_pair_files",
    "open_pairs",
    "open_sounds",
    "open_source",
    "open_texts",
    "open_videos",
    "read_slots",
    "subset",
    "text_batch",
]
