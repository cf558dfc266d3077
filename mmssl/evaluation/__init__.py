"""How good is a representation? Features, weighted kNN, linear probe, and the protocol that puts them in one table."""

from mmssl.evaluation.features import FeatureSet, effective_rank, extract, pixels
from mmssl.evaluation.knn import knn
from mmssl.evaluation.linear_probe import LinearProbe, linear_probe
from mmssl.evaluation.protocol import Row, evaluate, label_budgets, pivot, table

__all__ = [
    "FeatureSet",
    "LinearProbe",
    "Row",
    "effective_rank",
    "evaluate",
    "extract",
    "knn",
    "label_budgets",
    "linear_probe",
    "pivot",
    "pixels",
    "table",
]
