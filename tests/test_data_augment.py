"""Colours and crops of several views: torchvision's values, and nothing but the picture and its keys decides them."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from mmssl.data import (
    BYOL_COLOURS,
    DINO_COLOURS,
    SIMCLR_COLOURS,
    ArraySource,
    Augmentation,
    Crop,
    Keys,
    Loader,
    MultiView,
    TrainView,
)

EVERYTHING = Augmentation(
    jitter=1.0, strengths=(0.8, 0.8, 0.8, 0.2), greyscale=0.5, blur=0.5, solarise=0.5, threshold=0.6
)
PAPERS = {"SimCLR": SIMCLR_COLOURS}
PAPERS |= {f"BYOL {k}": colours for k, colours in enumerate(BYOL_COLOURS)}
PAPERS |= {f"DINO {k}": colours for k, colours in enumerate(DINO_COLOURS)}


def keys(count, seed=0, epoch=0, draw=0, first=0):
    numbers = torch.arange(first, first + count)
    return Keys(seed, numbers, torch.full_like(numbers, epoch), torch.full_like(numbers, draw))


def media(*shape, dtype=torch.uint8, seed=0):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return values if dtype.is_floating_point else (values * 255).round().to(dtype)


def torchvisions(colours, medium, drawn):
    """The chain of one sample [C, ..., H, W] by torchvision's transforms, given their parameters."""
    frames = medium.movedim(0, -3)
    order = [name for name in drawn if name in ("brightness", "contrast", "saturation", "hue")]
    if order:
        left = [name for name in ("brightness", "contrast", "saturation", "hue") if name not in order]
        numbers = [("brightness", "contrast", "saturation", "hue").index(name) for name in order + left]
        factors = {f"{name}_factor": drawn.get(name) for name in order + left}
        frames = v2.ColorJitter(*colours.strengths).transform(frames, {"fn_idx": torch.tensor(numbers)} | factors)
    if "greyscale" in drawn:
        frames = v2.RandomGrayscale(p=1.0)(frames)
    if "blur" in drawn:
        kernel = colours.kernel or 2 * (min(medium.shape[-2:]) // 10 // 2) + 1
        frames = v2.GaussianBlur(kernel).transform(frames, {"sigma": [drawn["blur"]] * 2})
    if "solarise" in drawn:
        whole = 1 if medium.is_floating_point() else 255
        frames = functional.solarize(frames, drawn["solarise"] * whole)
    return frames.movedim(-3, 0)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("brightness", functional.adjust_brightness),
        ("contrast", functional.adjust_contrast),
        ("saturation", functional.adjust_saturation),
        ("hue", functional.adjust_hue),
        ("greyscale", lambda picture, _: functional.rgb_to_grayscale(picture, 3)),
        ("blur", lambda picture, sigma: functional.gaussian_blur(picture, [5, 5], [sigma, sigma])),
        ("solarise", lambda picture, _: functional.solarize(picture, 128)),
    ],
)
def test_each_operation_is_torchvisions(operation, expected):
    names = ("brightness", "contrast", "saturation", "hue")
    if operation in names:
        strengths = tuple(0.4 if name == operation else 0.0 for name in names)
        colours = Augmentation(jitter=1.0, strengths=strengths)
    else:
        colours = Augmentation(**{operation: 1.0})
    pictures, drawn = media(6, 3, 56, 40), colours.draw(keys(6), 0)
    assert all(list(operations) == [operation] for operations in drawn)
    wanted = torch.stack([expected(p, operations[operation]) for p, operations in zip(pictures, drawn, strict=True)])
    assert not torch.equal(wanted, pictures)
    assert torch.equal(colours(pictures, drawn), wanted)


@pytest.mark.parametrize("colours", PAPERS.values(), ids=PAPERS)
def test_the_papers_colours_are_torchvisions_chain(colours):
    pictures, drawn = media(24, 3, 40, 48), colours.draw(keys(24), 1)
    before = pictures.clone()
    expected = [torchvisions(colours, p, operations) for p, operations in zip(pictures, drawn, strict=True)]
    assert torch.equal(colours(pictures, drawn), torch.stack(expected))
    assert torch.equal(pictures, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 33, 47), (3, 4, 30, 30), (1, 2, 30, 30)])
def test_clips_floats_and_single_channels_are_torchvisions_too(shape, dtype):
    made, drawn = media(16, *shape, dtype=dtype), EVERYTHING.draw(keys(16), 0)
    expected = torch.stack([torchvisions(EVERYTHING, m, ops) for m, ops in zip(made, drawn, strict=True)])
    got = EVERYTHING(made, drawn)
    assert (got.dtype, got.shape) == (made.dtype, made.shape)
    assert torch.equal(got, expected.clamp(0, 1) if dtype.is_floating_point else expected)
    assert not torch.equal(got, made)


