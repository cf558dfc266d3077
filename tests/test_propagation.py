"""Labels follow features: against known answers and a loop that does it cell by cell; J, F and PCK by definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmssl.data.sequences import MaskSequence, PointSequence
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import UserError
from mmssl.evaluation import (
    CROPMAE,
    DINO,
    Propagation,
    boundary_measure,
    evaluate_masks,
    evaluate_points,
    mask_means,
    mask_rows,
    mask_table,
    patch_features,
    pck,
    point_row,
    propagate,
    propagate_masks,
    propagate_points,
    propagation,
    region_similarity,
)
from mmssl.modality import TEXT, VIDEO, image
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig

MODALITIES = {"image": (image(3, (8, 8)), (32, 32)), "video": (replace(VIDEO, patch=(2, 8, 8)), (4, 32, 32))}
ONE = Propagation(topk=1)


def encoder(kind):
    return Encoder(EncoderConfig((TokenizerConfig(*MODALITIES[kind]),), TransformerConfig(24, 1, 2)))


def identities(shifts, rows=4, columns=6):
    """Features that are a cell's name; in frame t all names lie `shifts[t]` columns further right (round the edge)."""
    names = torch.eye(rows * columns).reshape(rows, columns, -1)
    return torch.stack([names.roll(shift, 1) for shift in shifts])


# Propagation


def test_labels_follow_the_cells_they_belong_to():
    shifts = [0, 1, 2, 1, 4]
    first = torch.rand(3, 4, 6)
    maps = propagate(identities(shifts), first, ONE)
    for shift, soft in zip(shifts, maps, strict=True):
        torch.testing.assert_close(soft, first.roll(shift, 2))


def cell_by_cell(features, first, chosen):
    frames, rows, columns, _ = features.shape
    unit = features / features.norm(dim=-1, keepdim=True)
    labels = [first]
    for frame in range(1, frames):
        new = torch.zeros_like(first)
        if chosen.rule == "crw":
            context = [0] + [max(0, frame - back) for back in range(1, chosen.queue + 1)]
        else:
            context = [0] + [t for t in range(1, frame) if t >= frame - chosen.queue]
        for row in range(rows):
            for column in range(columns):
                found = []
                for place, t in enumerate(context):
                    for r in range(rows):
                        for c in range(columns):
                            if chosen.rule == "crw":
                                near = place == 0 or (r - row) ** 2 + (c - column) ** 2 < chosen.radius**2
                            else:
                                near = max(abs(r - row), abs(c - column)) <= chosen.radius
                            if near:
                                similarity = float(unit[frame, row, column] @ unit[t, r, c])
                                found.append((similarity, labels[t][:, r, c]))
                found = sorted(found, key=lambda pair: -pair[0])[: chosen.topk]
                weights = torch.tensor([similarity for similarity, _ in found]).div(chosen.temperature).softmax(0)
                new[:, row, column] = sum(w * vote for w, (_, vote) in zip(weights, found, strict=True))
        labels.append(new)
    return torch.stack(labels)


