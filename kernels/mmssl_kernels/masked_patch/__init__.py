"""The masked-patch data path: embed what is kept, restore what is missing, compare what was hidden.

Every function takes positions as `[B, K]` (the same number for every sample) or flat `[S]` with the sample of each in
`rows` `[S]` (ragged), in any order, each at most once a sample. Where nobody checks that (on a GPU without MMSSL_DEBUG)
the kernels still read and write inside the tensors alone, write every number of results and gradients, and give the
same bits every time.
"""

from mmssl_kernels.masked_patch.embed import masked_patch_embed
from mmssl_kernels.masked_patch.mse import TargetNorm, masked_patch_mse
from mmssl_kernels.masked_patch.pixels import normalized_patches
from mmssl_kernels.masked_patch.restore import restore_tokens

__all__ = ["TargetNorm", "masked_patch_embed", "masked_patch_mse", "normalized_patches", "restore_tokens"]
