"""The features of a model of pairs, of pictures and of texts, as its evaluation compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from mmssl.evaluation.features import Batch, FeatureSet, evaluation_mode
from mmssl.objectives import CLIP

ReadTexts = Callable[[Sequence[str]], Batch]
"""What makes of some texts the batch that a model reads, such as `mmssl.data.text_batch` with its tokenizer."""


class PictureTower(nn.Module):
    """A model of pairs as `extract` takes it: the features of its pictures are those that are compared with texts."""

    def __init__(self, model: CLIP):
        super().__init__()
        self.model = model

    def features(self, batch: Any, pool: Any = None) -> Float[Tensor, "batch dim"]:
        """Of length one; the model pools as it was trained to."""
        return self.model.encode_image({"image": batch["image"]})


@torch.no_grad()
def text_features(
    model: CLIP,
    texts: Sequence[str],
    read: ReadTexts,
    *,
    at_once: int = 256,
    device: torch.device | str = "cpu",
) -> Float32[Tensor, "texts dim"]:
    """The features of texts, of length one, on the CPU; `at_once` texts go through the model together, which is moved
    to `device`. Raises ValueError for no text, UserError where a feature is not finite."""
    if not texts:
        raise ValueError("There is no text to take features of.")
    device, found = torch.device(device), []
    model.to(device)
    with evaluation_mode(model):
        for start in range(0, len(texts), at_once):
            batch = read(texts[start : start + at_once])
            found.append(model.encode_text({name: value.to(device) for name, value in batch.items()}).float().cpu())
    return FeatureSet(torch.cat(found), names=list(texts)).features
