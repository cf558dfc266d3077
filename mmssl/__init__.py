"""Self-supervised pretraining by masking, for pictures, video, sound and text."""

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.masking import Mask
from mmssl.methods import train
from mmssl.objectives import (
    CLIP,
    FLIP,
    M3AE,
    MAE,
    MLM,
    AudioMAE,
    AudioMAEConfig,
    CLIPConfig,
    FLIPConfig,
    LiT,
    M3AEConfig,
    MAEConfig,
    MLMConfig,
    MultiMAE,
    MultiMAEConfig,
    SiamMAE,
    SiamMAEConfig,
    SigLIP,
    SigLIPConfig,
    VideoMAE,
    VideoMAEConfig,
)
from mmssl.version import __version__

__all__ = [
    "CLIP",
    "FLIP",
    "M3AE",
    "MAE",
    "MLM",
    "AudioMAE",
    "AudioMAEConfig",
    "CLIPConfig",
    "Encoder",
    "FLIPConfig",
    "LiT",
    "M3AEConfig",
    "MAEConfig",
    "MLMConfig",
    "Mask",
    "MultiMAE",
    "MultiMAEConfig",
    "SiamMAE",
    "SiamMAEConfig",
    "SigLIP",
    "SigLIPConfig",
    "UserError",
    "VideoMAE",
    "VideoMAEConfig",
    "__version__",
    "train",
]
