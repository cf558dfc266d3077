"""The method compiles to one graph. In a process of its own: the shape checks of the tests are not traceable."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import torch
from mmssl import MAE
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import EncoderConfig
from mmssl.modality import image
from mmssl.objectives import MAEConfig
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
"""


def test_mae_compiles_to_one_graph():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
