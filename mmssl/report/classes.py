"""What a classifier was found to tell apart, written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.report.page import Report

CLASSES = "classes.json"
"""The file beside a run that holds what was found."""
# As many as can be seen side by side; of more the worst are told.
_SHOWN = 20


def classes_told(found: Mapping[str, Any]) -> list[str]:
    """What `mmssl.finetune.judge.told` found: a line for all, one for each class from the worst on."""
    top5 = f", among the best five {found['top5']:.1%}" if len(found["classes"]) > 5 and "top5" in found else ""
    lines = [f"{found['metric']} {found['accuracy']:.2%} of {found['samples']} samples that are held out{top5}"]
    pairs = [(each, name) for name, each in zip(found["classes"], found["each"], strict=True) if each is not None]
    worst = ", ".join(f"{name} {each:.1%}" for each, name in sorted(pairs)[:_SHOWN])
    more = f", and {len(pairs) - _SHOWN} that are better" if len(pairs) > _SHOWN else ""
    return [*lines, f"class by class, from the worst on: {worst}{more}"]


def draw_classes(report: Report, found: Mapping[str, Any]) -> None:
    """All of it: in words, and where each sample has one of a few classes as a table of what is taken for what; of many
    classes the pairs that are mixed up most."""
    report.heading("What it tells apart")
    report.text("\n\n".join(classes_told(found)))
    classes, confusion = found["classes"], found.get("confusion")
    if confusion and len(classes) <= _SHOWN:
        report.confusion(classes, confusion)
    elif confusion:
        counts = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if n and i != j]
        worst = sorted(counts, reverse=True)[:_SHOWN]
        report.text("; ".join(f"{n} x {classes[i]} is taken for {classes[j]}" for n, i, j in worst))
