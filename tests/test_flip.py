"""FLIP: patches that are left out are never embedded, and all of them are read where it counts."""

import copy

import pytest
import torch
from mmssl_kernels import unpatchify

from mmssl import CLIP, FLIP, UserError
from tests.pairs import HEADS, LENGTH, PATCH, SIZE, WORDS, pairs, theirs_open_clip


def tiny(**settings):
    return FLIP("tiny", size=SIZE, patch=PATCH, vocab=WORDS, length=LENGTH, **settings)


def make_batch(count=5):
    batch, lengths = pairs(count)
    ids = torch.arange(count)
    return {**batch, "text.length": lengths, "sample_id": ids, "epoch": ids * 0, "draw": ids * 0}


@pytest.mark.parametrize(("keep", "kept"), [(0.5, 2), (0.25, 1), (1.0, 4)])
def test_so_many_patches_are_read_while_training(keep, kept):
    method, rows = tiny(keep=keep), []
    method.encoder.transformer.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[1]))
    batch = make_batch()
    out = method(batch)
    assert rows == [1 + kept]  # the class token, too
    assert (out.mask is None) == (keep == 1)
    method.encode_image(batch)
    method.eval()(batch)
    assert rows[1:] == [5, 5]


def test_patches_that_are_left_out_are_unread():
    method, batch = tiny(), make_batch()
    mask = method(batch).mask
    hidden = unpatchify(mask.hide.boolean(4)[..., None].expand(-1, -1, PATCH**2), (PATCH, PATCH), (2, 2))
    other = {**batch, "image": batch["image"].masked_fill(hidden, torch.nan)}
    losses = [method(each).loss for each in (batch, other)]
    assert torch.equal(*losses)
    losses[1].backward()
    assert all(value.grad.isfinite().all() for value in method.parameters() if value.grad is not None)


def test_chunks_leave_out_the_patches_of_the_whole():
    """`features` alone, as a batch in chunks asks for them, draws the mask of the whole."""
    method, batch = tiny(), make_batch()
    mask = method(batch).mask
    torch.testing.assert_close(method.features(batch)["image"], method.encode_image(batch, mask))
    later = method({**batch, "epoch": batch["epoch"] + 1}).mask
    assert not torch.equal(later.keep.index, mask.keep.index)


def test_its_towers_are_the_papers():
    """The mean of the patches at fixed positions, the first of the words, which see those behind them."""
    method, batch = tiny(keep=1.0), make_batch()
    tokens = method.encoder(batch).x
    torch.testing.assert_close(method.image_vector(batch), tokens[:, 1:].mean(dim=1))
    assert not method.encoder.tokenizer("image").position.table.requires_grad
    changed = copy.copy(batch)
    changed["text"] = batch["text"].clone()
    changed["text"][0, 0], last = 3, int(batch["text.length"][1]) - 1
    changed["text"][1, last] = 3
    features, others = method.encode_text(batch), method.encode_text(changed)
    assert not torch.allclose(features[:2], others[:2])
    torch.testing.assert_close(features[2:], others[2:])


def test_files_of_clip_are_trained_on_with_a_part_of_their_patches():
    """With CLIP's own vectors: only what is read differs."""
    state, batch = theirs_open_clip().state_dict(), make_batch()
    clip, flip = (method.from_official(state, **HEADS) for method in (CLIP, FLIP))
    assert torch.equal(flip.eval()(batch).loss, clip.eval()(batch).loss)
    assert flip.train()(batch).mask.keep.index.shape == (5, 2)


def test_a_share_that_is_none_is_refused_and_one_of_all_patches_hides_none():
    for keep in (0.0, 1.5):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            FLIP("tiny", size=16, patch=8, vocab=50, length=8, keep=keep)
    method = FLIP("tiny", size=16, patch=8, vocab=50, length=8, keep=0.9).train()
    assert method.hide({"image": torch.rand(2, 3, 16, 16)}) is None
