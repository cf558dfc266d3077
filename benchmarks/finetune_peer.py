"""Fine-tuning's step beside timm's model and loss, with the same weights and nothing mixed (see benchmarks.step)."""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.loss import LabelSmoothingCrossEntropy

from benchmarks.text_peer import Side
from mmssl.finetune import Classifier, Mixing, classifier_config

CLASSES = 1000


def sides(model: str, batch: int, device: torch.device) -> dict[str, Side]:
    """Both classifiers of pictures, and what gives each one's loss on the same media. timm's are normalised before."""
    torch.manual_seed(0)
    labels = tuple(str(number) for number in range(CLASSES))
    config = classifier_config(model.removeprefix("finetune-"), labels=labels)
    ours = Classifier(replace(config, mixing=Mixing())).to(device)
    theirs = ours.encoder.to_timm().to(device).train()
    tokenizer = ours.encoder.config.tokenizers[0]
    pixels = torch.randint(0, 256, (batch, 3, *tokenizer.size), dtype=torch.uint8).to(device)
    answers = torch.arange(batch, device=device)
    values = {"image": pixels, "label": answers, "sample_id": answers}
    mean, std = (
        torch.tensor(each, device=device)[:, None, None] for each in (tokenizer.modality.mean, tokenizer.modality.std)
    )
    normalised, loss = (pixels / 255 - mean) / std, LabelSmoothingCrossEntropy(config.smoothing)
    return {"mmssl": (ours, lambda m: m(values).loss), "timm": (theirs, lambda m: loss(m(normalised), answers))}
