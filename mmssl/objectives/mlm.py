"""BERT (Devlin et al. 2018, arXiv 1810.04805), RoBERTa (Liu et al. 2019, arXiv 1907.11692): predict hidden words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from mmssl_kernels import linear_cross_entropy
from torch import Tensor, nn

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import UserError
from mmssl.masking import Mask, Positions, batch_bits, bert_counts, counted, shown, spans, whole_words, words_of
from mmssl.modality import TEXT
from mmssl.objectives.figures import Figure
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.words import NOT_WANTED, word_figures
from mmssl.tokenizer import Batch, TextTokenizer, TokenizerConfig
from mmssl.transformer import TransformerConfig, bert_init

# Width, depth and heads: the papers', and below base those of Turc et al. 2019 (arXiv 1908.08962).
SIZES = {"tiny": (128, 2, 2), "small": (512, 4, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


def bert_encoder_config(
    size: str = "base", kind: Literal["bert", "roberta"] = "bert", *, vocab: int = 30522, length: int = 512
) -> EncoderConfig:
    """BERT's post-norm transformer on words, learned positions and segments, or RoBERTa's, with one segment, positions
    from 2 on and the norm_eps of its files. GELU is exact ("gelu", by erf), as in transformers' files of both; Google's
    code has the tanh approximation ("gelu_tanh"). No dropout (see `TransformerConfig`)."""
    if size not in SIZES:
        raise UserError(f"unknown model size {size!r}: choose one of {', '.join(SIZES)}")
    eps, segments, offset = (1e-12, 2, 0) if kind == "bert" else (1e-5, 1, 2)
    transformer = TransformerConfig(*SIZES[size], norm_order="post", norm_eps=eps, input_norm=True, final_norm=False)
    tokenizer = TokenizerConfig(replace(TEXT, channels=vocab), (length,), "learned", segments=segments, offset=offset)
    return EncoderConfig((tokenizer,), transformer, prefix=0)


@dataclass(frozen=True)
class MLMConfig:
    """The defaults are BERT-base uncased.

    next_sentence: a pooler on the first token and a head that tells whether the second segment follows the first.
    masking: what is hidden: single "tokens", whole "words" (the batch's `text.words` tells them), or "spans" of words,
    SpanBERT's (of tokens, without `text.words`). mask_ratio: max(1, round(ratio * tokens)) are hidden, special ones
    counted but never chosen. shares: of the hidden tokens, those shown as the mask token and as any word; others stay.
    dupe_factor: so many masks has each text, one an epoch, in turn (BERT's 10); 0: fresh ones in every epoch (RoBERTa).
    mask: the mask token's id; None where there is none, for texts that are masked already. special: ids that are never
    hidden; `text.special` overrides them. packing: texts of different lengths go through the transformer one behind the
    other, without padding; padded, the loss is the same. seed: of the masks.
    """

    encoder: EncoderConfig = bert_encoder_config()
    next_sentence: bool = True
    masking: Literal["tokens", "words", "spans"] = "tokens"
    mask_ratio: float = 0.15
    shares: tuple[float, float] = (0.8, 0.1)
    dupe_factor: int = 10
    mask: int | None = 103
    special: tuple[int, ...] = (0, 101, 102)
    packing: bool = True
    seed: int = 0


def mlm_config(
    model: str = "base",
    *,
    kind: Literal["bert", "roberta"] = "bert",
    vocab: int | None = None,
    length: int = 512,
    mask: int | None = None,
    special: tuple[int, ...] | None = None,
    next_sentence: bool | None = None,
    masking: Literal["tokens", "words", "spans"] = "tokens",
    mask_ratio: float = 0.15,
    dupe_factor: int | None = None,
    packing: bool = True,
    seed: int = 0,
) -> MLMConfig:
    """BERT or RoBERTa on texts of at most `length` tokens. model: tiny, small, base or large.

    What is None is the paper's: the vocabulary (30522 uncased word pieces; 50265 byte pairs) with the ids of its mask
    and special tokens, next_sentence and dupe_factor 10 for BERT, neither for RoBERTa. Another vocabulary needs its own
    `mask` and `special` ids.
    """
    bert = kind == "bert"
    vocab = (30522 if bert else 50265) if vocab is None else vocab
    return MLMConfig(
        bert_encoder_config(model, kind, vocab=vocab, length=length),
        next_sentence=bert if next_sentence is None else next_sentence,
        masking=masking,
        mask_ratio=mask_ratio,
        dupe_factor=(10 if bert else 0) if dupe_factor is None else dupe_factor,
        mask=(103 if bert else 50264) if mask is None else mask,
        special=((0, 101, 102) if bert else (0, 1, 2)) if special is None else special,
        packing=packing,
        seed=seed,
    )


class MLM(Objective):
    """Hide some words of a text, encode it with gaps, predict the hidden words from what is left.

    The batch holds `text` ids `[B, N]` and `text.length` `[B]` where rows are padded; `text.segment` `[B, N]`;
    `text.words` `[B, N]`, neighbours of one number being one word; `text.special` `[B, N]`, what is never hidden;
    `text.next` `[B]`, 0 where the second segment follows the first, 1 where it is another. A text that is masked
    already comes with `text.target` `[B, N]`: the word wanted at each place, -100 where none is.

    The loss is a mean over all hidden words of the batch, on all ranks. The prediction, scores of all words for each
    hidden one `[hidden, words]`, is made in eval mode and without gradients alone: training never holds them.
    """

    config_class = MLMConfig
    optimizer = "adam_uncorrected"

    named = staticmethod(mlm_config)

    def __init__(self, config: MLMConfig | str = "base", **settings: Any):
        super().__init__()
        made: MLMConfig = self.configured(config, settings)
        self.config = made
        transformer, vocab = made.encoder.transformer, made.encoder.tokenizers[0].modality.channels
        if not 0 < made.mask_ratio <= 1 or min(made.shares) < 0 or sum(made.shares) > 1:
            raise UserError(f"mask_ratio {made.mask_ratio}, shares {made.shares}: shares of all tokens, and of those")
        ids = made.special if made.mask is None else (made.mask, *made.special)
        if not all(0 <= each < vocab for each in ids):
            raise UserError(f"mask {made.mask} and special {made.special} are not all ids of {vocab} words")
        self.encoder = Encoder(made.encoder)
        dim, gelu = transformer.dim, nn.GELU("tanh" if transformer.activation == "gelu_tanh" else "none")
        self.head = nn.Sequential(nn.Linear(dim, dim), gelu, nn.LayerNorm(dim, eps=transformer.norm_eps))
        self.bias = nn.Parameter(torch.zeros(vocab))
        self.pooler = nn.Linear(dim, dim) if made.next_sentence else None
        self.next = nn.Linear(dim, 2) if made.next_sentence else None
        bert_init(self)

    def hide(self, batch: Batch) -> Mask:
        """Which words are hidden: an exact number of each text, or those that `text.target` names. All are read."""
        sizes, everything = self.encoder.sizes(batch), self.encoder.everything(batch)
        valid = everything.boolean(sizes["text"])
        target = batch.get("text.target")
        chosen = self.chosen(batch, valid) if target is None else (target != NOT_WANTED) & valid
        return Mask(everything, (Positions.from_boolean(chosen),), sizes)

    def candidates(self, batch: Batch, valid: Bool[Tensor, "batch positions"]) -> Bool[Tensor, "batch positions"]:
        """Where words may be hidden: of what is valid, all that are not special."""
        text, special = batch["text"], batch.get("text.special")
        return valid & ~(torch.isin(text, text.new_tensor(self.config.special)) if special is None else special.bool())

    def chosen(self, batch: Batch, valid: Bool[Tensor, "batch positions"]) -> Bool[Tensor, "batch positions"]:
        """Where words are hidden: of what may be, as many as the config says."""
        candidates, counts = self.candidates(batch, valid), bert_counts(valid, self.config.mask_ratio)
        noise, words = self.noise(batch, "mask"), words_of(candidates, batch.get("text.words"))
        if self.config.masking == "tokens":
            return counted(noise, candidates, counts)
        if self.config.masking == "spans":
            return spans(noise, self.noise(batch, "length"), words, candidates, counts)
        if "text.words" not in batch:
            raise UserError(f"whole words are to be hidden, but the batch holds no 'text.words', only {sorted(batch)}")
        return whole_words(noise, words, candidates, counts)

    def noise(self, batch: Batch, purpose: str, where: Tensor | None = None) -> Int64[Tensor, "batch positions"]:
        """One number a token, for one purpose; in every `dupe_factor`-th epoch the same. where: see `batch_bits`."""
        if (dupes := self.config.dupe_factor) and "epoch" in batch:
            batch = {**batch, "epoch": batch["epoch"] % dupes}
        return batch_bits(batch, batch["text"].shape[1], seed=self.config.seed, stream=f"{purpose}/text", where=where)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Hidden words."""
        return {"text.hidden": torch.tensor(len(self.hide(batch).hide.index), device=batch["text"].device)}

    def drawn(self, batch: Batch, mask: Mask | None = None) -> Batch:
        """The batch as one that is masked already: `text` as the encoder reads it, and `text.target`. UserError where
        the model has no mask token."""
        if "text.target" in batch:
            return batch
        if self.config.mask is None:
            raise UserError("this model has no mask token: set `mask` in its config, or mask the texts (`text.target`)")
        text, hidden = batch["text"], (mask or self.hide(batch)).hide.boolean(batch["text"].shape[1])
        show, word = (self.noise(batch, purpose, hidden) for purpose in ("show", "word"))
        by_runs = self.config.masking == "spans"
        seen = shown(text, hidden, show, word, self.config.mask, len(self.bias), self.config.shares, by_runs)
        return {**batch, "text": seen, "text.target": text.masked_fill(~hidden, NOT_WANTED)}

    def wanted(self, batch: Batch, hide: Positions) -> Int64[Tensor, " hidden"]:
        """The words that are hidden, in the order of the prediction."""
        hide = hide.flat()
        return batch.get("text.target", batch["text"])[hide.rows, hide.index]

    @property
    def words(self) -> Float[Tensor, "words dim"]:
        """The table of words, which the head predicts with, too."""
        return cast(TextTokenizer, self.encoder.tokenizer("text")).words.weight

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        mask = self.hide(batch) if mask is None else mask
        batch = self.drawn(batch, mask)
        tokens = self.encoder(batch, mask, packed=self.config.packing)
        hidden, learns = self.head(tokens.at(mask.hide)), self.training and torch.is_grad_enabled()
        prediction = None if learns else nn.functional.linear(hidden, self.words, self.bias)
        # Where training says how many words are hidden in all, it averages over ranks and chunks itself.
        wanted, group = self.wanted(batch, mask.hide), None if "text.hidden" in batch else self.group
        mean = linear_cross_entropy(hidden, self.words, wanted, bias=self.bias, group=group)
        parts = {"mlm": self.part_of_mean(mean, batch, "text.hidden", len(wanted))}
        if self.pooler is not None and self.next is not None and "text.next" in batch:
            pooled = self.pooler(tokens.pooled("class")).tanh()
            labels = batch["text.next"]
            parts["nsp"] = linear_cross_entropy(pooled, self.next.weight, labels, bias=self.next.bias, group=self.group)
        loss = torch.stack(list(parts.values())).sum()
        return Output(loss, {name: part.detach() for name, part in parts.items()}, prediction, mask)

    @torch.no_grad()
    def figures(self, batch: Batch) -> list[Figure]:
        """What the model predicts for some hidden words, and which words it has near them in its table."""
        mask, special = self.hide(batch), {self.config.mask, *self.config.special} - {None}
        batch = self.drawn(batch, mask)
        wanted = self.wanted(batch, mask.hide)
        return word_figures(batch["text"], mask, wanted, self(batch, mask).prediction, self.words, special)
