"""Fine-tuning: what a classifier learns from, at which rates, and what it is written as."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import timm.loss
import timm.optim
import torch
from torch import nn

from mmssl import Encoder
from mmssl.errors import UserError
from mmssl.finetune import Classifier, ClassifierConfig, Mixer, Mixing, classifier_config, layer_scales
from mmssl.finetune.mixing import beta_quantiles
from mmssl.finetune.start import keeps_head, tuned, with_head
from mmssl.training import TrainSettings
from mmssl.training.optim import optimizer_for, set_learning_rate
from tests.contracts import keys, pictures

LABELS = ("ant", "bee", "cat")
CPU = torch.device("cpu")


def small(**changes) -> ClassifierConfig:
    config = classifier_config("tiny", labels=LABELS, size=16, patch=8)
    encoder = tuned(config.encoder, positions_learn=True)
    blocks = dataclasses.replace(encoder.transformer, dim=24, heads=2, depth=3)
    return dataclasses.replace(config, encoder=dataclasses.replace(encoder, transformer=blocks), **changes)


def labelled(count: int = 6, partners: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    batch = {"image": pictures(count, 3, seed=seed), "label": torch.arange(count) % 3, **keys(count)}
    if partners:
        batch |= {"image.partner": pictures(count, 3, seed=seed + 1), "label.partner": (torch.arange(count) + 1) % 3}
    return batch


def rates(groups, module: nn.Module) -> dict[str, tuple[float, float]]:
    """Multiple of the rate and weight decay of each parameter, by name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_layers_learn_at_the_rates_and_decays_that_timm_gives_them():
    """MAE's authors tune by the same rule, timm's `param_groups_layer_decay`."""
    classifier = Classifier(small(layer_decay=0.65))
    ours = rates(optimizer_for(classifier, TrainSettings(steps=1, weight_decay=0.05), CPU).param_groups, classifier)
    theirs = classifier.encoder.to_timm()
    groups = timm.optim.param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay(), layer_decay=0.65)
    expected = rates(groups, theirs)
    # Our class token and its position are timm's cls_token and the first row of its pos_embed.
    same = {
        "encoder.tokenizers.image.weight": "patch_embed.proj.weight",
        "encoder.tokenizers.image.bias": "patch_embed.proj.bias",
        "encoder.tokenizers.image.position.table": "pos_embed",
        "encoder.prefix_position": "pos_embed",
        "encoder.prefix_tokens": "cls_token",
        "encoder.pool_norm.weight": "fc_norm.weight",
        "encoder.pool_norm.bias": "fc_norm.bias",
        "encoder.head.weight": "head.weight",
        "encoder.head.bias": "head.bias",
    }
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    for i, part, kind in itertools.product(range(3), parts, ("weight", "bias")):
        same[f"encoder.transformer.blocks.{i}.{part.replace('.', '.layer.')}.{kind}"] = f"blocks.{i}.{part}.{kind}"
    norms = {f"blocks.{i}.norm{n}.{kind}" for i in range(3) for n in (1, 2) for kind in ("weight", "bias")}
    assert expected.keys() == {*same.values(), *norms}
    for name, theirs_name in same.items():
        assert ours[name] == pytest.approx(expected[theirs_name]), name
    assert len({scale for scale, _ in ours.values()}) == 5 and ours["encoder.tokenizers.image.weight"][0] == 0.65**4


def test_the_layer_before_the_head_learns_as_the_head_does():
    encoder = Encoder(dataclasses.replace(small().encoder, pooler=True))
    scales = layer_scales(encoder, 0.5)
    assert scales["encoder.pooler"] == scales["encoder.head"] == 1 and scales["encoder"] == 0.5**4


def test_all_layers_learn_alike_without_decay():
    classifier = Classifier(small(layer_decay=1.0))
    groups = optimizer_for(classifier, TrainSettings(steps=1), CPU).param_groups
    assert {group["lr_scale"] for group in groups} == {1.0}


