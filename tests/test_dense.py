"""Per-pixel linear probes: equal to scikit-learn's, blind to what is not there, scored as the papers do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmssl import Encoder
from mmssl.encoder import EncoderConfig
from mmssl.errors import UserError
from mmssl.evaluation.dense import (
    LabelScores,
    Logistic,
    Moments,
    NumberScores,
    Question,
    cell_nothing,
    cell_tokens,
    cell_values,
    fit_dense,
    grid_of_cells,
    score_dense,
)
from mmssl.modality import DEPTH, IMAGE, SEMSEG
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig

HEIGHT = replace(DEPTH, name="height", patch=(4, 4), per_sample=False)
LABELS = replace(SEMSEG, channels=3, patch=(2, 2), embedding=4)
PICTURES = replace(IMAGE, patch=(4, 4))


@pytest.fixture
def encoder():
    """Reads pictures and heights of 8 x 12 pixels in patches of 4, label maps of half of that."""
    sizes = {PICTURES: (8, 12), HEIGHT: (8, 12), LABELS: (4, 6)}
    tokenizers = tuple(TokenizerConfig(each, size) for each, size in sizes.items())
    return Encoder(EncoderConfig(tokenizers, TransformerConfig(16, 1, 2), prefix=1)).eval()


def batches(count=40, sizes=(7,)):
    """Pictures with heights that follow from their colours, and a label map that follows from the heights."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(count, 3, 8, 12, generator=generator)
    heights = 100 * (pictures[:, :1] - 2 * pictures[:, 1:2] + 0.02 * torch.randn(count, 1, 8, 12, generator=generator))
    labels = (heights[:, 0] > -60).long() + (heights[:, 0] > 0).long()
    ids = torch.arange(count)
    return [
        {"image": pictures[rows], "height.target": heights[rows], "semseg.target": labels[rows],
         "semseg.where": labels[rows], "sample_id": ids[rows]}
        for rows in ids.split(sizes[0])
    ]  # fmt: skip


def asked(encoder, modality, where=None):
    return Question(modality, lambda batch: grid_of_cells(encoder, batch), where)


@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_ridge_equals_scikit_learn_for_every_value_of_a_patch(gaps):
    from sklearn.linear_model import Ridge as Reference

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 5, generator=generator) * torch.logspace(-1, 3, 5) + 50
    values = (features @ torch.randn(5, 4, generator=generator)) + 10 * torch.randn(300, 4, generator=generator)
    known = torch.rand(300, 4, generator=generator) >= gaps
    known[:100] = True
    moments = Moments.none(5, 4)
    for rows in torch.arange(300).split(64):
        moments.add(features[rows], values[rows].where(known[rows], 0.0), known[rows])
    basis, l2 = moments.standard(), 0.05
    weight = moments.solved(l2, basis)
    pooled = features[:, None].expand(-1, 4, -1)[known].double()
    mean, deviation = pooled.mean(0), (pooled.var(0, unbiased=False) + 1e-6).sqrt()
    squared = 0.0
    for value in range(4):
        rows = known[:, value]
        shown = ((features[rows] - mean) / deviation).numpy()
        reference = Reference(alpha=l2 * int(rows.sum())).fit(shown, values[rows, value].numpy().astype(np.float64))
        wanted = torch.from_numpy(reference.predict(shown))
        said = features[rows].double() @ weight[:-1, value] + weight[-1, value]
        torch.testing.assert_close(said, wanted, rtol=1e-8, atol=1e-6)
        squared += (said - values[rows, value]).square().sum().item()
    assert moments.error(weight) == pytest.approx(squared / int(known.sum()), rel=1e-9)


def test_logistic_regression_equals_scikit_learn_at_every_place_and_never_says_an_unseen_class():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator) * torch.logspace(-1, 2, 6) + 3
    scores = torch.randn(6, 8, generator=generator) / torch.logspace(-1, 2, 6)[:, None]
    noisy = ((features - 3) @ scores).unflatten(1, (2, 4)) + 1.5 * torch.randn(400, 2, 4, generator=generator)
    values = noisy[..., :3].argmax(dim=2) + (noisy[..., :3].argmax(dim=2) == 2)  # classes 0, 1 and 3
    known = torch.rand(400, 2, generator=generator) > 0.2
    learner = Logistic(5)
    learner.add(features, values.masked_fill(~known, 0), known, torch.arange(400) % 5 == 0)
    fitted = learner.fit()
    said = fitted(features).unflatten(1, (2, 5))
    assert set(said.argmax(dim=2).unique().tolist()) <= {0, 1, 3}
    mean, deviation = features.mean(0), (features.var(0, unbiased=False) + 1e-6).sqrt()
    standard = ((features - mean) / deviation).numpy()
    for place in range(2):
        rows = known[:, place]
        reference = LogisticRegression(C=1 / (fitted.l2 * int(rows.sum())), tol=1e-6, max_iter=5000)
        reference.fit(standard[rows], values[rows, place].numpy())
        loss = F.cross_entropy(said[rows, place][:, [0, 1, 3]], torch.tensor([0, 1, 9, 2])[values[rows, place]])
        wanted = torch.from_numpy(reference.predict_log_proba(standard[rows]))
        least = F.nll_loss(wanted, torch.tensor([0, 1, 9, 2])[values[rows, place]])
        assert loss.item() == pytest.approx(least.item(), abs=2e-2)
        assert (said[:, place].argmax(1).numpy() == reference.predict(standard)).mean() > 0.98


