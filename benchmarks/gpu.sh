#!/usr/bin/env bash
# What this repository owes on a GPU, in one call: is it correct there, then how fast is it.
#
#     benchmarks/gpu.sh [--quick] [FOLDER [STEP...]]
#
# STEP: environment, correctness, attention, kernels, contrastive, step, video, learning; all where none is named, half an hour.
# Where a command may take ten minutes: `gpu.sh OUT environment correctness attention`, `gpu.sh OUT kernels contrastive`,
# `gpu.sh OUT step`, and then `gpu.sh OUT video learning`.
# FOLDER ($OUT, else benchmarks/results) gets a log a step and the JSON files. --quick: two minutes, does it run at all.
# A failed step does not stop the next ones; the exit code is 1 if any failed, 2 where there is no GPU.
# MMSSL_DEVICE=cpu tries the script itself on a machine without one. PYTHON: the interpreter, python3 by default.
set -uo pipefail
cd "$(dirname "$0")/.."
quick=
if [[ ${1:-} == --quick ]]; then quick=1; shift; fi
folder=${1:-${OUT:-benchmarks/results}}
shift || true
if (($# == 0)); then set -- environment correctness attention kernels contrastive step video learning; fi

export PYTHONPATH=.:kernels MMSSL_CHECK_SHAPES=0 PYTHONUNBUFFERED=1
export MMSSL_DEVICE=${MMSSL_DEVICE:-cuda} MMSSL_RESULTS=$folder
python=${PYTHON:-python3}
sees_gpu='import sys, torch; sys.exit(not torch.cuda.is_available())'
if [[ $MMSSL_DEVICE == cuda ]] && ! "$python" -c "$sees_gpu" 2> /dev/null; then
    echo "gpu.sh: PyTorch sees no GPU on this machine, so nothing was run." >&2
    exit 2
fi
mkdir -p "$folder"
failed=()

# run STEP SECONDS COMMAND...: with a time limit of its own, shown and logged.
run() {
    local step=$1 limit=$2 start=$SECONDS
    shift 2
    if [[ $quick ]]; then limit=60; fi
    echo "== $step: $*"
    timeout -k 15 "$limit" "$@" 2>&1 | tee "$folder/$step.log"
    local code=${PIPESTATUS[0]}
    echo "== $step: exit code $code after $((SECONDS - start)) s"
    if ((code)); then failed+=("$step"); fi
}

environment() {
    run environment 30 "$python" - <<'END'
import importlib.metadata as installed
import os
import platform
import shutil
import subprocess

import torch

if torch.cuda.is_available() and shutil.which("nvidia-smi"):
    subprocess.run("nvidia-smi", check=True)
print("python", platform.python_version(), "on", platform.platform(), "with", os.cpu_count(), "cores")
if torch.cuda.is_available():
    chip = torch.cuda.get_device_properties(0)
    print(chip.name, f"{chip.total_memory / 2**30:.0f} GiB,", chip.multi_processor_count, "multiprocessors")
    print("CUDA", torch.version.cuda, "HIP", torch.version.hip, "cuDNN", torch.backends.cudnn.version())
for name in "torch triton transformers timm torchvision numpy pytest hypothesis jaxtyping tyro rich".split():
    try:
        print(name, installed.version(name))
    except installed.PackageNotFoundError:
        print(name, "is not installed")
END
}

correctness() {
    run correctness 240 "$python" -m pytest tests/kernels -q ${quick:+-x}
}

kernels() {
    run kernels 280 "$python" -m benchmarks.kernels --device "$MMSSL_DEVICE" ${quick:+--batch 8 --rounds 3}
}

attention() {
    local size=()
    if [[ $quick ]]; then size=(--dtypes bf16 --rounds 3 --batch-share 0.1); fi
    run attention 400 "$python" -m benchmarks.attention --device "$MMSSL_DEVICE" "${size[@]}"
}

contrastive() {
    local size=(--dtypes bf16)
    if [[ $quick ]]; then size=(--dtypes bf16 --losses info_nce --sizes 1024 4096 --rounds 3); fi
    run contrastive 500 "$python" -m benchmarks.contrastive --device "$MMSSL_DEVICE" "${size[@]}"
}

step() {
    local size=(--models small base --precisions fp32 bf16 --modes eager compiled --batch 64)
    if [[ $quick ]]; then size=(--models small --precisions bf16 --batch 4 --rounds 2); fi
    run step 420 "$python" -m benchmarks.step --device "$MMSSL_DEVICE" "${size[@]}"
}

video() {
    local size=(--models videomae-small videomae-base --precisions fp32 bf16 --modes eager compiled --batch 16)
    if [[ $quick ]]; then size=(--models videomae-small --precisions bf16 --batch 2 --rounds 2); fi
    run video 300 "$python" -m benchmarks.step --device "$MMSSL_DEVICE" --name step-videomae "${size[@]}"
}

# The recipe's training on pictures made here. recipes/image_mae.py itself reads its settings with tyro, which may be
# missing; everything it calls is called here.
learning() {
    local size=(300 256)
    if [[ $quick ]]; then size=(10 4); fi
    run learning 150 "$python" - "${size[@]}" <<'END'
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import markdown, write
from benchmarks.pipeline import write_pictures
from mmssl.data import EvalView, TrainView
from mmssl.encoder import vit_config
from mmssl.objectives import MAE, MAEConfig
from mmssl.pretraining.media import open_pictures
from mmssl.pretraining.pretrain import pretrain
from mmssl.training import TrainSettings, read_metrics

device, (steps, batch) = torch.device(os.environ["MMSSL_DEVICE"]), map(int, sys.argv[1:])
settings = TrainSettings(
    steps=steps, batch_size=batch, warmup_epochs=0, base_lr=0.256 / batch, log_every=max(1, steps // 10), save_every=0,
    validate_every=max(1, steps // 10),
)
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as scratch:
    pictures, held_out = open_pictures(write_pictures(Path(scratch)), 3)
    run_dir = Path(scratch) / "run"
    pretrain(
        MAE(MAEConfig(vit_config("small"))), pictures, held_out, settings, run_dir, device=device,
        view=TrainView(224, scale=(0.2, 1.0)), held_out_view=EvalView(224),
        workers=max(1, len(os.sched_getaffinity(0)) - 2),
    )
    rows = [row for row in read_metrics(run_dir) if "heldout_loss" in row]
names = ("step", "loss", "heldout_loss", "effective_rank", "samples_per_second")
rows = [{name: round(row[name], 4) for name in names} for row in rows]
about = f"MAE, ViT-S/16 at 224, batch {batch}, {len(pictures)} made-up pictures"
print(markdown(rows), write("learning", device, {"model": about, "rows": rows}), sep="\n\n")
sys.exit(rows[-1]["heldout_loss"] > 0.9 * rows[0]["heldout_loss"] and "the held-out loss did not fall by a tenth")
END
}

for name in "$@"; do
    case $name in
        environment | correctness | attention | kernels | contrastive | step | video | learning) "$name" ;;
        *) echo "gpu.sh: no step is called $name" >&2; failed+=("$name") ;;
    esac
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all steps passed; logs and results are in $folder"
