"""As a user of transformers alone goes on with what mmssl exported."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForVideoClassification,
    CLIPModel,
)


def assert_learns(model, **inputs) -> None:
    """A few steps of fine-tuning go down."""
    optimizer, losses = torch.optim.AdamW(model.train().parameters(), lr=1e-3), []
    for _ in range(4):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["mean-beit", "class-vit"])
def test_pictures(made, name):
    model = AutoModelForImageClassification.from_pretrained(made / name)
    processor = AutoImageProcessor.from_pretrained(made / name)
    kind = name.partition("-")[0]
    photos, expected = (np.load(made / f"{kind}.{each}.npy") for each in ("image", "made"))
    inputs = processor(list(photos), input_data_format="channels_first", return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**inputs).logits, expected, atol=1e-4)
    assert model.config.label2id["dress"] == 2
    assert_learns(model, **inputs, labels=torch.tensor([0, 1, 2, 0]))
    fresh = AutoModelForImageClassification.from_pretrained(made / name, num_labels=7, ignore_mismatched_sizes=True)
    assert_learns(fresh, **inputs, labels=torch.tensor([6, 5, 4, 3]))


def test_clips(made):
    model = AutoModelForVideoClassification.from_pretrained(made / "video-vit")
    processor = AutoImageProcessor.from_pretrained(made / "video-vit")
    clips = [list(clip.transpose(1, 0, 2, 3)) for clip in np.load(made / "video.video.npy")]
    inputs = processor(clips, input_data_format="channels_first", return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**inputs).logits, np.load(made / "video.made.npy"), atol=1e-4)
    assert_learns(model, **inputs, labels=torch.tensor([0, 2]))


def test_texts(made):
    model = AutoModelForMaskedLM.from_pretrained(made / "text-bert").eval()
    texts = torch.from_numpy(np.load(made / "text.text.npy"))
    with torch.no_grad():
        found = model.base_model(texts).last_hidden_state
    np.testing.assert_allclose(found, np.load(made / "text.made.npy"), atol=1e-4)
    assert_learns(model, input_ids=texts.masked_fill(torch.arange(12) == 5, 3), labels=texts)


def test_pairs(made):
    model = CLIPModel.from_pretrained(made / "pairs-clip").eval()
    processor = AutoImageProcessor.from_pretrained(made / "pairs-clip")
    inputs = processor(list(np.load(made / "pairs.image.npy")), input_data_format="channels_first", return_tensors="pt")
    inputs["input_ids"] = torch.from_numpy(np.load(made / "pairs.text.npy"))
    with torch.no_grad():
        out = model(**inputs)
    np.testing.assert_allclose(out.image_embeds @ out.text_embeds.T, np.load(made / "pairs.made.npy"), atol=1e-4)
    assert_learns(model, **inputs, return_loss=True)
