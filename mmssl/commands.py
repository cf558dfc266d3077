"""What the commands of the command line do with a trained encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmssl.data import (
    Clips,
    DavisFolder,
    EvalView,
    JhmdbFolder,
    Ledger,
    NoTestPart,
    Source,
    Subset,
    blending_told,
    evaluation_batches,
    hold_out,
    notes,
    open_source,
    open_videos,
    subset,
)
from mmssl.encoder import Encoder, single_modality
from mmssl.errors import UserError, as_text
from mmssl.evaluation import (
    CROPMAE,
    DINO,
    FeatureSet,
    FrameEncoder,
    MaskRow,
    PatchEncoder,
    PointRow,
    RawPixels,
    SideBySide,
    average_clips,
    evaluate_masks,
    evaluate_points,
    extract,
    label_budgets,
    mask_table,
    pck,
    penalties,
    table,
    untrained,
)
from mmssl.evaluation import evaluate as measure
from mmssl.evaluation.knn import K
from mmssl.interop import Form
from mmssl.modality import VIDEO, zero_to_one
from mmssl.objectives import Objective, load
from mmssl.reading import Reading
from mmssl.report.pictures import neighbours as draw_neighbours
from mmssl.report.run import ACCURACIES
from mmssl.runs import model_in
from mmssl.training import distributed


def open_media(encoder: Encoder, data: Path, split: str | None, reading: Reading) -> Source:
    """The media of the encoder's kind under `data`."""
    modality, size = single_modality(encoder), encoder.config.tokenizers[0].size
    frames = size[0] if modality.name == VIDEO.name else reading.frames
    if not frames:
        return open_source(data, split, modality.channels, reading.background)
    clips = Clips(frames, reading.stride, spread=reading.clips)
    return open_videos(data, split, clips, channels=modality.channels, short_side=int(max(size[-2:]) / 0.875))


def features_of(
    encoders: Mapping[str, Encoder | RawPixels],
    source: Source,
    reading: Reading,
    device: torch.device,
    patches: bool = False,
) -> dict[str, FeatureSet]:
    """Each encoder's features of every readable sample, which is read once, with a progress bar; the first is the one
    that says how. Unreadable samples are listed and left out. patches: of every patch, in a row.
    """
    from rich.progress import Progress

    encoder = next(iter(encoders.values()))
    assert isinstance(encoder, Encoder)
    ledger = Ledger()
    names = [source.name(index) for index in range(len(source))]
    on_frames = reading.frames and single_modality(encoder).name != VIDEO.name
    if patches and on_frames:
        raise UserError("patch features are those of a picture or of a video model's clip: leave out --frames")
    wrap = PatchEncoder if patches else FrameEncoder if on_frames else None
    together = SideBySide(
        {name: wrap(each) if wrap and isinstance(each, Encoder) else each for name, each in encoders.items()}
    )
    with Progress(transient=True) as bar:
        task = bar.add_task("features", total=len(source) * reading.clips)
        batches = _views(encoder, source, reading, ledger)
        features = extract(
            together,
            batches,
            pool=reading.pool,
            device=device,
            names=names,
            progress=lambda done: bar.update(task, completed=done),
        )
    for name, reason in ledger.skipped:
        print(f"skipped {name}: {reason}")
    if ledger.skipped:
        print(f"{ledger.seen} samples read, {len(ledger.skipped)} skipped")
    say(blending_told(len(ledger.blended)))
    return together.part(average_clips(features, reading.clips))


