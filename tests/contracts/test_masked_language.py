"""Masked language modelling: padding, segment ids, exact counts of masked words."""

import math

import torch
from torch.nn import functional as F

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.masking import batch_bits, counted_mask
from mmssl.modality import Modality
from mmssl.objectives import Objective, Output
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig
from tests.contracts import keys, train

CLS, MASK, WORDS = 1, 2, 20
TEXT = Modality("text", ("position",), WORDS, kind="categorical")


class MaskedLanguage(Objective):
    optimizer = "adam_uncorrected"

    def __init__(self):
        super().__init__()
        bert = TransformerConfig(32, 2, 4, norm_order="post", norm_eps=1e-12, input_norm=True, final_norm=False)
        self.encoder = Encoder(EncoderConfig((TokenizerConfig(TEXT, (16,), "learned", segments=2),), bert, prefix=0))

    def hide(self, batch):
        valid = torch.arange(batch["text"].shape[1]) < batch["text.length"][:, None]
        counts = (batch["text.length"] * 0.15).round().long().clamp(min=1)
        noise = batch_bits(batch, valid.shape[1], seed=0, stream="mask/text")
        return counted_mask(noise, valid & (batch["text"] != CLS), counts, self.encoder.sizes(batch), valid)

    def counts(self, batch):
        return {"text.hidden": self.hide(batch).hide.lengths.sum()}

    def forward(self, batch, mask=None):
        mask = self.hide(batch) if mask is None else mask
        hidden = mask.hide.boolean(mask.count)
        tokens = self.encoder({**batch, "text": batch["text"].masked_fill(hidden, MASK)}, mask)
        logits = tokens.x[mask.hide.rows, mask.hide.index] @ self.encoder.tokenizer("text").words.weight.T
        loss = self.part_of_mean(F.cross_entropy(logits, batch["text"][hidden]), batch, "text.hidden", len(logits))
        return Output(loss, {"cross_entropy": loss.detach()}, logits, mask)


def make_batch(step):
    """Sentences that count upwards: a hidden word follows from its neighbours."""
    start = torch.randint(3, WORDS, (12, 1), generator=torch.Generator().manual_seed(step))
    text = (start + torch.arange(12) - 3) % (WORDS - 3) + 3
    text[:, 0] = CLS
    length = torch.randint(6, 13, (12,), generator=torch.Generator().manual_seed(step))
    segment = (torch.arange(12) > 5).long().expand(12, 12)
    return {"text": text, "text.length": length, "text.segment": segment, **keys(12, step)}


def test_it_starts_at_chance_and_learns():
    method = MaskedLanguage()
    losses = train(method, [make_batch(step) for step in range(20)], steps=200)
    assert abs(losses[0] - math.log(WORDS)) < 1
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_counts_are_exact_and_special_tokens_stay():
    method, batch = MaskedLanguage(), make_batch(0)
    mask = method.hide(batch)
    assert mask.hide.lengths.tolist() == [max(1, round(0.15 * n)) for n in batch["text.length"].tolist()]
    assert not (batch["text"][mask.hide.boolean(12)] == CLS).any()


def test_segments_and_padding_are_what_they_say():
    method, batch = MaskedLanguage(), make_batch(0)
    mask = method.hide(batch)
    other = {**batch, "text.segment": 1 - batch["text.segment"]}
    assert not torch.equal(method(batch, mask).loss, method(other, mask).loss)
    padding = torch.arange(12) >= batch["text.length"][:, None]
    noisy = {**batch, "text": batch["text"].masked_fill(padding, 7)}
    assert torch.equal(method(batch, mask).loss, method(noisy, mask).loss)
