"""What every method has in common: an encoder, a loss for a batch, and hooks around the optimizer's step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from mmssl import interop, ranks
from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.masking import Mask
from mmssl.position import mark_trained

O = TypeVar("O", bound="Objective")  # noqa: E741


@dataclass(frozen=True)
class Output:
    """loss: scalar. parts: its named terms. prediction: for the hidden positions, in the order of `mask.hide`."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    prediction: Tensor | None = None
    mask: Mask | None = None


class Objective(nn.Module):
    """A pretraining method: `objective(batch, mask=None)` gives an `Output`; `objective.encoder` is what users keep.

    A method is made from one config dataclass, kept as `self.config`; `config_class` names its type. undecayed: names
    of parameters that get no weight decay beyond the usual rule, lr_scales: multiples of the learning rate by prefixes
    of names (see `parameter_groups`). optimizer: the paper's, by its name in `TrainSettings`.

    A method whose loss is a mean over samples defines `forward`. One whose loss compares samples with each other (CLIP,
    SimCLR) defines `features` and `compare` instead: its loss is that of the whole batch, however many chunks and ranks
    it is split into (see `mmssl.training.gradients`).
    """

    config_class: ClassVar[type]
    undecayed: ClassVar[tuple[str, ...]] = ()
    lr_scales: ClassVar[Mapping[str, float]] = {}
    optimizer: ClassVar[str] = "adamw"
    config: Any
    encoder: Encoder

    def __repr__(self) -> str:
        config = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        plain = [f"{name}={value!r}" for name, value in config.items() if isinstance(value, (bool, int, float, str))]
        parts = []
        for name, part in self.named_children():
            brief = type(part).__name__ if type(part).__repr__ is nn.Module.__repr__ else repr(part)
            parts.append(f"  {name}: {brief}")
        return "\n".join([f"{type(self).__name__}({', '.join(plain)})", *parts])

    def features(self, batch: dict[str, Tensor], mask: Mask | None = None) -> dict[str, Tensor]:
        """What is compared: tensors `[B, D]`, floating point, a row for each sample of the batch, in its order."""
        raise NotImplementedError(f"{type(self).__name__} compares no samples")

    def compare(self, features: dict[str, Tensor]) -> Output:
        """The loss of these features, beside those of the other ranks of `self.group`.

        Averaged over the ranks, its gradient is that of one process that holds all rows: hand `group=self.group` to the
        losses of `mmssl_kernels`, or read the others' rows by `ranks.everywhere(rows, self.group)`.
        """
        raise NotImplementedError(f"{type(self).__name__} compares no samples")

    def forward(self, batch: dict[str, Tensor], mask: Mask | None = None) -> Output:
        """The loss of a batch; of a method that compares samples, that of their features."""
        return dataclasses.replace(self.compare(self.features(batch, mask)), mask=mask)

    @property
    def compares_samples(self) -> bool:
        """Whether the loss is one of the whole batch, and no mean over its samples."""
        return type(self).compare is not Objective.compare

    @property
    def group(self) -> ProcessGroup | None:
        """The ranks whose samples are compared: all while training, none in eval mode, where a rank may be alone."""
        return ranks.training_ranks() if self.training else None

    def before_step(self, progress: float) -> None:
        """Called before the forward pass, for schedules; progress runs from 0 to 1 over the whole training.

        It must change nothing that is saved: the step may be dropped by a stop.
        """

    def after_step(self, progress: float) -> None:
        """Called after the optimizer's step: where a teacher follows its student."""

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors, decoder included, for `from_pretrained`.

        What is saved counts as trained from here on, in memory as in the folder: at other sizes both then interpolate
        the same tables.
        """
        mark_trained(self)
        return interop.save_folder(folder, self.told(), self.state_dict())

    def told(self) -> dict[str, Any]:
        """The method and its settings, as config.json holds them."""
        return {"mmssl": type(self).__name__, "config": dataclasses.asdict(self.config)}

    @classmethod
    def from_pretrained(cls: type[O], path_or_hub_id: str | Path) -> O:
        """From a folder that `save_pretrained` wrote, or a transformers folder of the same method."""
        folder = interop.resolve(path_or_hub_id)
        config, state = interop.read_config(folder), interop.read_weights(folder)
        with interop.loading(folder):
            if "mmssl" not in config:
                return cls.from_transformers(config, state, str(folder))
            if config["mmssl"] != cls.__name__:
                raise UserError(f"{folder}: holds {config['mmssl']}, not {cls.__name__}; load it with its own class")
            objective = cls(interop.config_from_dict(cls.config_class, config["config"]))
            objective.load_state_dict(state)
            mark_trained(objective)
            return objective

    @classmethod
    def from_transformers(cls: type[O], config: dict[str, Any], state: dict[str, Tensor], source: str) -> O:
        """From what a transformers folder holds. Methods that transformers has override it."""
        raise UserError(f"{source}: not an mmssl folder, and transformers has no {cls.__name__}")
