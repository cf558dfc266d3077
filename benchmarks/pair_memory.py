"""Peak memory of CLIP's step on a large batch in chunks, beside that of one chunk alone and all features.

    python -m benchmarks.pair_memory [--model tiny] [--pairs 4096] [--chunk 64]

The loss of the large batch is that of all its pairs (see mmssl/training/gradients.py). Pictures of 224 pixels, patches
of 32, captions of 8 to 24 tokens, float32. Each is measured in a process of its own, as what forward and backward add
to the resident set of the model and the batch, gradients of the parameters among it; the one chunk three times over, as
a training would, since from the second time on there are gradients to add to. Features are counted twice, with their
gradients.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.machine import device_name, in_fresh_process, markdown, peak_growth, write
from mmssl import CLIP
from mmssl.training.gradients import Gradients
from mmssl.training.stopping import StopRequest

CPU, LENGTH = torch.device("cpu"), 77


def peak(model: str, pairs: int, chunk: int) -> int:
    """In bytes, for a process of its own."""
    torch.manual_seed(0)
    objective = CLIP(model, patch=32).train()
    numbers, lengths = torch.arange(pairs), torch.randint(8, 25, (pairs,))
    batch = {
        "image": torch.randint(0, 256, (pairs, 3, 224, 224), dtype=torch.uint8),
        "text": torch.randint(1, 49407, (pairs, LENGTH)),
        "text.length": lengths,
        "sample_id": numbers,
        "epoch": 0 * numbers,
        "draw": 0 * numbers,
    }
    gradients = Gradients(objective, pairs // chunk, CPU)

    def told(done: int, passes: int) -> None:
        print(f"{done} of {passes} passes", end="\r", flush=True)

    def steps() -> None:
        for _ in range(3 if pairs == chunk else 1):
            gradients(batch, StopRequest(), told)

    return peak_growth(steps, CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=64)
    options = parser.parse_args()
    one, all_of_them = (
        in_fresh_process(peak, options.model, pairs, options.chunk) for pairs in (options.chunk, options.pairs)
    )
    config = CLIP.named(options.model, patch=32)
    features = 2 * 2 * options.pairs * config.dim * 4
    row: dict[str, Any] = {
        "model": f"CLIP {options.model}, chunks of {options.chunk}",
        "pairs": options.pairs,
        "one chunk, MiB": round(one / 2**20),
        "features, MiB": round(features / 2**20),
        "the batch, MiB": round(all_of_them / 2**20),
        "over chunk and features": f"{all_of_them / (one + features):.2f}x",
    }
    print(f"\n{device_name(CPU)}\n\n{markdown([row])}\n\n{write('pair-memory', CPU, {'rows': [row]})}")


if __name__ == "__main__":
    main()
