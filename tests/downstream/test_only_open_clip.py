"""As a user of open_clip alone goes on with what mmssl exported."""

import numpy as np
import open_clip
import torch


def test_pairs(made):
    model = open_clip.create_model(f"local-dir:{made / 'pairs-open_clip'}").eval()
    data = model.visual.preprocess_cfg
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    photos = (torch.from_numpy(np.load(made / "pairs.image.npy")) / 255 - mean) / std
    texts = torch.from_numpy(np.load(made / "pairs.text.npy"))
    with torch.no_grad():
        images, words, _ = model(photos, texts)
    np.testing.assert_allclose(images @ words.T, np.load(made / "pairs.made.npy"), atol=1e-4)

    optimizer, losses = torch.optim.AdamW(model.train().parameters(), lr=1e-3), []
    for _ in range(4):
        loss = open_clip.ClipLoss()(*model(photos, texts))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
