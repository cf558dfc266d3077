"""Which tokens are hidden: masks, the noise they are drawn from, and the strategies of the papers."""

from .grid import block, random_mask, tube_mask
from .joint import dirichlet_shares, joint_mask
from .mask import Mask, Positions
from .noise import batch_bits, permutation, random_bits, uniform
from .sequence import counted_mask

__all__ = [
    "Mask",
    "Positions",
    "batch_bits",
    "block",
    "counted_mask",
    "dirichlet_shares",
    "joint_mask",
    "permutation",
    "random_bits",
    "random_mask",
    "tube_mask",
    "uniform",
]
