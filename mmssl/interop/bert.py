"""BERT and RoBERTa: transformers' models of masked words, and their encoders alone.

Both are one transformer. RoBERTa's positions are counted from behind the id of its padding, and its head is named
otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import (
    blocks_config,
    blocks_settings,
    head_fields,
    head_pool,
    head_settings,
    layer,
    numbered,
    optional,
    query_key_value,
)
from mmssl.interop.rules import KeyMap, Rule, State
from mmssl.modality import TEXT

ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' names of the two forms of GELU, exact by erf, and by tanh as in Google's code; the first is written."""
_WRITTEN = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
_HEADS = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head"),
}
# A classifier's layer of tanh, and the head.
_CLASSIFIERS = {"bert": ("bert.pooler.dense", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj")}
_NEVER_HIDDEN = ("[PAD]", "[CLS]", "[SEP]", "<pad>", "<s>", "</s>")


def encoder_rules(ours: str = "", theirs: str = "") -> KeyMap:
    """An encoder under `ours` against BertModel or RobertaModel under `theirs`."""
    first, tokenizer = f"{theirs}embeddings.", f"{ours}tokenizers.text"
    blocks = f"{ours}transformer.blocks", f"{theirs}encoder.layer"
    pairs = (
        ("attn.layer.proj", "attention.output.dense"),
        ("attn.norm", "attention.output.LayerNorm"),
        ("mlp.layer.fc1", "intermediate.dense"),
        ("mlp.layer.fc2", "output.dense"),
        ("mlp.norm", "output.LayerNorm"),
    )
    return (
        Rule((f"{tokenizer}.words.weight",), (f"{first}word_embeddings.weight",)),
        Rule(
            (f"{tokenizer}.position.table",),
            (f"{first}position_embeddings.weight",),
        ),
        Rule((f"{tokenizer}.segments.weight",), (f"{first}token_type_embeddings.weight",)),
        *layer(f"{ours}transformer.input_norm", f"{first}LayerNorm"),
        *numbered(*blocks, pairs),
        *query_key_value(f"{blocks[0]}.{{i}}.attn.layer", f"{blocks[1]}.{{i}}.attention.self"),
    )


def method_rules(kind: str) -> KeyMap:
    """The whole method, next-sentence head included where there is one."""
    dense, norm, output = _HEADS[kind]
    following = (*layer("pooler", "bert.pooler.dense"), *layer("next", "cls.seq_relationship"))
    return (
        *encoder_rules("encoder.", f"{kind}."),
        *layer("head.0", dense),
        *layer("head.2", norm),
        Rule(("bias",), (f"{output}.bias",)),
        *(optional(*following) if kind == "bert" else ()),
    )


def classifier_rules(kind: str) -> KeyMap:
    """An encoder with a head on the tanh of its first token."""
    pooler, head = _CLASSIFIERS[kind]
    return (*encoder_rules("", f"{kind}."), *layer("pooler.0", pooler), *layer("head", head))


def hub_names(state: State) -> dict[str, Tensor]:
    """The tensors of a file of any age under the names of today's, without tables of numbers."""
    names = {key: re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key)) for key in state}
    return {names[key]: value for key, value in state.items() if not key.endswith("position_ids")}


def encoder_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """EncoderConfig's settings of a BERT or RoBERTa config.json, without its dropout (see `TransformerConfig`).

    Raises UserError for decoders, other activations and relative positions.
    """
    activation = ACTIVATIONS.get(config.get("hidden_act", "gelu"))
    position = config.get("position_embedding_type", "absolute")
    if activation is None or position != "absolute" or config.get("is_decoder"):
        raise UserError(
            f"{source}: only encoders with {' or '.join(ACTIVATIONS)} and absolute positions are read; this one has "
            f"{config.get('hidden_act')} and {position} positions, decoder: {bool(config.get('is_decoder'))}"
        )
    offset = config.get("pad_token_id", 1) + 1 if config["model_type"] == "roberta" else 0
    tokenizer = {
        "modality": asdict(replace(TEXT, channels=config["vocab_size"])),
        "size": (config["max_position_embeddings"] - offset,),
        "position": "learned",
        "segments": config["type_vocab_size"],
        "offset": offset,
    }
    transformer = {
        **blocks_settings({**config, "hidden_act": "gelu"}),
        "activation": activation,
        "norm_order": "post",
        "input_norm": True,
        "final_norm": False,
    }
    return {"tokenizers": [tokenizer], "transformer": transformer, "prefix": 0}


