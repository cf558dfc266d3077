"""Self-supervised pretraining by masking, for pictures and video."""

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.masking import Mask
from mmssl.methods import train
from mmssl.objectives import MAE, MAEConfig, SiamMAE, SiamMAEConfig, VideoMAE, VideoMAEConfig

__all__ = [
    "MAE",
    "Encoder",
    "MAEConfig",
    "Mask",
    "SiamMAE",
    "SiamMAEConfig",
    "UserError",
    "VideoMAE",
    "VideoMAEConfig",
    "train",
]
__version__ = "0.1.0"
