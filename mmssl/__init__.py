"""Self-supervised pretraining by masking, for pictures, video, audio, text and any mix of them."""

from mmssl.encoder import Encoder
from mmssl.masking import Mask
from mmssl.objectives import MAE

__all__ = ["MAE", "Encoder", "Mask"]
__version__ = "0.1.0"
