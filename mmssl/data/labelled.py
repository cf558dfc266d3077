"""The labelled parts of a data set: what is trained on, and what is asked, under the same class numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmssl.data.folders import NoTestPart
from mmssl.data.source import Source, Subset, hold_out, label_sets, subset
from mmssl.errors import UserError
from mmssl.masking.noise import permutation


def both_parts(
    opened: Callable[[Path, str | None], Source], data: Path, test: Path | None
) -> tuple[Subset, Subset, str]:
    """(training part, test part, how the latter was held out, or nothing) of `data`, or of `data` and `test`.

    opened: the media of a path and a split. Where there is no test part, a fifth of each class is held out. Raises
    UserError where a part has no labels, or the test part classes that the training part has not.
    """
    classless = (
        f"{data}: no labels: they are a folder of class folders, at least two, or a manifest with labels; "
        "where texts have a class beside them, name it by --label"
    )
    train, held_out = labelled(opened(data, "train"), classless), ""
    try:
        classless = "the test part has no labels: give it the class folders, or the labels, of the training part"
        asked = labelled(test_part(opened, data, test), classless)
    except NoTestPart:
        (train, asked), held_out = hold_out(train, 0.2), " (held out, stratified by class)"
    return train, _same_classes(asked, train), held_out


def few(part: Subset, count: int, seed: int = 0) -> Subset:
    """`count` samples of each class, all where it has no more, the same for the same seed. Raises UserError where
    samples have several classes each."""
    if part.labels is None or count < 1:
        several = "where samples have several classes each, there is no number for each class"
        raise UserError(several if part.labels is None else f"{count} samples a class: take at least one")
    order = permutation(len(part), seed=seed, stream="few").tolist()
    members: dict[int, list[int]] = {}
    for index in order:
        members.setdefault(part.labels[index], []).append(index)
    return subset(part, sorted(index for some in members.values() for index in some[:count]))


def class_names(source: Source) -> list[tuple[str, ...]]:
    """Each sample's classes."""
    sets = label_sets(source)
    numbers = [(label,) for label in source.labels or ()] if sets is None else sets
    return [tuple(source.classes[number] for number in each) for each in numbers]


def counted(source: Subset) -> str:
    """How many samples of how many classes."""
    names = class_names(source)
    several = f" with {sum(map(len, names)) / len(names):.1f} labels on average" if source.label_sets else ""
    return f"{len(source)} samples{several}, {len({name for each in names for name in each})} classes"


def test_part(opened: Callable[[Path, str | None], Source], data: Path, test: Path | None) -> Source:
    """The test part of `data`, or where `test` is given that of it, all of it where there is none. Raises NoTestPart
    where `data` has none."""
    if test is None:
        return opened(data, "test")
    try:
        return opened(test, "test")
    except NoTestPart:
        return opened(test, None)


def labelled(source: Source, without: str) -> Subset:
    """The samples that have labels; of several labels all, no label being an answer, too. UserError, which says
    `without`, where none has."""
    sets = label_sets(source)
    if sets is not None and any(sets):
        return subset(source, range(len(source)))
    if source.labels is None:
        raise UserError(without)
    return subset(source, [index for index, label in enumerate(source.labels) if label >= 0])


def _same_classes(test: Subset, train: Subset) -> Subset:
    """The test samples under the training classes' numbers: each part's classes are numbered on their own."""
    if (test.label_sets is None) != (train.label_sets is None):
        one, other = ("training", "test") if train.label_sets is None else ("test", "training")
        raise UserError(f"the {one} part has one label a sample, the {other} part several: label both alike")
    known = {name for each in class_names(train) for name in each}
    if unknown := sorted({name for each in class_names(test) for name in each} - known):
        raise UserError(f"the test part has the class {unknown[0]!r}, which the training part has not")
    renamed = subset(test, range(len(test)))
    number = {name: label for label, name in enumerate(train.classes)}
    numbers = [tuple(number[name] for name in each) for each in class_names(test)]
    renamed.classes = train.classes
    if test.label_sets is None:
        renamed.labels = [label for (label,) in numbers]
    else:
        renamed.label_sets = numbers
    return renamed