@settings(max_examples=15, deadline=None)
@given(
    queue=st.integers(1, 4),
    topk=st.integers(1, 30),
    radius=st.sampled_from([0.5, 1.0, 1.5, 2.0, 9.0]),
    temperature=st.sampled_from([0.1, 0.7]),
    rule=st.sampled_from(["crw", "dino"]),
    seed=st.integers(0, 99),
)
@example(queue=2, topk=9, radius=2.0, temperature=0.7, rule="crw", seed=0)  # cells just on the disk's edge
@example(queue=2, topk=9, radius=1.0, temperature=0.7, rule="dino", seed=0)
def test_propagation_is_the_loop_over_cells(queue, topk, radius, temperature, rule, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(4, 2, 3, 5, generator=generator)
    first = torch.rand(2, 2, 3, generator=generator)
    chosen = Propagation(queue, topk, radius, temperature, rule)
    torch.testing.assert_close(
        propagate(features, first, chosen), cell_by_cell(features, first, chosen), rtol=1e-5, atol=1e-5
    )


def test_chunks_do_not_change_the_result(monkeypatch):
    features, first = torch.randn(5, 4, 6, 7), torch.rand(2, 4, 6)
    whole = propagate(features, first)
    monkeypatch.setattr(propagation, "_SIMILARITIES", 5 * 24 * 22)
    torch.testing.assert_close(propagate(features, first), whole)


def test_radius_binds_the_queue_but_the_first_frame_only_in_dinos_code():
    features, first = identities([0, 3, 3]), torch.rand(1, 4, 6)
    chosen = Propagation(topk=1, radius=2.0)
    torch.testing.assert_close(propagate(features, first, chosen)[1], first.roll(3, 2))
    near = propagate(features, first, replace(chosen, rule="dino"))
    assert not torch.allclose(near[1], first.roll(3, 2))


def test_settings_and_grids_that_make_no_sense_are_refused():
    for wrong in ({"queue": 0}, {"topk": 0}, {"radius": 0.0}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="must be at least 1"):
            Propagation(**wrong)
    with pytest.raises(ValueError, match=r"\(1, 3, 3\).*\(2, 4, 6, 24\)"):
        propagate(identities([0, 1]), torch.rand(1, 3, 3))
    assert (CROPMAE.queue, CROPMAE.topk, CROPMAE.radius, CROPMAE.temperature) == (20, 7, 20.0, 0.7)
    assert (DINO.queue, DINO.topk, DINO.radius, DINO.temperature) == (7, 5, 12.0, 0.1)


# Features of encoders


@pytest.mark.parametrize("kind", MODALITIES)
def test_patch_features_are_the_encoders_tokens_of_each_frame(kind):
    model = encoder(kind).train()
    frames = torch.randint(256, (5, 3, 16, 24), dtype=torch.uint8)
    features = patch_features(model, frames, batch_size=2)
    assert features.shape == (5, 2, 3, 24)
    assert model.training
    still = frames[3:4] if kind == "image" else frames[3:4, :, None].repeat(1, 1, 2, 1, 1)
    model.eval()
    expected = model({kind: still}).x[0, 1:].reshape(2, 3, 24)
    torch.testing.assert_close(features[3], expected)


@pytest.mark.parametrize(("height", "width", "grid"), [(19, 21, (2, 3)), (20, 12, (2, 2)), (3, 40, (1, 5))])
def test_frames_are_resized_to_the_nearest_multiple_of_the_patch(height, width, grid):
    frames = torch.randint(256, (2, 3, height, width), dtype=torch.uint8)
    assert patch_features(encoder("image"), frames).shape == (2, *grid, 24)


def test_encoders_that_see_no_pictures_are_refused():
    text = Encoder(EncoderConfig((TokenizerConfig(TEXT, (8,)),), TransformerConfig(24, 1, 2)))
    with pytest.raises(ValueError, match="reads pictures or clips"):
        patch_features(text, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


# Masks and points


@pytest.mark.parametrize("kind", MODALITIES)
def test_masks_stay_in_a_still_video(kind):
    frames = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8).expand(4, -1, -1, -1)
    first = torch.zeros(32, 32, dtype=torch.uint8)
    first[:, 16:] = 7
    masks = propagate_masks(encoder(kind), frames, first, ONE)
    assert torch.equal(masks, first.expand(4, -1, -1))


def test_masks_move_with_the_features_and_void_is_no_object(monkeypatch):
    monkeypatch.setattr(propagation, "patch_features", lambda *_, **__: identities([0, 2, 3]))
    first = torch.zeros(16, 24, dtype=torch.uint8)
    first[:, 4:8], first[:, 8:12] = 3, 255
    masks = propagate_masks(encoder("image"), torch.zeros(3, 3, 16, 24, dtype=torch.uint8), first, ONE)
    assert torch.equal(masks[0], first)
    assert masks.unique().tolist() == [0, 3, 255]
    for mask, left in ((masks[1], 12), (masks[2], 16)):
        assert 255 not in mask
        assert bool((mask[:, left : left + 4] == 3).all())
        assert region_similarity(mask == 3, (first == 3).roll(left - 4, 1)) > 0.6


@pytest.mark.parametrize("kind", MODALITIES)
def test_points_stay_in_a_still_video_and_absent_ones_absent(kind):
    frames = torch.randint(256, (1, 3, 32, 40), dtype=torch.uint8).expand(3, -1, -1, -1)
    first = torch.tensor([[3.5, 3.5], [20.0, 14.0], [39.4, 31.4], [torch.nan, 2.0], [41.0, 5.0]])
    points = propagate_points(encoder(kind), frames, first, ONE)
    assert points.shape == (3, 5, 2)
    torch.testing.assert_close(points[0, :3], first[:3])
    # A mean over cells cannot leave their centres: half a patch's diagonal (5.7) at worst, in a corner.
    assert bool(((points[:, :3] - first[:3]).norm(dim=-1) < 6).all())
    assert bool(((points[:, 1] - first[1]).norm(dim=-1) < 0.5).all())
    assert bool(points[:, 3:].isnan().all())


def test_points_move_with_the_features(monkeypatch):
    monkeypatch.setattr(propagation, "patch_features", lambda *_, **__: identities([0, 1, 3]))
    first = torch.tensor([[5.5, 9.5], [7.5, 7.5]])
    frames = torch.zeros(3, 3, 16, 24, dtype=torch.uint8)
    points = propagate_points(encoder("image"), frames, first, ONE)
    expected = first[None] + torch.tensor([0.0, 4.0, 12.0])[:, None, None] * torch.tensor([1.0, 0.0])
    torch.testing.assert_close(points, expected, atol=0.2, rtol=0)


def test_a_narrow_label_map_still_has_the_cell_of_its_point():
    maps = propagation._point_maps(torch.tensor([[0.0, 0.0]]), (2, 2), (16, 16), 0.05)
    assert (maps > 0).sum() <= 1
    assert bool((propagation._point_maps(torch.tensor([[5.0, 5.0]]), (2, 2), (16, 16), 0.2)[0, 0, 0]) > 0)


# Scores

MASKS = arrays(np.bool_, (9, 11)).map(torch.from_numpy)


@settings(max_examples=60, deadline=None)
@given(MASKS, MASKS)
def test_scores_are_symmetric_shares_and_one_for_equal_masks(one, other):
    for score in (region_similarity, boundary_measure):
        value = score(one, other)
        assert 0 <= value <= 1
        assert score(other, one) == pytest.approx(value)
        assert score(one, one) == 1


def boundary_measure_by_dilation(predicted, truth):
    """The definition in words, pixel by pixel."""

    def boundary(mask):
        height, width = mask.shape
        found = set()
        for y in range(height):
            for x in range(width):
                down, right = min(y + 1, height - 1), min(x + 1, width - 1)
                here = bool(mask[y, x])
                if any(here != bool(mask[p]) for p in ((down, x), (y, right), (down, right))):
                    found.add((y, x))
        return found

    tolerance = np.ceil(0.008 * np.linalg.norm(truth.shape))
    mine, theirs = boundary(predicted), boundary(truth)
    if not mine or not theirs:
        return float(bool(mine) == bool(theirs))

    def share(points, others):
        return np.mean([min(np.hypot(y - v, x - u) for v, u in others) <= tolerance for y, x in points])

    precision, recall = share(mine, theirs), share(theirs, mine)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=20, deadline=None)
