"""Which tokens are hidden: masks, the noise they are drawn from, and the strategies of the papers."""

from mmssl.masking.grid import axes_mask, block, random_mask, tube_mask, visible_count
from mmssl.masking.joint import (
    check_budget,
    dirichlet_shares,
    drawn_modalities,
    joint_mask,
    one_modality_mask,
    separate_mask,
)
from mmssl.masking.mask import Mask, Positions
from mmssl.masking.noise import batch_bits, permutation, random_bits, uniform
from mmssl.masking.sequence import counted, counted_mask
from mmssl.masking.text import bert_counts, shown, spans, whole_words, words_of

__all__ = [
    "Mask",
    "Positions",
    "axes_mask",
    "batch_bits",
    "bert_counts",
    "block",
    "check_budget",
    "counted",
    "counted_mask",
    "dirichlet_shares",
    "drawn_modalities",
    "joint_mask",
    "one_modality_mask",
    "permutation",
    "random_bits",
    "random_mask",
    "separate_mask",
    "shown",
    "spans",
    "tube_mask",
    "uniform",
    "visible_count",
    "whole_words",
    "words_of",
]