def test_floats_stay_in_0_to_1_also_where_the_filter_rings():
    ringing = media(40, 3, 24, 24, dtype=torch.float32) * 1.4 - 0.2
    got = EVERYTHING(ringing, EVERYTHING.draw(keys(40), 0))
    assert got.isfinite().all()
    assert got.min() >= 0
    assert got.max() <= 1


def test_parameters_and_orders_follow_torchvisions_distribution():
    count = 6000
    colours = Augmentation(
        jitter=0.8, strengths=(0.4, 1.5, 0.2, 0.1), greyscale=0.2, blur=0.5, sigma=(0.1, 2.0), solarise=0.1
    )
    drawn = colours.draw(keys(count), 0)

    def near(found, probability, of=count):
        assert abs(found / of - probability) < 4 * (probability * (1 - probability) / of) ** 0.5

    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.0, 2.5),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
        "blur": (0.1, 2.0),
    }
    shares = dict.fromkeys(["brightness", "contrast", "saturation", "hue"], 0.8)
    shares |= {"greyscale": 0.2, "blur": 0.5, "solarise": 0.1}
    for name, share in shares.items():
        values = np.array([operations[name] for operations in drawn if name in operations])
        near(len(values), share)
        if name in ranges:
            low, high = ranges[name]
            spread = (values - low) / (high - low)
            assert 0 <= spread.min() < 0.01
            assert 0.99 < spread.max() <= 1
            for quarter in (0.25, 0.5, 0.75):
                near((spread < quarter).sum(), quarter, len(values))
    jittered = [tuple(operations)[:4] for operations in drawn if "hue" in operations]
    orders = {order: jittered.count(order) for order in set(jittered)}
    assert len(orders) == 24
    for found in orders.values():
        near(found, 1 / 24, len(jittered))
    both = sum("greyscale" in operations and "blur" in operations for operations in drawn)
    near(both, 0.1)


def test_a_strength_of_nothing_leaves_its_operation_out():
    drawn = Augmentation(jitter=1.0, strengths=(0.4, 0.0, 0.2, 0.0)).draw(keys(50), 0)
    assert all(operations.keys() == {"brightness", "saturation"} for operations in drawn)


def test_seeds_epochs_draws_samples_and_views_draw_apart():
    families = [keys(300, **change) for change in ({}, {"seed": 1}, {"epoch": 1}, {"draw": 1}, {"first": 300})]
    columns = [[operations["hue"] for operations in EVERYTHING.draw(family, 0)] for family in families]
    columns.append([operations["hue"] for operations in EVERYTHING.draw(keys(300), 1)])
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 0.3
    assert EVERYTHING.draw(keys(300), 0) == EVERYTHING.draw(keys(300), 0)


SEVERAL = MultiView(
    (
        Crop(70, (0.4, 1.0), augmentation=EVERYTHING),
        Crop((40, 24), augmentation=DINO_COLOURS[1]),
        Crop(24, (0.05, 0.4), augmentation=EVERYTHING),
        Crop(24, (0.05, 0.4)),
    )
)
NAMES = ["image", "image.1", "image.2", "image.3"]


def samples():
    """Small and large ones, of uint8 and of floats."""
    small, large = media(4, 3, 28, 28), media(2, 3, 90, 70)
    return [{"image": picture} for picture in (*small, *large, media(3, 30, 30, dtype=torch.float32))]


def test_views_come_in_their_own_sizes_and_each_sample_is_read_once():
    made, clips = samples()[:6], [{"video": clip} for clip in media(2, 3, 2, 28, 28)]
    batch = SEVERAL(iter(made), keys(6))
    assert list(batch) == NAMES
    sizes = [(70, 70), (40, 24), (24, 24), (24, 24)]
    assert [tuple(view.shape) for view in batch.values()] == [(6, 3, *size) for size in sizes]
    assert {view.dtype for view in batch.values()} == {torch.uint8}
    assert SEVERAL(clips, keys(2))["video.2"].shape == (2, 3, 2, 24, 24)


