"""Writes what later versions must still read: `python -m tests.formats.write NUMBER`, once for each format number, and
`NUMBER NAME` for a method that comes later.

An archive a method, under the format's number, since a tiny model is mostly names: a tiny `objective` and `encoder`, a
run's checkpoint in the middle, and in expected.json what they gave when they were written. Everything is made of
integers and the house's own noise, so that any machine makes the same media.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from mmssl.audio import BANDS, log_mel, samples_of, spectrograms
from mmssl.data import AlignedView, Crop, EvalView, SoundView, TextView, TrainView
from mmssl.data.rasters import Raster
from mmssl.decoder import DecoderConfig
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.masking.noise import Keys, random_bits
from mmssl.modality import AUDIO, DEPTH, SEMSEG, TEXT, VIDEO, image
from mmssl.objectives import (
    CLIP,
    FLIP,
    M3AE,
    MAE,
    MLM,
    AudioMAE,
    AudioMAEConfig,
    CLIPConfig,
    FLIPConfig,
    LiT,
    M3AEConfig,
    MAEConfig,
    MLMConfig,
    MultiMAE,
    MultiMAEConfig,
    Objective,
    SiamMAE,
    SiamMAEConfig,
    SigLIP,
    SigLIPConfig,
    VideoMAE,
    VideoMAEConfig,
)
from mmssl.objectives.rasters import raster_tasks
from mmssl.objectives.towers import text_config
from mmssl.pretraining.pretrain import pretrain
from mmssl.tokenizer import TokenizerConfig
from mmssl.training import TrainSettings, read_metrics
from mmssl.transformer import TransformerConfig, WindowConfig

HERE = Path(__file__).parent
SIZE, PATCH, STEPS = 16, 4, 6
FRAMES, SOUND_PATCH = 8, (2, 16)
VIDEO_PATCH = (2, PATCH, PATCH)
WORDS, LENGTH = 32, 12

CLASSES = 3
RASTERS = (
    Raster(image(3, (PATCH, PATCH)), "rgb"),
    Raster(dataclasses.replace(DEPTH, patch=(PATCH, PATCH)), "depth"),
    Raster(dataclasses.replace(SEMSEG, channels=CLASSES, patch=(2, 2), embedding=2), "labels", stride=PATCH // 2),
)

ENCODER = TransformerConfig(8, 1, 2, hidden=16)
DECODER = TransformerConfig(8, 1, 2, hidden=8)
SETTINGS = TrainSettings(
    steps=STEPS, batch_size=4, base_lr=0.05, warmup_steps=1, save_every=3, log_every=1, keep=0, precision="fp32"
)


def methods() -> dict[str, Objective]:
    """A tiny model of each method, with fresh weights."""
    pictures = EncoderConfig((TokenizerConfig(image(3, (PATCH, PATCH)), (SIZE, SIZE)),), ENCODER)
    spectrogram = dataclasses.replace(AUDIO, patch=SOUND_PATCH)
    sounds = EncoderConfig((TokenizerConfig(spectrogram, (FRAMES, BANDS)),), dataclasses.replace(ENCODER, hidden=8))
    windows = TransformerConfig(4, 2, 2, hidden=4, norm_order="res_post", window=WindowConfig(hidden=4))
    tubes = TokenizerConfig(dataclasses.replace(VIDEO, patch=VIDEO_PATCH), (4, SIZE, SIZE), "sincos_interleaved")
    clips = EncoderConfig((tubes,), dataclasses.replace(ENCODER, qkv_bias="query_value"), prefix=0)
    cross = DecoderConfig(dataclasses.replace(DECODER, branches=("cross", "attn", "mlp")))
    no_key_bias = dataclasses.replace(DECODER, qkv_bias="query_value")
    tubes_decoder = DecoderConfig(no_key_bias, "sincos_interleaved", "visible_hidden", bias=False)
    words = TokenizerConfig(dataclasses.replace(TEXT, channels=WORDS), (LENGTH,), "learned", segments=2)
    bert = dataclasses.replace(ENCODER, norm_order="post", input_norm=True, final_norm=False)
    texts = EncoderConfig((words,), bert, prefix=0)
    learned = TokenizerConfig(image(3, (PATCH, PATCH)), (SIZE, SIZE), "learned", unbiased=True)
    seen = EncoderConfig((learned,), dataclasses.replace(ENCODER, activation="quick_gelu", input_norm=True))
    patches = EncoderConfig((dataclasses.replace(learned, unbiased=False),), ENCODER, prefix=0)
    aligned = [each.modality for each in RASTERS]
    tables = tuple(TokenizerConfig(each, (SIZE, SIZE), "sincos_row_first") for each in aligned[:2])
    tables += (TokenizerConfig(aligned[2], (SIZE // 2, SIZE // 2), "sincos_row_first"),)
    several = EncoderConfig(tables, dataclasses.replace(ENCODER, hidden=8, final_norm=False), bare_prefix=True)
    joint = TransformerConfig(4, 1, 2, hidden=4, final_norm=False)
    captions = {"vocab": WORDS, "length": LENGTH, "hidden": 16}
    told = TokenizerConfig(dataclasses.replace(TEXT, channels=WORDS), (LENGTH,))
    both = EncoderConfig((*pictures.tokenizers, told), ENCODER, bare_prefix=True, modality_embedding=True)
    read, causal = (text_config((8, 1, 2), **captions, causal=each) for each in (False, True))
    return {
        "MAE": MAE(MAEConfig(pictures, DecoderConfig(DECODER), norm_pix=True, seed=3)),
        "SiamMAE": SiamMAE(SiamMAEConfig(pictures, cross, mask_ratio=0.75)),
        "VideoMAE": VideoMAE(VideoMAEConfig(clips, tubes_decoder, mask_ratio=0.75)),
        "AudioMAE": AudioMAE(AudioMAEConfig(sounds, DecoderConfig(windows))),
        "MultiMAE": MultiMAE(MultiMAEConfig(several, raster_tasks(aligned)[1:], joint, visible=10, subsets=True)),
        "MLM": MLM(MLMConfig(texts, masking="words", mask=3, special=(0, 1, 2))),
        "CLIP": CLIP(CLIPConfig(seen, causal, 8)),
        "FLIP": FLIP(FLIPConfig(pictures, read, 8)),
        "LiT": LiT(CLIPConfig(pictures, causal, None, end=WORDS - 1)),
        "SigLIP": SigLIP(SigLIPConfig(patches, read)),
        "M3AE": M3AE(M3AEConfig(both, DecoderConfig(DECODER))),
    }


PAIRS = ("CLIP", "FLIP", "LiT", "SigLIP", "M3AE")


@dataclasses.dataclass(frozen=True)
class PairView:
    """Pictures by their own view, and the texts that belong to them."""

    pictures: TrainView | EvalView

    def __call__(self, samples: Iterable[dict[str, torch.Tensor]], keys: Keys) -> dict[str, torch.Tensor]:
        pairs = list(samples)
        images, texts = ([{name: each[name]} for each in pairs] for name in ("image", "text"))
        return self.pictures(images, keys) | TextView(LENGTH)(texts, keys)


class Media:
    """Samples of what a method reads, made of noise."""

    labels = None
    classes: list[str] = []  # noqa: RUF012
    channels = 3

    def __init__(self, method: str, count: int):
        self.method, self.count = method, count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"made[{index}]"

    def read(self, index: int) -> dict[str, torch.Tensor]:
        def made(stream: str, *shape: int) -> torch.Tensor:
            bits = random_bits(torch.Size(shape).numel(), seed=0, stream=stream, sample_id=torch.tensor([index]))
            return (bits[0] >> 54).to(torch.uint8).view(shape)

        if self.method == "MLM":
            tokens = 4 + made("text", LENGTH)[: LENGTH - index % 4].long() % (WORDS - 4)
            tokens[0], tokens[-1] = 1, 2
            places = torch.arange(len(tokens))
            segment, following = (places > 5).long(), torch.tensor(index % 2)
            return {"text": tokens, "text.words": places // 2, "text.segment": segment, "text.next": following}
        if self.method == "AudioMAE":
            return {"waveform": made("waveform", samples_of(FRAMES)) / 512 - 1}
        if self.method == "VideoMAE":
            return {"video": made("video", 3, 4, 20, 24)}
        if self.method in PAIRS:
            tokens = 1 + made("text", LENGTH)[: LENGTH - index % 4].long() % (WORDS - 2)
            tokens[-1] = WORDS - 1
            return {"image": made("image", 3, 20, 24), "text": tokens}
        if self.method == "MultiMAE":
            rasters = {name: made(name, channels, 20, 24) for name, channels in (("image", 3), ("depth", 1))}
            labels = {} if index == 1 else {"semseg": made("semseg", 1, 20, 24) % CLASSES}
            return rasters | {"depth": rasters["depth"].float() / 100} | labels
        frames = {"image": made("image", 3, 20, 24)}
        return frames | ({"image.1": made("image.1", 3, 20, 24)} if self.method == "SiamMAE" else {})


def aligned_view(crop: Crop | EvalView) -> AlignedView:
    """The view of the rasters, of which one sample lacks the labels."""
    return AlignedView(crop, RASTERS, ("semseg",))


def media_batch(method: str) -> dict[str, torch.Tensor]:
    """Two samples at the size of the tiny models."""
    ids = torch.arange(2)
    samples = [Media(method, 2).read(index) for index in (0, 1)]
    keys = {"sample_id": ids, "epoch": ids * 0, "draw": ids * 0}
    if method == "MLM":
        return TextView(LENGTH)(samples, Keys(0, ids, ids * 0, ids * 0)) | keys
    if method in PAIRS:
        return PairView(EvalView(SIZE))(samples, Keys(0, ids, ids * 0, ids * 0)) | keys
    if method == "MultiMAE":
        return aligned_view(EvalView(SIZE))(samples, Keys(0, ids, ids * 0, ids * 0)) | keys
    media = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    if method == "AudioMAE":
        return {"audio": log_mel(media["waveform"], FRAMES)} | keys
    return {name: values[..., :SIZE, :SIZE] for name, values in media.items()} | keys


@torch.no_grad()
def numbers(objective: Objective, encoder: Encoder, method: str) -> dict[str, object]:
    """What a model and an encoder make of `media_batch`."""
    batch = media_batch(method)
    objective.eval(), encoder.eval()
    reads = {name: values for name, values in batch.items() if name.partition(".")[0] in encoder.tokenizers}
    return {"loss": float(objective(batch).loss), "features": encoder.features(reads).tolist()}


def run(objective: Objective, method: str, folder: Path) -> list[dict[str, object]]:
    """Train `objective` in `folder`, or go on there: the losses and norms of the steps that this call made."""
    cropped, whole = TrainView(SIZE, scale=(0.5, 1.0)), EvalView(SIZE)
    view, held_out_view = {
        "AudioMAE": (SoundView(FRAMES, gain=True), SoundView(FRAMES, on_device=True)),
        "MLM": (TextView(LENGTH), TextView(LENGTH)),
        "MultiMAE": (aligned_view(Crop(SIZE, (0.5, 1.0))), aligned_view(EvalView(SIZE))),
        **dict.fromkeys(PAIRS, (PairView(cropped), PairView(whole))),
    }.get(method, (cropped, whole))
    pretrain(
        objective,
        Media(method, 10),
        Media(method, 2),
        SETTINGS,
        folder,
        view=view,
        held_out_view=held_out_view,
        prepare=spectrograms,
        device=torch.device("cpu"),
        context={"method": dataclasses.asdict(objective.config)},
    )
    return [{name: row[name] for name in ("step", "loss", "grad_norm")} for row in read_metrics(folder)]


def main(version: str, *names: str) -> None:
    for name, method in methods().items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder, middle = Path(place) / name, f"step-{STEPS // 2:08d}"
            rows = run(method, name, Path(place) / "whole")
            shutil.copytree(Path(place) / "whole" / middle, folder / "run" / middle)
            method.save_pretrained(folder / "objective")
            method.encoder.save_pretrained(folder / "encoder")
            expected = numbers(method, method.encoder, name) | {"rows": rows[STEPS // 2 :]}
            (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
            shutil.make_archive(str(HERE / version / name), "xztar", folder)


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
