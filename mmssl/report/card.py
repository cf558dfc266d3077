"""A model card: the README.md beside a model. What it says is read from the model, or from the files of its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mmssl import version
from mmssl.encoder import Encoder, Pool
from mmssl.errors import as_text
from mmssl.evaluation import Row
from mmssl.modality import ZERO_TO_ONE
from mmssl.objectives import Objective
from mmssl.report.classes import CLASSES, classes_told
from mmssl.tokenizer import TokenizerConfig
from mmssl.training import read_metrics
from mmssl.training.checkpoints import replace_file

CARD, ACCURACIES = "README.md", "accuracies.json"
_SIGNED = "This card was written by mmssl"
# What the Hugging Face hub calls the use of a model: with a head, and without.
_TASKS = {
    "image": ("image-classification", "image-feature-extraction"),
    "video": ("video-classification", None),
    "audio": ("audio-classification", None),
    "text": ("text-classification", "feature-extraction"),
}
_POOLS: dict[Pool, str] = {
    "mean": "the mean of the tokens",
    "class": "the first token",
    "last": "the last token",
}
# What is in a row of metrics beside measurements: where the run was, and how the step went.
_NOT_MEASURED = {"step", "epoch", "parts", "lr", "grad_norm", "samples_per_second", "seen", "skipped"}
# What settings.json says of the machine alone, and by which flags the run was started, paths among them.
_NOT_TOLD = {"recipe", "workers", "log_every", "save_every", "validate_every", "keep", "tracker", "device"}


def own_card(method: Objective, folder: Path) -> str:
    """That of a folder of mmssl's own, which the method was read from."""
    place = as_text(str(folder))
    return card(method, method, folder, ["from mmssl import Encoder", f"encoder = Encoder.from_pretrained({place!r})"])


def leave_card(folder: Path, text: str) -> None:
    """Write a card, unless the folder has one by another hand."""
    there = folder / CARD
    if not there.is_file() or _SIGNED in there.read_text(encoding="utf-8", errors="replace"):
        replace_file(there, text.encode())


def card(
    model: Encoder | Objective, method: Objective | None, source: Path, lines: Sequence[str], library: str = "mmssl"
) -> str:
    """The card of `model`, by itself or as a part of the `method` that trained it, if that is known, which was read
    from `source`, a run's `final` or checkpoint or another model's folder. lines: how it is loaded in `library`."""
    run = source.parent if (source.parent / "settings.json").is_file() else None
    head = ["---", f"library_name: {library}", *([f"pipeline_tag: {used}"] if (used := _used(model)) else []), "---"]
    parts = [
        "\n".join(head),
        f"# {as_text((run or source).resolve().name)}",
        f"{_SIGNED} {version.__version__} from the model{' and the files of its run' if run else ''}.",
        "## Model\n\n" + _listed(_model(model, method)),
    ]
    if run is not None:
        parts += _run(run, source)
    parts.append("## Load\n\n```python\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts) + "\n"


def _encoders(model: Encoder | Objective) -> dict[str, Encoder]:
    """Those of a model, by name."""
    if isinstance(model, Encoder):
        return {"encoder": model}
    return {name: part for name, part in model.named_children() if isinstance(part, Encoder)}


def _used(model: Encoder | Objective) -> str | None:
    """What the hub calls its use, if it has a word for it."""
    configs = [encoder.config for encoder in _encoders(model).values()]
    if [config.tokenizers[0].modality.name for config in configs] == ["image", "text"]:
        return "zero-shot-image-classification"
    named = _TASKS.get(configs[0].tokenizers[0].modality.name, (None, None))
    return named[0] if configs[0].classes else named[1]


def _model(model: Encoder | Objective, method: Objective | None) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    if method is not None:
        sentence = (type(method).__doc__ or "").strip().partition("\n")[0]
        rows.append(("trained as", type(method).__name__ + (f": {sentence}" if sentence else "")))
    if isinstance(model, Objective):
        rows.append(("parameters", _parameters(model)))
    for name, encoder in _encoders(model).items():
        config, transformer = encoder.config, encoder.config.transformer
        blocks = f"{transformer.depth} blocks, {transformer.dim} wide, {transformer.heads} heads"
        rows.append((name, f"transformer of {blocks}, {_parameters(encoder)} parameters"))
        rows += [(f"{name} reads", _read(tokenizer)) for tokenizer in config.tokenizers]
        if config.classes:
            seen = _POOLS[config.pool or "mean"] + (", normalised" if config.pool_norm else "")
            seen += ", behind a layer of tanh" if config.pooler else ""
            named = f": {', '.join(map(as_text, config.labels))}" if config.labels else ""
            several = ", of which a sample may have several" if config.several else ""
            rows += [("head", f"linear, of {seen}"), ("classes", f"{config.classes}{several}{named}")]
    return rows


def _parameters(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _read(tokenizer: TokenizerConfig) -> str:
    """What goes into one modality of the model."""
    modality, size = tokenizer.modality, " x ".join(map(str, tokenizer.size))
    if not modality.patch:
        return f"{modality.name}, ids of {modality.channels} tokens, up to {size} of them"
    patch = f"{' x '.join(modality.axes)} = {size} in patches of {' x '.join(map(str, modality.patch))}"
    if modality.kind == "categorical":
        return f"{modality.name}, ids of {modality.channels} classes, {patch}"
    statistics = f"mean {_numbers(modality.mean)} and deviation {_numbers(modality.std)}"
    of = "values in 0-1" if modality.name in ZERO_TO_ONE else "raw values"
    return f"{modality.name}, {modality.channels} channels, {patch}, {of} normalised by {statistics}"


def _run(run: Path, source: Path) -> list[str]:
    """What the files of a run tell of the model in `source`: its settings, and what was measured up to its step."""
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    parts = [
        "## Training\n\n" + _listed((name, _brief(settings[name])) for name in settings if _is_told(name, settings))
    ]
    found = re.fullmatch(r"step-(\d+)", source.name)
    rows = [row for row in read_metrics(run) if found is None or row["step"] <= int(found[1])]
    watched = [row for row in rows if "heldout_loss" in row] or rows
    if watched:
        row = watched[-1]
        numbers = [(name, value) for name, value in row.items() if name not in _NOT_MEASURED and value is not None]
        parts.append(
            f"## Measured while training\n\nAfter step {row['step']}, epoch {row['epoch']:.4g}:\n\n"
            + _listed((name, _brief(value)) for name, value in numbers)
        )
    if found is None and (run / CLASSES).is_file():
        lines = classes_told(json.loads((run / CLASSES).read_text(encoding="utf-8")))
        parts.append("## Measured at the end\n\n" + "\n".join(f"- {as_text(line)}" for line in lines))
    if found is None and (run / ACCURACIES).is_file():
        probed = [Row(**row) for row in json.loads((run / ACCURACIES).read_text(encoding="utf-8"))]
        named = [(f"{row.representation}, {row.probe}, {row.budget}", f"{row} % ({row.metric})") for row in probed]
        parts.append("## Measured by `mmssl evaluate`\n\n" + _listed(named))
    return parts


def _is_told(name: str, settings: Mapping[str, Any]) -> bool:
    """Of the method what is not its encoder or decoder, which are told of already."""
    group, _, rest = name.partition(".")
    return group not in _NOT_TOLD and not (group == "method" and "." in rest) and settings[name] not in (None, "")


def _listed(rows: Iterable[tuple[str, object]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _brief(value: Any) -> str:
    if isinstance(value, str):
        return f"`{as_text(value)}`"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
