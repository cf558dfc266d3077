"""One file a method."""

from .mae import MAE, MAEConfig
from .objective import Objective, Output

__all__ = ["MAE", "MAEConfig", "Objective", "Output"]
