"""What every method has in common: an encoder, a loss for a batch, hooks around the optimizer's step, its files."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from mmssl import interop, ranks, version
from mmssl.encoder import Encoder
from mmssl.errors import UserError, nearest
from mmssl.masking import Mask
from mmssl.objectives.figures import Figure
from mmssl.objectives.registry import importable, register
from mmssl.position import mark_trained
from mmssl.tokenizer import Batch

O = TypeVar("O", bound="Objective")  # noqa: E741


@dataclass(frozen=True)
class Output:
    """loss: scalar. parts: its named terms. prediction: for the hidden positions, in the order of `mask.hide`.

    predictions: of a method that predicts several things, each by its name in `parts`: `[hidden, values]` of all
    samples, one after the other, in the order of `mask.hide` within its modality.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    prediction: Tensor | None = None
    mask: Mask | None = None
    predictions: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A pretraining method: `objective(batch, mask=None)` gives an `Output`; `objective.encoder` is what users keep.

    A method is made from one config dataclass, kept as `self.config`; `config_class` names its type, and `named` is the
    function that makes one for the name of a model and further keywords, which the class takes as well (see
    `configured`). undecayed: names of parameters that get no weight decay beyond the usual rule, lr_scales: multiples
    of the learning rate by prefixes of names (see `parameter_groups`). optimizer: the paper's, by its name in
    `TrainSettings`.

    A method whose loss is a mean over samples defines `forward`. One whose terms are means over other things, of which
    samples have few or many (hidden words), says by `counts` how many there are, and weighs each by `part_of_mean`. One
    whose loss compares samples with each other (CLIP, SimCLR) defines `features` and `compare` instead: its loss is
    that of the whole batch, however many chunks and ranks it is split into (see `mmssl.training.gradients`).
    """

    config_class: ClassVar[type]
    named: ClassVar[Callable[..., Any]]
    undecayed: tuple[str, ...] = ()
    lr_scales: Mapping[str, float] = MappingProxyType({})
    optimizer: ClassVar[str] = "adamw"
    config: Any
    encoder: Encoder

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "config_class"):  # not what methods merely share
            register(cls)

    @classmethod
    def configured(cls, config: Any, settings: Mapping[str, Any]) -> Any:
        """The config itself; where it is the name of a model, `named` makes it, with these settings and those that
        `config_class` has besides."""
        usual = next(each for each in cls.__mro__ if "named" in vars(each)).config_class  # type: ignore[attr-defined]
        own = [each for each in _fields(cls.config_class) if each not in _fields(usual)]
        known = [*list(inspect.signature(cls.named).parameters)[1:], *own]
        for name in settings:
            if name not in known:
                raise UserError(f"{cls.__name__} has no setting {name!r}: {nearest(name, known)}")
        if isinstance(config, str):
            made = cls.named(config, **{name: settings[name] for name in settings if name not in own})
            return cls.completed(made, **{name: settings[name] for name in settings if name in own})
        if settings:
            given = ", ".join(settings)
            raise UserError(f"{cls.__name__} takes a whole config, or a model's name and {given}: not both")
        if not isinstance(config, cls.config_class):
            wanted = cls.config_class.__name__
            raise UserError(f"{cls.__name__} takes the name of a model or a {wanted}, not a {type(config).__name__}")
        return config

    @classmethod
    def completed(cls, config: Any, **further: Any) -> Any:
        """What `named` gave as this class's own kind of config: with `further` settings, or their defaults."""
        return cls.config_class(**{name: getattr(config, name) for name in _fields(config)}, **further)

    def __repr__(self) -> str:
        config = {name: getattr(self.config, name) for name in _fields(self.config)}
        plain = [f"{name}={value!r}" for name, value in config.items() if isinstance(value, (bool, int, float, str))]
        parts = []
        for name, part in self.trained_parts():
            brief = type(part).__name__ if type(part).__repr__ is nn.Module.__repr__ else repr(part)
            parts.append(f"  {name}: {brief}")
        return "\n".join([f"{type(self).__name__}({', '.join(plain)})", *parts])

    def trained_parts(self) -> list[tuple[str, nn.Module]]:
        """Its modules that have parameters, by name."""
        return [(name, part) for name, part in self.named_children() if any(True for _ in part.parameters())]

    def features(self, batch: Batch, mask: Mask | None = None) -> dict[str, Tensor]:
        """What is compared: tensors `[B, D]`, floating point, a row for each sample of the batch, in its order."""
        raise NotImplementedError(f"{type(self).__name__} compares no samples")

    def compare(self, features: dict[str, Tensor]) -> Output:
        """The loss of these features, beside those of the other ranks of `self.group`.

        Averaged over the ranks, its gradient is that of one process that holds all rows: hand `group=self.group` to the
        losses of `mmssl_kernels`, or read the others' rows by `ranks.everywhere(rows, self.group)`.
        """
        raise NotImplementedError(f"{type(self).__name__} compares no samples")

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
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

    def drawn(self, batch: Batch) -> Batch:
        """The batch with what the method draws for it, where that can be told by values of a batch: training counts by
        it and hands it on, so that nothing is drawn twice."""
        return batch

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many things the terms of the loss are means over, where these are not samples: 0-d tensors by names of
        the batch's form, such as `text.hidden`. Training adds to each chunk, on each rank, under the same names how
        many a chunk has on average."""
        return {}

    def part_of_mean(
        self, mean: Float[Tensor, ""], batch: Batch, name: str, count: int | Int64[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The mean over the `count` things of this chunk as a term of the loss: the mean of all chunks' terms is then
        that over the things of all of them; 0 where there are none anywhere. Where `batch` does not tell `name` it is
        all there is, and stays."""
        return mean * (count / batch[name].clamp(min=1e-9)) if name in batch else mean

    def before_step(self, progress: float) -> None:
        """Called before the forward pass, for schedules; progress runs from 0 to 1 over the whole training.

        It must change nothing that is saved: the step may be dropped by a stop.
        """

    def after_step(self, progress: float) -> None:
        """Called after the optimizer's step: where a teacher follows its student."""

    def figures(self, batch: Batch) -> list[Figure]:
        """What the method makes of a few samples, for the report; of features it tells by itself."""
        return []

    # Checkpoints

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors, decoder included, for `from_pretrained`.

        What is saved counts as trained from here on, in memory as in the folder: at other sizes both then interpolate
        the same tables.
        """
        mark_trained(self)
        return interop.save_folder(folder, self.told(), self.state_dict())

    def told(self) -> dict[str, Any]:
        """The method and its settings, as config.json holds them; with the module, where it is not mmssl's."""
        kind, own = type(self), type(self).__module__
        where = {} if own.startswith("mmssl.objectives.") else {"module": importable(own)}
        return {"mmssl": kind.__name__, **where, **version.stamp(), "config": self._settings}

    @property
    def _settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)

    @classmethod
    def from_pretrained(cls: type[O], path_or_hub_id: str | Path) -> O:
        """From a folder that `save_pretrained` wrote, or a transformers folder of the same method."""
        folder = interop.resolve(path_or_hub_id)
        config, state = interop.read_config(folder), interop.read_weights(folder)
        with interop.loading(folder):
            if "mmssl" not in config:
                form = interop.form_read(cls._names(), ["transformers", "open_clip"], config, state, str(folder))
                return cls._of(form.read(config, state, str(folder)), str(folder))
            if config["mmssl"] != cls.__name__:
                raise UserError(f"{folder}: holds {config['mmssl']}, not {cls.__name__}; load it with its own class")
            objective = cls(interop.config_from_dict(cls.config_class, config["config"]))
            objective.load_state_dict(state)
            mark_trained(objective)
            return objective

    @classmethod
    def from_official(cls: type[O], source: str | Path | Mapping[str, Any], **settings: Any) -> O:
        """From the authors' files or state dicts. Sizes are read off the shapes; what those cannot tell is in settings:

        heads, decoder_heads, text_heads: the paper's for the width where not given. size: of the media it was trained
        on, (height, width) or one side for both, of clips (frames, height, width); taken for square where not given
        (see `Encoder.from_official`). And any field of the method's config, such as `mask_ratio` or `norm_pix`: the
        default is the paper's, or that of the released files (see `read_official` in `mmssl/interop/` for each method).

        A file without a decoder leaves it freshly initialised, with a warning. Raises UserError for a file of another
        kind and for an unknown setting.
        """
        state, name = interop.official_state(source)
        form = interop.form_read(cls._names(), ["official"], {}, state, name)
        for setting in settings:
            if setting not in (known := [*form.options, *_fields(cls.config_class)]):
                raise UserError(f"{cls.__name__} has no setting {setting!r}: {nearest(setting, known)}")
        options = {key: value for key, value in settings.items() if key in form.options}
        found = form.read({}, state, name, **options)
        return cls._of(found, name, {key: settings[key] for key in settings.keys() - options.keys()})

    @classmethod
    def _of(cls: type[O], found: interop.Found, source: str, settings: Mapping[str, Any] | None = None) -> O:
        config: Any = interop.config_from_dict(cls.config_class, found.settings)
        objective = cls(dataclasses.replace(config, **(settings or {})))
        interop.load(objective, found, source)
        mark_trained(objective if found.whole else objective.encoder)
        return objective

    @classmethod
    def _names(cls) -> list[str]:
        """Under which its forms are found: its own name, then those of what it derives from."""
        return [each.__name__ for each in cls.__mro__]

    @property
    def forms(self) -> dict[str, interop.Form]:
        """What this method can be written as, by the names of `mmssl export --to`; the encoder alone has others."""
        return interop.forms_of(self._names(), self._settings)

    def save_as(self, form: interop.Form, folder: str | Path) -> Path:
        """Write a folder of one of the forms in `forms`."""
        return interop.save_as(form, self._settings, self.state_dict(), folder)

    def to_transformers(self, folder: str | Path) -> Path:
        """Write a folder that transformers' class of the same method reads, decoder included. Raises UserError where
        transformers has none, or it cannot express this model."""
        remedy = "; its encoder alone may, `encoder.forms`"
        form = interop.form_of(self.forms, "transformers", type(self).__name__, self._settings, remedy)
        return self.save_as(form, folder)


def _fields(config: Any) -> list[str]:
    """The names of a dataclass's settings."""
    return [each.name for each in dataclasses.fields(config)]
