"""Losses over a matrix of similarities that is never held: one tile engine, short formulas over its sums."""

from mmssl_kernels.contrastive.losses import info_nce, linear_cross_entropy, nt_xent, siglip_loss

__all__ = ["info_nce", "linear_cross_entropy", "nt_xent", "siglip_loss"]
