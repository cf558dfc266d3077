"""The loop, the optimizer's rules, checkpoints, and what they ask of torch.distributed."""

from mmssl.training.checkpoints import Checkpoint
from mmssl.training.journal import read_metrics
from mmssl.training.loop import TrainResult, train
from mmssl.training.optim import adamw, cosine_schedule, learning_rate, parameter_groups
from mmssl.training.settings import TrainSettings, autocast_dtype
from mmssl.training.stopping import Interrupted

__all__ = [
    "Checkpoint",
    "Interrupted",
    "TrainResult",
    "TrainSettings",
    "adamw",
    "autocast_dtype",
    "cosine_schedule",
    "learning_rate",
    "parameter_groups",
    "read_metrics",
    "train",
]
