"""MultiMAE: the authors' files (EPFL-VILAB/MultiMAE), with or without decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mmssl.errors import UserError
from mmssl.interop.forms import Form, Found
from mmssl.interop.parts import Size, default_heads, depth, layer, projection, timm_blocks
from mmssl.interop.rules import KeyMap, Rule, State
from mmssl.modality import DEPTH, SEMSEG, Modality, image
from mmssl.target import usual_distance

# What their names are here, in the order of the paper.
NAMES = {"rgb": "image", "depth": "depth", "semseg": "semseg"}
_THEIRS = {ours: theirs for theirs, ours in NAMES.items()}


def encoder_rules(ours: str, modalities: Sequence[Modality], grid: tuple[int, ...], prefix: int = 1) -> KeyMap:
    """The encoder under `ours`, of these modalities on `grid`."""
    rules = [Rule((f"{ours}prefix_tokens",), ("global_tokens",), "shape", (1, prefix, -1))]
    for modality in modalities:
        tokenizer, adapter = f"{ours}tokenizers.{modality.name}", f"input_adapters.{_THEIRS[modality.name]}"
        rules += projection(tokenizer, f"{adapter}.proj")
        rules += [Rule((f"{tokenizer}.position.table",), (f"{adapter}.pos_emb",), "plane", grid)]
        if modality.kind == "categorical":
            rules += [Rule((f"{tokenizer}.classes.weight",), (f"{adapter}.class_emb.weight",))]
    return (*rules, *timm_blocks(f"{ours}transformer.blocks", "encoder"))


def decoder_rules(task: str, modalities: Sequence[Modality], predicted: Modality, grid: tuple[int, ...]) -> KeyMap:
    """The decoder of a task, which predicts one of the modalities."""
    ours, theirs = f"decoders.{task}", f"output_adapters.{task}"
    kinds = tuple(f"{theirs}.task_embeddings.{_THEIRS[modality.name]}" for modality in modalities)
    pairs = (
        ("embed", "proj_context"),
        *((f"cross.{name}", f"decoder.{name}") for name in ("q", "kv", "proj")),
        *((name, name) for name in ("query_norm", "context_norm")),
        ("mlp.norm", "out_norm"),
        *((f"mlp.layer.{name}", f"mlp.{name}") for name in ("fc1", "fc2")),
    )
    return (
        *(rule for one, other in pairs for rule in layer(f"{ours}.{one}", f"{theirs}.{other}")),
        Rule((f"{ours}.mask_token",), (f"{theirs}.mask_token",), "shape", (1, 1, -1)),
        Rule((f"{ours}.modalities",), kinds, "stack", (1, 1, -1)),
        Rule((f"{ours}.positions.0.table",), (f"{theirs}.pos_emb",), "plane", grid),
        *timm_blocks(f"{ours}.transformer.blocks", f"{theirs}.decoder_transformer"),
        *(
            Rule((f"{ours}.pred.{part}",), (f"{theirs}.out_proj.{part}",), "channels", (predicted.channels,))
            for part in ("weight", "bias")
        ),
    )


def _modality(state: State, name: str) -> Modality:
    """What an input adapter reads: pictures by ImageNet's statistics, depth as it is, labels."""
    _, channels, *patch = state[f"input_adapters.{name}.proj.weight"].shape
    sides = (patch[0], patch[1])
    if (classes := state.get(f"input_adapters.{name}.class_emb.weight")) is not None:
        return replace(SEMSEG, channels=len(classes), patch=sides, embedding=channels)
    return image(channels, sides) if name == "rgb" else replace(DEPTH, patch=sides)


def _is_authors(_: Mapping[str, Any], state: State) -> bool:
    return "global_tokens" in state and any(f"input_adapters.{name}.proj.weight" in state for name in NAMES)


def _encoder(state: State, source: str, heads: int | None, eps: float) -> tuple[dict[str, Any], list[Modality]]:
    """EncoderConfig's settings, and the modalities in the order of the paper."""
    if not _is_authors({}, state):
        raise UserError(f"{source}: not a checkpoint of MultiMAE: it lacks global_tokens or input_adapters")
    names = [name for name in NAMES if f"input_adapters.{name}.proj.weight" in state]
    modalities = [_modality(state, name) for name in names]
    grid, (_, prefix, dim) = _grid(state), state["global_tokens"].shape
    tokenizers = [
        {
            "modality": asdict(modality),
            "size": tuple(count * side for count, side in zip(grid, modality.patch, strict=True)),
            "position": "sincos_row_first",
        }
        for modality in modalities
    ]
    transformer = {
        "dim": dim,
        "depth": depth(state, "encoder."),
        "heads": heads or default_heads(dim),
        "hidden": len(state["encoder.0.mlp.fc1.weight"]),
        "norm_eps": eps,
        "final_norm": False,
    }
    settings = {"tokenizers": tokenizers, "transformer": transformer, "prefix": prefix, "bare_prefix": True}
    return settings, modalities


def _grid(state: State) -> tuple[int, ...]:
    """Rows and columns of patches, as all their tables have."""
    return next(tuple(value.shape[2:]) for key, value in state.items() if key.endswith(".pos_emb"))


def read_official_encoder(
    _: Mapping[str, Any], state: State, source: str, *, heads: int | None = None, eps: float = 1e-6, size: Size = None
) -> Found:
    """The encoder of all its modalities; decoders are left aside. UserError for another size than their tables have."""
    settings, modalities = _encoder(state, source, heads, eps)
    made = settings["tokenizers"][0]["size"]
    if size is not None and made != ((size, size) if isinstance(size, int) else tuple(size)):
        raise UserError(f"{source}: size={size}, but its tables are those of {made}: leave size out, they tell it")
    rules = encoder_rules("", modalities, _grid(state), settings["prefix"])
    return Found(settings, rules, {k: v for k, v in state.items() if not k.startswith("output_adapters.")})


def read_official(
    _: Mapping[str, Any], state: State, source: str, *, heads: int | None = None, decoder_heads: int | None = None
) -> Found:
    """With the decoders that the file has, `norm_rgb` or not; decoder_heads: the paper's 8 where not given."""
    encoder, modalities = _encoder(state, source, heads, 1e-6)
    grid, by_name = _grid(state), {modality.name: modality for modality in modalities}
    found = {key.split(".")[1] for key in state if key.startswith("output_adapters.")}
    names = [name for name in (*NAMES, "norm_rgb") if name in found] or [_THEIRS[each] for each in by_name]
    tasks, rules = [], encoder_rules("encoder.", modalities, grid, encoder["prefix"])
    for name in names:
        predicted, norm = by_name[NAMES[name.removeprefix("norm_")]], "patch" if name == "norm_rgb" else "none"
        tasks.append({"name": name, "modality": predicted.name, "distance": usual_distance(predicted), "norm": norm})
        rules += decoder_rules(name, modalities, predicted, grid) if found else ()
    settings: dict[str, Any] = {"encoder": encoder, "tasks": tasks}
    if found:
        theirs = f"output_adapters.{names[0]}"
        settings["decoder"] = {
            "dim": len(state[f"{theirs}.proj_context.weight"]),
            "depth": depth(state, f"{theirs}.decoder_transformer."),
            "heads": decoder_heads or 8,
            "hidden": len(state[f"{theirs}.mlp.fc1.weight"]),
            "final_norm": False,
        }
    return Found(settings, rules, state, whole=bool(found))


FORMS = (
    Form("Encoder", "official", "MultiMAE's authors' files", _is_authors, read_official_encoder),
    Form("MultiMAE", "official", "the authors' files", lambda _, state: True, read_official),
)
