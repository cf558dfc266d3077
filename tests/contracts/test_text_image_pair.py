"""A text and a picture that belong together: two towers, causal padded text, InfoNCE."""

import copy

import torch
from mmssl_kernels import info_nce
from torch import nn
from torch.nn import functional as F

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.modality import Modality, image
from mmssl.objectives import Objective, Output
from mmssl.tokenizer import TokenizerConfig
from mmssl.training.gradients import Gradients
from mmssl.training.stopping import StopRequest
from mmssl.transformer import TransformerConfig
from tests.contracts import keys, pictures
from tests.parity import assert_gradients_equal, gradients_as_weights

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

    def features(self, batch, mask=None):
        pictures = self.image_projection(self.encoder(batch, mask).pooled("class"))
        text = self.text_encoder({key: value for key, value in batch.items() if key.startswith("text")})
        last = self.text_projection(text.x[torch.arange(len(text.x)), text.lengths - 1])
        return {"image": F.normalize(pictures, dim=-1), "text": F.normalize(last, dim=-1)}

    def compare(self, features):
        scale = self.logit_scale.exp()
        loss = info_nce(features["image"], features["text"], scale, group=self.group)
        return Output(loss, {"scale": scale.detach()})


def make_batch(step):
    generator = torch.Generator().manual_seed(step)
    text = {
        "text": torch.randint(1, 50, (8, 8), generator=generator),
        "text.length": torch.randint(2, 9, (8,), generator=generator),
    }
    return {"image": pictures(8, 3, seed=step), **text, **keys(8, step)}


def test_padding_changes_nothing():
    pair, batch = Pair(), make_batch(0)
    padded = batch["text"].clone()
    padded[torch.arange(8) >= batch["text.length"][:, None]] = 0
    assert torch.equal(pair(batch).loss, pair({**batch, "text": padded}).loss)


def test_a_batch_in_chunks_has_the_loss_and_the_gradients_of_the_whole():
    whole = Pair()
    chunked, losses = copy.deepcopy(whole), []
    for pair, chunks in ((whole, 1), (chunked, 4)):
        losses.append(Gradients(pair, chunks, torch.device("cpu"))(make_batch(0), StopRequest())[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    gradients_as_weights(whole)
    assert_gradients_equal(chunked, whole)
