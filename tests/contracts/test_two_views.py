"""Two augmented views, a teacher that follows by exponential moving average, a prediction head."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from mmssl.data import BYOL_COLOURS, ArraySource, Crop, Loader, MultiView
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.heads import HeadConfig, mlp_head
from mmssl.modality import image
from mmssl.objectives import Objective, Output
from mmssl.schedules import cosine
from mmssl.teacher import Teacher
from mmssl.tokenizer import TokenizerConfig, view
from mmssl.training import parameter_groups
from mmssl.transformer import TransformerConfig
from tests.contracts import pictures


class TwoViews(Objective):
    lr_scales: ClassVar = {"encoder.tokenizers": 0.2}

    def __init__(self):
        super().__init__()
        tokenizer = TokenizerConfig(image(3, (4, 4)), (16, 16))
        self.encoder = Encoder(EncoderConfig((tokenizer,), TransformerConfig(32, 2, 4)))
        self.projector = mlp_head(32, HeadConfig((64, 32), last_norm="fixed"))
        self.predictor = mlp_head(32, HeadConfig((64, 32), last_norm="fixed"))
        self.teachers = torch.nn.ModuleList([Teacher(self.encoder), Teacher(self.projector)])

    def after_step(self, progress):
        for teacher, student in zip(self.teachers, (self.encoder, self.projector), strict=True):
            teacher.follow(student, cosine(progress, 0.9, 1.0))

    def forward(self, batch, mask=None):
        views = batch, view(batch, 1)
        predictions = [self.predictor(self.projector(self.encoder(v, mask).pooled("class"))) for v in views]
        encoder, projector = self.teachers
        targets = [projector(encoder(v).pooled("class")) for v in views]
        similarity = sum(F.cosine_similarity(p, t).mean() for p, t in zip(predictions, reversed(targets), strict=True))
        return Output(2 - similarity, {"similarity": similarity.detach() / 2}, predictions[0], mask)


def batches(count):
    source = ArraySource(pictures(12, 3, size=24), None, [], "pictures")
    views = MultiView(tuple(Crop(16, augmentation=colours) for colours in BYOL_COLOURS))
    return list(Loader(source, views, batch_size=6).batches(0, count))


def test_the_teacher_gets_no_gradient():
    method, made = TwoViews(), batches(1)
    method(made[0]).loss.backward()
    assert all(p.grad is None for p in method.teachers.parameters())
    assert all(p.grad is not None for p in method.encoder.transformer.parameters())


def test_the_patches_learn_slower_than_the_rest():
    method = TwoViews()
    groups = parameter_groups(method, 0.1, method.undecayed, method.lr_scales)
    slow = {parameter for group in groups if group["lr_scale"] == 0.2 for parameter in group["params"]}
    assert slow == {p for p in method.encoder.tokenizers.parameters() if p.requires_grad}
