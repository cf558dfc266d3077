"""Masks: exact counts, complements, and what each strategy promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmssl.errors import UserError
from mmssl.masking import (
    Mask,
    Positions,
    block,
    counted_mask,
    dirichlet_shares,
    drawn_modalities,
    joint_mask,
    random_bits,
    random_mask,
    separate_mask,
    tube_mask,
)


def bits(batch, count, seed=0):
    return random_bits(count, seed=seed, stream="test", sample_id=torch.arange(batch))


@given(batch=st.integers(1, 5), count=st.integers(2, 60), data=st.data())
def test_random_mask_splits_every_grid(batch, count, data):
    keep = data.draw(st.integers(1, count - 1))
    mask = random_mask(bits(batch, count), keep, {"image": count})
    assert mask.keep.index.shape == (batch, keep)
    both = torch.cat([mask.keep.index, mask.hide.index], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(count).expand(batch, count))
    for positions in (mask.keep, mask.hide):
        assert torch.equal(positions.index, positions.index.sort(dim=1).values)


def test_random_mask_is_the_authors_argsort():
    noise = torch.rand(4, 196)
    shuffled = noise.argsort(dim=1)
    mask = random_mask(noise, 49, {"image": 196})
    assert torch.equal(mask.keep.index, shuffled[:, :49].sort(dim=1).values)


def test_every_position_is_kept_equally_often():
    kept = random_mask(bits(20000, 49), 12, {"image": 49}).keep.boolean(49).double().mean(dim=0)
    deviation = (12 / 49 * (1 - 12 / 49) / 20000) ** 0.5
    assert (kept - 12 / 49).abs().max() < 5 * deviation


@pytest.mark.parametrize(("keep", "what"), [(0, "everything"), (16, "nothing"), (17, "nothing")])
def test_hiding_nothing_or_everything_is_refused(keep, what):
    with pytest.raises(ValueError, match=f"hides {what}"):
        random_mask(bits(2, 16), keep, {"image": 16})


def test_tubes_hide_the_same_places_in_every_slice():
    mask = tube_mask(bits(3, 196), 20, (8, 14, 14), {"video": 1568})
    assert mask.keep.index.shape == (3, 160)
    places = mask.keep.boolean(1568).unflatten(1, (8, 196))
    assert (places == places[:, :1]).all()


@given(top=st.integers(0, 3), left=st.integers(0, 4), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_block_covers_its_rectangle(top, left, rows, columns):
    covered = block(torch.tensor([top]), torch.tensor([left]), (rows, columns), (6, 7)).unflatten(1, (6, 7))[0]
    assert covered.sum() == rows * columns
    assert covered[top : top + rows, left : left + columns].all()


def test_counted_mask_hides_exact_counts_of_candidates():
    valid = torch.arange(12) < torch.tensor([12, 5, 3])[:, None]
    candidates = valid & (torch.arange(12) > 0)
    mask = counted_mask(bits(3, 12), candidates, torch.tensor([4, 2, 9]), {"text": 12}, valid)
    assert mask.hide.lengths.tolist() == [4, 2, 2]
    assert not (mask.hide.boolean(12) & ~candidates).any()
    assert torch.equal(mask.keep.boolean(12), valid)


@given(keep=st.integers(1, 40), seed=st.integers(0, 100))
def test_joint_masks_keep_an_exact_total(keep, seed):
    sizes = {"image": 16, "depth": 16, "semseg": 9}
    shares = dirichlet_shares(bits(6, 3, seed))
    mask = joint_mask(bits(6, 41, seed), shares, keep, sizes)
    assert mask.keep.index.shape == (6, keep)
    both = torch.cat([mask.keep.index, mask.hide.index], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(41).expand(6, 41))


def test_dirichlet_shares_have_the_papers_moments():
    shares = dirichlet_shares(bits(200000, 3))
    assert torch.allclose(shares.mean(dim=0), torch.full((3,), 1 / 3, dtype=torch.float64), atol=3e-3)
    assert torch.allclose(shares.var(dim=0), torch.full((3,), 1 / 18, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("alpha", [0.2, 5.0])
def test_alpha_concentrates_the_shares(alpha):
    shares = dirichlet_shares(bits(20000, 3), alpha)
    assert torch.allclose(shares.sum(dim=1), torch.ones(20000, dtype=torch.float64))
    expected = (1 / 3) * (2 / 3) / (3 * alpha + 1)
    assert shares.var(dim=0).tolist() == pytest.approx([expected] * 3, rel=0.03)
    with pytest.raises(UserError, match="alpha 0"):
        dirichlet_shares(bits(2, 3), 0.0)


def test_a_tiny_alpha_gives_one_modality_everything():
    shares = dirichlet_shares(bits(500, 3), 1e-4)
    assert (shares.max(dim=1).values > 0.99).float().mean() > 0.98


def test_absent_modalities_share_nothing():
    among = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    shares = dirichlet_shares(bits(3, 3), 2.0, among)
    assert torch.equal(shares > 0, among)
    assert shares.sum(dim=1).tolist() == pytest.approx([1, 1, 0])


def test_drawn_modalities_are_any_non_empty_set_of_those_there():
    among = torch.tensor([[True, True, True], [True, False, True], [False, False, False]]).repeat(7000, 1)
    drawn = drawn_modalities(bits(21000, 1), among)
    assert not (drawn & ~among).any() and drawn[0::3].any(dim=1).all() and drawn[1::3].any(dim=1).all()
    sets, counts = drawn[0::3].unique(dim=0, return_counts=True)
    assert len(sets) == 7 and counts.tolist() == pytest.approx([1000] * 7, rel=0.12)


def test_joint_masks_leave_absent_positions_alone():
    valid = torch.ones(3, 48, dtype=torch.bool)
    valid[0, 16:32], valid[1, 4:] = False, False
    shares = dirichlet_shares(bits(3, 3), 1.0, valid[:, ::16])
    mask = joint_mask(bits(3, 48), shares, 10, {"a": 16, "b": 16, "c": 16}, valid)
    assert mask.keep.lengths.tolist() == [10, 4, 10] and mask.hide.lengths.tolist() == [22, 0, 38]
    both = mask.keep.boolean(48).int() + mask.hide.boolean(48).int()
    assert torch.equal(both, valid.int())


def test_joint_masks_follow_their_shares():
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], dtype=torch.float64)
    mask = joint_mask(bits(2, 48), shares, 10, {"a": 16, "b": 16, "c": 16})
    counts = mask.keep.boolean(48).unflatten(1, (3, 16)).sum(dim=2)
    assert counts.tolist() == [[5, 5, 0], [1, 2, 7]]


def test_separate_masks_keep_as_many_of_each_modality_whatever_the_rows_hold():
    sizes, keep = {"image": 12, "text": 6}, {"image": 3, "text": 2}
    noise = {"image": bits(50, 12), "text": bits(50, 8, seed=1)}
    full = separate_mask({**noise, "text": noise["text"][:, :6]}, keep, sizes)
    assert full.keep.index.shape == (50, 5) and full.hide.index.shape == (50, 13)
    valid = torch.arange(18) < 12 + torch.arange(50)[:, None] % 7
    always = torch.zeros(50, 18, dtype=torch.bool).index_fill(1, torch.tensor([12]), True)
    mask = separate_mask(noise, keep, sizes, valid, always)
    kept, hidden = mask.keep.boolean(18), mask.hide.boolean(18)
    assert torch.equal(kept | hidden, valid) and not (kept & hidden).any()
    assert (kept[:, :12].sum(dim=1) == 3).all() and kept[:, 12].equal(valid[:, 12])
    longer = separate_mask(noise, keep, {"image": 12, "text": 8})
    assert torch.equal(longer.keep.boolean(20)[:, 13:18] & valid[:, 13:], kept[:, 13:])


def test_ragged_positions_keep_their_rows():
    chosen = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])
    positions = Positions.from_boolean(chosen)
    assert positions.index.tolist() == [0, 2, 3, 1]
    assert positions.rows.tolist() == [0, 0, 0, 2]
    assert torch.equal(positions.boolean(4), chosen)
    padded = positions.padded(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert padded[..., 0].tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    inside, slots = positions.within(1, 3)
    assert inside.index.tolist() == [1, 0]
    assert inside.lengths.tolist() == [1, 0, 1]
    assert slots.tolist() == [1, 3]


def test_positions_outside_the_grid_are_refused():
    with pytest.raises(ValueError, match="positions 0 to 16, but the grid has 16"):
        Mask(Positions(torch.tensor([[0, 16]])), (), {"image": 16})


def test_several_targets_must_be_read_as_such():
    target = Positions(torch.tensor([[1]]))
    mask = Mask(Positions(torch.tensor([[0]])), (target, target), {"image": 4})
    with pytest.raises(ValueError, match="2 sets of targets"):
        _ = mask.hide


@pytest.mark.parametrize("index", [[[0, 2], [3, 1]], [[0, 2], [1, 1]]])
def test_positions_ascend_within_each_sample(index):
    keep, hide = Positions(torch.tensor(index)), Positions(torch.tensor([[4], [4]]))
    with pytest.raises(ValueError, match=r"mask.keep of shape \(2, 2\) does not ascend within each sample"):
        Mask(keep, (hide,), {"image": 16})
    ragged = Positions(torch.tensor([0, 2, 1, 3]), torch.tensor([2, 2]))
    assert Mask(ragged, (hide,), {"image": 16}).keep is ragged
    with pytest.raises(ValueError, match=r"mask.hide of shape \(4,\) does not ascend"):
        Mask(hide, (Positions(torch.tensor([0, 2, 1, 3]), torch.tensor([1, 3])),), {"image": 16})
