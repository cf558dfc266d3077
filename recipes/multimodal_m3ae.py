"""M3AE on your own pictures and texts, paired or not (Geng et al. 2022, arXiv 2205.14204).

    mmssl tokenizer --data TEXTS --out TOKENIZER                                     # once; or any other tokenizer.json
    python recipes/multimodal_m3ae.py --data PAIRS --tokenizer TOKENIZER             # this machine
    torchrun --nproc-per-node 8 recipes/multimodal_m3ae.py --data PAIRS --tokenizer TOKENIZER       # 8 GPUs
    python recipes/multimodal_m3ae.py --data PAIRS --pictures DIR --texts TEXTS --tokenizer TOKENIZER
    python recipes/multimodal_m3ae.py --data PAIRS --tokenizer TOKENIZER --model tiny --size 64 --epochs 20 \\
        --batch-size 256 --base-lr 1e-3                                              # a first look

PAIRS holds tar shards in WebDataset's layout (`1.jpg` with `1.txt` or `1.json`), such files themselves, or `train` and
`val` with either; or it is a manifest, .csv, .tsv, .jsonl or .parquet (see recipes/image_text_clip.py). Pictures
without texts and texts without pictures are trained on besides, or alone: DIR as in recipes/image_mae.py, TEXTS as in
recipes/text_mlm.py, each document cut to `--length`. TOKENIZER is a folder with any tokenizer.json.

The defaults are the authors' (young-geng/m3ae_public): patches of 16 in pictures of 256 pixels, crops of 20-100 % of
the area and flips, 64 word pieces, three quarters of both hidden, squared error of pixels and half the cross-entropy of
words, 100 epochs with 5 of warm-up, batch 4096, a rate of 1.5e-4 * batch / 256, weight decay 0.05. Theirs is a ViT-L
(`--model large`) on Conceptual 12M.

Where this is not the authors' code: masks are drawn for each sample, not for a batch; texts keep the tokens that begin
and end them, which are always seen and never predicted; unpaired texts count in the same mean as captions, and there is
no VQGAN. Run the same command again to resume, also after a signal (exit code 75). Nothing of the paper's size has been
trained with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmssl.cli import run
from mmssl.data import EvalView, JoinedSource, PairView, Source, TrainView, Vocabulary
from mmssl.errors import UserError
from mmssl.objectives import M3AE, M3AEConfig, m3ae_config
from mmssl.pretraining.media import open_captioned, open_documents, open_pictures
from mmssl.recipe import DecoderRecipe, from_command_line
from mmssl.training import TrainResult


@dataclass(frozen=True)
class MultimodalM3AE(DecoderRecipe):
    """Pretrain M3AE on pictures and texts, paired or not."""

    objective = M3AE

    data: Path | None = None  # type: ignore[assignment]
    """Pictures with captions."""
    pictures: Path | None = None
    """Pictures without texts."""
    texts: Path | None = None
    """Texts without pictures."""
    out: Path = Path("runs/multimodal_m3ae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    tokenizer: Path | None = None
    """Folder with tokenizer.json, such as `mmssl tokenizer` makes."""
    image_key: str | None = None
    """A manifest's column of the picture's path, or of the picture; one of the usual names where not given."""
    caption_key: str | None = None
    """A manifest's column of the caption, or its key in the JSON beside pictures; as above."""
    field: str = "text"
    """What .jsonl, .csv and .parquet of --texts call the text."""
    document: Literal["line", "paragraph"] = "line"
    """Of .txt files in --texts: each line is a document, or blank lines divide them."""
    background: str = "white"
    """What transparent parts of pictures show: white, black, grey, #rrggbb or R,G,B."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Size of the encoder: 192, 384, 768, 1024 or 1280 wide."""
    size: int = 256
    """Side of the square crops, in pixels."""
    patch: int = 16
    """Side of a patch."""
    length: int = 64
    """Tokens of the longest text that is not cut."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    text_mask_ratio: float = 0.75
    """Share of the words that is hidden."""
    text_weight: float = 0.5
    """Of the words' term in the loss, where that of the pixels is 1."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of a picture's area in a crop."""
    flip: float = 0.5
    """Probability that a crop is mirrored."""
    epochs: float = 100.0
    """Times that every sample is seen. May be raised on a run that is there."""

    @property
    def given(self) -> list[Path]:
        """All that there is to learn from; raises UserError for nothing."""
        places = [place for place in (self.data, self.pictures, self.texts) if place is not None]
        if not places:
            raise UserError("there is nothing to learn from: give --data of pairs, --pictures or --texts.")
        return places

    @property
    def place(self) -> Path:
        """Pairs, or what is given instead."""
        return self.given[0]

    def method(self) -> M3AEConfig:
        """The settings of M3AE; with the paper's vocabulary where no tokenizer is given."""
        words: dict[str, Any] = {}
        if self.tokenizer is not None:
            vocabulary = Vocabulary.read(self.tokenizer)
            words = {"vocab": vocabulary.size, "special": vocabulary.framing}
        return m3ae_config(
            self.model,
            size=self.size,
            patch=self.patch,
            length=self.length,
            mask_ratio=self.mask_ratio,
            text_mask_ratio=self.text_mask_ratio,
            text_weight=self.text_weight,
            seed=self.seed,
            decoder_dim=self.decoder_dim,
            decoder_depth=self.decoder_depth,
            **words,
        )

    def media(self, vocabulary: Vocabulary) -> tuple[Source, Source]:
        """All that is given, to train on and held out: pairs first, then pictures, then texts."""
        keys: dict[str, Any] = {"image_key": self.image_key, "caption_key": self.caption_key, "label": self.label}
        rows: dict[str, Any] = {"packing": "document", "field": self.field, "document": self.document}
        opened: list[tuple[Source, Source]] = []
        if self.data is not None:
            pairs = {**keys, "background": self.background, "length": self.length}
            opened.append(open_captioned(self.data, vocabulary, self.seed, **pairs))
        if self.pictures is not None:
            opened.append(open_pictures(self.pictures, 3, self.seed, self.background))
        if self.texts is not None:
            opened.append(open_documents(self.texts, vocabulary, self.seed, length=self.length, **rows))
        train, held_out = zip(*opened, strict=True)
        return opened[0] if len(opened) == 1 else (JoinedSource(train), JoinedSource(held_out))

    def run(self) -> TrainResult:
        """Train on all that is given. Raises UserError without any of it, or without a tokenizer."""
        given = self.given
        if self.tokenizer is None:
            raise UserError(
                f"--tokenizer is missing, a folder with tokenizer.json: `mmssl tokenizer --data {given[-1]} --out "
                "tokenizer` learns one."
            )
        vocabulary = Vocabulary.read(self.tokenizer)
        cropped = TrainView(self.size, scale=self.crop_scale, flip=self.flip)
        view, held_out_view = (
            PairView(each, self.length, vocabulary.pad, unpaired=True) for each in (cropped, EvalView(self.size))
        )
        return self.train(lambda: self.media(vocabulary), view, held_out_view, beside=vocabulary.files)


def main() -> None:
    from_command_line(MultimodalM3AE, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
