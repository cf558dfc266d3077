"""BERT and RoBERTa on your own texts (Devlin et al. 2018, arXiv 1810.04805; Liu et al. 2019, arXiv 1907.11692).

    mmssl tokenizer --data DIR --out TOKENIZER                                       # once, where there is none yet
    python recipes/text_mlm.py --data DIR --tokenizer TOKENIZER                      # this machine
    torchrun --nproc-per-node 8 recipes/text_mlm.py --data DIR --tokenizer TOKENIZER # 8 GPUs
    python recipes/text_mlm.py --data DIR --tokenizer TOKENIZER --kind roberta       # RoBERTa's settings
    python recipes/text_mlm.py --data DIR --tokenizer TOKENIZER --model tiny --length 64 --epochs 10 --batch-size 64

DIR is a folder, at any depth, of .txt, .jsonl, .csv or .parquet files of one kind, plain or gzipped, or one with
`train` and `val` inside, or one such file. TOKENIZER is a folder with any tokenizer.json. The defaults are the papers'.
BERT: base, rows of two segments, of 128 tokens for nine tenths of the steps, then of 512, the next sentence, ten static
masks of 15 % of the tokens, 40 epochs, batch 256, a rate of 1e-4, warm-up over the first hundredth, weight decay 0.01,
gradients cut at norm 1. RoBERTa: full sentences of 512 tokens, fresh masks, batch 8192, a rate of 6e-4, warm-up over
24 000 of 500 000 steps. With both the rate then falls on a line. Run the same command again to resume, also after a
signal (exit code 75).

Where this is not the authors' code: there is no dropout. The papers report 79.6 (BERT-base, GLUE) and 90.2
(RoBERTa-large, MNLI) after fine-tuning; nothing of that size has been trained with this recipe. What has: BERT-tiny on
WordNet's glosses, 5000 steps of 64 (26 minutes on a busy CPU core), finds 35.8 % of held-out hidden words, where always
saying the most frequent one finds 4.5 %; a linear probe tells the 25 kinds of nouns with 58.3 % accuracy, of random
initialisation with 40.0 % (benchmarks/learning.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mmssl.cli import run
from mmssl.data import Source, Stage, TextView, Vocabulary
from mmssl.errors import UserError
from mmssl.objectives import MLM, MLMConfig, mlm_config
from mmssl.pretraining.media import open_documents
from mmssl.recipe import Recipe, from_command_line
from mmssl.training import TrainResult, TrainSettings


@dataclass(frozen=True)
class TextMLM(Recipe):
    """Pretrain BERT or RoBERTa on texts. What is not given is the paper's of the kind."""

    objective = MLM

    out: Path = Path("runs/text_mlm")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    tokenizer: Path | None = None
    """Folder with tokenizer.json, such as `mmssl tokenizer` makes."""
    kind: Literal["bert", "roberta"] = "bert"
    """Whose settings are taken where none is given."""
    model: Literal["tiny", "small", "base", "large"] = "base"
    """Size of the encoder: 128, 512, 768 or 1024 wide."""
    length: int = 512
    """Tokens of a row, special ones included."""
    short_length: int | None = None
    """Tokens of a row in the first steps, 0 for no such steps: BERT's 128, where rows are longer; RoBERTa has none."""
    short_share: float = 0.9
    """Share of the steps that have short rows."""
    positions: int | None = None
    """Tokens of the longest text that the model can ever read; the length where not given."""
    rows: Literal["segment", "full", "document"] | None = None
    """segment: two, of which half follow each other, with BERT's next-sentence loss; full: full sentences, RoBERTa's;
    document: one a row, cut."""
    document: Literal["line", "paragraph"] = "line"
    """Of .txt files: each line is a document, or blank lines divide them."""
    field: str = "text"
    """What .jsonl, .csv and .parquet call the text."""
    masking: Literal["tokens", "words", "spans"] = "tokens"
    """Hide single tokens, whole words, or spans of words."""
    mask_ratio: float = 0.15
    """Share of the tokens that is hidden."""
    dupe_factor: int | None = None
    """So many copies of the rows, each with its masks, take turns, an epoch each: BERT 10; 0: fresh masks in every
    epoch, as RoBERTa."""
    packing: Literal["on", "off"] = "on"
    """off: pad rows instead of computing them one behind the other. The loss is the same."""
    epochs: float = 40.0
    """Times that every text is read, or would be in rows that are all long. May be raised on a run that is there."""
    batch_size: int | None = None  # type: ignore[assignment]
    """Rows of one optimizer step, over all processes: 256 or 8192."""
    base_lr: float | None = None  # type: ignore[assignment]
    """Peak learning rate for 256 rows a step; scaled with the batch. 1e-4, or 6e-4 for 8192."""
    weight_decay: float = 0.01
    """A step and unit of learning rate, of matrices alone."""
    decay: Literal["cosine", "linear"] = "linear"
    """How the learning rate falls after the warm-up."""
    eps: float | None = None
    """What Adam adds to the root of its second moment: 1e-6."""
    betas: tuple[float, float] | None = None  # type: ignore[assignment]
    """Shares of the past, a step, in the optimizer's two moments: 0.9, and 0.999 or 0.98."""
    clip_norm: float | None = None
    """Longest gradient: BERT's is 1, RoBERTa's has no end."""

    def settled(self) -> TextMLM:
        """Itself, with the paper's settings where none are given."""
        bert = self.kind == "bert"
        paper: dict[str, Any] = {
            "rows": "segment" if bert else "full",
            "short_length": 128 if bert and self.length > 128 else 0,
            "dupe_factor": 10 if bert else 0,
            "batch_size": 256 if bert else 8192,
            "base_lr": 1e-4 if bert else 6e-4 * 256 / 8192,
            "betas": (0.9, 0.999) if bert else (0.9, 0.98),
            "clip_norm": 1.0 if bert else None,
            "eps": None if bert else 1e-6,  # BERT's optimizer has its own
        }
        return self.filled(paper)

    @property
    def paper_warmup(self) -> float:
        """10 000 of BERT's million steps, 24 000 of RoBERTa's 500 000."""
        return self.epochs * (0.01 if self.kind == "bert" else 0.048)

    def training(self, world_size: int, device: torch.device) -> TrainSettings:
        """The settings of the training loop; RoBERTa's moments are corrected for starting at 0, BERT's are not."""
        settings = Recipe.training(self.settled(), world_size, device)
        adamw = self.kind == "roberta" and self.optimizer == "auto"
        return replace(settings, optimizer="adamw") if adamw else settings

    def method(self) -> MLMConfig:
        """The settings of MLM; with the paper's vocabulary where no tokenizer is given."""
        settled = self.settled()
        words: dict[str, Any] = {}
        if self.tokenizer is not None:
            vocabulary = Vocabulary.read(self.tokenizer)
            words = {"vocab": vocabulary.size, "mask": vocabulary.masked, "special": vocabulary.framing}
        return mlm_config(
            self.model,
            kind=self.kind,
            length=self.length if self.positions is None else self.positions,
            next_sentence=settled.rows == "segment",
            masking=self.masking,
            mask_ratio=self.mask_ratio,
            dupe_factor=settled.dupe_factor,
            packing=self.packing == "on",
            seed=self.seed,
            **words,
        )

    def run(self) -> TrainResult:
        """Train on rows of the texts of `data`. Raises UserError without a tokenizer."""
        if self.tokenizer is None:
            raise UserError(
                f"--tokenizer is missing, a folder with tokenizer.json: `mmssl tokenizer --data {self.data} --out "
                "tokenizer` makes one."
            )
        settled, vocabulary = self.settled(), Vocabulary.read(self.tokenizer)
        short = settled.short_length or 0
        if short >= self.length:
            raise UserError(f"--short-length {short} is not below --length {self.length}: 0 is for no short rows.")

        def opened(length: int) -> tuple[Source, Source]:
            return open_documents(
                self.data,
                vocabulary,
                self.seed,
                max(1, settled.dupe_factor or 0),
                packing=settled.rows,
                length=length,
                field=self.field,
                label=self.label,
                document=self.document,
            )

        view = TextView(self.length, vocabulary.pad)
        return self.train(
            lambda: opened(self.length),
            view,
            view,
            beside=vocabulary.files,
            first=(lambda: Stage(opened(short)[0], TextView(short, vocabulary.pad), self.short_share))
            if short
            else None,
        )


def main() -> None:
    from_command_line(TextMLM, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
