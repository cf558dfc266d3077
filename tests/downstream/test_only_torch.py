"""As a user of torch alone runs what mmssl exported."""

import numpy as np
import torch


def test_sounds_in_batches_of_any_size(made):
    program = torch.export.load(made / "audio-torch-export" / "model.pt2")
    assert "mmssl" not in str(program.graph)
    sounds, expected = (np.load(made / f"audio.{each}.npy") for each in ("audio", "made"))
    for count in (1, 3):
        with torch.no_grad():
            features = program.module()(torch.from_numpy(sounds[:count]))
        np.testing.assert_allclose(features, expected[:count], atol=1e-4)
