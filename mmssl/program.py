"""An encoder as a program that runs without mmssl: ONNX, or PyTorch's own `torch.export`.

A program reads what a batch holds, raw values: pictures and clips as float32 in 0-1, spectrograms as log-mel values.
The statistics are part of it, so that nobody can forget or double them. The number of samples is free, the size is the
encoder's.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from mmssl_kernels.plain import DECOMPOSITIONS
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.modality import ZERO_TO_ONE

LABELS = "labels"
"""Where a program tells its classes' names, a JSON list: ONNX's metadata, an extra file in torch.export's archive."""


class _Model(nn.Module):
    """An encoder's logits, or features where it has no head."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, media: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "batch values"]:
        encoder = self.encoder
        if encoder.head is not None:
            return encoder.classify(media)
        return encoder.features(media, encoder.config.pool or "mean")


@dataclass(frozen=True)
class Interface:
    """What goes in and comes out: names, the size of a sample, and what its values are, in words."""

    name: str
    size: tuple[int, ...]
    values: str
    out: str


def interface(encoder: Encoder) -> Interface:
    """Of an encoder's program. Raises UserError for one that has none."""
    (tokenizer,) = encoder.plain().config.tokenizers
    modality = tokenizer.modality
    if not is_program(encoder):
        raise UserError(
            f"a program reads numbers that are all there, in a grid of one size, and this encoder reads {modality.name}"
        )
    values = "in 0-1" if modality.name in ZERO_TO_ONE else "as they are, before normalisation"
    out = "features" if encoder.head is None else "logits"
    return Interface(modality.name, (modality.channels, *tokenizer.size), values, out)


def is_program(encoder: Encoder) -> bool:
    """Whether an encoder can be a program: what it reads has one size, and nothing in it is missing."""
    (tokenizer,) = encoder.plain().config.tokenizers
    modality = tokenizer.modality
    return modality.kind == "continuous" and not (modality.gaps or modality.per_sample)


def exported(encoder: Encoder) -> ExportedProgram:
    """The program `[B, channels, *size]` float32 -> `[B, classes]` logits, or `[B, dim]` features of an encoder without
    a head; of several modalities that of pictures. It holds no op that is not PyTorch's own."""
    shape = interface(encoder).size
    model = _Model(copy.deepcopy(encoder.plain()).cpu().float().eval())
    with torch.no_grad():
        batch = {0: Dim("batch", min=1)}
        program = torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=(batch,))
        return program.run_decompositions(DECOMPOSITIONS)


def write_onnx(encoder: Encoder, folder: str | Path) -> Path:
    """Write model.onnx, for onnxruntime and others; beside it model.onnx.data where it is larger than 2 GB."""
    import onnxscript  # noqa: F401  torch would name it by an error of its own

    inside = interface(encoder)
    program = torch.onnx.export(exported(encoder), input_names=[inside.name], output_names=[inside.out], verbose=False)
    assert program is not None
    program.model.metadata_props[LABELS] = json.dumps(encoder.config.labels)
    return _whole(folder, lambda aside: program.save(aside / "model.onnx"))


def write_torch_export(encoder: Encoder, folder: str | Path) -> Path:
    """Write model.pt2, for `torch.export.load`."""
    program, told = exported(encoder), {LABELS: json.dumps(encoder.config.labels)}
    return _whole(folder, lambda aside: torch.export.save(program, aside / "model.pt2", extra_files=told))


def _whole(folder: str | Path, write: Callable[[Path], object]) -> Path:
    """`folder`, with the files that `write` made aside: each appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        write(Path(aside))
        for file in sorted(Path(aside).iterdir(), reverse=True):  # model.onnx is last, and begins to read the other
            os.replace(file, folder / file.name)
    return folder


@dataclass(frozen=True)
class ProgramForm:
    """What `mmssl export --to` calls a kind of program, and how it is written."""

    library: str
    what: str
    file: str
    write: Callable[[Encoder, str | Path], Path]


PROGRAMS = {
    "onnx": ProgramForm("onnx", "an ONNX program of the encoder", "model.onnx", write_onnx),
    "torch-export": ProgramForm(
        "pytorch", "a program of the encoder for torch.export.load", "model.pt2", write_torch_export
    ),
}
