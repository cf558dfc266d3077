"""One file a method."""

from mmssl.objectives.mae import MAE, MAEConfig
from mmssl.objectives.objective import Objective, Output

__all__ = ["MAE", "MAEConfig", "Objective", "Output"]