def _views(
    encoder: Encoder, source: Source, reading: Reading, ledger: Ledger | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """The media as the encoder was trained to see them: the centre, at its size."""
    *_, height, width = encoder.config.tokenizers[0].size
    return evaluation_batches(
        source,
        EvalView((height, width)),
        batch_size=reading.batch_size,
        workers=reading.workers,
        ledger=ledger,
        repeats=reading.clips,
    )


def say(lines: Sequence[str]) -> None:
    """Print what there is to say, maybe nothing."""
    for line in lines:
        print(line)


def labelled(source: Source, without: str) -> Subset:
    """The samples that have labels; UserError, which says `without`, where none has."""
    if source.labels is None:
        raise UserError(without)
    return subset(source, [index for index, label in enumerate(source.labels) if label >= 0])


def class_names(source: Source) -> list[str]:
    """Each sample's class."""
    return [source.classes[label] for label in source.labels or ()]


def same_classes(test: Subset, train: Subset) -> Subset:
    """The test pictures under the training classes' numbers: each part's folders are numbered on their own."""
    if unknown := sorted(set(class_names(test)) - set(class_names(train))):
        raise UserError(f"the test part has the class {unknown[0]!r}, which the training part has not")
    renamed = subset(test, range(len(test)))
    number = {name: label for label, name in enumerate(train.classes)}
    renamed.labels, renamed.classes = [number[name] for name in class_names(test)], train.classes
    return renamed


def counted(source: Subset) -> str:
    """How many samples of how many classes."""
    return f"{len(source)} samples, {len(set(source.labels or ()))} classes"


def embed(model: Path, data: Path, out: Path, reading: Reading, patches: bool = False) -> None:
    """Write the features of a folder as .parquet or .npz."""
    if out.suffix not in (".parquet", ".npz"):
        raise UserError(f"{out}: features are written as .parquet or .npz; change the ending")
    encoder = Encoder.from_pretrained(model_in(model))
    source = open_media(encoder, data, None, reading)
    say(notes(source))
    (found,) = features_of({"": encoder}, source, reading, distributed.init(reading.device), patches).values()
    columns: dict[str, Any] = {"name": found.names}
    if found.labels is not None:
        columns["label"] = [source.classes[label] if label >= 0 else None for label in found.labels.tolist()]
    out.parent.mkdir(parents=True, exist_ok=True)
    size, patch = encoder.config.tokenizers[0].size, single_modality(encoder).patch
    grid = [side // part for side, part in zip(size, patch, strict=True)] if patches else []
    values = found.features.unflatten(1, (*grid, encoder.dim)) if patches else found.features
    if out.suffix == ".npz":
        arrays: dict[str, Any] = {
            f"{key}s": np.array([cell or "" for cell in column]) for key, column in columns.items()
        }
        np.savez(out, features=values.numpy(), **arrays)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        nested = pa.array(values.flatten().numpy())
        for length in reversed(values.shape[1:]):
            nested = pa.FixedSizeListArray.from_arrays(nested, length)
        with open(out, "wb") as file:  # pyarrow takes no path that is not UTF-8
            parquet.write_table(pa.table({**columns, "feature": nested}), file)
    print(f"{len(found)} features of {' x '.join(map(str, values.shape[1:]))} numbers: {as_text(str(out))}")


def neighbours(
    model: Path, data: Path, out: Path, reading: Reading, queries: int, shown: int, named: Sequence[str]
) -> None:
    """Draw queries, evenly spread over the media or `named`, each with those whose features are nearest to its own."""
    encoder = Encoder.from_pretrained(model_in(model))
    source = open_media(encoder, data, None, reading)
    say(notes(source))
    (found,) = features_of({"": encoder}, source, reading, distributed.init(reading.device)).values()
    assert found.names is not None
    if len(found) < 2:
        raise UserError(f"{data}: {len(found)} readable sample has no neighbour")
    if unknown := [name for name in named if name not in found.names]:
        raise UserError(f"{data}: no readable sample {unknown[0]!r}; names are paths within the folder")
    asked = [found.names.index(name) for name in named]
    asked = asked or torch.linspace(0, len(found) - 1, min(queries, len(found))).long().tolist()
    unit = torch.nn.functional.normalize(found.features, dim=1)
    nearness = unit[asked] @ unit.T
    nearness[range(len(asked)), asked] = torch.inf  # the query itself comes first
    order = nearness.topk(min(shown + 1, len(found)), dim=1).indices
    number = {source.name(index): index for index in range(len(source))}
    wanted = [number[found.names[index]] for index in order.flatten().tolist()]
    once = replace(reading, clips=1)
    pictures = torch.cat([still(batch) for batch in _views(encoder, subset(source, wanted), once)])
    out.write_bytes(draw_neighbours(pictures.unflatten(0, order.shape)))
    for query, line in zip(asked, order.tolist(), strict=True):
        print(f"{found.names[query]}: {', '.join(found.names[index] for index in line[1:])}")
    print(as_text(str(out)))


def still(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Pictures in 0-1 for the eye: of clips the frame in the middle."""
    media = batch["image"] if "image" in batch else batch["video"][:, :, batch["video"].shape[2] // 2]
    return zero_to_one(media)


def evaluate(model: Path, data: Path, out: Path | None, reading: Reading, baselines: bool = True) -> None:
    """Print, and write where asked, kNN and linear-probe accuracies of the model and of what it is held against."""
    encoder = Encoder.from_pretrained(model_in(model))
    encoders: dict[str, Encoder | RawPixels] = {as_text(model.name): encoder}
    if baselines:
        encoders |= {"random initialisation": untrained(encoder), "raw pixels": RawPixels()}
    classless = f"{data}: no labels; evaluation needs a folder of class folders, at least two"
    train_source, held_out = labelled(open_media(encoder, data, "train", reading), classless), ""
    try:
        classless = "the test part has no labels: give it the class folders of the training part"
        test_source = labelled(open_media(encoder, data, "test", reading), classless)
    except NoTestPart:
        (train_source, test_source), held_out = hold_out(train_source, 0.2), " (held out, stratified by class)"
    test_source = same_classes(test_source, train_source)
    say(notes(train_source, test_source))
    print(f"train: {counted(train_source)}; test: {counted(test_source)}{held_out}")
    where = distributed.init(reading.device)
    train, test = (features_of(encoders, part, reading, where) for part in (train_source, test_source))
    shown, asked = (next(iter(part.values())).labels for part in (train, test))
    assert shown is not None and asked is not None
    budgets = label_budgets(shown)
    rows = [row for name in encoders for row in measure(train[name], test[name], budgets, representation=name)]
    chance, largest = 1 / len(train_source.classes), int(asked.bincount().max()) / len(asked)
    print(f"chance: {100 * chance:.1f} %, the largest class alone {100 * largest:.1f} %; kNN: k = {K}")
    print(f"{table(rows)}\n{penalties(rows)}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / ACCURACIES).write_text(json.dumps([asdict(row) for row in rows], indent=1))


def follow(
    model: Path,
    data: Path,
    out: Path | None,
    kind: Literal["masks", "points"],
    rule: Literal["crw", "dino"],
    side: int | None,
    split_lists: Sequence[Path],
    device: str,
    background: str,
) -> None:
    """Print, and write where asked, how well the features carry each sequence's first labels on to its other frames."""
    from rich.progress import Progress

    encoder, where = Encoder.from_pretrained(model_in(model)), distributed.init(device)
    settings = CROPMAE if rule == "crw" else DINO
    with Progress(transient=True) as bar:
        task = bar.add_task("sequences", total=None)

        def advance(_: str) -> None:
            bar.advance(task)

        rows: list[MaskRow] | list[PointRow]
        if kind == "masks":
            masks = DavisFolder(data, short_side=side, background=background)
            bar.update(task, total=len(masks))
            rows = found = evaluate_masks(encoder, masks, settings, device=where, progress=advance)
            text = mask_table(found)
        else:
            points = JhmdbFolder(data, split_lists or None, short_side=side, background=background)
            bar.update(task, total=len(points))
            rows = errors = evaluate_points(encoder, points, settings, device=where, progress=advance)
            text = "\n".join(f"PCK@{alpha}: {100 * pck(errors, alpha):.1f} %" for alpha in (0.1, 0.2))
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{kind}.json").write_text(
            json.dumps([asdict(row) for row in rows], indent=1, default=torch.Tensor.tolist)
        )


def export(model: Path, out: Path | None, to: str) -> None:
    """Write a model for another library; `to` is one of the forms it has, or "list" for a list of them."""
    folder = model_in(model)
    encoder = Encoder.from_pretrained(folder)
    forms: dict[str, tuple[Form, Encoder | Objective]] = {name: (form, encoder) for name, form in encoder.forms.items()}
    with suppress(UserError):  # of an encoder alone
        method = load(folder)
        forms |= {name: (form, method) for name, form in method.forms.items()}
    if to == "list":
        width = max(map(len, forms), default=0)
        say([f"{name:<{width}}  {form.what}" for name, (form, _) in forms.items()] or ["nothing that mmssl writes"])
        return
    if to not in forms:
        raise UserError(f"{model}: cannot become {to!r}, only {', '.join(forms) or 'nothing that mmssl writes'}")
    if out is None:
        raise UserError("give --out DIR, the folder to write")
    form, whole = forms[to]
    whole.save_as(form, out)
    place = as_text(str(out))
    if form.library == "timm":
        print(f"import timm\nmodel = timm.create_model({f'local-dir:{place}'!r}, pretrained=True)")
    else:
        name = json.loads((out / "config.json").read_text())["architectures"][0]
        print(f"import transformers\nmodel = transformers.{name}.from_pretrained({place!r})")
