"""Blocks to be predicted in feature space: several hide sets, which do not complement what is kept."""

import torch
from torch.nn import functional as F

from mmssl.decoder import Decoder, DecoderConfig
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.masking import Mask, Positions, batch_bits, block, random_bits
from mmssl.modality import image
from mmssl.objectives import Objective, Output
from mmssl.schedules import linear
from mmssl.teacher import Teacher
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import BRANCHES, TransformerConfig
from tests.contracts import keys, pictures

GRID, BLOCKS = (6, 6), 3


class BlockTargets(Objective):
    def __init__(self):
        super().__init__()
        tokenizer = TokenizerConfig(image(3, (4, 4)), (24, 24))
        self.encoder = Encoder(EncoderConfig((tokenizer,), TransformerConfig(32, 2, 4), prefix=0))
        self.teacher = Teacher(self.encoder)
        self.predictor = Decoder(
            DecoderConfig(TransformerConfig(24, 2, 4, branches=BRANCHES), sequence="hidden"), 32, GRID, 0, 32
        )

    def after_step(self, progress):
        self.teacher.follow(self.encoder, linear(progress, 0.996, 1.0))

    def hide(self, batch):
        # one size for the whole batch, by its step; a place for every sample
        rows, columns = (2 + random_bits(2, seed=0, stream="size", sample_id=batch["step"][None])[0] % 2).tolist()
        places = batch_bits(batch, 2 * BLOCKS, seed=0, stream="place")
        tops, lefts = places[:, :BLOCKS] % (GRID[0] - rows + 1), places[:, BLOCKS:] % (GRID[1] - columns + 1)
        targets = [block(tops[:, i], lefts[:, i], (rows, columns), GRID) for i in range(BLOCKS)]
        context = ~torch.stack(targets).any(dim=0)
        rectangular = tuple(Positions(t.nonzero()[:, 1].view(len(t), -1)) for t in targets)
        return Mask(Positions.from_boolean(context), rectangular, self.encoder.sizes(batch))

    def forward(self, batch, mask=None):
        mask = self.hide(batch) if mask is None else mask
        context = self.encoder(batch, mask)
        features = F.layer_norm(self.teacher(batch).x, (32,))
        losses = []
        for target in mask.targets:
            wanted = features.gather(1, target.index[..., None].expand(-1, -1, 32))
            losses.append(F.smooth_l1_loss(self.predictor(context, target, GRID), wanted))
        loss = torch.stack(losses).mean()
        return Output(loss, {"smooth_l1": loss.detach()}, mask=mask)


def make_batch(step):
    return {"image": pictures(6, 3, size=24, seed=step), **keys(6, step)}


def test_contexts_are_ragged_targets_overlap_and_sizes_follow_the_step():
    method = BlockTargets()
    mask = method.hide(make_batch(0))
    assert mask.keep.lengths.unique().numel() > 1
    assert len(mask.targets) == BLOCKS
    hidden = torch.stack([target.boolean(36) for target in mask.targets])
    assert (hidden.sum(dim=0) > 1).any()
    assert not (mask.keep.boolean(36) & hidden.any(dim=0)).any()
    assert {method.hide(make_batch(step)).targets[0].index.shape[1] for step in range(12)} == {4, 6, 9}


def test_a_ragged_context_is_encoded_as_if_alone():
    method, batch = BlockTargets(), make_batch(0)
    mask = method.hide(batch)
    together = method.encoder(batch, mask)
    length = int(mask.keep.lengths[0])
    alone = Mask(Positions(mask.keep.index[None, :length]), (), mask.sizes)
    assert torch.allclose(together.x[0, :length], method.encoder({"image": batch["image"][:1]}, alone).x[0], atol=1e-5)