def read_encoder(config: Mapping[str, Any], state: State, source: str) -> Found:
    """The encoder of any of their models; what stands above it is left aside."""
    prefix = f"{config['model_type']}."
    prefix = prefix if any(key.startswith(prefix) for key in state) else ""
    parts = f"{prefix}embeddings.", f"{prefix}encoder."
    tensors = {key: value for key, value in hub_names(state).items() if key.startswith(parts)}
    return Found(encoder_settings(config, source), encoder_rules("", prefix), tensors)


def read_classifier(config: Mapping[str, Any], state: State, source: str) -> Found:
    """Of BertForSequenceClassification or RobertaForSequenceClassification."""
    kind, settings = config["model_type"], encoder_settings(config, source)
    head = head_settings(config, state, _CLASSIFIERS[kind][1])
    return Found(settings | head | {"pool": "class", "pooler": True}, classifier_rules(kind), hub_names(state))


def read_method(config: Mapping[str, Any], state: State, source: str) -> Found:
    """Of BertForPreTraining, BertForMaskedLM or RobertaForMaskedLM; with a next-sentence head where there is one.

    The ids of mask and special tokens are those of the tokenizer.json in the same folder, if it is there. Raises
    UserError where the head's words are others than the embedding's.
    """
    kind, tensors = config["model_type"], hub_names(state)
    output, words = _HEADS[kind][2], tensors.get(f"{kind}.embeddings.word_embeddings.weight")
    tied = tensors.pop(f"{output}.decoder.weight", words)
    if words is not None and tied is not None and not torch.equal(tied, words):
        raise UserError(f"{source}: its head predicts with other words than it reads, which MLM does not")
    bias = tensors.pop(f"{output}.decoder.bias", None)
    if bias is not None:
        tensors.setdefault(f"{output}.bias", bias)
    following = "cls.seq_relationship.weight" in tensors
    if not following:
        tensors = {key: value for key, value in tensors.items() if ".pooler." not in key}
    encoder = encoder_settings(config, source)
    if kind == "roberta" and encoder["transformer"]["activation"] != "gelu":
        raise UserError(
            f"{source}: RoBERTa's head has exact GELU, its blocks {config['hidden_act']}: MLM has one for both"
        )
    settings = {"encoder": encoder, "next_sentence": following, **special_ids(Path(source))}
    return Found(settings, method_rules(kind), tensors)


def special_ids(folder: Path) -> dict[str, Any]:
    """MLMConfig's `mask` and `special` by the tokenizer.json of a folder; none where there is no such file."""
    file = folder / "tokenizer.json"
    added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens", []) if file.is_file() else []
    ids = {token["content"]: token["id"] for token in added}
    mask = ids.get("[MASK]", ids.get("<mask>"))
    return {"mask": mask, "special": tuple(ids[name] for name in _NEVER_HIDDEN if name in ids)}


def config_of(settings: Settings, architecture: str) -> dict[str, Any]:
    """The config.json of an encoder's settings. Raises UserError for what neither model can express."""
    transformer, tokenizer = settings["transformer"], settings["tokenizers"][0]
    expected = {"norm_order": "post", "qkv_bias": "all", "causal": False, "layer_scale": None, "input_norm": True}
    expected |= {"final_norm": False, "branches": ("attn", "mlp"), "window": None}
    plain = all(transformer[name] == value for name, value in expected.items())
    if (
        not plain
        or transformer["activation"] not in _WRITTEN
        or settings["prefix"]
        or settings["pool_norm"]
        or not tokenizer["segments"]
    ):
        raise UserError(f"transformers' BERT is a post-norm encoder of words, with segments; this one is {settings}")
    offset = tokenizer["offset"]
    kind = {"model_type": "roberta", "bos_token_id": 0, "eos_token_id": 2} if offset else {"model_type": "bert"}
    return {
        "architectures": [architecture],
        **kind,
        "pad_token_id": max(0, offset - 1),
        **blocks_config(transformer),
        "hidden_act": _WRITTEN[transformer["activation"]],
        "vocab_size": tokenizer["modality"]["channels"],
        "max_position_embeddings": tokenizer["size"][0] + offset,
        "type_vocab_size": tokenizer["segments"],
        "hidden_dropout_prob": transformer["dropout"],
        "attention_probs_dropout_prob": 0.0,
    }


