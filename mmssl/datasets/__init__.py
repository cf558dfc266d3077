"""Data sets that mmssl fetches or makes: Fashion-MNIST, real videos, objects that move over them, spoken syllables,
tiles of the Earth."""

from mmssl.datasets.earth import write_earth_tiles
from mmssl.datasets.fashion_mnist import digits_source, fetch_fashion_mnist
from mmssl.datasets.moving_objects import MOTIONS, MovingObjects, background_clips, part_clips, write_moving_objects
from mmssl.datasets.real_clips import fetch_clips
from mmssl.datasets.syllables import write_syllables

__all__ = [
    "MOTIONS",
    "MovingObjects",
    "background_clips",
    "digits_source",
    "fetch_clips",
    "fetch_fashion_mnist",
    "part_clips",
    "write_earth_tiles",
    "write_moving_objects",
    "write_syllables",
]
