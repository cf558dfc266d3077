"""Random erasing: boxes of the sizes that were asked for, filled with what the tokenizer makes standard normal."""

import math

import numpy as np
import pytest
import torch

from mmssl.data import Erasing
from mmssl.errors import UserError
from mmssl.modality import IMAGENET_MEAN, IMAGENET_STD
from tests.test_data_augment import keys, media


def boxes_of(changed):
    """(top, left, height, width) of what is not 0 in each picture [B, C, H, W]; four zeros where there is nothing."""
    found = []
    for picture in changed.flatten(1, -3).any(1):
        rows, columns = picture.any(1).nonzero().flatten(), picture.any(0).nonzero().flatten()
        if not len(rows):
            found.append((0, 0, 0, 0))
            continue
        (top, bottom), (left, right) = (rows[0].item(), rows[-1].item()), (columns[0].item(), columns[-1].item())
        assert picture[top : bottom + 1, left : right + 1].float().mean() > 0.9
        found.append((top, left, bottom - top + 1, right - left + 1))
    return np.array(found)


def erased(change, shape, count, dtype=torch.uint8):
    return change(torch.zeros(count, *shape, dtype=dtype), change.draw(keys(count), 0))


def test_boxes_have_the_shares_aspects_and_places_that_were_asked_for():
    count, height, width = 300, 50, 60
    boxes = boxes_of(erased(Erasing(1.0, mean=(0.9,), std=(0.05,)), (1, height, width), count))
    top, left, high, wide = boxes.T
    share, aspect = high * wide / (height * width), np.log(wide / high)
    assert 0.015 < share.min() < 0.04 and 0.3 < share.max() < 0.345
    assert abs(np.median(share) - (0.02 + 1 / 3) / 2) < 0.03
    # A side is rounded, of the smallest boxes from 4 or 5 pixels.
    limit = math.log(1 / 0.3)
    assert abs(aspect).max() < limit + 0.15
    assert abs(aspect.mean()) < 0.15 and abs(aspect.std() - limit / 3**0.5) < 0.1
    assert high.max() < height and wide.max() < width
    for start, free in ((top, height - high), (left, width - wide)):
        assert (start <= free).all()
        assert abs((start / np.maximum(free, 1)).mean() - 0.5) < 0.08


def test_a_quarter_is_erased_unless_told_otherwise():
    for change, share in ((Erasing(), 0.25), (Erasing(0.7), 0.7)):
        chosen = sum(erasure is not None for erasure in change.draw(keys(3000), 0))
        assert abs(chosen / 3000 - share) < 4.5 * (share * (1 - share) / 3000) ** 0.5


def test_what_fills_a_box_is_standard_normal_once_it_is_standardised():
    mean, std = (0.45, 0.5, 0.55), (0.09, 0.1, 0.11)
    change = Erasing(1.0, (0.3, 0.33), (0.9, 1.1), mean, std)
    pictures = torch.full((12, 3, 64, 64), 7.0)
    made = change(pictures, change.draw(keys(12), 0))
    inside = (made != 7).all(1)
    values = [(channel[inside] - m) / s for channel, m, s in zip(made.unbind(1), mean, std, strict=True)]
    for each in values:
        assert abs(each.mean()) < 0.03 and abs(each.std() - 1) < 0.02
        assert abs((each.abs() < 0.6745).float().mean() - 0.5) < 0.02 and each.abs().max() > 3
    assert abs(torch.corrcoef(torch.stack(values)) - torch.eye(3)).max() < 0.05
    assert (made[~inside[:, None].expand_as(made)] == 7).all()
    # 8 bits are the same, rounded.
    dark = erased(change, (3, 64, 64), 12)
    torch.testing.assert_close(dark / 255, made.where(made != 7, 0), rtol=0, atol=0.5 / 255 + 1e-6)


def test_values_end_where_pixels_do():
    made = erased(Erasing(1.0), (3, 40, 40), 60)[:, 0]
    red = made[made > 0] / 255
    assert made.max() == 255
    beyond = 1 - 0.5 * (1 + math.erf((1 - IMAGENET_MEAN[0]) / IMAGENET_STD[0] / 2**0.5))
    assert abs((red == 1).float().mean() - beyond) < 0.006


def test_frames_have_the_same_box_and_noise_of_their_own():
    clips = erased(Erasing(1.0), (3, 4, 32, 32), 6)
    for clip in clips:
        frames = clip.movedim(1, 0)
        assert len({tuple(box) for box in boxes_of(frames).tolist()}) == 1
        assert len(frames.flatten(1).unique(dim=0)) == 4


def test_a_row_depends_on_its_keys_alone():
    change, pictures = Erasing(0.7), media(20, 3, 30, 40)
    before, together = pictures.clone(), change(pictures, change.draw(keys(20), 0))
    assert torch.equal(pictures, before)
    for row, picture in enumerate(pictures):
        alone = change(picture[None], change.draw(keys(1, first=row), 0))
        assert torch.equal(alone[0], together[row])
    others = [keys(20, **changed) for changed in ({"seed": 1}, {"epoch": 1}, {"draw": 1}, {"first": 20})]
    made = [together, change(pictures, change.draw(keys(20), 1))]
    made += [change(pictures, change.draw(family, 0)) for family in others]
    for k, one in enumerate(made):
        assert all((one == another).float().mean() < 0.95 for another in made[:k])


def test_a_picture_of_one_pixel_stays():
    assert torch.equal(erased(Erasing(1.0), (3, 1, 1), 4), torch.zeros(4, 3, 1, 1, dtype=torch.uint8))


@pytest.mark.parametrize(
    "settings",
    [{"probability": -0.1}, {"area": (0.0, 0.3)}, {"area": (0.5, 0.3)}, {"aspect": (0.0, 3.0)}, {"std": (0.2,)}],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Erasing(**settings)


def test_other_channels_than_it_has_means_for_are_refused():
    with pytest.raises(UserError, match="for 3 channels, and the medium has 1"):
        erased(Erasing(), (1, 8, 8), 2)