def test_numbers_are_scored_as_scikit_learn_and_the_depth_papers_do():
    from sklearn.metrics import mean_absolute_error, r2_score

    generator = torch.Generator().manual_seed(0)
    true = torch.rand(500, generator=generator) + 0.5
    said = (true + 0.4 * torch.randn(500, generator=generator)).double()
    scores = NumberScores()
    for rows in torch.arange(500).split(128):
        scores.add(said[rows], true[rows])
    found = scores.told()
    assert found["r2"] == pytest.approx(r2_score(true, said)) and found["absolute"] == pytest.approx(
        mean_absolute_error(true, said)
    )
    assert found["relative"] == pytest.approx(((said - true).abs() / true).mean().item())
    ratio = torch.maximum(said / true, true / said)
    assert found["delta1"] == pytest.approx(((ratio < 1.25) & (said > 0)).double().mean().item())
    scores.add(torch.zeros(1).double(), -torch.ones(1))  # elevation, which no factor tells
    assert set(scores.told()) == {"r2", "absolute"}


def test_labels_are_scored_by_the_classes_that_occur():
    true, said = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 3, 1, 1, 1, 0])
    scores = LabelScores.none(4)
    scores.add(said[:4], true[:4])
    scores.add(said[4:], true[4:])
    assert scores.told() == {"miou": pytest.approx((1 / 3 + 3 / 4) / 2), "accuracy": pytest.approx(4 / 6),
                             "iou": [pytest.approx(1 / 3), 3 / 4, None, 0.0]}  # fmt: skip


@pytest.mark.parametrize("modality", [HEIGHT, LABELS])
def test_raw_pixels_find_what_follows_from_them_and_nothing_finds_the_mean(encoder, modality):
    train, test = batches(), batches(12)
    ways = {"raw": cell_values(encoder), "tokens": cell_tokens(encoder), "nothing": cell_nothing(encoder)}
    question = asked(encoder, modality)
    rows = score_dense(fit_dense(ways, question, train, samples=40), ways, question, test)
    raw, tokens, nothing = (row.scores for row in rows)
    assert [row.pixels for row in rows] == [12 * 96] * 3
    if modality is HEIGHT:
        assert raw["r2"] > 0.99 > tokens["r2"] and abs(nothing["r2"]) < 0.1
        assert set(raw) == {"r2", "absolute"}
    else:
        assert raw["accuracy"] > 0.85 > tokens["accuracy"] and sum(share > 0 for share in nothing["iou"]) < 3


def test_pixels_that_are_not_there_or_not_asked_for_change_nothing(encoder):
    def with_holes(filling):
        made = batches()
        for batch in made:
            hole = batch["image"][:, 2] < 0.3
            for name, value in (("height.target", torch.nan), ("semseg.target", 255)):
                whole = batch[name]
                batch[name] = whole.masked_fill(hole[:, None] if whole.ndim == 4 else hole, value)
            outside = batch["semseg.where"] == 0
            batch["height.target"] = batch["height.target"].masked_fill(outside[:, None], filling)
        return made

    ways = {"raw": cell_values(encoder)}
    question = asked(encoder, HEIGHT, ("semseg", (1, 2)))
    found = [
        score_dense(fit_dense(ways, question, with_holes(filling), samples=40), ways, question, with_holes(filling))
        for filling in (0.0, 1e9)
    ]
    assert found[0] == found[1] and found[0][0].scores["r2"] > 0.98
    labels = asked(encoder, LABELS)
    row = score_dense(fit_dense(ways, labels, with_holes(0.0), samples=40), ways, labels, with_holes(0.0))[0]
    assert row.pixels == sum(int((batch["semseg.target"] != 255).sum()) for batch in with_holes(0.0)) < 40 * 96


def test_tokens_are_those_of_the_modalities_that_the_batch_holds_side_by_side(encoder):
    batch = {"image": torch.rand(2, 3, 8, 12), "semseg": torch.randint(0, 3, (2, 4, 6))}
    assert grid_of_cells(encoder, batch) == (2, 3)
    both = cell_tokens(encoder)(batch)
    tokens = encoder(batch).x[:, 1:]
    assert torch.equal(both[:, 4], torch.cat([tokens[:, 4], tokens[:, 10]], dim=1))
    assert cell_tokens(encoder)({"image": batch["image"]}).shape == (2, 6, 16)
    raw = cell_values(encoder)(batch)
    assert raw.shape == (2, 6, 3 * 16 + 3 * 4)
    assert torch.equal(raw[..., 48:].unflatten(2, (4, 3)).argmax(dim=3)[:, 4], batch["semseg"][:, 2:4, 2:4].flatten(1))


def test_mistakes_are_told_in_a_sentence(encoder):
    ways, question = {"raw": cell_values(encoder)}, asked(encoder, HEIGHT, ("semseg", (7,)))
    with pytest.raises(UserError, match="the training part has no pixel of height that is asked for"):
        fit_dense(ways, question, batches(), samples=40)
    fitted = fit_dense(ways, asked(encoder, HEIGHT), batches(), samples=40)
    with pytest.raises(UserError, match="the test part has no pixel of height"):
        score_dense(fitted, ways, question, batches())
    with pytest.raises(UserError, match="height has 8 x 10 values, which 2 x 3 patches do not part evenly"):
        asked(encoder, HEIGHT).answers({"image": torch.rand(2, 3, 8, 12), "height.target": torch.rand(2, 1, 8, 10)})
    with pytest.raises(UserError, match=r"one grid of rows and columns .* image has 2 x 3, semseg has 4 x 3"):
        grid_of_cells(encoder, {"image": torch.rand(2, 3, 8, 12), "semseg": torch.randint(0, 3, (2, 8, 6))})
