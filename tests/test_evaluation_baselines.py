"""What an encoder is held against is read in the same pass, and is what it would be alone."""

import torch

from mmssl import MAE
from mmssl.encoder import Encoder
from mmssl.evaluation import RawMedia, SideBySide, extract, raw_name, untrained
from mmssl.modality import AUDIO, IMAGE, VIDEO


def small() -> Encoder:
    return MAE("tiny", size=16, patch=8).encoder


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator),
            "label": torch.arange(4) % 2,
            "sample_id": torch.arange(4) + 4 * number,
        }
        for number in range(count)
    ]


def test_side_by_side_gives_what_each_gives_alone():
    encoders = {"trained": small(), "untrained": small(), "pixels": RawMedia()}
    together = SideBySide(encoders)
    found = together.part(extract(together, batches(2), names=list("abcdefgh")))
    for name, encoder in encoders.items():
        alone = extract(encoder, batches(2), names=list("abcdefgh"))
        torch.testing.assert_close(found[name].features, alone.features, rtol=0, atol=0)
        assert torch.equal(found[name].labels, alone.labels) and found[name].names == alone.names


def test_the_random_initialisation_is_the_same_every_time_and_leaves_torchs_numbers_alone():
    torch.manual_seed(1)
    encoder, before = small(), torch.get_rng_state()
    first, second = untrained(encoder), untrained(encoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    fresh, given = (each.state_dict()["transformer.blocks.0.mlp.layer.fc1.weight"] for each in (first, encoder))
    assert not torch.equal(fresh, given)
    assert first.config == encoder.config


def test_raw_pixels_are_means_of_small_squares_in_0_to_1():
    picture = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    picture[..., :2, :4] = 255
    values = RawMedia().features({"image": picture}).view(3, 32, 32)
    assert torch.equal(values[:, 0, 0], torch.ones(3)) and values.sum() == 3
    assert RawMedia().features({"image": picture / 255}).equal(values.view(1, -1))
    clip = torch.full((2, 3, 4, 20, 20), 51, dtype=torch.uint8)
    assert torch.allclose(RawMedia().features({"video": clip}), torch.full((2, 3 * 4 * 16 * 16), 0.2))


def test_the_baseline_of_sounds_is_their_log_mel_before_normalisation():
    audio = torch.randn(2, 1, 20, 128, generator=torch.Generator().manual_seed(0)) - 4
    values = RawMedia().features({"audio": audio}).view(2, 20, 32)
    torch.testing.assert_close(values, audio[:, 0].unflatten(-1, (32, 4)).mean(-1))
    assert (raw_name(AUDIO), raw_name(IMAGE), raw_name(VIDEO)) == ("log-mel", "raw pixels", "raw pixels")