@pytest.mark.parametrize("count", [6, 7])
def test_a_samples_views_do_not_depend_on_its_company(count):
    """Also where its batch becomes floats because of another sample."""
    made = samples()[:count]
    together = SEVERAL(made, keys(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    shuffled = SEVERAL([made[i] for i in order], Keys(0, order, order * 0, order * 0))
    alone = [SEVERAL([sample], keys(1, first=row)) for row, sample in enumerate(made)]
    for name in NAMES:
        assert torch.equal(shuffled[name], together[name][order])
        for row, one in enumerate(alone):
            expected = one[name] / 255 if one[name].dtype != together[name].dtype else one[name]
            assert torch.equal(expected[0], together[name][row])


def test_views_do_not_depend_on_each_others_sizes_and_colours():
    made = samples()
    batch = SEVERAL(made, keys(7))
    crops = TrainView(24, scale=(0.05, 0.4), views=4)(made, keys(7))
    assert torch.equal(batch["image.3"], crops["image.3"])
    same = MultiView((Crop(24, (0.05, 0.4)),) * 4)(made, keys(7))
    assert all(torch.equal(same[name], crops[name]) for name in NAMES)
    plain = MultiView(tuple(Crop(c.size, c.scale, c.ratio, c.flip) for c in SEVERAL.crops))(made[:6], keys(6))
    for k, crop in enumerate(SEVERAL.crops[:3]):
        coloured = crop.augmentation(plain[NAMES[k]], crop.augmentation.draw(keys(6), k))
        assert torch.equal(SEVERAL(made[:6], keys(6))[NAMES[k]], coloured)


def test_aligned_maps_keep_their_values_and_pairs_of_frames_share_their_colours():
    (picture,) = media(1, 3, 28, 28)
    view = MultiView((Crop(24, augmentation=SIMCLR_COLOURS),) * 2)
    batch = view([{"image": picture, "semseg": picture[:1]}] * 20, keys(20))
    bare = TrainView(24, views=2)([{"semseg": picture[:1]}] * 20, keys(20))
    assert torch.equal(batch["semseg.1"], bare["semseg.1"])
    pair = MultiView((Crop(24, augmentation=EVERYTHING),))([{"image": picture, "image.1": picture}] * 20, keys(20))
    assert torch.equal(pair["image"], pair["image.1"])


def test_the_loader_gives_the_same_views_with_and_without_workers():
    source = ArraySource(media(10, 3, 32, 32), None, [], "pictures")
    made = [list(Loader(source, SEVERAL, batch_size=4, workers=workers).batches(1, 4)) for workers in (0, 1)]
    for here, there in zip(*made, strict=True):
        assert here.keys() == there.keys() > set(NAMES)
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_threads_and_autocast_change_no_value():
    """A picture so large that torch would add it up in parts."""
    colours = Augmentation(jitter=1.0, strengths=(0.0, 0.8, 0.0, 0.0), blur=1.0, kernel=3)
    made, drawn, before = media(4, 3, 512, 512, dtype=torch.float32), colours.draw(keys(4), 0), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(colours(made, drawn))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    with torch.autocast("cpu", torch.bfloat16):
        results.append(colours(made, drawn))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_crop_says_what_it_cannot_colour():
    two = media(2, 2, 28, 28)
    with pytest.raises(ValueError, match="1 or 3 channels, not for 2"):
        MultiView((Crop(24, augmentation=SIMCLR_COLOURS),))([{"image": picture} for picture in two], keys(2))
    blurred = MultiView((Crop(24, augmentation=Augmentation(blur=1.0, solarise=1.0)),))
    assert blurred([{"image": picture} for picture in two], keys(2))["image"].shape == (2, 2, 24, 24)
    with pytest.raises(ValueError, match="samples hold only semseg"):
        blurred([{"semseg": picture} for picture in two], keys(2))
    with pytest.raises(ValueError, match="13 pixels needs sides of more than 6, not 6"):
        MultiView((Crop(6, augmentation=DINO_COLOURS[0]),))([{"image": media(3, 28, 28)}], keys(1))
    with pytest.raises(ValueError, match=r"2 views cannot be named: the samples hold image\.1 already"):
        MultiView((Crop(24), Crop(8)))([{"image": two[0], "image.1": two[1]}], keys(1))
    with pytest.raises(ValueError, match="at least one"):
        MultiView(())


@pytest.mark.parametrize(
    "settings",
    [
        {"jitter": 1.5},
        {"jitter": 0.8},
        {"greyscale": -0.1},
        {"strengths": (0.4, 0.4, 0.4, 0.6)},
        {"strengths": (-0.4, 0.4, 0.4, 0.1)},
        {"sigma": (0.0, 2.0)},
        {"kernel": 4},
        {"threshold": 128.0},
    ],
)
def test_wrong_settings_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**settings)


def test_a_run_that_began_before_there_were_colours_finds_its_view_unchanged():
    """settings.json holds this text, and a run resumes only where it is the same."""
    told = "TrainView(size=24, scale=(0.2, 1.0), ratio=(0.75, 1.3333333333333333), flip=0.5, views=2)"
    assert str(TrainView(24, views=2)) == told