@given(MASKS, MASKS)
def test_the_boundary_measure_is_its_definition(one, other):
    assert boundary_measure(one, other) == pytest.approx(boundary_measure_by_dilation(one, other))


def test_the_boundary_may_be_off_by_the_tolerance():
    mask = torch.zeros(200, 200, dtype=torch.bool)  # diagonal 283: a tolerance of 3 pixels
    mask[50:150, 60:120] = True
    assert boundary_measure(mask, mask.roll(1, 0)) == 1
    assert boundary_measure(mask, mask.roll(3, 1)) == 1
    assert boundary_measure(mask, mask.roll(6, 1)) < 0.7
    assert boundary_measure(mask, torch.zeros_like(mask)) == 0
    assert region_similarity(mask, mask.roll(60, 1)) == 0
    assert region_similarity(~mask & mask, ~mask & mask) == 1


def test_rows_leave_out_the_first_the_last_and_the_void():
    truth = torch.zeros(4, 20, 20, dtype=torch.uint8)
    truth[:, 2:10, 2:10], truth[:, 12:18, 12:18], truth[:, 0] = 1, 4, 255
    predicted = truth.clone()
    predicted[0], predicted[3], predicted[:, 0] = 9, 9, 1
    predicted[2, 12:18, 12:18] = 0
    one, four = mask_rows("cow", predicted, truth)
    assert (one.sequence, one.object, one.region, one.boundary, one.both, one.frames) == ("cow", 1, 1.0, 1.0, 1.0, 2)
    assert (four.object, four.region, four.boundary) == (4, 0.5, 0.5)
    means = mask_means([one, four])
    assert (means.region, means.boundary, means.both) == (0.75, 0.75, 0.75)
    assert mask_table([one, four]).splitlines()[2:] == [
        "| cow | 2 | 75.0 | 75.0 | 75.0 |",
        "| all | 2 | 75.0 | 75.0 | 75.0 |",
    ]
    for broken in (truth[:2], torch.zeros_like(truth)):
        with pytest.raises(UserError, match="Sequence cow has"):
            mask_rows("cow", broken, broken)
    with pytest.raises(ValueError, match="no object"):
        mask_means([])


