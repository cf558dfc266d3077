"""One file a method."""

from pathlib import Path

from mmssl import interop
from mmssl.errors import UserError
from mmssl.objectives.mae import MAE, MAEConfig, mae_config
from mmssl.objectives.objective import Objective, Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.objectives.siammae import SiamMAE, SiamMAEConfig, siammae_config
from mmssl.objectives.videomae import VideoMAE, VideoMAEConfig, videomae_config

METHODS: dict[str, type[Objective]] = {method.__name__: method for method in (MAE, SiamMAE, VideoMAE)}


def load(folder: str | Path) -> Objective:
    """The method that a folder of ours holds, whichever it is."""
    kind = interop.read_config(Path(folder)).get("mmssl")
    if kind not in METHODS:
        raise UserError(f"{folder}: holds {kind or 'no method of mmssl'}; methods are {', '.join(METHODS)}")
    return METHODS[kind].from_pretrained(folder)


__all__ = [
    "MAE",
    "METHODS",
    "MAEConfig",
    "Objective",
    "Output",
    "PixelObjective",
    "SiamMAE",
    "SiamMAEConfig",
    "VideoMAE",
    "VideoMAEConfig",
    "load",
    "mae_config",
    "siammae_config",
    "videomae_config",
]
