"""A teacher: the exponential moving average of a student, which gives targets and is never trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Teacher(nn.Module):
    """Starts as a copy of `student`; `follow` moves its weights, no optimizer does, and no gradient passes it.

    The objective that holds it saves and resumes it with all else. Like the rest of the objective it is in train mode
    while that trains, as in the code of BYOL (deepmind-research/byol, `is_training=True` for the target network), MoCo
    v3 and DINO: its batch norms normalise by their own batch. Where it shall drop nothing, hand in a student that was
    built without drop path, as DINO's authors do, and `follow` the one that has it with momentum 0 once.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any, **named: Any) -> Any:
        """What the student would give for this, were its weights these."""
        return self.module(*args, **named)

    def follow(self, student: nn.Module, momentum: float) -> None:
        """weight = momentum * weight + (1 - momentum) * the student's; momentum 0 copies the student.

        Buffers stay: running statistics are those of the teacher's own passes, as in the code named above. (data2vec's
        are copied, for a teacher in eval mode: `EMAModule` of facebookresearch/fairseq.)
        """
        get_ema_multi_avg_fn(momentum)(list(self.module.parameters()), list(student.parameters()), None)
