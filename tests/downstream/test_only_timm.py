"""As a user of timm alone goes on with what mmssl exported."""

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from torch.nn import functional as F


def test_pictures(made):
    model = timm.create_model(f"local-dir:{made / 'mean-timm'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    photos = (torch.from_numpy(np.load(made / "mean.image.npy")) / 255 - mean) / std
    with torch.no_grad():
        np.testing.assert_allclose(model(photos), np.load(made / "mean.made.npy"), atol=1e-4)
    assert list(model.pretrained_cfg["label_names"]) == ["boot", "coat", "dress"]

    model = timm.create_model(f"local-dir:{made / 'mean-timm'}", pretrained=True, num_classes=5, drop_path_rate=0.1)
    optimizer, losses = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75), []
    for _ in range(4):
        loss = F.cross_entropy(model.train()(photos), torch.tensor([4, 3, 2, 1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
