"""One training step of a method against another's model of it: same weights, data, mask ratio and optimizer.

The other is transformers', for CLIP open_clip's (clip_peer.py), for fine-tuning timm's (finetune_peer.py), or for
Audio-MAE and MultiMAE, which transformers has not, of timm's and Swin's blocks (audio_peer.py, multimae_peer.py). Of
BERT there are texts that fill their rows and texts of other lengths (text_peer.py).

    python -m benchmarks.step                                          # MAE: the demo's model, ViT-S, ViT-B at 224
    python -m benchmarks.step --models videomae-small videomae-base    # VideoMAE on clips of 16 x 224 x 224
    python -m benchmarks.step --models audiomae-base audiomae-base-blocks   # Audio-MAE, and its local decoder's blocks
    python -m benchmarks.step --models bert-base-128 bert-base-512-lognormal --name step-bert      # BERT
    python -m benchmarks.step --models clip clip-image clip-text clip-captions flip-image --batch 64    # ViT-B/32
    python -m benchmarks.step --models multimae-base multimae-parts --rounds 4 --name step-multimae      # and its parts
    python -m benchmarks.step --models finetune-base --name step-finetune      # a classifier of 1000 classes, all of it
    python -m benchmarks.step --models small --precisions bf16 --modes eager compiled

Both sides alternate in one process; times are medians, "faster" is the median of the rounds' ratios. A step is forward,
backward and fused AdamW. Peak memory is measured in a fresh process a side (growth of the resident set over the built
model and its data on a CPU, allocator peak on a GPU). "of product rate" is the step's FLOP, counted by torch, over its
time, against a large matrix product of the same type measured just before.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import device_name, in_fresh_process, markdown, peak_growth, product_rate, seconds, write
from benchmarks.text_peer import TEXTS, Side, text_sides
from mmssl import MAE, AudioMAE, VideoMAE
from mmssl.demo import demo_config
from mmssl.encoder import vit_config
from mmssl.objectives import MAEConfig, videomae_config
from mmssl.training import adamw, parameter_groups

BATCH = {"demo": 256, "small": 16, "base": 16, "videomae-small": 4, "videomae-base": 2}
SOUNDS = ("audiomae-small", "audiomae-base")
PAIRS = ("clip", "clip-image", "clip-text", "clip-captions", "flip-image")
BATCH |= dict.fromkeys(PAIRS, 64)
BATCH |= {f"{model}{part}": 4 for model in SOUNDS for part in ("", "-global", "-blocks")}
BATCH |= {"multimae-base": 4} | dict.fromkeys(("multimae-parts", "multimae-embed", "multimae-restore"), 16)
BATCH |= TEXTS | {"finetune-small": 16, "finetune-base": 16}


class Blocks(nn.Module):
    """The blocks of Audio-MAE's local decoder alone, on random tokens."""

    def __init__(self, blocks: nn.ModuleList, *rest: Any):
        super().__init__()
        self.blocks, self.rest = blocks, rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, *self.rest)
        return x.square().mean()


def sound_sides(model: str, device: torch.device) -> dict[str, Side]:
    """Audio-MAE beside the same from timm's and Swin's blocks."""
    from benchmarks.audio_peer import PlainAudioMAE

    torch.manual_seed(0)
    size, _, part = model.removeprefix("audiomae-").partition("-")
    ours = AudioMAE(size, decoder="global" if part == "global" else "local")
    theirs = PlainAudioMAE(ours).to(device)
    ours, (mean,), (std,) = ours.to(device), ours.modality.mean, ours.modality.std
    grid, dim = ours.tokenizer.size_grid, ours.config.decoder.transformer.dim
    if part == "blocks":
        tokens = torch.randn(BATCH[model], grid[0] * grid[1], dim, device=device)
        blocks = Blocks(ours.decoder.transformer.blocks, None, None, None, grid), Blocks(theirs.decoder_blocks)
        return {"mmssl": (blocks[0], lambda m: m(tokens)), "plain PyTorch": (blocks[1], lambda m: m(tokens))}
    values = torch.randn(BATCH[model], 1, 1024, 128, device=device)
    batch = {"audio": values * std / 2 + mean, "sample_id": torch.arange(BATCH[model], device=device)}
    mask = ours.hide(batch)
    return {
        "mmssl": (ours, lambda m: m(batch).loss),
        "plain PyTorch": (theirs, lambda m: m(values / 2, mask.keep.index, mask.hide.index)[0]),
    }


def method(model: str) -> MAE | VideoMAE:
    """The method that is measured, freshly initialised."""
    torch.manual_seed(0)
    if model.startswith("videomae-"):
        config = videomae_config(model.removeprefix("videomae-"))
        # transformers' decoder ends with a norm of this eps
        transformer = replace(config.decoder.transformer, final_norm_eps=1e-5)
        return VideoMAE(replace(config, decoder=replace(config.decoder, transformer=transformer)))
    return MAE(demo_config(28) if model == "demo" else MAEConfig(vit_config(model), norm_pix=True))


