"""Schedules against the authors' formulas, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmssl.schedules import cosine, linear


def dino(base: float, final: float, steps: int, warmup: int, start: float) -> np.ndarray:
    """`cosine_scheduler` of facebookresearch/dino: a value a step."""
    iters = np.arange(steps - warmup)
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * iters / len(iters)))
    return np.concatenate((np.linspace(start, base, warmup + 1)[:-1], fall))


@pytest.mark.parametrize(
    ("base", "final", "warmup", "start"), [(0.996, 1.0, 0, 0.0), (0.04, 0.4, 0, 0.0), (5e-4, 1e-6, 20, 1e-5)]
)
def test_a_cosine_is_dinos_at_every_step(base: float, final: float, warmup: int, start: float) -> None:
    told = {"warmup": warmup / 100, "warmup_start": start}
    ours = [cosine(step / 100, base, final, **told) for step in range(100)]
    np.testing.assert_allclose(ours, dino(base, final, 100, warmup, start), rtol=1e-12)


def test_a_cosine_is_byols_and_moco_v3s_momentum() -> None:
    for step in range(0, 300, 7):
        byol = 1 - (1 - 0.996) * (math.cos(math.pi * step / 300) + 1) / 2
        moco = 1.0 - 0.5 * (1.0 + math.cos(math.pi * step / 300)) * (1.0 - 0.99)
        assert cosine(step / 300, 0.996, 1.0) == pytest.approx(byol, rel=1e-12)
        assert cosine(step / 300, 0.99, 1.0) == pytest.approx(moco, rel=1e-12)
    assert cosine(1.0, 0.996, 1.0) == 1.0


def test_a_line_arrives_and_stays() -> None:
    values = [linear(progress, 0.04, 0.07, until=0.3) for progress in (0.0, 0.1, 0.15, 0.3, 1.0)]
    assert values == pytest.approx([0.04, 0.05, 0.055, 0.07, 0.07], rel=1e-12)
    assert linear(0.0, 0.04, 0.07, until=0.0) == 0.07


def test_shares_and_steps_are_two_units_of_one_schedule() -> None:
    for step in range(50):
        shares = cosine(step / 50, 2.0, 0.5, warmup=0.2)
        assert cosine(float(step), 2.0, 0.5, warmup=10.0, whole=50.0) == pytest.approx(shares, rel=1e-12)
