"""One file a method."""

from mmssl.objectives.mae import MAE, MAEConfig
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.objectives.siammae import SiamMAE, SiamMAEConfig
from mmssl.objectives.videomae import VideoMAE, VideoMAEConfig, videomae_config

__all__ = [
    "MAE",
    "MAEConfig",
    "Objective",
    "Output",
    "PixelObjective",
    "SiamMAE",
    "SiamMAEConfig",
    "VideoMAE",
    "VideoMAEConfig",
    "videomae_config",
]
