"""Views: torchvision's distributions and pixels, and nothing but the picture and its keys decides a result."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import transforms
from torchvision.transforms import InterpolationMode, functional

from mmssl.data import EvalView, Keys, MultiScaleView, TrainView
from mmssl.data.views import axis_weights, draw_numbers, random_boxes


def keys(count, seed=0, epoch=0, draw=0, first=0):
    numbers = torch.arange(first, first + count)
    return Keys(seed, numbers, torch.full_like(numbers, epoch), torch.full_like(numbers, draw))


def pictures(count, height, width, channels=3, seed=0):
    """Smooth, as pictures are: rounding twice then moves a value by 1 at most."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, channels, 6, 6), generator=generator, dtype=torch.uint8)
    smooth = functional.resize(coarse, [height, width], InterpolationMode.BILINEAR, antialias=True)
    return [{"image": picture} for picture in smooth]


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 200), (300, 40)])
def test_boxes_follow_torchvisions_distribution(height, width):
    """Means of area, aspect and centre within four standard errors, and equal shares of the central fallback."""
    count, scale, ratio = 4000, (0.2, 1.0), (3 / 4, 4 / 3)
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(picture, list(scale), list(ratio)) for _ in range(count)]
    )
    noise = np.random.default_rng(0).random((count, 22))
    ours = np.stack(random_boxes(noise, height, width, scale, ratio), 1)
    assert (ours >= (0, 0, 1, 1)).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()

    def statistics(boxes):
        top, left, h, w = boxes.astype(float).T
        values = np.stack([h * w, np.log(h / w), top + h / 2, left + w / 2, h, w, top, left])
        return np.concatenate([values, values**2])

    a, b = statistics(theirs), statistics(ours)
    error = np.sqrt((a.var(1) + b.var(1)) / count) + 1e-9
    assert (np.abs(a.mean(1) - b.mean(1)) / error).max() < 4


def test_an_extreme_aspect_falls_back_to_the_central_box():
    noise = np.random.default_rng(0).random((3, 22))
    assert np.stack(random_boxes(noise, 10, 1000, (0.9, 1.0), (3 / 4, 4 / 3)), 1).tolist() == [[0, 493, 10, 13]] * 3
    assert np.stack(random_boxes(noise, 1, 5000, (0.2, 1.0), (3 / 4, 4 / 3)), 1)[:, 2:].tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("side", [30, 90])
def test_a_view_is_torchvisions_resized_crop(side):
    """Both ways of resampling, for small and for large pictures, give what torch and Pillow give, which round
    between the two axes, and differ among themselves in their order."""
    samples = pictures(40, side, side + 8)
    view = TrainView(24, flip=0.0)
    noise_keys = keys(40)
    batch = view(samples, noise_keys)["image"]
    noise = draw_numbers("view/0", noise_keys)
    boxes = np.stack(random_boxes(noise[:, :22], side, side + 8, view.scale, view.ratio), 1).tolist()
    crops = [functional.crop(sample["image"], *box) for box, sample in zip(boxes, samples, strict=True)]
    torchs = torch.cat([interpolate(crop[None], (24, 24), mode="bicubic", antialias=True) for crop in crops])
    pillows = [
        functional.pil_to_tensor(functional.resize(functional.to_pil_image(crop), [24, 24], InterpolationMode.BICUBIC))
        for crop in crops
    ]
    for expected, differing in ((torchs, 0.01), (torch.stack(pillows), 0.05)):
        difference = (expected.int() - batch.int()).abs()
        assert difference.max() <= 2
        assert (difference > 0).float().mean() < differing


@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 31), (100, 80), (50, 200), (224, 224), (300, 500)])
def test_the_evaluation_view_is_torchvisions_resize_and_center_crop(height, width):
    (sample,) = pictures(1, height, width)
    steps = [transforms.Resize(36, InterpolationMode.BICUBIC), transforms.CenterCrop(32), transforms.PILToTensor()]
    expected = transforms.Compose(steps)(Image.fromarray(sample["image"].permute(1, 2, 0).numpy()))
    assert (EvalView(32)([sample])["image"][0].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(80, 100), (37, 70), (200, 37), (41, 73), (100, 200), (500, 500)])
