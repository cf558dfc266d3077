"""Losses and retrieval over a matrix of similarities that is never held: one tile engine, short formulas over it."""

from mmssl_kernels.contrastive.losses import info_nce, linear_cross_entropy, nt_xent, siglip_loss
from mmssl_kernels.contrastive.nearest import similarity_rank, similarity_topk

__all__ = ["info_nce", "linear_cross_entropy", "nt_xent", "siglip_loss", "similarity_rank", "similarity_topk"]