def write_encoder(settings: Settings) -> Written:
    """As BertModel or RobertaModel, which make a random pooler where there is none: here it is the tanh of the first
    token."""
    dim = settings["transformer"]["dim"]
    pooler = {"pooler.dense.weight": torch.eye(dim), "pooler.dense.bias": torch.zeros(dim)}
    name = "RobertaModel" if _is_roberta(settings) else "BertModel"
    return Written(config_of(settings, name), encoder_rules(), extra=pooler)


def write_classifier(settings: Settings) -> Written:
    """As BertForSequenceClassification or RobertaForSequenceClassification."""
    kind, name = ("roberta", "Roberta") if _is_roberta(settings) else ("bert", "Bert")
    config = config_of(settings, f"{name}ForSequenceClassification") | head_fields(settings)
    return Written(config, classifier_rules(kind))


def write_method(settings: Settings) -> Written:
    """As BertForPreTraining, or without its next-sentence head as BertForMaskedLM or RobertaForMaskedLM."""
    encoder, following = settings["encoder"], settings["next_sentence"]
    kind = "roberta" if _is_roberta(encoder) else "bert"
    name = "RobertaForMaskedLM" if kind == "roberta" else "BertForPreTraining" if following else "BertForMaskedLM"
    if kind == "roberta" and (following or encoder["transformer"]["activation"] != "gelu"):
        raise UserError("transformers' RobertaForMaskedLM has no next-sentence head, and exact GELU in its own")
    return Written(config_of(encoder, name), method_rules(kind))


def _is_roberta(encoder: Settings) -> bool:
    return encoder["tokenizers"][0]["offset"] > 0


def _is_classifier(settings: Settings) -> bool:
    """Whether it has a head on the tanh of its first token, and no norms or other tokens before it."""
    return settings["classes"] > 0 and settings["pooler"] and head_pool(settings) == "class"


def _forms(kind: str, encoder: str, classifier: str, methods: str) -> tuple[Form, ...]:
    """Those of one family: its encoder, that with a head, and the method."""
    head, roberta, pooler = f"{_HEADS[kind][0]}.weight", kind == "roberta", f"{_CLASSIFIERS[kind][0]}.weight"
    return (
        Form(
            "Encoder",
            "transformers",
            f"transformers' {classifier}",
            lambda config, state: (
                config.get("model_type") == kind and pooler in state and f"{_CLASSIFIERS[kind][1]}.weight" in state
            ),
            read_classifier,
            f"{kind}_classifier",
            "text",
            write_classifier,
            lambda settings: _is_roberta(settings) == roberta and _is_classifier(settings),
        ),
        Form(
            "Encoder",
            "transformers",
            f"transformers' {encoder}",
            lambda config, _: config.get("model_type") == kind,
            read_encoder,
            f"{kind}_encoder",
            "text",
            write_encoder,
            lambda settings: _is_roberta(settings) == roberta and not settings["classes"],
        ),
        Form(
            "MLM",
            "transformers",
            f"transformers' {methods}",
            lambda config, state: config.get("model_type") == kind and head in state,
            read_method,
            kind,
            "text",
            write_method,
            lambda settings: _is_roberta(settings["encoder"]) == roberta,
        ),
    )


FORMS = (
    *_forms("bert", "BertModel", "BertForSequenceClassification", "BertForPreTraining or BertForMaskedLM"),
    *_forms("roberta", "RobertaModel", "RobertaForSequenceClassification", "RobertaForMaskedLM"),
)
