"""Reading and augmenting pictures for fine-tuning, against torchvision's v2 used plainly, on one machine's CPU.

    python -m benchmarks.augment_pipeline [--data DIR] [--workers 1] [--rounds 5] [--size 224]

All read the same folder of pictures (about 500 JPEGs of 500 x 375 are made when none is given) with the same number of
workers in batches of 64: RandomResizedCrop(size, scale (0.08, 1), bicubic), a flip, RandAugment of two operations at
magnitude 9, and random erasing with a probability of 0.25. Ours is MAE's recipe, which applies each operation half of
the time and resamples bilinearly; once more it applies all, as torchvision does, whose RandAugment takes the nearest
pixel. torchvision's runs as users write it (Normalize before RandomErasing with random values: float32 leaves the
loader), and on uint8 (erased with zeros). The pipelines alternate; medians over the rounds and their ratios are printed
as a table and written to benchmarks/results/.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torchvision.transforms import v2

from benchmarks.pipeline import arguments, compare, our_pipeline, torchvision_pipeline, write_pictures
from mmssl.data import Compose, Crop, Erasing, MultiView, RandAugment
from mmssl.modality import IMAGENET_MEAN, IMAGENET_STD

SCALE = (0.08, 1.0)


def main() -> None:
    settings = arguments("Times the augmentations of fine-tuning against torchvision's v2.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.data or write_pictures(Path(scratch))
        pipelines = {
            name: our_pipeline(folder, recipe(settings.size, probability), settings.workers)
            for name, probability in {"mmssl, uint8": 0.5, "mmssl, all operations applied": 1.0}.items()
        }
        crop = v2.RandomResizedCrop(settings.size, scale=SCALE, interpolation=v2.InterpolationMode.BICUBIC)
        normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        for name, ending in {
            "torchvision v2, uint8": [v2.RandomErasing(0.25)],
            "torchvision v2, Normalize": [*normalize, v2.RandomErasing(0.25, value="random")],
        }.items():
            chain = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandAugment(2, 9), v2.PILToTensor(), *ending])
            pipelines[name] = torchvision_pipeline(folder, chain, settings.workers)
        compare("augment-pipeline", pipelines, settings)


def recipe(size: int, probability: float) -> MultiView:
    change = Compose((RandAugment(probability=probability), Erasing(0.25)))
    return MultiView((Crop(size, SCALE, augmentation=change),))


if __name__ == "__main__":
    main()
