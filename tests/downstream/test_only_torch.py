"""As a user of torch alone runs what mmssl exported."""

import json

import numpy as np
import torch


def test_pictures_in_batches_of_any_size(made):
    told = {"labels": ""}
    program = torch.export.load(made / "mean-torch-export" / "model.pt2", extra_files=told)
    assert "mmssl" not in str(program.graph) and json.loads(told["labels"]) == ["boot", "coat", "dress"]
    photos = torch.from_numpy(np.load(made / "mean.image.npy")) / 255
    expected = np.load(made / "mean.made.npy")
    for count in (1, 3, 4):
        np.testing.assert_allclose(program.module()(photos[:count]).detach(), expected[:count], atol=1e-4)