@pytest.mark.parametrize("size", [(32, 64), (56, 28)])
def test_wide_evaluation_crops_are_torchvisions_of_a_picture_that_just_covers_them(height, width, size):
    (sample,) = pictures(1, height, width)
    down, across = int(size[0] / 0.875), int(size[1] / 0.875)
    scale = max(down / height, across / width)
    # to the last pixel what Resize gives for the side that decides
    shape = (down, down * width // height) if down / height == scale else (across * height // width, across)
    steps = [transforms.Resize(shape, InterpolationMode.BICUBIC), transforms.CenterCrop(size), transforms.PILToTensor()]
    expected = transforms.Compose(steps)(Image.fromarray(sample["image"].permute(1, 2, 0).numpy()))
    got = EvalView(size)([sample])["image"][0]
    assert got.shape == (3, *size)
    assert (got.int() - expected.int()).abs().max() <= 1
    assert torch.equal(EvalView(size, resize=(down, across))([sample])["image"][0], got)


def test_wide_training_crops_are_torchvisions_boxes_resized_to_height_and_width():
    for side in (60, 200):
        samples, size = pictures(20, side, side), (24, 48)
        noise = draw_numbers("view/0", keys(20))
        boxes = np.stack(random_boxes(noise[:, :-1], side, side, (0.2, 1.0), (3 / 4, 4 / 3)), 1).tolist()
        got = TrainView(size, flip=0.0)(samples, keys(20))["image"]
        assert got.shape == (20, 3, *size)
        for sample, box, crop in zip(samples, boxes, got, strict=True):
            picture = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
            expected = functional.resized_crop(picture, *box, size, InterpolationMode.BICUBIC)
            assert (crop.int() - functional.pil_to_tensor(expected).int()).abs().max() <= 1


def test_wide_multi_scale_crops_keep_the_aspect_of_their_size():
    """The picture holds its own coordinates: a crop tells how large its box was."""
    for height, width, tall in ((100, 140, 70), (100, 300, 100)):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        picture = torch.stack([rows, columns]).float() / 255
        crops = MultiScaleView((32, 64), scales=(1.0,))([{"image": picture}] * 20, keys(20))["image"] * 255
        down, across = crops[:, 0, 24, 32] - crops[:, 0, 8, 32], crops[:, 1, 16, 48] - crops[:, 1, 16, 16]
        assert torch.allclose(down, torch.full((20,), tall / 2.0), atol=0.5)
        assert torch.allclose(across, torch.full((20,), float(tall)), atol=0.5)


def test_a_square_size_may_be_told_twice():
    for side in (40, 90):
        samples = pictures(3, side, side + 20)
        for view in (TrainView, EvalView, MultiScaleView):
            assert torch.equal(view(24)(samples, keys(3))["image"], view((24, 24))(samples, keys(3))["image"])


def test_the_evaluation_view_of_its_own_size_changes_nothing():
    for side in (28, 64):
        samples = pictures(3, side, side)
        batch = EvalView(side, resize=side)(samples)["image"]
        assert torch.equal(batch, torch.stack([sample["image"] for sample in samples]))


def test_a_picture_as_thin_as_a_thread_needs_no_great_memory():
    thread = torch.zeros(3, 2, 60_000, dtype=torch.uint8)
    thread[:, :, 29_000:31_000] = 9
    for picture in (thread, thread.transpose(1, 2)):
        assert EvalView(64)([{"image": picture}])["image"].unique().tolist() == [9]
        assert TrainView(64)([{"image": picture}], keys(1))["image"].shape == (1, 3, 64, 64)


def test_flips_are_mirrors_and_come_half_the_time():
    samples = pictures(1, 32, 32) * 2000
    still = TrainView(32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)(samples, keys(2000))["image"]
    assert torch.equal(still[0], samples[0]["image"])
    turned = TrainView(32, scale=(1.0, 1.0), ratio=(1.0, 1.0))(samples, keys(2000))["image"]
    mirrored = (turned == still.flip(-1)).flatten(1).all(1)
    assert ((turned == still).flatten(1).all(1) | mirrored).all()
    assert 900 < mirrored.sum() < 1100
    large = pictures(1, 64, 64)
    both = [TrainView(64, (1.0, 1.0), (1.0, 1.0), flip)(large, keys(1))["image"] for flip in (0.0, 1.0)]
    assert torch.equal(both[0].flip(-1), both[1])


def test_uint8_stays_uint8_floats_stay_floats_and_a_mixture_becomes_floats():
    for side in (20, 100):
        whole = pictures(2, side, side)
        parts = [{"image": sample["image"] / 255} for sample in whole]
        view = TrainView(16)
        bytes_out = view(whole, keys(2))["image"]
        floats_out = view(parts, keys(2))["image"]
        mixed = view([whole[0], parts[1]], keys(2))["image"]
        assert (bytes_out.dtype, floats_out.dtype, mixed.dtype) == (torch.uint8, torch.float32, torch.float32)
        assert torch.equal(mixed, torch.stack([bytes_out[0] / 255, floats_out[1]]))
        assert (floats_out.clamp(0, 1) * 255 - bytes_out).abs().max() < 2
        assert bytes_out.is_contiguous()
        assert floats_out.is_contiguous()


def test_any_number_of_channels():
    for channels in (1, 2, 4, 13):
        for side in (20, 100):
            assert TrainView(16)(pictures(2, side, side, channels), keys(2))["image"].shape == (2, channels, 16, 16)


def test_a_pictures_view_does_not_depend_on_its_company():
    """Sizes mixed, alone or together, first or last: the same pixels for the same keys, to the bit."""
    samples = pictures(6, 28, 28) + pictures(3, 28, 20) + pictures(3, 70, 60)
    view = TrainView(24, views=2)
    together = view(samples, keys(12))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    number = keys(12).sample_id[order]
    shuffled = view([samples[i] for i in order], Keys(0, number, number * 0, number * 0))
    for name in ("image", "image.1"):
        assert torch.equal(shuffled[name], together[name][order])
        for row, sample in enumerate(samples):
            assert torch.equal(view([sample], keys(1, first=row))[name], together[name][row : row + 1])


def test_seeds_epochs_draws_samples_and_views_draw_apart():
    """One sample two hundred times under each key: no box of one family follows from another's."""
    samples = pictures(1, 32, 32) * 200
    view = TrainView(8, views=2)
    families = [view(samples, keys(200, **change)) for change in ({}, {"seed": 1}, {"epoch": 1}, {"draw": 1})]
    batches = [batch[name] for batch in families for name in ("image", "image.1")]
    means = np.array([batch.float().mean((1, 2, 3)).numpy() for batch in batches])
    correlation = np.corrcoef(means) - np.eye(len(means))
    assert np.abs(correlation).max() < 0.3
    assert torch.equal(view(samples, keys(200))["image"], batches[0])
    assert torch.equal(TrainView(8)(samples, keys(200))["image"], batches[0])


def test_small_pictures_are_resampled_exactly_whatever_adds_them_up():
    """Weights sum to one in multiples of 2**-14: with 8-bit values every partial sum is exact in float32."""
    for length in (3, 17, 48):
        weights = axis_weights(48, 0, length, 24, 0, 24)
        assert (weights * 2**14 == np.rint(weights * 2**14)).all()
        assert np.abs(weights).sum(1).max() * 255 * 2**14 < 2**24
        assert np.abs(weights.sum(1) - 1).max() < 1e-3
        assert (weights[:, length:] == 0).all()


@pytest.mark.parametrize(
    "settings", [{"size": 0}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"ratio": (2.0, 1.0)}, {"flip": 2.0}]
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainView(**({"size": 8} | settings))
    for resize in (16, (40, 63)):
        with pytest.raises(ValueError, match="resize"):
            EvalView((32, 64), resize=resize)
    for view in (TrainView, EvalView, MultiScaleView):
        with pytest.raises(ValueError, match="size"):
            view((0, 8))


def test_multi_scale_crops_are_of_the_papers_sizes_and_places_without_flips():
    """Every box is one of 10 shapes at one of 13 places; the picture holds its own coordinates."""
    height, width = 100, 140
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.stack([rows, columns]).float() / 255
    found, count = set(), 600
    for start in range(0, count, 100):
        keys = Keys(0, torch.arange(start, start + 100), torch.zeros(100).long(), torch.zeros(100).long())
        batch = MultiScaleView(64)([{"image": picture}] * 100, keys)["image"] * 255
        for down, across in zip(batch[:, 0], batch[:, 1], strict=True):
            tall, wide = ((axis[-1] - axis[0]).item() * 64 / 63 for axis in (down[8:-8, 32], across[32, 8:-8]))
            tall, wide = tall * 63 / 47, wide * 63 / 47  # antialiasing bends the ends
            found.add((round(tall), round(wide), round(down[32, 32].item()), round(across[32, 32].item())))
    sides = {100, 87, 75, 66}
    shapes = {(min(sides, key=lambda s: abs(s - t)), min(sides, key=lambda s: abs(s - w))) for t, w, *_ in found}
    order = sorted(sides)
    assert shapes == {(a, b) for a in sides for b in sides if abs(order.index(a) - order.index(b)) <= 1}
    assert all(w > 0 and t > 0 for t, w, *_ in found)
    smallest = {(y, x) for t, w, y, x in found if abs(t - 66) < 3 and abs(w - 66) < 3}
    quarters = {(round((y - 33) / (34 / 4)), round((x - 33) / (74 / 4))) for y, x in smallest}
    assert quarters <= {(y, x) for y in range(5) for x in range(5) if y % 2 == x % 2}
    assert len(quarters) == 13
