"""What `make wheel` does with an installed package: train on a few pictures, by call and by command, and export."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import mmssl

out = Path(sys.argv[1])
assert Path(mmssl.__file__).is_relative_to(sys.prefix), f"{mmssl.__file__} is not the installed package"
(out / "pictures").mkdir(parents=True, exist_ok=True)
for i in range(16):
    pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out / "pictures" / f"{i}.png")
run = mmssl.train("mae", data=out / "pictures", out=out / "called", model="tiny", size=32, epochs=1, batch_size=8)
assert run.encoder.dim == 192
command = str(Path(sys.executable).with_name("mmssl"))
small = ["--model", "tiny", "--size", "32", "--epochs", "1", "--batch-size", "8"]
for arguments in (
    ["--version"],
    ["methods"],
    ["train", "mae", "--data", str(out / "pictures"), "--out", str(out / "commanded"), *small],
    ["export", "--model", str(out / "commanded" / "final"), "--out", str(out / "vit"), "--to", "vit"],
):
    subprocess.run([command, *arguments], check=True)