def sides(model: str, device: torch.device) -> dict[str, Side]:
    """Both models with the same weights, and what gives each one's loss on the same media."""
    if model.startswith("audiomae-"):
        return sound_sides(model, device)
    if model.startswith("bert-"):
        return text_sides(model, BATCH[model], device)
    if model.startswith("finetune-"):
        from benchmarks import finetune_peer

        return finetune_peer.sides(model, BATCH[model], device)
    if model.startswith("multimae-"):
        from benchmarks import multimae_peer

        return multimae_peer.sides(model, BATCH[model], device)
    if model in PAIRS:
        from benchmarks import clip_peer

        return clip_peer.sides(model, BATCH[model], device)
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ours = method(model)
    name = "VideoMAEForPreTraining" if isinstance(ours, VideoMAE) else "ViTMAEForPreTraining"
    with tempfile.TemporaryDirectory() as folder:
        theirs = getattr(transformers, name).from_pretrained(ours.to_transformers(folder)).train()
    modality, size = ours.modality, ours.config.encoder.tokenizers[0].size
    pixels = torch.randint(0, 256, (BATCH[model], modality.channels, *size), dtype=torch.uint8).to(device)
    ours, theirs = ours.to(device), cast(nn.Module, theirs).to(device)
    values = {modality.name: pixels, "sample_id": torch.arange(BATCH[model], device=device)}
    mean, std = (tensor.view(-1, *(1,) * len(size)) for tensor in (ours.tokenizer.mean, ours.tokenizer.std))
    normalised = (pixels / 255 - mean) / std
    if not isinstance(ours, VideoMAE):
        return {"mmssl": (ours, lambda m: m(values).loss), "transformers": (theirs, lambda m: m(normalised).loss)}
    # transformers wants frames before channels, and a mask; ours draws its own in every step
    mask, frames = ours.hide(values), normalised.transpose(1, 2).contiguous()
    hidden = mask.hide.boolean(mask.count)
    return {
        "mmssl": (ours, lambda m: m(values).loss),
        "transformers": (theirs, lambda m: m(frames, bool_masked_pos=hidden).loss),
    }


def stepper(
    model: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor], precision: str, mode: str, device: torch.device
) -> Callable[[], None]:
    optimizer = adamw(parameter_groups(model, 0.05), (0.9, 0.95), device)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    run = cast(nn.Module, torch.compile(model)) if mode == "compiled" else model
    low = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def step() -> None:
        optimizer.zero_grad()
        with low:
            loss = loss_of(run)
        loss.backward()
        optimizer.step()

    return step


def measure_memory(model: str, side: str, precision: str, device_type: str) -> int:
    """Peak memory of two steps, for a process of its own."""
    device = torch.device(device_type)
    step = stepper(*sides(model, device)[side], precision, "eager", device)

    def both() -> None:
        step()
        step()

    return peak_growth(both, device)


def compare(model: str, precision: str, mode: str, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    rate = product_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    both = sides(model, device)
    steps = {side: stepper(*pair, precision, mode, device) for side, pair in both.items()}
    flop: dict[str, int] = {}
    for side, pair in both.items():
        with FlopCounterMode(display=False) as counter:
            stepper(*pair, precision, "eager", device)()
        flop[side] = counter.get_total_flops()
        steps[side]()
    times: dict[str, list[float]] = {side: [] for side in steps}
    for index in range(rounds):
        order = list(steps) if index % 2 else list(steps)[::-1]
        for side in order:
            times[side].append(seconds(steps[side], device))
    one, other = times.values()
    faster = statistics.median(b / a for a, b in zip(one, other, strict=True))
    rows = []
    for side, measured in times.items():
        median = statistics.median(measured)
        # the compiler itself takes memory in the same process
        peak = in_fresh_process(measure_memory, model, side, precision, device.type) if mode == "eager" else None
        rows.append(
            {
                "model": f"{model}, batch {BATCH[model]}, {precision}, {mode}",
                "side": side,
                "ms a step": round(1e3 * median, 1),
                "range": f"{1e3 * min(measured):.0f}-{1e3 * max(measured):.0f}",
                "faster": f"{faster:.2f}x" if side == "mmssl" else "",
                "of product rate": f"{flop[side] / median / rate:.0%}",
                "GFLOP a step": round(flop[side] / 1e9, 1),
                "peak MiB": "" if peak is None else round(peak / 2**20),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo", "small", "base"], choices=list(BATCH))
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--modes", nargs="+", default=["eager"], choices=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, help="samples a step, in place of the model's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--name", default="step", help="of the file under results/")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device, rows = torch.device(options.device), []
    if options.batch:
        BATCH.update(dict.fromkeys(BATCH, options.batch))
    for model in options.models:
        for precision in options.precisions:
            for mode in options.modes:
                rows += compare(model, precision, mode, options.rounds, device)
                print(markdown(rows[-2:]), flush=True)
    print(f"\n{device_name(device)}\n\n{markdown(rows)}\n\n{write(options.name, device, {'rows': rows})}")


if __name__ == "__main__":
    main()
