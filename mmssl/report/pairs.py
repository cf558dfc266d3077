"""What was measured of a model of pairs, written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ZERO_SHOT, RETRIEVAL = "zero_shot.json", "retrieval.json"


def zero_shot_told(found: Mapping[str, Any]) -> list[str]:
    """What `mmssl.evaluation.ZeroShot` holds, and the number of `templates`."""
    count = found["templates"]
    lines = [
        f"zero-shot {found['metric']}: {found['accuracy']:.1%} of {found['samples']} pictures, {found['classes']} "
        f"classes by name in {count} template{'s' * (count > 1)}"
    ]
    if found["top5"] is not None:
        lines.append(f"among the first five: {found['top5']:.1%}")
    largest = "" if found["largest"] is None else f", the largest class alone {found['largest']:.1%}"
    return [*lines, f"chance: {found['chance']:.1%}{largest}"]


def retrieval_told(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What `mmssl.evaluation.Retrieval` holds, by direction."""
    lines = []
    for direction, each in found.items():
        recalls = ", ".join(
            f"R@{k} {share:.1%} (chance {chance:.1%})"
            for (k, share), chance in zip(each["recalls"].items(), each["chance"].values(), strict=True)
        )
        asked = f"{each['queries']} asked for among {each['candidates']}"
        lines.append(f"{direction}: {recalls}, median rank {each['median']}, {asked}")
    return lines
