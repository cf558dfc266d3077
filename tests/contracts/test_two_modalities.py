"""Two modalities, one budget of visible tokens split by Dirichlet shares, a decoder each."""

import dataclasses

import torch
from torch import nn

from mmssl.decoder import Decoder, DecoderConfig
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.masking import batch_bits, dirichlet_shares, joint_mask
from mmssl.modality import DEPTH, image
from mmssl.objectives import Objective, Output
from mmssl.target import PatchTarget
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import BRANCHES, TransformerConfig
from tests.contracts import keys, pictures

KEEP, SIZE = 10, (16, 16)


class TwoModalities(Objective):
    def __init__(self):
        super().__init__()
        modalities = (image(3, (4, 4)), dataclasses.replace(DEPTH, patch=(4, 4), gaps=False, per_sample=False))
        tokenizers = tuple(TokenizerConfig(modality, SIZE, "sincos_row_first") for modality in modalities)
        self.encoder = Encoder(EncoderConfig(tokenizers, TransformerConfig(32, 2, 4)))
        light = DecoderConfig(TransformerConfig(24, 1, 4, branches=BRANCHES), "sincos_row_first", "hidden")
        self.targets = nn.ModuleDict({m.name: PatchTarget(m) for m in modalities})
        self.decoders = nn.ModuleDict(
            {name: Decoder(light, 32, (4, 4), 1, target.values) for name, target in self.targets.items()}
        )

    def hide(self, batch):
        sizes = self.encoder.sizes(batch)
        shares = dirichlet_shares(batch_bits(batch, len(sizes), seed=0, stream="shares"))
        return joint_mask(batch_bits(batch, sum(sizes.values()), seed=0, stream="mask"), shares, KEEP, sizes)

    def counts(self, batch):
        mask = self.hide(batch)
        return {f"{name}.hidden": mask.hidden(name)[0].lengths.sum() for name in mask.sizes}

    def forward(self, batch, mask=None):
        mask = self.hide(batch) if mask is None else mask
        tokens = self.encoder(batch, mask)
        parts = {}
        for name, decoder in self.decoders.items():
            hide, _ = mask.hidden(name)
            prediction = decoder(tokens, hide, self.encoder.tokenizer(name).grid(batch))
            mean = self.targets[name].loss(prediction, batch[name], hide)
            parts[name] = self.part_of_mean(mean, batch, f"{name}.hidden", len(hide.index))
        return Output(sum(parts.values()), parts, mask=mask)


def make_batch(step):
    return {"image": pictures(6, 3, seed=step), "depth": pictures(6, 1, seed=step).float() / 255, **keys(6, step)}


def test_counts_are_ragged_and_their_total_is_constant():
    mask = TwoModalities().hide(make_batch(0))
    counts = mask.keep.within(*mask.span("depth"))[0].lengths
    assert mask.keep.index.shape == (6, KEEP)
    assert counts.unique().numel() > 1


def test_a_sample_without_a_modality_has_none_of_its_tokens():
    method, batch = TwoModalities(), make_batch(0)
    present = torch.tensor([True, False] * 3)
    tokens = method.encoder({**batch, "depth.present": present})
    assert tokens.lengths.tolist() == [33, 17] * 3
    alone = method.encoder({"image": batch["image"][1:2]})
    assert torch.allclose(tokens.x[1, :17], alone.x[0], atol=1e-5)
