"""Sin-cos tables: the numbers of the papers' code."""

import pytest
import torch

from mmssl.position import Position, mark_trained, sincos_table

SIN1, COS1 = 0.841471, 0.540302


def test_mae_table_has_the_authors_numbers():
    table = sincos_table((14, 14), 768).double()
    assert table.sum().item() == pytest.approx(69594.494, abs=0.01)
    assert table.square().sum().item() == pytest.approx(75264, abs=1e-2)
    assert table[1, [0, 192, 384, 576]].tolist() == pytest.approx([SIN1, COS1, 0, 1], abs=1e-6)
    assert table[14, [0, 192, 384, 576]].tolist() == pytest.approx([0, 1, SIN1, COS1], abs=1e-6)
    assert sincos_table((14, 14), 512).double().sum().item() == pytest.approx(46340.333, abs=0.01)
    assert sincos_table((16, 16), 1280).double().sum().item() == pytest.approx(149578.406, abs=0.01)


def test_row_first_tables_swap_the_halves():
    first, second = sincos_table((14, 14), 768).chunk(2, dim=1)
    assert torch.equal(sincos_table((14, 14), 768, "sincos_row_first"), torch.cat([second, first], dim=1))


def test_videomae_table_has_the_authors_numbers():
    for dim, total, squares, third in ((768, 245744.990, 602112, 0.828431), (384, 122425.858, 301056, 0.815251)):
        table = sincos_table((8, 14, 14), dim, "sincos_interleaved").double()
        assert table.sum().item() == pytest.approx(total, abs=0.02)
        assert table.square().sum().item() == pytest.approx(squares, abs=0.1)
        assert table[1, :3].tolist() == pytest.approx([SIN1, COS1, third], abs=1e-6)


def test_three_axes_share_the_channels_as_vjepa_does():
    table = sincos_table((2, 3, 4), 32, "sincos_row_first")
    assert table.shape == (24, 32)
    assert torch.equal(table[:, :12][12:], sincos_table((2,), 12)[1].expand(12, 12))


def test_fixed_tables_follow_the_grid_exactly():
    assert torch.equal(Position((4, 4), 16)((6, 5)), sincos_table((6, 5), 16))


def test_learned_tables_are_interpolated_and_learn():
    position = Position((4, 4), 8, "learned")
    larger = position((6, 8))
    # as MAE's fine-tuning code does it
    as_picture = position.table.reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(as_picture, size=(6, 8), mode="bicubic", align_corners=False)
    assert torch.allclose(larger, resized.permute(0, 2, 3, 1).flatten(0, 2))
    larger.sum().backward()
    assert position.table.grad is not None
    assert not Position((4, 4), 8).table.requires_grad


def test_fixed_tables_are_interpolated_once_trained_against_unless_told_otherwise():
    module = torch.nn.Sequential(*(Position((4, 4), 16, recompute=told) for told in (None, True, False)))
    told, always, never = module
    before = told((6, 8))
    assert torch.equal(before, sincos_table((6, 8), 16))
    assert not torch.equal(before, never((6, 8)))
    mark_trained(module)
    assert torch.equal(told((6, 8)), never((6, 8)))
    assert torch.equal(always((6, 8)), before)
    assert torch.equal(told((4, 4)), told.table)
    with pytest.raises(ValueError, match="learns cannot be computed anew"):
        Position((4, 4), 16, "learned", recompute=True)


def test_clips_tables_are_bicubic_over_a_frame_and_linear_over_time():
    position = Position((4, 3, 5), 6, "learned")
    frames = position.table.unflatten(0, position.grid).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(frames, size=(6, 7), mode="bicubic", align_corners=False)
    larger = larger.permute(0, 2, 3, 1)
    assert torch.allclose(position((4, 6, 7)).unflatten(0, (4, 6, 7)), larger, atol=1e-6)
    doubled = position((8, 6, 7)).unflatten(0, (8, 6, 7))
    assert torch.allclose(doubled[3], 0.75 * larger[1] + 0.25 * larger[2], atol=1e-6)
    # fewer frames are the first ones, not all of them squeezed
    assert torch.allclose(position((2, 6, 7)).unflatten(0, (2, 6, 7)), larger[:2], atol=1e-6)
    line = Position((4,), 6, "learned")
    assert torch.equal(line((3,)), line.table[:3])
    assert torch.allclose(line((8,))[3], 0.75 * line.table[1] + 0.25 * line.table[2], atol=1e-6)


def test_a_table_cannot_follow_another_number_of_axes():
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 4, 4\)"):
        Position((4, 4), 8)((4, 4, 4))
