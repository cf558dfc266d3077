"""RandAugment: timm's values by torchvision's operations, and nothing but the picture and its keys decides them."""

from collections import Counter
from itertools import repeat

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms.v2 import InterpolationMode, functional

from mmssl.data import ArraySource, Compose, Crop, Erasing, Loader, MultiView, RandAugment
from mmssl.data.randaugment import OPERATIONS
from mmssl.errors import UserError
from tests.test_data_augment import keys, media

BILINEAR, FILL = InterpolationMode.BILINEAR, [124, 116, 104]  # ImageNet's mean
SIGNED = ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")
TIMMS = dict(zip(OPERATIONS, auto_augment._RAND_INCREASING_TRANSFORMS, strict=True))


def smooth(*shape, seed=0):
    """Pictures with edges and slopes, of which the operations make something else."""
    coarse = torch.rand(shape[0], shape[1], 5, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear") * 200 + 20).round().to(torch.uint8)


def as_picture(values):
    return functional.to_pil_image(values)


def drawn_of(operation, count=40, **settings):
    """Pictures and parameters of one operation alone."""
    rows = RandAugment(operations=1, probability=1.0, **settings).draw(keys(40 * count), 0)
    return [row for row in rows if row[0][0] == operation][:count]


def torchvisions(picture, operation, parameter):
    fill = FILL if picture.mode == "RGB" else [119]
    match operation:
        case "rotate":
            return functional.rotate(picture, parameter, BILINEAR, fill=fill)
        case "shear_x" | "shear_y":
            degrees = np.degrees(np.arctan(parameter))
            shear = [degrees, 0.0] if operation == "shear_x" else [0.0, degrees]
            return functional.affine(picture, 0.0, [0, 0], 1.0, shear, BILINEAR, fill, [0.0, 0.0])
        case "translate_x":
            moved = [parameter * picture.width, 0.0]
            return functional.affine(picture, 0.0, moved, 1.0, [0.0, 0.0], BILINEAR, fill, [0.0, 0.0])
        case "translate_y":
            moved = [0.0, parameter * picture.height]
            return functional.affine(picture, 0.0, moved, 1.0, [0.0, 0.0], BILINEAR, fill, [0.0, 0.0])
        case "solarize_add":
            values = functional.pil_to_tensor(picture).int()
            added = torch.where(values < 128, (values + int(parameter)).clamp(max=255), values)
            return as_picture(added.to(torch.uint8))
        case "posterize":
            return functional.posterize(picture, int(parameter))
        case "solarize":
            return functional.solarize(picture, parameter)
        case "color":
            return functional.adjust_saturation(picture, parameter)
        case "contrast" | "brightness" | "sharpness":
            return getattr(functional, f"adjust_{operation}")(picture, parameter)
    return getattr(functional, operation)(picture)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_torchvisions_and_gives_timms_values(operation):
    drawn = drawn_of(operation, 12)
    assert len(drawn) == 12
    pictures = smooth(12, 3, 44, 36)
    made = RandAugment()(pictures, drawn)
    expected = [torchvisions(as_picture(p), operation, row[0][1]) for p, row in zip(pictures, drawn, strict=True)]
    assert torch.equal(made, torch.stack([functional.pil_to_tensor(picture) for picture in expected]))
    assert not torch.equal(made, pictures)
    theirs, settings = auto_augment.NAME_TO_OP[TIMMS[operation]], {"resample": Image.BILINEAR, "fillcolor": tuple(FILL)}
    for picture, [(_, parameter)], got in zip(pictures, drawn, made, strict=True):
        parameter = int(parameter) if operation in ("posterize", "solarize_add") else parameter
        parameter = -parameter if operation.startswith("translate") else parameter
        arguments = [parameter] if auto_augment.LEVEL_TO_ARG[TIMMS[operation]] else []
        assert torch.equal(got, functional.pil_to_tensor(theirs(as_picture(picture), *arguments, **settings)))


def test_no_bit_left_is_black():
    assert not RandAugment()(smooth(1, 3, 9, 9), [[("posterize", 0.0)]]).any()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0.0, 3.3, 7.0, 9.0, 10.0])
def test_parameters_grow_as_timms(operation, magnitude):
    """Without a deviation, so that each has its one value, up to the sign."""
    rule = auto_augment.LEVEL_TO_ARG[TIMMS[operation]]
    found = {parameter for [(_, parameter)] in drawn_of(operation, 30, magnitude=magnitude, deviation=0.0)}
    expected = {rule(magnitude, {})[0] for _ in range(60)} if rule else {0.0}
    assert sorted(found) == pytest.approx(sorted(expected))
    assert len(found) == (2 if operation in SIGNED and magnitude else 1)


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 33, 47), (3, 4, 30, 30), (1, 2, 30, 30)])
def test_chains_of_pictures_and_clips_of_one_channel_and_three(shape):
    change = RandAugment(7.0, 4, mean=(0.485, 0.456, 0.406) if shape[0] == 3 else (0.467,))
    made, drawn = media(16, *shape), change.draw(keys(16), 0)

    def frames_of(batch):
        return [clip[None].movedim(1, -3).flatten(0, -4) for clip in batch]

    expected = []
    for clip, operations in zip(frames_of(made), drawn, strict=True):
        pictures = [as_picture(frame) for frame in clip]
        for operation, parameter in operations:
            pictures = [torchvisions(picture, operation, parameter) for picture in pictures]
        expected.append(torch.stack([functional.pil_to_tensor(picture) for picture in pictures]))
    before = made.clone()
    got = change(made, drawn)
    assert all(torch.equal(one, another) for one, another in zip(frames_of(got), expected, strict=True))
    assert (got.shape, got.dtype) == (made.shape, torch.uint8)
    assert torch.equal(made, before)


