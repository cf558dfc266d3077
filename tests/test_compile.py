"""Compiled methods and runs. In processes of their own: the shape checks of the tests are not traceable."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ONE_GRAPH = """
import torch
from mmssl import MAE
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import EncoderConfig
from mmssl.modality import image
from mmssl.objectives import MAEConfig
from mmssl.position import mark_trained
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig

encoder = EncoderConfig((TokenizerConfig(image(3, (8, 8)), (32, 32)),), TransformerConfig(32, 1, 2))
mae = MAE(MAEConfig(encoder, mae_decoder_config(16, 1, 2), norm_pix=True))
batch = {"image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), "sample_id": torch.arange(2)}
compiled = torch.compile(mae, backend="aot_eager", fullgraph=True)
out, expected = compiled(batch), mae(batch)
out.loss.backward()
gradients = [p.grad.clone() for p in mae.parameters() if p.requires_grad]
mae.zero_grad()
expected.loss.backward()
assert torch.equal(out.mask.hide.index, expected.mask.hide.index)
torch.testing.assert_close(out.loss, expected.loss)
for got, parameter in zip(gradients, (p for p in mae.parameters() if p.requires_grad)):
    torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
mark_trained(mae)
wide = {**batch, "image": torch.rand(2, 3, 48, 64)}
torch.testing.assert_close(compiled(wide).loss, mae(wide).loss)
"""

PLAIN_NAMES = """
import sys
from functools import partial
from pathlib import Path

import torch
from mmssl.training import checkpoints, train
from tests.training_toy import Toy, ToyLoader, settings

folder, cpu = Path(sys.argv[1]), torch.device("cpu")
torch.compile = partial(torch.compile, backend="aot_eager")
for name in ("plain", "compiled"):
    train(Toy(), ToyLoader(), settings(steps=3, compile=name == "compiled"), folder / name, device=cpu)
plain, compiled = (checkpoints.load(folder / name / "step-00000003").state for name in ("plain", "compiled"))
for group in plain:
    torch.testing.assert_close(compiled[group], plain[group])
"""


def run(program: str, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    call = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_mae_compiles_to_one_graph():
    run(ONE_GRAPH)


def test_a_compiled_run_saves_the_plain_names_and_values(tmp_path):
    run(PLAIN_NAMES, str(tmp_path))
