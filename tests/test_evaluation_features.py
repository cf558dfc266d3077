from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmssl.encoder import Encoder, vit_config
from mmssl.errors import UserError
from mmssl.evaluation import FeatureSet, PatchEncoder, PooledAndPatches, effective_rank, extract, pixels
from mmssl.modality import AUDIO, IMAGE, VIDEO


class TinyEncoder(nn.Module):
    """Dropout shows the mode, the linear layer the precision."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(12).eval()
        self.head = nn.Linear(12, 5)

    def features(self, batch, pool="mean"):
        self.seen_dtype = batch["image"].dtype
        x = self.head(self.frozen(self.drop(batch["image"].flatten(1).float())))
        return x if pool == "mean" else -x


def make_batches(labels: bool = True) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (7, 3, 2, 2), dtype=torch.uint8, generator=generator)
    ids = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    batches = [{"image": image[i : i + 3], "sample_id": ids[i : i + 3]} for i in range(0, 7, 3)]
    if labels:
        for batch in batches:
            batch["label"] = batch["sample_id"] * 10
    return batches


def test_extract_keeps_order_labels_names_and_the_last_short_batch():
    encoder, batches, done = TinyEncoder(), make_batches(), []
    found = extract(encoder, batches, names=[f"n{i}" for i in range(7)], progress=done.append)
    assert found.labels.tolist() == [30, 10, 0, 20, 60, 50, 40]
    assert found.names == ["n3", "n1", "n0", "n2", "n6", "n5", "n4"]
    assert done == [3, 6, 7]
    assert len(found) == 7
    encoder.eval()
    raw = torch.cat([batch["image"] for batch in batches])
    torch.testing.assert_close(found.features, encoder.features({"image": raw}).detach())
    torch.testing.assert_close(extract(encoder, batches, pool="class").features, -found.features)
    assert encoder.seen_dtype == torch.uint8


def test_extract_uses_evaluation_mode_without_gradients_and_puts_every_mode_back():
    encoder = TinyEncoder().train()
    encoder.frozen.eval()
    first, second = (extract(encoder, make_batches()).features for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert encoder.training
    assert encoder.drop.training
    assert not encoder.frozen.training


def test_extract_puts_modes_back_when_a_batch_breaks():
    encoder = TinyEncoder().train()
    with pytest.raises(KeyError):
        extract(encoder, [{"sample_id": torch.arange(2)}])
    assert encoder.training
    assert encoder.drop.training


def test_extract_under_bf16_gives_float32_near_the_fp32_features():
    encoder = TinyEncoder()
    exact = extract(encoder, make_batches()).features
    rounded = extract(encoder, make_batches(), precision="bf16").features
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


def test_pixels_are_flat_and_scaled_to_one_for_uint8_and_float_alike():
    batches = make_batches()
    found = pixels(batches)
    raw = torch.cat([batch["image"] for batch in batches])
    torch.testing.assert_close(found.features, raw.flatten(1) / 255)
    as_float = [{**batch, "image": batch["image"] / 255} for batch in batches]
    torch.testing.assert_close(pixels(as_float).features, found.features)
    assert pixels(make_batches(labels=False)).labels is None


def test_unusable_batches_and_features_are_named():
    with pytest.raises(UserError, match="no sample"):
        pixels([])
    half = make_batches()
    del half[1]["label"]
    with pytest.raises(UserError, match="2 of 3 batches have labels"):
        pixels(half)
    broken = torch.zeros(3, 2)
    broken[1, 0] = float("nan")
    with pytest.raises(UserError, match=r"1 of 3 samples are not finite.*b\.png"):
        FeatureSet(broken, names=["a.png", "b.png", "c.png"])
    with pytest.raises(ValueError, match="3 features came with 2 names"):
        FeatureSet(torch.zeros(3, 2), names=["a.png", "b.png"])


def test_effective_rank_of_known_spectra():
    orthogonal = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(orthogonal) == pytest.approx(8, rel=1e-5)
    assert effective_rank(orthogonal * 100) == pytest.approx(8, rel=1e-5)
    assert effective_rank(torch.ones(40, 1) * torch.randn(1, 8)) == pytest.approx(1, abs=1e-4)
    spectrum = torch.tensor([0.5, 0.25, 0.25])
    entropy = 1.5 * torch.log(torch.tensor(2.0)).item()
    assert effective_rank(orthogonal[:, :3] * spectrum) == pytest.approx(torch.tensor(entropy).exp().item(), rel=1e-5)
    assert effective_rank(torch.zeros(5, 3)) == 0
    with pytest.raises(ValueError, match="finite"):
        effective_rank(torch.tensor([[float("inf"), 1.0]]))


@pytest.mark.parametrize("modality", [replace(IMAGE, patch=(8, 8)), VIDEO, replace(AUDIO, patch=(8, 64))])
def test_pooled_and_patch_features_come_of_one_pass_for_every_kind_of_media(modality):
    size = {"image": (16, 24), "video": (4, 32, 32), "audio": (24, 128)}[modality.name]
    torch.manual_seed(0)
    encoder = Encoder(vit_config("tiny", modality=modality, input_size=size))
    batches = [{modality.name: torch.rand(2, modality.channels, *size)}]
    both = extract(PooledAndPatches(encoder), batches).features
    pooled, patches = (extract(each, batches).features for each in (encoder, PatchEncoder(encoder)))
    torch.testing.assert_close(both, torch.cat([pooled, patches], dim=1))
    torch.testing.assert_close(patches.unflatten(1, (-1, encoder.dim)).mean(dim=1), pooled)
    assert patches.shape[1] == encoder.dim * {"image": 6, "video": 8, "audio": 6}[modality.name]