@pytest.mark.parametrize(
    ("tuned_blocks", "learning"),
    [
        (0, {"head"}),
        (1, {"head", "pool_norm", "transformer.blocks.2"}),
        (3, {"head", "pool_norm", "transformer.blocks"}),
    ],
)
def test_only_the_last_blocks_learn(tuned_blocks, learning):
    classifier = Classifier(small(tuned_blocks=tuned_blocks))
    before = {name: value.clone() for name, value in classifier.encoder.named_parameters()}
    optimizer = optimizer_for(classifier, TrainSettings(steps=1), CPU)
    set_learning_rate(optimizer, 0.1)
    for _ in range(2):  # the head's first weights are so small that the first step hardly reaches the blocks
        classifier(labelled()).loss.backward()
        optimizer.step()
    moved = {name for name, value in classifier.encoder.named_parameters() if not value.equal(before[name])}
    assert {name for name in before if name.startswith(tuple(learning))} == moved


def test_the_loss_is_that_of_smoothed_labels_and_mixed_that_of_both():
    batch = labelled(partners=False)
    classifier = Classifier(small(smoothing=0.1, mixing=Mixing(), head_std=0.5))
    logits = classifier.encoder.classify(batch)
    expected = timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, batch["label"])
    torch.testing.assert_close(classifier(batch).loss, expected)
    torch.testing.assert_close(classifier.eval()(batch).loss, nn.functional.cross_entropy(logits, batch["label"]))

    batch = labelled()
    mixes = Classifier(small(smoothing=0.1, mixing=Mixing(0.8, 1.0), head_std=0.5))
    assert mixes.mixer is not None
    mixed, share = mixes.mixer(batch, "image")
    logits = mixes.encoder.classify({"image": mixed})
    one, other = (nn.functional.one_hot(batch[name], 3) * 0.9 + 0.1 / 3 for name in ("label", "label.partner"))
    expected = timm.loss.SoftTargetCrossEntropy()(logits, share * one + (1 - share) * other)
    torch.testing.assert_close(mixes(batch).loss, expected)


def test_several_classes_a_sample_are_answered_one_by_one():
    config = small(mixing=Mixing(0.5), smoothing=0.0, head_std=0.5)
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, several=True))
    yes = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
    batch = {**labelled(3), "label": yes, "label.partner": yes.flip(0)}
    classifier = Classifier(config)
    mixed, share = classifier.mixer(batch, "image")
    target = share * yes.float() + (1 - share) * yes.flip(0).float()
    expected = nn.functional.binary_cross_entropy_with_logits(classifier.encoder.classify({"image": mixed}), target)
    torch.testing.assert_close(classifier(batch).loss, expected)
    exact = classifier.eval()(batch)
    assert exact.parts["error"] == ((classifier.encoder.classify(batch) > 0) != yes).float().mean()


def test_whole_rows_and_columns_are_hidden_while_it_trains():
    """Audio-MAE's tuning leaves out a fifth of the times and of the mel bands."""
    config = small(mixing=Mixing(), smoothing=0.0, hidden=(0.5, 0.0))
    seen = []
    classifier = Classifier(config)
    classifier.encoder.transformer.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[1]))
    batch = labelled(partners=False)
    classifier(batch)
    classifier.eval()(batch)
    assert seen == [1 + 2, 1 + 4]
    mask = classifier.hide(batch)
    assert mask is not None
    assert {tuple(row) for row in mask.keep.index.tolist()} == {(0, 1), (2, 3)}  # a row of the grid of two by two


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 10.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    quantiles = beta_quantiles(alpha).double().numpy()
    levels = np.linspace(0, 1, len(quantiles))
    np.testing.assert_allclose(quantiles, scipy.stats.beta.ppf(levels, alpha, alpha), atol=2e-4)


