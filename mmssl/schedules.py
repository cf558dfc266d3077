"""Numbers that change over a run: momenta, temperatures, learning rates, weight decay.

`progress` is the share of the run that is done, 0 to 1; in another unit, such as steps, `whole` says how long the run
is in it, and `until` and `warmup` are in it too. A number that does not change needs no schedule.
"""

from __future__ import annotations

import math


def linear(progress: float, start: float, end: float, *, until: float = 1.0) -> float:
    """On a line from `start` to `end`, which is reached at `until` and kept.

    DINO's teacher temperature: 0.04 to 0.07 over 30 of the epochs (facebookresearch/dino, `teacher_temp_schedule`,
    which moves once an epoch).
    """
    return end if progress >= until else start + (end - start) * progress / until


def cosine(
    progress: float, start: float, end: float, *, warmup: float = 0.0, warmup_start: float = 0.0, whole: float = 1.0
) -> float:
    """On half a cosine from `start` to `end`, after a line from `warmup_start` to `start` over `warmup`.

    `end + (start - end) (1 + cos(pi (progress - warmup) / (whole - warmup))) / 2` is what the authors have at
    `progress = step / steps` for
    - the teacher's momentum: 0.996 to 1 in BYOL (arXiv 2006.07733, section 3.2: 1 - (1 - base) (cos(pi k / K) + 1) / 2)
      and DINO (`momentum_schedule`), 0.99 to 1 in MoCo v3 (facebookresearch/moco-v3, `adjust_moco_momentum`);
    - weight decay: 0.04 to 0.4 in DINO (`wd_schedule`);
    - the learning rate, with its warm-up (DINO's `cosine_scheduler`; MAE's `adjust_learning_rate`).
    """
    if progress < warmup:
        return warmup_start + (start - warmup_start) * progress / warmup
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (whole - warmup)))
