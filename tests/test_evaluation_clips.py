"""Picture encoders on clips keep the frames' order; several clips of a video become one feature."""

import pytest
import torch

from mmssl.encoder import Encoder, vit_config
from mmssl.errors import UserError
from mmssl.evaluation import FeatureSet, FrameEncoder, average_clips, extract, join_clips
from mmssl.modality import image


def test_the_features_of_frames_are_joined_in_order():
    encoder = Encoder(vit_config("tiny", modality=image(3, (8, 8)), input_size=(16, 16)))
    clips = torch.rand(2, 3, 4, 16, 16)
    found = extract(FrameEncoder(encoder), [{"video": clips}]).features
    with torch.no_grad():
        single = encoder.features({"image": clips[1, :, 2][None]})[0]
    assert found.shape == (2, 4 * 192)
    assert torch.allclose(found[1].unflatten(0, (4, 192))[2], single, atol=1e-5)
    backwards = extract(FrameEncoder(encoder), [{"video": clips.flip(2)}]).features
    assert not torch.allclose(backwards, found, atol=1e-3)


def test_clips_of_a_video_are_averaged_under_its_label_and_name():
    features = FeatureSet(torch.arange(12.0).view(6, 2), torch.tensor([0, 0, 0, 1, 1, 1]), list("aaabbb"))
    means = average_clips(features, 3)
    assert means.features.tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert (means.labels.tolist(), means.names) == ([0, 1], ["a", "b"])
    joined = join_clips(features, 3)
    assert joined.features.tolist() == [[0.0, 1, 2, 3, 4, 5], [6.0, 7, 8, 9, 10, 11]]
    assert (joined.labels.tolist(), joined.names) == ([0, 1], ["a", "b"])
    with pytest.raises(UserError, match="6 clips are not 4 of each sample"):
        average_clips(features, 4)
