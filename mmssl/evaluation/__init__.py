"""How good is a representation?

Features, weighted kNN, linear probe, and the protocol that puts them in one table; label propagation through videos.
What a masked language model knows of the words of held-out texts. What a model of pairs finds: the classes of pictures
by their names, pictures by their captions and captions by their pictures. What linear probes of every pixel make of
patch features.
"""

from mmssl.evaluation.answers import average_precisions
from mmssl.evaluation.attentive_probe import AttentiveProbe, attentive_probe
from mmssl.evaluation.baselines import RawMedia, SideBySide, raw_name, untrained
from mmssl.evaluation.clips import FrameEncoder, average_clips, join_clips
from mmssl.evaluation.dense import (
    DenseRow,
    Question,
    cell_nothing,
    cell_number,
    cell_tokens,
    cell_values,
    fit_dense,
    grid_of_cells,
    said_and_true,
    score_dense,
)
from mmssl.evaluation.features import FeatureSet, PatchEncoder, PooledAndPatches, effective_rank, extract, pixels
from mmssl.evaluation.knn import knn
from mmssl.evaluation.linear_probe import LinearProbe, linear_probe
from mmssl.evaluation.propagation import (
    CROPMAE,
    DINO,
    Propagation,
    evaluate_masks,
    evaluate_points,
    patch_features,
    propagate,
    propagate_masks,
    propagate_points,
)
from mmssl.evaluation.protocol import (
    Row,
    evaluate,
    evaluate_patches,
    label_budgets,
    penalties,
    pivot,
    table,
    watched_accuracies,
)
from mmssl.evaluation.retrieval import Retrieval, retrieval
from mmssl.evaluation.towers import PictureTower, text_features
from mmssl.evaluation.tracking_scores import (
    MaskMeans,
    MaskRow,
    PointRow,
    boundary_measure,
    mask_means,
    mask_rows,
    mask_table,
    pck,
    point_row,
    region_similarity,
)
from mmssl.evaluation.words import Counts, MaskedAccuracy, masked_accuracy, pseudo_perplexity, word_counts
from mmssl.evaluation.zero_shot import ZeroShot, class_vectors, prompts, zero_shot

__all__ = [
    "CROPMAE",
    "DINO",
    "AttentiveProbe",
    "Counts",
    "DenseRow",
    "FeatureSet",
    "FrameEncoder",
    "LinearProbe",
    "MaskMeans",
    "MaskRow",
    "MaskedAccuracy",
    "PatchEncoder",
    "PictureTower",
    "PointRow",
    "PooledAndPatches",
    "Propagation",
    "Question",
    "RawMedia",
    "Retrieval",
    "Row",
    "SideBySide",
    "ZeroShot",
    "attentive_probe",
    "average_clips",
    "average_precisions",
    "boundary_measure",
    "cell_nothing",
    "cell_number",
    "cell_tokens",
    "cell_values",
    "class_vectors",
    "effective_rank",
    "evaluate",
    "evaluate_masks",
    "evaluate_patches",
    "evaluate_points",
    "extract",
    "fit_dense",
    "grid_of_cells",
    "join_clips",
    "knn",
    "label_budgets",
    "linear_probe",
    "mask_means",
    "mask_rows",
    "mask_table",
    "masked_accuracy",
    "patch_features",
    "pck",
    "penalties",
    "pivot",
    "pixels",
    "point_row",
    "prompts",
    "propagate",
    "propagate_masks",
    "propagate_points",
    "pseudo_perplexity",
    "raw_name",
    "region_similarity",
    "retrieval",
    "said_and_true",
    "score_dense",
    "table",
    "text_features",
    "untrained",
    "watched_accuracies",
    "word_counts",
    "zero_shot",
]
