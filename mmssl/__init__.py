"""Self-supervised pretraining by masking, for pictures, video, sound and text."""

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.masking import Mask
from mmssl.methods import train
from mmssl.objectives import (
    MAE,
    MLM,
    AudioMAE,
    AudioMAEConfig,
    MAEConfig,
    MLMConfig,
    SiamMAE,
    SiamMAEConfig,
    VideoMAE,
    VideoMAEConfig,
)
from mmssl.version import __version__

__all__ = [
    "MAE",
    "MLM",
    "AudioMAE",
    "AudioMAEConfig",
    "Encoder",
    "MAEConfig",
    "MLMConfig",
    "Mask",
    "SiamMAE",
    "SiamMAEConfig",
    "UserError",
    "VideoMAE",
    "VideoMAEConfig",
    "__version__",
    "train",
]
