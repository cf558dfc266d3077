"""Zero-shot classification: templates, vectors of classes against numpy, scores that can be counted by hand."""

import numpy as np
import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from mmssl.errors import UserError
from mmssl.evaluation import class_vectors, prompts, text_features, zero_shot
from mmssl.evaluation.templates import IMAGENET, PHOTO
from tests.conformance.table import CAPTION as LENGTH
from tests.conformance.table import VOCABULARY, clip


def read(texts):
    """A letter is a token; the end token is the largest."""
    rows = [[1 + ord(letter) % (VOCABULARY - 2) for letter in text[-LENGTH + 1 :]] + [VOCABULARY - 1] for text in texts]
    lengths = torch.tensor(list(map(len, rows)))
    return {"text": torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows]), "text.length": lengths}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return clip()


def test_the_papers_80_templates_are_those_of_open_clip():
    assert list(IMAGENET) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert len(prompts(["cat", "dog"], IMAGENET)) == 160
    assert prompts(["cat", "dog"], [PHOTO, "{}"]) == ["a photo of a cat.", "cat", "a photo of a dog.", "dog"]


@pytest.mark.parametrize("template", ["a photo", "a {name}", "{} and {}", "{0}", "{!r}", "{:>9}", "a {"])
def test_a_template_without_just_one_place_for_the_name_is_refused(template):
    with pytest.raises(UserError, match="the place of a") as error:
        prompts(["cat"], [PHOTO, template])
    assert repr(template) in str(error.value) and "\n" not in str(error.value)


def test_a_class_is_the_mean_of_its_prompts_at_length_one(model):
    model.train()
    found = class_vectors(model, ["cat", "dog", "bird"], read, ["{}", "a {}", "an {}s"])
    assert model.training and not found.requires_grad
    each = [
        [text_features(model, [text], read)[0].numpy() for text in (n, f"a {n}", f"an {n}s")] for n in ("cat", "dog")
    ]
    mean = np.mean(each, axis=1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:2].numpy(), expected, atol=1e-6)
    with pytest.raises(UserError, match="0 classes"):
        class_vectors(model, [], read)


def test_many_texts_have_the_features_that_each_has_alone(model):
    texts = [f"{number}" * (1 + number % 4) for number in range(11)]
    alone = torch.cat([text_features(model, [text], read) for text in texts])
    torch.testing.assert_close(text_features(model, texts, read, at_once=4), alone)
    with torch.no_grad():
        model.text_projection.weight[0, 0] = torch.nan
    try:
        with pytest.raises(UserError, match="the first is sample 0;"):
            text_features(model, texts, read)
    finally:
        model.initialise()


def test_accuracy_top_5_chance_and_the_largest_class():
    vectors = torch.eye(8)
    pictures = torch.tensor([[8.0, 7, 6, 5, 4, 3, 2, 1]]).repeat(4, 1)
    found = zero_shot(pictures, vectors, torch.tensor([0, 1, 4, 5]))
    assert (found.accuracy, found.top5, found.chance, found.largest) == (0.25, 0.75, 1 / 8, 0.25)
    few = zero_shot(pictures[:, :5], torch.eye(5), torch.tensor([0, 0, 0, 1]))
    assert few.top5 is None and (few.accuracy, few.largest, few.samples, few.classes) == (0.75, 0.75, 4, 5)


def test_several_labels_a_picture_have_mean_average_precision():
    pictures = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.1, 0.8]])
    labels = torch.tensor([[True, False, False], [False, True, False], [True, True, False]])
    found = zero_shot(pictures, torch.eye(3)[:, :2], labels)
    assert found.accuracy == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert (found.metric, found.top5, found.largest) == ("mean average precision", None, None)
    assert found.chance == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="nothing to be found"):
        zero_shot(pictures, torch.eye(3)[:, :2], torch.zeros(3, 3, dtype=torch.bool))
