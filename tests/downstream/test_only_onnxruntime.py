"""As a user of onnxruntime alone runs what mmssl exported."""

import json

import numpy as np
import onnxruntime


def test_pictures_in_batches_of_any_size(made):
    model = onnxruntime.InferenceSession(made / "mean-onnx" / "model.onnx")
    photos, expected = (np.load(made / f"mean.{each}.npy") for each in ("image", "made"))
    for count in (1, 3, 4):
        (logits,) = model.run(["logits"], {"image": photos[:count].astype(np.float32) / 255})
        np.testing.assert_allclose(logits, expected[:count], atol=1e-4)
    assert json.loads(model.get_modelmeta().custom_metadata_map["labels"]) == ["boot", "coat", "dress"]