def test_floats_are_the_same_in_0_to_1_and_stay_where_nothing_is_applied():
    change = RandAugment()
    pictures, drawn = media(20, 3, 24, 24), change.draw(keys(20), 0)
    got = change(pictures / 255, drawn)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, change(pictures, drawn) / 255, rtol=0, atol=1e-6)
    ringing = media(20, 3, 24, 24, dtype=torch.float32) * 1.4 - 0.2
    idle = [not operations for operations in drawn]
    assert 0 < sum(idle) < 20
    assert torch.equal(change(ringing, drawn)[idle], ringing[idle])


def test_operations_chances_and_magnitudes_have_their_distribution():
    count, settings = 6000, RandAugment(6.0, 3, deviation=1.5, probability=0.4)
    drawn = settings.draw(keys(count), 0)

    def near(found, probability, of):
        assert abs(found / of - probability) < 4.5 * (probability * (1 - probability) / of) ** 0.5

    for applied, share in enumerate((0.216, 0.432, 0.288, 0.064)):
        near(sum(len(operations) == applied for operations in drawn), share, count)
    names = Counter(name for operations in drawn for name, _ in operations)
    for name in OPERATIONS:
        near(names[name], 1 / 15, names.total())
    pairs = Counter(tuple(name for name, _ in operations) for operations in drawn if len(operations) == 2)
    near(sum(found for (one, another), found in pairs.items() if one == another), 1 / 15, pairs.total())
    shears = np.array([p / 0.03 for operations in drawn for name, p in operations if name.startswith("shear")])
    near((shears > 0).sum(), 0.5, len(shears))
    levels = np.abs(shears)
    assert levels.max() <= 10
    for quarter, quantile in ((0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745)):
        near((levels < 6 + 1.5 * quantile).sum(), quarter, len(levels))
    ends = [abs(p) for [(_, p)] in drawn_of("translate_x", 200, magnitude=10.0, deviation=2.0)]
    assert max(ends) == 0.45
    near(ends.count(0.45), 0.5, len(ends))


def test_seeds_epochs_draws_samples_and_views_draw_apart():
    change = RandAugment(operations=1, probability=1.0)
    families = [keys(300, **change) for change in ({}, {"seed": 1}, {"epoch": 1}, {"draw": 1}, {"first": 300})]
    columns = [change.draw(family, 0) for family in families] + [change.draw(keys(300), 1)]
    for k, one in enumerate(columns):
        for another in columns[:k]:
            assert sum(a == b for a, b in zip(one, another, strict=True)) < 30
    assert change.draw(keys(300), 0) == columns[0]


RECIPE = Crop(24, (0.3, 1.0), augmentation=Compose((RandAugment(), Erasing(0.5))))


def test_a_picture_does_not_depend_on_its_company():
    view, pictures = MultiView((RECIPE,)), (*media(6, 3, 28, 28), *media(4, 3, 90, 70))
    samples = [{"image": picture} for picture in pictures]
    together = view(samples, keys(10))["image"]
    for row, sample in enumerate(samples):
        assert torch.equal(view([sample], keys(1, first=row))["image"][0], together[row])
    plain = MultiView((Crop(24, (0.3, 1.0)),))(samples, keys(10))["image"]
    changed = RandAugment()(plain, RandAugment().draw(keys(10), 0))
    assert torch.equal(Erasing(0.5)(changed, Erasing(0.5).draw(keys(10), 0)), together)
    assert not torch.equal(changed, plain) and not torch.equal(changed, together)


def test_all_frames_of_a_clip_are_treated_as_its_picture():
    pictures, change = media(12, 3, 28, 28), RandAugment(7.0, 4)
    drawn = change.draw(keys(12), 0)
    clips = change(pictures[:, :, None].expand(-1, -1, 3, -1, -1), drawn)
    assert torch.equal(clips, change(pictures, drawn)[:, :, None].expand(-1, -1, 3, -1, -1))


def test_the_loader_gives_the_same_with_workers_and_partners_are_changed_by_their_own_keys():
    source = ArraySource(media(1, 3, 32, 32).expand(10, -1, -1, -1), None, [], "pictures")
    runs = [
        list(Loader(source, MultiView((RECIPE,)), batch_size=4, workers=workers, partners=True).batches(1, 4))
        for workers in (0, 1)
    ]
    for here, there in zip(*runs, strict=True):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)
        assert not torch.equal(here["image"], here["image.partner"])


def test_changes_are_composed_one_of_each_kind():
    with pytest.raises(UserError, match=r"one of each kind, at least one, not \(Erasing, Erasing\)"):
        Compose((Erasing(), Erasing(0.5)))
    with pytest.raises(UserError, match=r"at least one, not \(\)"):
        Compose(())


@pytest.mark.parametrize(
    "settings",
    [{"magnitude": 10.5}, {"deviation": -0.5}, {"operations": 0}, {"probability": 1.5}, {"mean": (124.0,) * 3}],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        RandAugment(**settings)


def test_other_channels_than_it_has_means_for_are_refused():
    for channels, mean in ((1, 3), (3, 1), (4, 4)):
        change = RandAugment(mean=(0.5,) * mean)
        with pytest.raises(UserError, match=f"the medium has {channels}, and mean {mean}"):
            change(media(2, channels, 8, 8), list(repeat([], 2)))
