"""Whether pretraining pays when all of the encoder is tuned: from random weights against from a masked autoencoder.

    python -m benchmarks.learning_finetune                     # half an hour on two CPU cores, after the demo
    python -m benchmarks.learning_finetune --seeds 1 --share 0.02    # does it run at all

Fashion-MNIST, the demo's encoder (`mmssl demo` makes it, without labels, where `--model` names no run), tuned by the
image-finetune recipe on 10 pictures of each class, on 60 (1 %) and on all, and tested on all 10 000 test pictures. Both
starts get the same steps, which take the same time, the same rate and the same crops and flips. From random weights all
layers learn at one rate; pretrained ones at 0.75 of it from layer to layer downwards. Mixup, CutMix and smoothing are
the recipe's; nothing is erased. A seed is another choice of the labelled pictures, order and head. No rate was searched
for.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import device_name, markdown, write
from mmssl.datasets import fetch_fashion_mnist
from mmssl.demo import demo
from mmssl.methods import train
from mmssl.report.classes import CLASSES


@dataclass(frozen=True)
class Budget:
    """So many pictures of each class (None: all), for so many steps of a batch."""

    name: str
    per_class: int | None
    steps: int
    batch: int


BUDGETS = (Budget("10 a class", 10, 200, 50), Budget("1 %", 60, 300, 100), Budget("all", None, 400, 128))
STARTS = {"random weights": True, "pretrained": False}
# AdamW's peak, whatever the batch.
RATE = 1e-3
CPU = torch.device("cpu")


def tuned(
    model: Path, data: Path, out: Path, budget: Budget, scratch: bool, seed: int, share: float, rate: float
) -> float:
    """Top-1 accuracy on the test part in 0-1."""
    train(
        "image-finetune",
        data=data,
        out=out,
        model=str(model),
        scratch=scratch,
        per_class=budget.per_class,
        steps=max(2, round(share * budget.steps)),
        batch_size=budget.batch,
        at_once=256,
        base_lr=rate * 256 / budget.batch,
        layer_decay=1.0 if scratch else 0.75,
        drop_path=0.0,
        crop_scale=(0.6, 1.0),
        randaugment=(9.0, 0),
        erase=0.0,
        seed=seed,
        precision="fp32",
        workers=0,
        validate_every=0,
        save_every=0,
        tracker="none",
    )
    return json.loads((out / CLASSES).read_text())["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the four Fashion-MNIST files")
    parser.add_argument("--model", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/learning-finetune"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    data = fetch_fashion_mnist(Path("runs/data/fashion-mnist"), arguments.data)
    if not (arguments.model / "final").is_dir():
        demo(data, arguments.model)
    rows = []
    for start, scratch in STARTS.items():
        row: dict[str, str] = {"start": start}
        for budget in BUDGETS:
            found = []
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
                out = arguments.out / f"{start.replace(' ', '-')}-{budget.per_class or 'all'}-{seed}"
                found.append(tuned(arguments.model, data, out, budget, scratch, seed, arguments.share, arguments.rate))
            scores = 100 * torch.tensor(found, dtype=torch.float64)
            row[budget.name] = f"{scores.mean():.1f}" + (f" ± {scores.std():.1f}" if len(found) > 1 else "")
        rows.append(row)
    print(markdown(rows))
    settings = {"seeds": arguments.seeds, "share": arguments.share, "rate": arguments.rate}
    content = {"settings": settings, "rows": rows}
    print(f"\n{device_name(CPU)}\n\n{write('learning-finetune', CPU, content)}")


if __name__ == "__main__":
    main()
