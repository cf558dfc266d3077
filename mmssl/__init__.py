"""Self-supervised pretraining by masking, for pictures, video, audio, text and any mix of them."""

from mmssl.encoder import Encoder
from mmssl.masking import Mask
from mmssl.objectives import MAE, SiamMAE, VideoMAE

__all__ = ["MAE", "Encoder", "Mask", "SiamMAE", "VideoMAE"]
__version__ = "0.1.0"
