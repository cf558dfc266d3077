"""How the demo's model, mask and schedule were chosen: variants of it, each trained for the same processor time.

    python -m benchmarks.demo_search --data FASHION_MNIST_FOLDER

Each variant gets `--seconds` of processor time on one thread (its number of steps is timed first), then kNN and linear
accuracy of the mean patch feature with 10 labels a class and with the labels of 10 000 training pictures, on the test
set. Variants differ from the demo in what their names say.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import device_name, markdown, write
from mmssl.data import EvalView, Loader, TrainView, evaluation_batches, open_source, subset
from mmssl.demo import CROPS, demo_config, demo_settings
from mmssl.evaluation import evaluate, extract, label_budgets
from mmssl.masking import permutation
from mmssl.objectives import MAE, MAEConfig
from mmssl.training import TrainSettings, train


@dataclasses.dataclass(frozen=True)
class Variant:
    """The demo, or a change of it."""

    method: MAEConfig
    settings: TrainSettings
    crops: tuple[float, float]


VARIANTS: dict[str, dict[str, Any]] = {
    "the demo": {},
    "patch 4": {"method.encoder.tokenizers.0.modality.patch": (4, 4)},
    "patch 14": {"method.encoder.tokenizers.0.modality.patch": (14, 14)},
    "width 128, depth 4": {"method.encoder.transformer.dim": 128, "method.encoder.transformer.depth": 4},
    "width 256, depth 1": {"method.encoder.transformer.dim": 256, "method.encoder.transformer.depth": 1},
    "depth 3": {"method.encoder.transformer.depth": 3},
    "decoder depth 2": {"method.decoder.transformer.depth": 2},
    "decoder width 128": {"method.decoder.transformer.dim": 128},
    "mask ratio 0.5": {"method.mask_ratio": 0.5},
    "mask ratio 0.88": {"method.mask_ratio": 0.88},
    "norm_pix": {"method.norm_pix": True},
    "rate / 2": {"settings.base_lr": 1.5e-3},
    "rate * 2": {"settings.base_lr": 6e-3},
    "batch 128": {"settings.batch_size": 128, "settings.base_lr": 6e-3},
    "no crops": {"crops": (1.0, 1.0)},
    "crops of 30-100 %": {"crops": (0.3, 1.0)},
}


def replaced(config: Any, path: list[str], value: Any) -> Any:
    """A nested frozen config (dataclasses and tuples) with one setting changed."""
    if not path:
        return value
    first, *rest = path
    if isinstance(config, tuple):
        index = int(first)
        return (*config[:index], replaced(config[index], rest, value), *config[index + 1 :])
    return dataclasses.replace(config, **{first: replaced(getattr(config, first), rest, value)})


def run(name: str, seconds: float, data: Path) -> dict[str, Any]:
    pictures, test = open_source(data, "train"), open_source(data, "test")
    variant = Variant(demo_config(28), demo_settings(1.0), CROPS)
    for path, value in VARIANTS[name].items():
        variant = replaced(variant, path.split("."), value)
    plan = variant.settings
    device = torch.device("cpu")

    def pretrained(steps: int) -> MAE:
        torch.manual_seed(0)
        mae = MAE(variant.method)
        loader = Loader(pictures, TrainView(28, scale=variant.crops), batch_size=plan.batch_size)
        warmup = steps / 12 / loader.steps_per_epoch
        short = dataclasses.replace(plan, epochs=None, steps=steps, warmup_epochs=warmup, log_every=0, validate_every=0)
        with tempfile.TemporaryDirectory() as folder:
            train(mae, loader, dataclasses.replace(short, save_every=0), Path(folder), device=device)
        return mae

    pretrained(5)
    start = time.process_time()
    pretrained(30)
    steps = max(30, int(seconds / ((time.process_time() - start) / 30)))
    mae = pretrained(steps)
    labelled = subset(pictures, permutation(len(pictures), seed=0, stream="search")[:10_000].tolist())
    whole = EvalView(28, resize=28)
    shown, asked = (extract(mae.encoder, evaluation_batches(part, whole, batch_size=500)) for part in (labelled, test))
    assert shown.labels is not None
    budgets = {key: value for key, value in label_budgets(shown.labels).items() if key != "1 %"}
    rows = evaluate(shown, asked, budgets, representation=name)
    accuracies = {f"{row.probe}, {row.budget.replace('all', '10 000')}": round(100 * row.accuracy, 1) for row in rows}
    return {"variant": name, "steps": steps, "pictures": steps * plan.batch_size, **accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, device = [], torch.device("cpu")
    for name in options.variants:
        rows.append(run(name, options.seconds, options.data))
        print(rows[-1], flush=True)
        # after each: an interrupted search keeps what it has found
        path = write("demo-search", device, {"seconds": options.seconds, "rows": rows})
    print(f"\n{device_name(device)}, {options.seconds:g} s a variant\n\n{markdown(rows)}\n\n{path}")


if __name__ == "__main__":
    main()
