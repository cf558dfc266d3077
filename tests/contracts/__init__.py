"""Toy methods built from the public rooms alone: where one needs a hack, the room is to be mended."""

import torch

from mmssl.objectives import Objective
from mmssl.training import TrainSettings
from mmssl.training.optim import optimizer_for, set_learning_rate


def train(objective: Objective, batches, steps: int = 30, lr: float = 3e-3) -> list[float]:
    """Losses of a few steps over a cycle of batches, with the loop's order of calls and the method's optimizer."""
    optimizer = optimizer_for(objective, TrainSettings(steps=steps, weight_decay=0.0), torch.device("cpu"))
    set_learning_rate(optimizer, lr)
    losses = []
    for step in range(steps):
        objective.before_step(step / steps)
        out = objective(batches[step % len(batches)])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        objective.after_step(step / steps)
        losses.append(out.loss.item())
    return losses


def keys(batch: int, step: int = 0) -> dict[str, torch.Tensor]:
    """What the loader adds to a batch."""
    ids = torch.arange(batch) + batch * step
    zeros = torch.zeros_like(ids)
    return {"sample_id": ids, "epoch": zeros, "draw": zeros, "step": torch.tensor(step)}


def pictures(batch: int, channels: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, so that what is hidden can be guessed: uint8 [B, C, size, size]."""
    coarse = torch.rand(batch, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size, mode="bilinear") * 255).to(torch.uint8)
