"""CLIP on your own pictures with captions (Radford et al. 2021, arXiv 2103.00020), and SigLIP, FLIP and LiT.

    mmssl tokenizer --kind clip --out TOKENIZER                                      # once; or any other tokenizer.json
    python recipes/image_text_clip.py --data DIR --tokenizer TOKENIZER               # this machine
    torchrun --nproc-per-node 8 recipes/image_text_clip.py --data DIR --tokenizer TOKENIZER     # 8 GPUs
    python recipes/image_text_clip.py --data DIR --tokenizer TOKENIZER --loss siglip            # SigLIP
    python recipes/image_text_clip.py --data DIR --tokenizer TOKENIZER --keep 0.5               # FLIP
    python recipes/image_text_clip.py --data DIR --tokenizer TOKENIZER --lock-image MODEL       # LiT
    python recipes/image_text_clip.py --data DIR --tokenizer TOKENIZER --model tiny --size 64 --patch 8 --epochs 20 \\
        --batch-size 256 --base-lr 5e-4                                              # a first look

DIR holds tar shards in WebDataset's layout (`1.jpg` with `1.txt` or `1.json`), such files themselves, at any depth, or
`train` and `val` with either; or it is a manifest, .csv, .tsv, .jsonl or .parquet, with open_clip's columns `filepath`
and `title` or those that --image-key and --caption-key name. Of several captions of a picture one is drawn each time.
TOKENIZER is a folder with any tokenizer.json.

What is not given is the paper's of the method. CLIP (Radford et al. 2021): ViT-B/16 at 224 pixels, a random square of
the resized picture, 77 tokens, 32 epochs of 400 million pairs, batch 32768, a rate of 5e-4 (4e-4 from large on), 2000
of 390 625 steps of warm-up, weight decay 0.2, betas 0.9 and 0.98, eps 1e-6. SigLIP (Zhai et al. 2023, arXiv
2303.15343): 64 tokens, padding attended, a rate of 1e-3, weight decay 1e-4, betas 0.9 and 0.95. FLIP (Li et al. 2022,
arXiv 2212.00794): 32 tokens, half of the patches, crops of 50-100 % and flips, batch 65536, a rate of 4e-6 * batch /
256, betas 0.9 and 0.95; its tuning at the end is `--keep 1 --init RUN` with another --out. LiT (Zhai et al. 2021, arXiv
2111.07991): batch 16384, a rate of 1e-3, weight decay 1e-4, the middle of each picture: what the locked model makes of
it is computed once, and kept in the run's folder.

Where this is not the authors' code: SigLIP's and LiT's pictures are cut square and not squeezed; FLIP's and LiT's
warm-up, LiT's betas and tokens are CLIP's. Batches are split by `--at-once`, and the loss stays that of the whole
batch. Rates are scaled with the batch: small batches want a larger --base-lr. Run the same command again to resume,
also after a signal (exit code 75). The papers report, zero-shot on ImageNet-1k, 68.6 % (CLIP, B/16) and 68.0 % (FLIP,
B/16); nothing of that size has been trained with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mmssl.cli import run
from mmssl.data import EvalView, PairView, Source, TrainView, View, Vocabulary, WindowView
from mmssl.data.vocabulary import tokenizer_beside
from mmssl.errors import UserError
from mmssl.objectives import CLIP, FLIP, CLIPConfig, LiT, SigLIP, clip_config, flip_config, siglip_config
from mmssl.pretraining.media import open_captioned
from mmssl.pretraining.towers import known_pictures, take_towers, with_image_tower, with_text_tower
from mmssl.recipe import Recipe, from_command_line
from mmssl.training import TrainResult, TrainSettings, distributed
from mmssl.training.run_folder import model_in


@dataclass(frozen=True)
class ImageTextCLIP(Recipe):
    """Pretrain CLIP, SigLIP, FLIP or LiT on pictures with captions. What is not given is the paper's of the method."""

    objective = CLIP

    out: Path = Path("runs/image_text_clip")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the model in `final`."""
    tokenizer: Path | None = None
    """Folder with tokenizer.json, such as `mmssl tokenizer` makes; where not given, the one beside --init-text."""
    image_key: str | None = None
    """A manifest's column of the picture's path, or of the picture; one of the usual names where not given."""
    caption_key: str | None = None
    """A manifest's column of the caption, or its key in the JSON beside pictures; as above."""
    background: str = "white"
    """What transparent parts of pictures show: white, black, grey, #rrggbb or R,G,B."""
    loss: Literal["clip", "siglip"] = "clip"
    """Each picture's caption among all of the batch, or each picture and caption alone."""
    keep: float | None = None  # type: ignore[assignment]
    """FLIP: share of each picture's patches that is read; 1: all, for its tuning at the end."""
    lock_image: str | None = None
    """LiT: the model of pictures that stays as it is, wherever it lies (see --init)."""
    init_image: str | None = None
    """Where the encoder of pictures starts, such as a run of MAE; its sizes are that model's."""
    init_text: str | None = None
    """Where the encoder of texts starts, such as a run of MLM; its sizes are that model's."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Size of the encoder of pictures: 192, 384, 768, 1024 or 1280 wide."""
    size: int = 224
    """Side of the square pictures, in pixels."""
    patch: int | None = None
    """Side of a patch: 16, or CLIP's 14 from large on and FLIP's 14 for huge."""
    length: int | None = None
    """Tokens of the longest caption that is not cut: 77, SigLIP 64, FLIP 32."""
    image_pool: Literal["class", "mean"] | None = None
    """A picture's vector: that of the class token, or the mean of the patches. CLIP's is the class token, FLIP's the
    mean, as is that of a locked model that is none of pairs; SigLIP has a head of its own."""
    crop_scale: tuple[float, float] | None = None
    """Least and largest share of a picture's area in a crop; where not given CLIP's square of the resized picture, and
    FLIP's 0.5 1."""
    flip: float | None = None
    """Probability that such a crop is mirrored: FLIP's 0.5, else 0."""
    packing: Literal["on", "off"] | None = None
    """off: pad captions instead of computing them one behind the other. The loss is the same, but for SigLIP, which
    attends to the padding then, as its authors'. off for SigLIP, else on."""
    epochs: float = 32.0
    """Times that every pair is seen. May be raised on a run that is there."""
    batch_size: int | None = None  # type: ignore[assignment]
    """Pairs of one optimizer step, over all processes: 32768, FLIP 65536, LiT 16384."""
    base_lr: float | None = None  # type: ignore[assignment]
    """Peak learning rate for 256 pairs a step, scaled with the batch: the paper's for its batch."""
    weight_decay: float | None = None  # type: ignore[assignment]
    """A step and unit of learning rate, of matrices alone: 0.2, SigLIP and LiT 1e-4."""
    betas: tuple[float, float] | None = None  # type: ignore[assignment]
    """Shares of the past, a step, in AdamW's two moments: 0.9, and 0.98, SigLIP and FLIP 0.95."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on the disk; 0: all."""

    @property
    def kind(self) -> type[CLIP]:
        """The method. Raises UserError where two are asked for."""
        asked = {
            "--loss siglip": (self.loss == "siglip", SigLIP),
            "--keep": (self.keep is not None, FLIP),
            "--lock-image": (self.lock_image is not None, LiT),
        }
        chosen = {flag: kind for flag, (given, kind) in asked.items() if given}
        own: type[CLIP] = type(self).objective
        meant = [*chosen, *([own.__name__] if own is not CLIP else [])]
        if len(meant) > 1:
            raise UserError(f"{' and '.join(meant)} each mean a method of its own: give one of them")
        return next(iter(chosen.values()), own)

    def settled(self) -> ImageTextCLIP:
        """Itself, with the paper's settings where none are given."""
        large = self.model in ("large", "huge")
        paper: dict[str, Any] = {
            "length": 77,
            "batch_size": 32768,
            "base_lr": (4e-4 if large else 5e-4) * 256 / 32768,
            "weight_decay": 0.2,
            "betas": (0.9, 0.98),
            "eps": 1e-6 if self.kind is CLIP else None,
            "flip": 0.0,
            "packing": "on",
        }
        if self.kind is SigLIP:
            paper |= {"length": 64, "base_lr": 1e-3 * 256 / 32768, "weight_decay": 1e-4, "betas": (0.9, 0.95)}
            paper |= {"packing": "off"}
        elif self.kind is FLIP:
            paper |= {"length": 32, "batch_size": 65536, "base_lr": 4e-6, "betas": (0.9, 0.95)}
            paper |= {"crop_scale": (0.5, 1.0), "flip": 0.5}
        elif self.kind is LiT:
            paper |= {"batch_size": 16384, "base_lr": 1e-3 * 256 / 16384, "weight_decay": 1e-4}
        return self.filled(paper)

    @property
    def paper_warmup(self) -> float:
        """2000 of CLIP's 390 625 steps."""
        return self.epochs * 2000 / 390_625

    def training(self, world_size: int, device: torch.device) -> TrainSettings:
        """The settings of the training loop."""
        settled = replace(self.settled(), keep=self.keep_checkpoints)
        return Recipe.training(settled, world_size, device)

    def vocabulary(self) -> Vocabulary | None:
        """That of the tokenizer that is given, or lies beside the model whose text encoder is taken."""
        beside = None if self.init_text is None else tokenizer_beside(model_in(Path(self.init_text)))
        found = self.tokenizer or beside
        return None if found is None else Vocabulary.read(found)

    def method(self) -> CLIPConfig:
        """The settings of the method; with the paper's vocabulary where no tokenizer is given."""
        settled, vocabulary, kind = self.settled(), self.vocabulary(), self.kind
        shared: dict[str, Any] = {"size": self.size, "length": settled.length}
        shared |= {} if self.patch is None else {"patch": self.patch}
        shared |= {} if vocabulary is None else {"vocab": vocabulary.size}
        packing = settled.packing == "on"
        config: CLIPConfig
        if kind is SigLIP:
            shared |= {} if vocabulary is None else {"pad": vocabulary.pad}
            config = siglip_config(self.model, attend_padding=not packing, **shared)
        elif kind is FLIP:
            assert self.keep is not None
            config = flip_config(self.model, keep=self.keep, seed=self.seed, packing=packing, **shared)
        else:
            config = clip_config(self.model, packing=packing, **shared)
        if vocabulary is not None:
            config = replace(config, end=vocabulary.sep)
        if (source := self.lock_image or self.init_image) is not None:
            config = with_image_tower(config, source, "mean" if self.lock_image else None)
        if self.init_text is not None:
            config = with_text_tower(config, self.init_text, 0 if vocabulary is None else vocabulary.size)
        return config if self.image_pool is None else replace(config, image_pool=self.image_pool)

    def build(self) -> CLIP:
        """The method with fresh weights, but for the towers that are taken from elsewhere."""
        kind = self.kind
        objective = kind(kind.completed(self.method()))
        take_towers(objective, self.lock_image or self.init_image, self.init_text)
        return objective

    def views(self) -> tuple[View | None, View]:
        """How pictures are shown in training, None where what is made of them is known, and those that are held out."""
        settled, middle = self.settled(), EvalView(self.size)
        if self.kind is LiT:
            return None, middle
        if settled.crop_scale is None:
            return WindowView(self.size), middle
        assert settled.flip is not None
        return TrainView(self.size, scale=settled.crop_scale, flip=settled.flip), middle

    def run(self) -> TrainResult:
        """Train on pairs of `data`. Raises UserError without a tokenizer."""
        settled, vocabulary = self.settled(), self.vocabulary()
        if vocabulary is None:
            raise UserError(
                "--tokenizer is missing, a folder with tokenizer.json: `mmssl tokenizer --kind clip --out tokenizer` "
                f"writes CLIP's, `mmssl tokenizer --data {self.data} --out tokenizer` learns one."
            )
        if self.lock_image and self.init_image:
            raise UserError("--lock-image and --init-image both say where the encoder of pictures starts: give one")
        assert settled.length is not None
        length, pad = settled.length, vocabulary.pad
        view, held_out_view = (PairView(each, length, pad) for each in self.views())

        def pairs() -> tuple[Source, Source]:
            taken = {"pictures": self.lock_image or self.init_image, "texts": self.init_text}
            for what, source in taken.items():
                if source is not None and distributed.rank() == 0:
                    print(f"{'starts':<9} from {source}: the encoder of {what}", flush=True)
            keys = {"image_key": self.image_key, "caption_key": self.caption_key}
            settings = {**keys, "background": self.background, "label": self.label, "length": length}
            media, held_out = open_captioned(self.data, vocabulary, self.seed, **settings)
            if self.lock_image is None:
                return media, held_out
            device, place = distributed.init(self.device), self.out / "features"
            return known_pictures(media, self.build(), held_out_view, place, device, workers=self.workers), held_out

        return self.train(pairs, view, held_out_view, beside=vocabulary.files)


def main() -> None:
    from_command_line(ImageTextCLIP, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
