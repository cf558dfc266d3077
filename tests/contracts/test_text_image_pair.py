"""A text and a picture that belong together: two towers, causal padded text, InfoNCE."""

import torch
from mmssl_kernels import info_nce
from torch import nn
from torch.nn import functional as F

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.modality import Modality, image
from mmssl.objectives import Objective, Output
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig
from tests.contracts import keys, pictures, train

WORDS = Modality("text", ("position",), 50, kind="categorical")


class Pair(Objective):
    def __init__(self):
        super().__init__()
        picture = EncoderConfig((TokenizerConfig(image(3, (4, 4)), (16, 16), "learned"),), TransformerConfig(32, 2, 4))
        causal = TransformerConfig(24, 2, 4, causal=True, activation="quick_gelu", norm_eps=1e-5)
        self.encoder = Encoder(picture)
        self.text_encoder = Encoder(EncoderConfig((TokenizerConfig(WORDS, (8,), "learned"),), causal, prefix=0))
        self.image_projection, self.text_projection = (nn.Linear(dim, 16, bias=False) for dim in (32, 24))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, batch, mask=None):
        pictures = self.image_projection(self.encoder(batch, mask).pooled("class"))
        text = self.text_encoder({key: value for key, value in batch.items() if key.startswith("text")})
        last = text.x[torch.arange(len(text.x)), text.lengths - 1]
        pair = F.normalize(pictures, dim=-1), F.normalize(self.text_projection(last), dim=-1)
        loss = info_nce(*pair, self.logit_scale.exp())
        return Output(loss, {"scale": self.logit_scale.exp().detach()}, mask=mask)


def make_batch(step):
    generator = torch.Generator().manual_seed(step)
    text = {
        "text": torch.randint(1, 50, (8, 8), generator=generator),
        "text.length": torch.randint(2, 9, (8,), generator=generator),
    }
    return {"image": pictures(8, 3, seed=step), **text, **keys(8, step)}


def test_it_learns_to_match():
    batches = [make_batch(step) for step in range(2)]
    losses = train(Pair(), batches, steps=60)
    assert sum(losses[-2:]) < 0.5 * sum(losses[:2])


def test_padding_changes_nothing():
    pair, batch = Pair(), make_batch(0)
    padded = batch["text"].clone()
    padded[torch.arange(8) >= batch["text.length"][:, None]] = 0
    assert torch.equal(pair(batch).loss, pair({**batch, "text": padded}).loss)