@pytest.mark.parametrize("media", ["image", "video"])
def test_a_mixed_sample_is_its_own_and_its_partners_to_the_share_that_its_label_says(media):
    count = 400
    own, partner = torch.zeros(count, 1, 12, 20), torch.ones(count, 1, 12, 20)
    batch = {"image": own, "image.partner": partner, **keys(count)}
    if media == "video":
        batch |= {
            "video": own[:, :, None].expand(-1, -1, 2, -1, -1),
            "video.partner": partner[:, :, None].expand(-1, -1, 2, -1, -1),
        }
    mixed, share = Mixer(Mixing(0.8, 1.0, probability=0.75))(batch, media)
    frames = mixed if media == "image" else mixed[:, :, 0]
    torch.testing.assert_close(frames.mean(dim=(1, 2, 3)), 1 - share[:, 0])
    if media == "video":
        assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])
    whole = (share == 1).flatten()
    pasted = ((frames == 0) | (frames == 1)).all(dim=(1, 2, 3)) & ~whole
    blended = ~whole & ~pasted
    assert 0.15 < whole.float().mean() < 0.4 and 0.25 < pasted.float().mean() < 0.5 and blended.float().mean() > 0.25
    assert (frames[blended].amax((1, 2, 3)) - frames[blended].amin((1, 2, 3)) < 1e-6).all()
    rows, columns = frames[pasted].amax(3), frames[pasted].amax(2)  # a pasted box is all of its rows' and columns' ones
    assert torch.equal(frames[pasted], rows[..., None] * columns[..., None, :])


def test_what_a_sample_is_mixed_by_depends_on_itself_alone():
    mixer, batch = Mixer(Mixing(0.8, 1.0), seed=3), labelled()
    mixed, share = mixer(batch, "image")
    alone, own = mixer({name: value[4:5] if value.ndim else value for name, value in batch.items()}, "image")
    assert torch.equal(alone, mixed[4:5]) and torch.equal(own, share[4:5])
    later, _ = mixer({**batch, "epoch": batch["epoch"] + 1}, "image")
    assert not torch.equal(later, mixed)


def test_a_probes_batch_norm_is_within_the_head_that_is_exported(tmp_path):
    """MAE's linear probe has one, without scale and shift."""
    config = small(tuned_blocks=0, mixing=Mixing(), head_std=0.5)
    blocks = dataclasses.replace(config.encoder.transformer, final_norm=True)
    plain = dataclasses.replace(config.encoder, transformer=blocks)
    probe = Classifier(dataclasses.replace(config, encoder=with_head(plain, LABELS, "class", head_norm=True)))
    for step in range(3):
        probe(labelled(seed=step))
    batch = {"image": pictures(4, 3).float() / 255}
    logits = probe.eval().encoder.classify(batch)
    assert probe.encoder.head_norm.running_mean.abs().max() > 0
    torch.testing.assert_close(probe.encoder.plain().classify(batch), logits)
    probe.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path).eval()
    assert torch.equal(again.classify(batch), logits) and again.config.labels == LABELS


def test_a_head_that_knows_the_classes_by_name_is_kept_in_their_order():
    encoder = Classifier(small(head_std=0.5)).encoder.eval()
    batch = {"image": pictures(4, 3)}
    logits = encoder.classify(batch)
    assert keeps_head(encoder, ["cat", "ant", "bee"])
    torch.testing.assert_close(encoder.classify(batch), logits[:, [2, 0, 1]])
    assert encoder.config.labels == ("cat", "ant", "bee")
    assert not keeps_head(encoder, ["cat", "ant", "cow"]) and not keeps_head(encoder, ["cat", "ant"])


def test_the_parameters_are_those_of_the_paper():
    """ViT-B with 1000 classes: 86 567 656, of MAE's `vit_base_patch16` with its norm behind the pooling."""
    config = classifier_config("base", labels=tuple(map(str, range(1000))))
    with torch.device("meta"):
        encoder = Encoder(config.encoder)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 86_567_656
    assert math.isclose(config.layer_decay, 0.65)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tuned_blocks": 4}, "tuned_blocks=4: the encoder has 3 blocks"),
        ({"layer_decay": 0.0}, "layer_decay=0.0 must be above 0"),
        ({"smoothing": 1.0}, "smoothing=1.0 must be a share below 1"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        small(**changes)
    with pytest.raises(UserError, match=r"mixup=-1\.0 must be 0, for none, or more"):
        Mixing(mixup=-1.0)
    with pytest.raises(UserError, match=r"switch=2\.0 must be a probability"):
        Mixing(switch=2.0)
