"""BERT and RoBERTa of the papers' base size against transformers': losses, predictions and gradients, by value.

    python -m benchmarks.bert_parity        # some minutes, 6 GiB of memory

Weights are random, biases and norms too, and the same on both sides; so are texts of different lengths, the words that
are hidden and the next sentences. Errors are norms, divided by that of what transformers gives; a gradient's by that of
all gradients together. All are to be below 1e-5.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging

from benchmarks.machine import markdown, write
from mmssl import MLM
from mmssl.objectives.words import NOT_WANTED

MODELS = {
    "BertForPreTraining": ("bert", True),
    "BertForMaskedLM": ("bert", False),
    "RobertaForMaskedLM": ("roberta", False),
}
LENGTHS, SPECIAL = (48, 31, 5, 17), 5


def batch_of(kind: str) -> dict[str, Tensor]:
    """Four texts of different lengths that are masked already."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(LENGTHS)
    shape = (len(LENGTHS), max(LENGTHS))
    valid = torch.arange(shape[1]) < lengths[:, None]
    text = torch.randint(SPECIAL, 30000, shape, generator=generator)
    wanted = valid & (torch.rand(shape, generator=generator) < 0.15)
    wanted[:, 2] = True
    batch = {
        "text": text.masked_fill(~valid, 1 if kind == "roberta" else 0),
        "text.length": lengths,
        "text.target": torch.randint(0, 30000, shape, generator=generator).masked_fill(~wanted, NOT_WANTED),
    }
    if kind == "bert":
        batch["text.segment"] = ((torch.arange(shape[1]) > lengths[:, None] // 2) & valid).long()
        batch["text.next"] = torch.tensor([0, 1, 1, 0])
    return batch


def compare(name: str, folder: Path) -> list[dict[str, Any]]:
    kind, next_sentence = MODELS[name]
    torch.manual_seed(0)
    ours = MLM("base", kind=kind, next_sentence=next_sentence)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    theirs: Any = getattr(transformers, name).from_pretrained(ours.to_transformers(folder / "weights")).eval()
    batch = batch_of(kind)
    given = {"input_ids": batch["text"], "labels": batch["text.target"]}
    given["attention_mask"] = (torch.arange(batch["text"].shape[1]) < batch["text.length"][:, None]).long()
    if kind == "bert":
        given["token_type_ids"] = batch["text.segment"]
    if next_sentence:
        given["next_sentence_label"] = batch["text.next"]
    out = theirs(**given)
    out.loss.backward()
    scores = out.prediction_logits if next_sentence else out.logits
    scores, loss = scores[batch["text.target"] != NOT_WANTED].detach(), out.loss.detach()
    with torch.no_grad():
        for parameter in theirs.parameters():  # read through the key map, gradients have our names
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    theirs.save_pretrained(folder / "gradients")
    gradients = dict(MLM.from_pretrained(folder / "gradients").named_parameters())
    rows = []
    for way in ("padded", "packed"):
        method = MLM(dataclasses.replace(ours.config, packing=way == "packed")).eval()
        method.load_state_dict(ours.state_dict())
        found = method(batch)
        found.loss.backward()
        rows.append(
            {
                "model": f"{name}, {sum(value.numel() for value in method.parameters()) / 1e6:.1f} M, {way}",
                "loss": f"{relative(found.loss, loss):.1e}",
                "predictions": f"{relative(found.prediction, scores):.1e}",
                "gradients, the worst": f"{worst(method, gradients):.1e}",
            }
        )
    return rows


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def worst(method: nn.Module, expected: dict[str, nn.Parameter]) -> float:
    """The largest error of a gradient over the norm of all."""
    total = torch.stack([value.norm() for value in expected.values()]).norm()
    errors = [
        (value.grad - expected[name]).norm() for name, value in method.named_parameters() if value.grad is not None
    ]
    return (torch.stack(errors).max() / total).item()


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(name, Path(folder))
        print(markdown(rows[-2:]), flush=True)
    print(f"\n{markdown(rows)}\n\n{write('bert-parity', torch.device('cpu'), {'rows': rows})}")


if __name__ == "__main__":
    main()
