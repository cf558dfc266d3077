"""What is hidden of a text, whole words or spans of them, and what is shown in its place.

Single tokens are chosen by `counted`. Everything here is a function of noise (`noise.random_bits`) in integers: the
same on every device.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional as F

from mmssl.masking.sequence import counted

BITS = 2**62  # above all noise
# SpanBERT's lengths: geometric with p = 0.2, from 1 to 10 words, and what is beyond left out (mean 3.8).
_CHANCES = [0.8**length for length in range(10)]
_BELOW = [int(BITS * (sum(_CHANCES[: length + 1]) / sum(_CHANCES))) for length in range(9)]


def bert_counts(valid: Bool[Tensor, "batch positions"], ratio: float) -> Int64[Tensor, " batch"]:
    """How many tokens of each text BERT hides: max(1, round(ratio * tokens)), special ones counted, half to even
    (google-research/bert, `create_masked_lm_predictions`, without its limit, which no length of the paper meets)."""
    lengths = torch.arange(valid.shape[1] + 1, dtype=torch.float64, device="cpu")
    return (lengths * ratio).round().clamp(min=1).long().to(valid.device)[valid.sum(dim=1)]


def words_of(
    candidates: Bool[Tensor, "batch positions"], words: Int64[Tensor, "batch positions"] | None
) -> Int64[Tensor, "batch positions"]:
    """The number of each token's word, counted upwards along each text.

    words: tokens side by side that have the same number are a word; None: each token is one. What may not be chosen
    is never of a word with what may.
    """
    if words is None:
        return torch.arange(candidates.shape[1], device=candidates.device).expand(candidates.shape)
    starts = (words.diff(dim=1) != 0) | (candidates[:, 1:] != candidates[:, :-1])
    return torch.cat([torch.zeros_like(words[:, :1]), starts.cumsum(dim=1)], dim=1)


def whole_words(
    noise: Int64[Tensor, "batch positions"],
    words: Int64[Tensor, "batch positions"],
    candidates: Bool[Tensor, "batch positions"],
    counts: Int64[Tensor, " batch"],
) -> Bool[Tensor, "batch positions"]:
    """BERT's whole words: in the order of the noise, each that still fits into `counts` tokens; those that do not are
    passed over, so that at times a few less are chosen (google-research/bert, `create_masked_lm_predictions`).

    words: as `words_of` counts them; the noise of word w is that of position w.
    """
    order = noise.argsort(dim=1, stable=True)
    length = torch.zeros_like(words).scatter_add(1, words, candidates.long()).gather(1, order)
    taken, left = torch.zeros_like(candidates), counts[:, None]
    while True:  # as many times as there are lengths of words at most: what once did not fit never will
        fits = ~taken & (length > 0) & (length <= left)
        more = fits & ((length * fits).cumsum(dim=1) <= left)
        if not more.any():
            break
        taken, left = taken | more, left - (length * more).sum(dim=1, keepdim=True)
    return torch.zeros_like(taken).scatter(1, order, taken).gather(1, words) & candidates


def spans(
    noise: Int64[Tensor, "batch positions"],
    length_noise: Int64[Tensor, "batch positions"],
    words: Int64[Tensor, "batch positions"],
    candidates: Bool[Tensor, "batch positions"],
    counts: Int64[Tensor, " batch"],
) -> Bool[Tensor, "batch positions"]:
    """SpanBERT's spans of words, exactly `counts` tokens (arXiv 1907.10529, section 3.1; facebookresearch/SpanBERT,
    `PairWithSpanMaskingScheme`).

    A span begins with the word of a random token that none has reached yet and goes on for a geometric number of words,
    but not past a token that may not be chosen; the last one is cut. words: as `words_of` counts them.
    """
    lengths = 1 + torch.searchsorted(torch.tensor(_BELOW, device=noise.device), length_noise, right=True)
    last = torch.iinfo(torch.int64).max
    sides, places = (~candidates).cumsum(dim=1), torch.arange(noise.shape[1], device=noise.device)
    free, reached, step = candidates, torch.full_like(noise, last), 0
    while (free.any(dim=1) & ((candidates & ~free).sum(dim=1) < counts)).any():
        anchor = noise.masked_fill(~free, last).argmin(dim=1, keepdim=True)
        first = words.gather(1, anchor)
        span = (
            free & (sides == sides.gather(1, anchor)) & (words >= first) & (words < first + lengths.gather(1, anchor))
        )
        reached = torch.where(span, step * len(places) + places, reached)
        free, step = free & ~span, step + 1
    return counted(reached, candidates, counts)


def shown(
    text: Int64[Tensor, "batch positions"],
    hidden: Bool[Tensor, "batch positions"],
    noise: Int64[Tensor, "batch positions"],
    word_noise: Int64[Tensor, "batch positions"],
    mask: int,
    vocab: int,
    shares: tuple[float, float] = (0.8, 0.1),
    by_runs: bool = False,
) -> Int64[Tensor, "batch positions"]:
    """The text as the model reads it: of the hidden tokens a share is shown as `mask`, another as one of all `vocab`
    words at random, special ones too, and the rest as they are (arXiv 1810.04805, section 3.1 and appendix A.1).

    by_runs: one choice for all tokens of a run of hidden ones, as in SpanBERT; otherwise one for each.
    """
    if by_runs:
        begins = hidden & ~F.pad(hidden, (1, 0))[:, :-1]
        places = torch.arange(text.shape[1], device=text.device)
        noise = noise.gather(1, torch.where(begins, places, 0).cummax(dim=1).values)
    masked, any_word = (noise < int(BITS * share) for share in (shares[0], sum(shares)))
    return torch.where(hidden & masked, mask, torch.where(hidden & any_word, word_noise % vocab, text))
