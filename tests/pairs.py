"""Tiny models of pictures and text of other libraries, and what they read."""

import open_clip
import torch
import transformers

from tests.parity import randomize

WORDS, LENGTH, SIZE, PATCH = 50, 10, 16, 8
END = WORDS - 1
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT |= {"vocab_size": WORDS, "max_position_embeddings": LENGTH}
HEADS = {"heads": 4, "text_heads": 2}


def theirs_open_clip(quick_gelu=True, **text):
    """open_clip's CLIP, whose heads are `HEADS`."""
    vision = {"image_size": SIZE, "patch_size": PATCH, "width": 32, "layers": 2, "head_width": 8, "mlp_ratio": 1.5}
    words = {"context_length": LENGTH, "vocab_size": WORDS, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0}
    return randomize(open_clip.CLIP(24, vision, words | text, quick_gelu=quick_gelu)).eval()


def theirs_transformers(kind="CLIP", vision=None, text=None, **settings):
    """transformers' CLIPModel or SiglipModel."""
    sub = {
        "vision_config": {**BLOCKS, "image_size": SIZE, "patch_size": PATCH, **(vision or {})},
        "text_config": {**TEXT, **(text or {})},
    }
    config = getattr(transformers, f"{kind}Config")(**sub, **settings)
    return randomize(getattr(transformers, f"{kind}Model")(config)).eval()


def pairs(count=5, padding=0):
    """Pictures and texts of 1 to `LENGTH` tokens, the last of which is the end token; the lengths are told apart."""
    lengths = torch.arange(count) * 7 % LENGTH + 1
    text = torch.randint(1, END, (count, LENGTH))
    text[torch.arange(count), lengths - 1] = END
    text = text.masked_fill(torch.arange(LENGTH) >= lengths[:, None], padding)
    return {"image": torch.rand(count, 3, SIZE, SIZE), "text": text}, lengths
