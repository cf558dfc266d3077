"""Self-supervised pretraining by masking, for pictures, video and sound."""

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.masking import Mask
from mmssl.methods import train
from mmssl.objectives import MAE, AudioMAE, AudioMAEConfig, MAEConfig, SiamMAE, SiamMAEConfig, VideoMAE, VideoMAEConfig
from mmssl.version import __version__

__all__ = [
    "MAE",
    "AudioMAE",
    "AudioMAEConfig",
    "Encoder",
    "MAEConfig",
    "Mask",
    "SiamMAE",
    "SiamMAEConfig",
    "UserError",
    "VideoMAE",
    "VideoMAEConfig",
    "__version__",
    "train",
]
