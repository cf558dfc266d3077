"""One patchify for every grid; tokenizers normalise, follow the grid, and read nothing that is hidden."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmssl_kernels import gather_patches, masked_patch_mse, patchify, restore_tokens, unpatchify

from mmssl.errors import UserError
from mmssl.masking import Positions
from mmssl.modality import AUDIO, DEPTH, IMAGE, SEMSEG, VIDEO, Modality, image
from mmssl.tokenizer import TokenizerConfig, build_tokenizer

axes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3)


@given(axes=axes, channels=st.integers(1, 4))
def test_unpatchify_inverts_patchify(axes, channels):
    grid, patch = tuple(n for n, _ in axes), tuple(p for _, p in axes)
    pixels = torch.rand(2, channels, *(n * p for n, p in axes))
    patches = patchify(pixels, patch)
    assert patches.shape == (2, math.prod(grid), math.prod(patch) * channels)
    assert torch.equal(unpatchify(patches, patch, grid), pixels)


def test_patch_values_are_in_the_authors_order():
    pixels = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    authors = torch.einsum("nchpwq->nhwpqc", pixels.view(2, 3, 2, 2, 3, 2)).reshape(2, 6, 12)
    assert torch.equal(patchify(pixels, (2, 2)), authors)
    clip = torch.arange(1 * 3 * 4 * 4 * 4).view(1, 3, 4, 4, 4).float()
    authors = clip.view(1, 3, 2, 2, 2, 2, 2, 2).permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(1, 8, 24)
    assert torch.equal(patchify(clip, (2, 2, 2)), authors)


@given(axes=axes, seed=st.integers(0, 1000))
def test_gathering_is_patchify_then_index(axes, seed):
    generator = torch.Generator().manual_seed(seed)
    grid, patch = tuple(n for n, _ in axes), tuple(p for _, p in axes)
    pixels = torch.rand(3, 2, *(n * p for n, p in axes), generator=generator)
    chosen = torch.rand(3, math.prod(grid), generator=generator) < 0.5
    ragged = Positions.from_boolean(chosen)
    assert torch.equal(gather_patches(pixels, ragged.index, patch, ragged.rows), patchify(pixels, patch)[chosen])
    index = torch.randint(math.prod(grid), (3, 2), generator=generator)
    expected = patchify(pixels, patch)[torch.arange(3)[:, None], index]
    assert torch.equal(gather_patches(pixels, index, patch), expected)


@pytest.mark.parametrize(
    ("modality", "size"), [(IMAGE, (32, 48)), (VIDEO, (4, 32, 32)), (AUDIO, (64, 32)), (image(5, (8, 8)), (16, 16))]
)
def test_tokens_are_a_projection_of_normalised_patches(modality, size):
    tokenizer = build_tokenizer(TokenizerConfig(modality, size), 24)
    values = torch.rand(2, modality.channels, *size)
    mean, std = (torch.tensor(s).view(-1, *(1 for _ in size)) for s in (modality.mean, modality.std))
    patches = patchify((values - mean) / std, modality.patch)
    expected = patches @ tokenizer.weight.T + tokenizer.bias + tokenizer.position.table
    everything = Positions(torch.arange(patches.shape[1]).expand(2, -1))
    got = tokenizer({modality.name: values}, everything)
    assert torch.allclose(got, expected, atol=1e-5)


def test_uint8_and_unit_floats_are_the_same_picture():
    tokenizer = build_tokenizer(TokenizerConfig(IMAGE, (32, 32)), 8)
    pixels, positions = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), Positions(torch.tensor([[0, 3]] * 2))
    from_bytes = tokenizer({"image": pixels}, positions)
    assert torch.allclose(from_bytes, tokenizer({"image": pixels.float() / 255}, positions), atol=1e-6)


def everywhere(count):
    return Positions(torch.arange(count).expand(2, -1))


@pytest.mark.parametrize("modality", [IMAGE, VIDEO])
def test_floats_that_are_not_raw_are_refused(modality, monkeypatch):
    tokenizer, shape = build_tokenizer(TokenizerConfig(modality, (2, 32, 32)[-len(modality.axes) :]), 8), (2, 32, 32)
    raw = torch.rand(2, 3, *shape[-len(modality.axes) :])
    across = (-1, *(1,) * len(modality.axes))
    for values in (
        raw * 255,
        (raw - tokenizer.mean.view(across)) / tokenizer.std.view(across),
        (raw - 0.5) / 0.5,
        (raw * 255).half(),
    ):
        with pytest.raises(UserError, match=rf"{modality.name}: floating-point values from .* divide by 255, or leave"):
            tokenizer({modality.name: values}, everywhere(4))
    monkeypatch.setattr("mmssl.tokenizer.values_are_checked", lambda _: False)  # a GPU without MMSSL_DEBUG
    tokenizer({modality.name: raw * 255}, everywhere(4))


def test_what_resampling_adds_to_0_1_is_no_reason_to_refuse():
    tokenizer = build_tokenizer(TokenizerConfig(IMAGE, (32, 32)), 8)
    # the worst pattern for a cubic filter: what has a negative weight is white, all else black
    edges = ((torch.arange(16) // 2) % 2).float()
    board = (edges[:, None] - edges).abs().expand(2, 3, 16, 16)
    for antialias in (False, True):
        large = torch.nn.functional.interpolate(board, (32, 32), mode="bicubic", antialias=antialias)
        assert large.max() > 1.05
        tokenizer({"image": large}, everywhere(4))


def test_only_what_is_embedded_is_checked_and_only_where_0_1_is_the_convention():
    tokenizer = build_tokenizer(TokenizerConfig(IMAGE, (32, 32)), 8)
    pixels = torch.rand(2, 3, 32, 32)
    pixels[..., 16:, :] = 1e6
    pixels[0, 0, 20, 20] = torch.nan
    tokenizer({"image": pixels}, everywhere(2))
    with pytest.raises(UserError, match="image: floating-point values from"):
        tokenizer({"image": pixels}, everywhere(3))
    for modality in (AUDIO, DEPTH):
        tokenizer = build_tokenizer(TokenizerConfig(modality, (32, 32)), 8)
        tokenizer({modality.name: torch.rand(2, 1, 32, 32) * 80 - 60}, everywhere(4))


def test_categorical_grids_have_class_embeddings():
    tokenizer = build_tokenizer(TokenizerConfig(SEMSEG, (8, 8)), 16)
    assert sum(p.numel() for p in tokenizer.parameters() if p.requires_grad) == 133 * 64 + 64 * 16 * 16 + 16
    ids = torch.randint(0, 133, (2, 8, 8))
    embedded = tokenizer.classes(ids).permute(0, 3, 1, 2)
    expected = patchify(embedded, (4, 4)) @ tokenizer.weight.T + tokenizer.bias + tokenizer.position.table
    got = tokenizer({"semseg": ids}, Positions(torch.arange(4).expand(2, -1)))
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 32, 40), (2, 1, 32, 32), (2, 3, 32), (2, 3, 2, 32, 32)])
def test_unfitting_shapes_are_named_with_their_remedy(shape):
    tokenizer = build_tokenizer(TokenizerConfig(IMAGE, (32, 32)), 8)
    with pytest.raises(ValueError, match=r"image: got shape .*, expected \(B, 3, 16\*n, 16\*n\); resize or crop"):
        tokenizer.grid({"image": torch.zeros(shape)})


def test_texts_longer_than_the_table_are_refused():
    tokenizer = build_tokenizer(TokenizerConfig(Modality("text", ("position",), 9, kind="categorical"), (4,)), 8)
    with pytest.raises(ValueError, match="at most 4"):
        tokenizer.grid({"text": torch.zeros(1, 5, dtype=torch.int64)})


def test_modalities_check_their_statistics():
    with pytest.raises(ValueError, match="3 channels, but 1 means"):
        Modality("thermal", ("height", "width"), 3, (8, 8), mean=(0.0,), std=(1.0,))


@given(keep=st.integers(1, 11), prefix=st.integers(0, 2), seed=st.integers(0, 100))
def test_restored_sequences_hold_every_token_where_it_was(keep, prefix, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(3, 12, generator=generator).argsort(dim=1)[:, :keep].sort(dim=1).values
    tokens, mask_token = torch.rand(3, prefix + keep, 4, generator=generator), torch.rand(4, generator=generator)
    position = torch.rand(prefix + 12, 4, generator=generator)
    restored = restore_tokens(tokens, index, mask_token, position, prefix=prefix) - position
    assert torch.allclose(restored[:, :prefix], tokens[:, :prefix], atol=1e-6)
    kept = Positions(index).boolean(12)
    assert torch.allclose(restored[:, prefix:][kept], tokens[:, prefix:].flatten(0, 1), atol=1e-6)
    assert torch.allclose(restored[:, prefix:][~kept], mask_token.expand(3 * (12 - keep), 4), atol=1e-6)


@pytest.mark.parametrize(("norm", "expected"), [("patch", 767 / 768), ("channel", 255 / 256)])
def test_predicting_zero_costs_what_the_unbiased_variance_says(norm, expected):
    pixels, index = torch.rand(2, 3, 32, 32), torch.arange(4).expand(2, -1)
    statistics = {"mean": torch.zeros(3), "std": torch.ones(3)}
    loss = masked_patch_mse(torch.zeros(2, 4, 768), pixels, index, patch=(16, 16), target_norm=norm, **statistics)
    assert loss.item() == pytest.approx(expected, abs=5e-5)