def test_pck_is_relative_to_the_box_of_the_true_points():
    truth = torch.tensor([[0.0, 0.0], [30.0, 40.0], [10.0, 10.0], [torch.nan, 0.0]]).expand(3, 4, 2)  # diagonal 50
    predicted = truth.clone()
    predicted[1, 0, 0] += 2.9  # of a size of 30: within 0.1
    predicted[1, 1, 0] += 3.1
    predicted[2, 2] = torch.nan
    predicted[0] = 99.0  # given, not counted
    row = point_row("run", predicted, truth)
    torch.testing.assert_close(row.errors[0, :2], torch.tensor([2.9, 3.1]) / 30)
    assert row.errors[1, 2] == torch.inf
    assert bool(row.errors[:, 3].isnan().all())
    assert row.pck(0.1) == pytest.approx(4 / 6)
    assert row.pck(0.2) == pytest.approx(5 / 6)
    assert pck([row], 0.1) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    coincident = point_row("dot", torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]]), torch.ones(2, 1, 2))
    assert coincident.pck(0.1) == 1
    with pytest.raises(ValueError, match="no point"):
        pck([], 0.1)


def test_evaluations_report_each_sequence():
    frames = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8).expand(4, -1, -1, -1)
    masks = torch.zeros(4, 32, 32, dtype=torch.uint8)
    masks[:, 16:] = 2
    done = []
    rows = evaluate_masks(
        encoder("video"), [MaskSequence(name, frames, masks) for name in "ab"], ONE, progress=done.append
    )
    assert ([row.sequence for row in rows], done) == (["a", "b"], ["a", "b"])
    assert mask_means(rows).both == 1
    points = torch.tensor([[4.0, 4.0], [28.0, 20.0], [99.0, 99.0]]).expand(4, 3, 2)
    found = evaluate_points(encoder("image"), [PointSequence("c", frames, points)], ONE, progress=done.append)
    assert done[-1] == "c"
    assert found[0].errors.isnan().sum() == 3  # outside the first picture: never given
    assert pck(found, 0.2) == 1
