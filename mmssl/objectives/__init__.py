"""One file a method."""

from mmssl.objectives.audiomae import AudioMAE, AudioMAEConfig, audiomae_config
from mmssl.objectives.clip import CLIP, CLIPConfig, clip_config
from mmssl.objectives.figures import Figure, Table, Token
from mmssl.objectives.flip import FLIP, FLIPConfig, flip_config
from mmssl.objectives.lit import LiT
from mmssl.objectives.m3ae import M3AE, M3AEConfig, m3ae_config
from mmssl.objectives.mae import MAE, MAEConfig, mae_config
from mmssl.objectives.mlm import MLM, MLMConfig, mlm_config
from mmssl.objectives.multimae import MultiMAE, MultiMAEConfig, multimae_config
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.objectives.rasters import Task
from mmssl.objectives.registry import METHODS, imported, load
from mmssl.objectives.siammae import SiamMAE, SiamMAEConfig, siammae_config
from mmssl.objectives.siglip import SigLIP, SigLIPConfig, siglip_config
from mmssl.objectives.videomae import VideoMAE, VideoMAEConfig, videomae_config

__all__ = [
    "CLIP",
    "FLIP",
    "M3AE",
    "MAE",
    "METHODS",
    "MLM",
    "AudioMAE",
    "AudioMAEConfig",
    "CLIPConfig",
    "FLIPConfig",
    "Figure",
    "LiT",
    "M3AEConfig",
    "MAEConfig",
    "MLMConfig",
    "MultiMAE",
    "MultiMAEConfig",
    "Objective",
    "Output",
    "PixelObjective",
    "SiamMAE",
    "SiamMAEConfig",
    "SigLIP",
    "SigLIPConfig",
    "Table",
    "Task",
    "Token",
    "VideoMAE",
    "VideoMAEConfig",
    "audiomae_config",
    "clip_config",
    "flip_config",
    "imported",
    "load",
    "m3ae_config",
    "mae_config",
    "mlm_config",
    "multimae_config",
    "siammae_config",
    "siglip_config",
    "videomae_config",
]
