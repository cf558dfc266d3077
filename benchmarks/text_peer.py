"""BERT beside transformers' BertForPreTraining: the same weights, texts, hidden words and next sentences, no dropout.

Models are named bert-SIZE-LENGTH, with texts that fill their rows, or bert-SIZE-LENGTH-glosses and -lognormal, whose
texts have other lengths and are padded to the longest of the batch, as transformers' collators do. Ours draws its masks
in each step; theirs are ready.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from mmssl import MLM
from mmssl.masking.noise import uniform

Side = tuple[nn.Module, Callable[[nn.Module], Tensor]]
# Tokens of WordNet's glosses, the two at the ends included, by a word-piece tokenizer of 8 000: quantiles 0, 1/20 to 1.
GLOSSES = (3, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 23, 25, 27, 30, 34, 41, 172)
ROWS = {128: 16, 512: 4}
TEXTS = {
    f"bert-{size}-{length}{lengths}": rows
    for size in ("small", "base")
    for length, rows in ROWS.items()
    for lengths in ("", "-glosses", "-lognormal")
}


def text_lengths(kind: str, rows: int, longest: int) -> Int64[Tensor, " rows"]:
    """How many tokens each text has: all that fit; WordNet's glosses' numbers; or log-normal ones, half of them below a
    quarter of the row, deviation 0.8. Spread evenly over the distribution, the same every time."""
    middle = (torch.arange(rows) + 0.5) / rows
    if kind == "glosses":
        places = middle * (len(GLOSSES) - 1)
        table, low = torch.tensor(GLOSSES, dtype=torch.float32), places.long()
        values = table[low] + (table[low + 1] - table[low]) * (places - low)
    elif kind == "lognormal":
        values = longest / 4 * (0.8 * torch.special.ndtri(middle)).exp()
    else:
        values = torch.full((rows,), float(longest))
    return values.round().long().clamp(5, longest)


def text_sides(model: str, rows: int, device: torch.device) -> dict[str, Side]:
    """Both models, and what gives each one's loss on the same texts."""
    from transformers import BertForPreTraining
    from transformers.utils import logging

    _, size, length, *kind = model.split("-")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    ours = MLM(size)
    with tempfile.TemporaryDirectory() as folder:
        theirs = BertForPreTraining.from_pretrained(
            ours.to_transformers(folder), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
    lengths = text_lengths("".join(kind), rows, int(length))
    longest, numbers = int(lengths.max()), torch.arange(rows)
    valid = torch.arange(longest) < lengths[:, None]
    text = 1000 + (uniform(longest, seed=0, stream="words", sample_id=numbers) * 29000).long()
    batch = {
        "text": text.masked_fill(~valid, 0),
        "text.segment": ((torch.arange(longest) > lengths[:, None] // 2) & valid).long(),
        "text.next": numbers % 2,
        "sample_id": numbers,
        "epoch": 0 * numbers,
        "draw": 0 * numbers,
    }
    if kind:
        batch["text.length"] = lengths
    batch = {name: value.to(device) for name, value in batch.items()}
    drawn = ours.drawn(batch)
    given = {
        "input_ids": drawn["text"],
        "token_type_ids": batch["text.segment"],
        "labels": drawn["text.target"],
        "next_sentence_label": batch["text.next"],
    }
    if kind:
        given["attention_mask"] = valid.long().to(device)
    return {
        "mmssl": (ours.to(device).train(), lambda m: m(batch).loss),
        "transformers": (cast(nn.Module, theirs).to(device).train(), lambda m: m(**given).loss),
    }
