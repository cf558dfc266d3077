"""Two augmented views, a teacher that follows by exponential moving average, a prediction head."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from mmssl.data import BYOL_COLOURS, ArraySource, Crop, Loader, MultiView
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.modality import image
from mmssl.objectives import Objective, Output
from mmssl.tokenizer import TokenizerConfig, view
from mmssl.transformer import TransformerConfig
from tests.contracts import pictures, train


class TwoViews(Objective):
    def __init__(self):
        super().__init__()
        tokenizer = TokenizerConfig(image(3, (4, 4)), (16, 16))
        self.encoder = Encoder(EncoderConfig((tokenizer,), TransformerConfig(32, 2, 4)))
        self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum = 0.0

    def before_step(self, progress):
        self.momentum = 0.9 + 0.1 * progress

    @torch.no_grad()
    def after_step(self, progress):
        for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)

    def forward(self, batch, mask=None):
        views = batch, view(batch, 1)
        predictions = [self.head(self.encoder.features(v)) for v in views]
        with torch.no_grad():
            targets = [self.teacher.features(v) for v in views]
        similarity = sum(F.cosine_similarity(p, t).mean() for p, t in zip(predictions, reversed(targets), strict=True))
        return Output(2 - similarity, {"similarity": similarity.detach() / 2}, predictions[0], mask)


def batches(count):
    source = ArraySource(pictures(12, 3, size=24), None, [], "pictures")
    views = MultiView(tuple(Crop(16, augmentation=colours) for colours in BYOL_COLOURS))
    return list(Loader(source, views, batch_size=6).batches(0, count))


def test_it_learns_and_its_teacher_follows():
    method, made = TwoViews(), batches(4)
    assert not torch.equal(made[0]["image"], made[0]["image.1"])
    before = [p.clone() for p in method.teacher.parameters()]
    losses = train(method, made, steps=40)
    assert sum(losses[-4:]) < 0.3 * sum(losses[:4])
    moved = [not torch.equal(a, b) for a, b in zip(before, method.teacher.parameters(), strict=True) if a.numel()]
    assert any(moved)


def test_the_teacher_gets_no_gradient():
    method, made = TwoViews(), batches(1)
    method(made[0]).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.encoder.transformer.parameters())
