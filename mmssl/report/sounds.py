"""Sounds to listen to in a page, as small files."""

from __future__ import annotations

import io

from jaxtyping import Float32
from torch import Tensor

from mmssl.audio import RATE
from mmssl.errors import UserError

LONGEST = 10
"""Seconds of a sound that are kept: some tens of KB."""


def ogg(waveform: Float32[Tensor, " samples"]) -> bytes:
    """The first seconds of a mono sound at 16 kHz, in -1..1, as an Ogg Vorbis file, 4 KB a second beside its 4 KB of
    tables. Raises UserError without soundfile."""
    try:
        from soundfile import SoundFile
    except (ImportError, OSError) as error:  # OSError: there is no libsndfile
        raise UserError(f"Sounds are written for the report by soundfile ({error}): pip install soundfile") from error
    buffer = io.BytesIO()
    with SoundFile(buffer, "w", RATE, 1, "VORBIS", format="OGG") as file:
        for second in waveform[: LONGEST * RATE].clamp(-1, 1).split(RATE):  # libsndfile crashes on a long one
            file.write(second.numpy())
    return buffer.getvalue()
