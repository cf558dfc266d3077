"""Key map of the public SiamMAE-like files: CropMAE's (alexandre-eymael/CropMAE); SiamMAE's authors published none."""

from __future__ import annotations

from mmssl.interop.rules import KeyMap, Rule
from mmssl.interop.vit import authors_decoder, layer, timm_vit

_OURS, _THEIRS = "decoder.transformer.blocks.{i}", "decoder_blocks.{i}"

CROPMAE: KeyMap = (
    *timm_vit("encoder."),
    *authors_decoder(),
    # torch's MultiheadAttention: queries, keys and values in one tensor, of which our cross-attention parts the queries
    *(
        rule
        for part in ("weight", "bias")
        for rule in (
            Rule((f"{_OURS}.attn.layer.qkv.{part}",), (f"{_THEIRS}.self_attn.in_proj_{part}",)),
            Rule(
                (f"{_OURS}.cross.layer.q.{part}", f"{_OURS}.cross.layer.kv.{part}"),
                (f"{_THEIRS}.multihead_attn.in_proj_{part}",),
                "split",
            ),
        )
    ),
    *layer(f"{_OURS}.attn.layer.proj", f"{_THEIRS}.self_attn.out_proj"),
    *layer(f"{_OURS}.cross.layer.proj", f"{_THEIRS}.multihead_attn.out_proj"),
    *layer(f"{_OURS}.mlp.layer.fc1", f"{_THEIRS}.linear1"),
    *layer(f"{_OURS}.mlp.layer.fc2", f"{_THEIRS}.linear2"),
    *layer(f"{_OURS}.attn.norm", f"{_THEIRS}.norm1"),
    *layer(f"{_OURS}.cross.norm", f"{_THEIRS}.norm2"),
    *layer(f"{_OURS}.mlp.norm", f"{_THEIRS}.norm3"),
)
