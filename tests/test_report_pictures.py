from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.report import attention_maps, patch_components, side_by_side, strips, tracks
from mmssl.report.pictures import coloured

GAP = 6


def opened(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.array(Image.open(io.BytesIO(png)))


def pictures(n: int = 4, channels: int = 1, side: int = 28) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_columns_stand_beside_each_other_in_their_order():
    columns = [pictures(1), 1 - pictures(1), pictures(1, channels=3)]
    shown = opened(side_by_side(columns))
    assert shown.shape == (112, 3 * 112 + 2 * GAP, 4)
    for number, column in enumerate(columns):
        tile = shown[::4, number * (112 + GAP) : number * (112 + GAP) + 112 : 4, 0]
        assert np.array_equal(tile, (column[0, 0] * 255).round().to(torch.uint8).numpy())


def test_gaps_are_transparent_and_tiles_are_not():
    alpha = opened(side_by_side([pictures(1)] * 3))[..., 3]
    assert (alpha[:, 112 : 112 + GAP] == 0).all()
    assert (alpha[:, :112] == 255).all()


@pytest.mark.parametrize(("count", "across", "lines", "columns"), [(7, 3, 3, 3), (2, 3, 1, 2), (1, 1, 1, 1)])
def test_samples_fill_lines(count, across, lines, columns):
    shown = opened(side_by_side([pictures(count)] * 3, across=across))
    width = columns * 3 * 112 + columns * 2 * GAP + (columns - 1) * 3 * GAP
    assert shown.shape == (lines * 112 + (lines - 1) * GAP, width, 4)


@pytest.mark.parametrize(("side", "shown_side"), [(7, 112), (28, 112), (96, 96), (224, 224)])
def test_small_pictures_are_enlarged_by_whole_factors(side, shown_side):
    image = pictures(1, side=side)
    assert opened(patch_components(image, torch.randn(1, 7, 7, 5))).shape == (shown_side, 2 * shown_side + GAP, 4)


@pytest.mark.parametrize(("channels", "used"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (6, [0, 1, 2])])
def test_any_number_of_channels_can_be_shown(channels, used):
    original = pictures(1, channels)
    shown = opened(attention_maps(original, torch.ones(1, 1, 7, 7)))[::4, :112:4, :3]
    wanted = (original[0, used] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(shown, wanted)


def test_values_out_of_range_are_clipped_and_what_is_no_number_is_grey():
    original = torch.tensor([-3.0, 9.0, float("nan"), 0.2]).reshape(1, 1, 2, 2)
    shown = opened(side_by_side([original]))
    assert shown[[0, 0, -1, -1], [0, 111, 0, 111], 0].tolist() == [0, 255, 128, 51]


def test_classes_have_a_colour_each_and_heat_grows_lighter():
    ids = torch.tensor([float("nan"), *range(31)]).reshape(1, 1, 4, 8)
    colours = coloured(ids, "classes")[0].flatten(1).T
    assert colours[0].tolist() == [0.5] * 3
    assert torch.pdist(colours[1:]).min() > 0.03 and torch.pdist(colours[1:9]).min() > 0.2
    shades = coloured(torch.linspace(0, 1, 8).reshape(1, 1, 1, 8), "heat").mean(dim=1).flatten()
    assert (shades.diff() > 0).all()


def test_equal_patches_have_equal_colours_and_different_ones_do_not():
    kinds = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    places = torch.arange(2 * 49).reshape(2, 7, 7) % 3
    shown = opened(patch_components(pictures(2), kinds[places], across=2))
    lefts = (112 + GAP, 3 * 112 + 4 * GAP + GAP)
    colours = [
        {tuple(shown[8 + 16 * i, left + 8 + 16 * j, :3]) for n, left in enumerate(lefts)
         for i in range(7) for j in range(7) if places[n, i, j] == kind}
        for kind in range(3)
    ]  # fmt: skip
    assert [len(found) for found in colours] == [1, 1, 1]
    assert len(set.union(*colours)) == 3


def test_components_do_not_flip_and_cope_with_few_dimensions_and_no_variance():
    image, features = pictures(2), torch.randn(2, 7, 7, 5, generator=torch.Generator().manual_seed(0))
    shuffled = torch.randperm(2 * 49, generator=torch.Generator().manual_seed(1))
    flat = features.flatten(0, 2)
    mixed = flat[shuffled].reshape(2, 7, 7, 5)
    first, second = (opened(patch_components(image, x, across=1))[:, 112 + GAP :, :3] for x in (features, mixed))
    cells = [
        x[[*range(8, 112, 16), *range(112 + GAP + 8, 224 + GAP, 16)]][:, 8::16].reshape(98, 3).astype(int)
        for x in (first, second)
    ]
    assert np.abs(cells[0][shuffled.numpy()] - cells[1]).max() <= 1
    assert opened(patch_components(image, features[..., :1])).shape[0] == 112
    flat_colour = opened(patch_components(image, torch.ones(2, 7, 7, 5), across=1))[:112, 112 + GAP :, :3]
    assert np.ptp(flat_colour) == 0


def test_wide_pictures_stand_above_what_belongs_to_them():
    wide = torch.rand(2, 1, 128, 512)
    assert opened(patch_components(wide, torch.rand(2, 8, 32, 5), across=3)).shape == (4 * 128 + 3 * GAP, 512, 4)
    assert opened(attention_maps(wide, torch.rand(2, 3, 8, 32))).shape == (8 * 128 + 7 * GAP, 512, 4)


def test_attention_is_brightest_where_it_looks():
    attention = torch.zeros(1, 2, 7, 7)
    attention[0, 0, 2, 3] = 0.04
    attention[0, 1, 6, 0] = 0.9
    shown = opened(attention_maps(torch.full((1, 1, 28, 28), 0.5), attention))[..., :3].sum(axis=2)
    assert shown.shape == (112, 3 * 112 + 2 * GAP)
    heads = (shown[:, 112 + GAP : 2 * 112 + GAP], shown[:, 2 * (112 + GAP) :])
    peaks = [np.unravel_index(head.argmax(), head.shape) for head in heads]
    assert [(int(y) // 16, int(x) // 16) for y, x in peaks] == [(2, 3), (6, 0)]
    assert heads[0].max() == heads[1].max()


def test_no_picture_is_named():
    with pytest.raises(ValueError, match="at least one"):
        side_by_side([pictures(0)])


def test_a_clip_is_a_strip_a_column_of_at_most_eight_frames():
    clips = torch.rand(2, 3, 16, 28, 28)
    shown = opened(strips([clips, 1 - clips, clips]))
    assert shown.shape == (6 * 112 + 5 * GAP, 8 * 112 + 7 * GAP, 4)
    second, last = shown[112 + GAP :: 4][:28], 1 - clips[0, :, -1]
    assert np.array_equal(second[:, -112::4, :3], (last * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def test_tracks_tint_objects_and_leave_the_background():
    frames = torch.full((4, 3, 28, 28), 100, dtype=torch.uint8)
    truth = torch.zeros(4, 28, 28, dtype=torch.uint8)
    truth[:, :14], truth[:, 14:, :14] = 1, 2
    shown = opened(tracks(frames, [torch.zeros_like(truth), truth]))
    assert (shown[:112, :112, :3] == 100).all()
    below = shown[112 + GAP :, :112, :3]
    first, second, ground = (below[y, x].tolist() for y, x in ((10, 10), (100, 10), (100, 100)))
    assert ground == [100] * 3
    assert len({tuple(first), tuple(second), tuple(ground)}) == 3
    void = opened(tracks(frames, [torch.full_like(truth, 255)]))
    assert (void[:, :112, :3] == 100).all()
