"""One file a method."""

from mmssl.objectives.audiomae import AudioMAE, AudioMAEConfig, audiomae_config
from mmssl.objectives.figures import Figure, Table, Token
from mmssl.objectives.mae import MAE, MAEConfig, mae_config
from mmssl.objectives.mlm import MLM, MLMConfig, mlm_config
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.objectives.registry import METHODS, imported, load
from mmssl.objectives.siammae import SiamMAE, SiamMAEConfig, siammae_config
from mmssl.objectives.videomae import VideoMAE, VideoMAEConfig, videomae_config

__all__ = [
    "MAE",
    "METHODS",
    "MLM",
    "AudioMAE",
    "AudioMAEConfig",
    "Figure",
    "MAEConfig",
    "MLMConfig",
    "Objective",
    "Output",
    "PixelObjective",
    "SiamMAE",
    "SiamMAEConfig",
    "Table",
    "Token",
    "VideoMAE",
    "VideoMAEConfig",
    "audiomae_config",
    "imported",
    "load",
    "mae_config",
    "mlm_config",
    "siammae_config",
    "videomae_config",
]
