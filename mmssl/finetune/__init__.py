"""Trained models tuned on labelled media, by the loop that pretrained them."""

from mmssl.finetune.classifier import Classifier, ClassifierConfig, classifier_config, layer_scales
from mmssl.finetune.media import ClipRecipe, PictureRecipe
from mmssl.finetune.mixing import Mixer, Mixing
from mmssl.finetune.recipe import FinetuneRecipe

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "ClipRecipe",
    "FinetuneRecipe",
    "Mixer",
    "Mixing",
    "PictureRecipe",
    "classifier_config",
    "layer_scales",
]
