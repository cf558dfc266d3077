"""A user's own method: see colours, predict their luminance. All else comes by itself."""

import torch

from mmssl import MAE
from mmssl.modality import image, zero_to_one

REC601 = (0.299, 0.587, 0.114)


class LumaMAE(MAE):
    """Hide most patches, encode the colours of the visible ones, predict the luminance of the rest."""

    def predicted(self):
        return image(1, self.modality.patch)

    def wanted(self, batch):
        weights = torch.tensor(REC601, device=batch["image"].device)
        return (zero_to_one(batch["image"]) * weights[:, None, None]).sum(1, keepdim=True)
