"""Self-supervised pretraining by masking, for pictures, video, audio, text and any mix of them."""

from .encoder import Encoder
from .masking import Mask
from .objectives import MAE

__all__ = ["MAE", "Encoder", "Mask"]
__version__ = "0.1.0"
