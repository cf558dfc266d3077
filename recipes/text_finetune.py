"""Tune a trained encoder on your own labelled texts (BERT, Devlin et al. 2018, arXiv 1810.04805, appendix A.3).

    python recipes/text_finetune.py --data DIR --label CLASS --model runs/text_mlm

DIR holds .jsonl, .csv or .parquet files, maybe below `train` and `val`, or is such a file; CLASS is what they call the
class, and `--field` what they call the text. The defaults are of BERT's range: 3 epochs, batch 32, AdamW with a peak
rate of 3e-5 that falls linearly after a tenth of warm-up, weight decay 0.01, and the first token, [CLS],
through a layer of tanh before the head.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from mmssl.cli import run
from mmssl.data import Source, TextView, Vocabulary, open_texts
from mmssl.data.vocabulary import tokenizer_beside
from mmssl.encoder import Pool
from mmssl.errors import UserError
from mmssl.finetune import FinetuneRecipe
from mmssl.modality import TEXT
from mmssl.recipe import from_command_line
from mmssl.training import TrainResult
from mmssl.training.run_folder import model_in


@dataclass(frozen=True, kw_only=True)
class TextFinetune(FinetuneRecipe):
    """Tune an encoder and a head on labelled texts."""

    modality: ClassVar[str] = TEXT.name
    pooler: ClassVar[bool] = True

    out: Path = Path("runs/text_finetune")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the classifier in `final`."""
    tokenizer: Path | None = None
    """Folder with tokenizer.json; the one beside the model where not given."""
    length: int | None = None
    """Tokens of a text; of longer ones the rest is left out. The model's where not given."""
    field: str = "text"
    """What .jsonl, .csv and .parquet call the text."""
    epochs: float = 3.0
    """Times that every text is read. May be raised on a run that is there, finished or not."""
    batch_size: int = 32
    """Texts of one optimizer step, over all processes."""
    base_lr: float = 3e-5 * 256 / 32
    """Peak learning rate for 256 samples a step; scaled with the batch."""
    decay: Literal["cosine", "linear"] = "linear"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = 0.01
    """A step and unit of learning rate, of matrices alone."""
    clip_norm: float | None = 1.0
    """Longest gradient, as the norm over all parameters: longer ones are scaled down to it."""
    pool: Pool = "class"
    """What the head sees: the first token, BERT's [CLS], or the mean of all, behind a norm of its own."""
    layer_decay: float = 1.0
    """The learning rate of a layer, as a share of that of the layer above it; 1: the same for all."""
    drop_path: float = 0.0
    """Probability of skipping a branch of the last block, growing linearly up to it; 0, as texts run packed."""
    smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    mixup: float = 0.0
    """Words are not mixed."""
    cutmix: float = 0.0
    """Words are not mixed."""
    head_std: float = 0.02
    """Standard deviation of the head's first weights."""

    @property
    def paper_warmup(self) -> float:
        """A tenth."""
        return self.epochs / 10

    @property
    def warmup_share(self) -> float:
        """The same share of `--steps`."""
        return 1 / 10

    @property
    def paper_min_lr(self) -> float:
        """The rate falls to 0."""
        return 0.0

    @property
    def tokens(self) -> int:
        """Tokens of a text at most."""
        (most,) = self.input_size
        return min(self.length or most, most)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words. Raises UserError without a tokenizer."""
        model = Path(self.model)
        folder = self.tokenizer or (tokenizer_beside(model_in(model)) if model.is_dir() else None)
        if folder is None:
            raise UserError("--tokenizer is missing, a folder with tokenizer.json: there is none beside the model")
        return Vocabulary.read(folder)

    def opened(self, data: Path, split: str | None) -> Source:
        """The texts of a path and a part of them."""
        how = {"packing": "document", "length": self.tokens, "field": self.field, "label": self.label}
        return open_texts(data, self.vocabulary, split, **how)

    def run(self) -> TrainResult:
        """Tune on texts of `data`."""
        if max(self.mixup, self.cutmix) > 0:
            raise UserError("words are not mixed: leave --mixup and --cutmix at 0")
        if self.drop_path:
            raise UserError("texts run packed, which goes without drop path: leave --drop-path at 0")
        view = TextView(self.tokens, self.vocabulary.pad)
        return self.tune(view, view, beside=self.vocabulary.files)


def main() -> None:
    from_command_line(TextFinetune, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
