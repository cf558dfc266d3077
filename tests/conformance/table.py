"""The table: one entry a method, at a size at which a step takes milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from mmssl import CLIP, FLIP, M3AE, MAE, MLM, AudioMAE, LiT, MultiMAE, SiamMAE, SigLIP, VideoMAE
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import EncoderConfig
from mmssl.finetune import Classifier, ClassifierConfig, Mixing
from mmssl.modality import AUDIO, TEXT, VIDEO, image
from mmssl.objectives import (
    AudioMAEConfig,
    CLIPConfig,
    FLIPConfig,
    M3AEConfig,
    MAEConfig,
    MLMConfig,
    MultiMAEConfig,
    Objective,
    SiamMAEConfig,
    SigLIPConfig,
    VideoMAEConfig,
)
from mmssl.objectives.audiomae import local_decoder_config
from mmssl.objectives.m3ae import m3ae_encoder_config
from mmssl.objectives.multimae import MODALITIES, multimae_decoder_config, multimae_encoder_config
from mmssl.objectives.rasters import raster_tasks
from mmssl.objectives.siammae import siammae_decoder_config
from mmssl.objectives.towers import text_config
from mmssl.objectives.videomae import POSITION, videomae_decoder_config
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig
from tests.contracts import (
    keys,
    pictures,
    test_block_targets,
    test_masked_language,
    test_two_modalities,
    test_two_views,
)
from tests.training_toy import ToyConfig

Batch = dict[str, Tensor]
SOUND = dataclasses.replace(AUDIO, patch=(4, 4))


@dataclass(frozen=True)
class Entry:
    """A method, and what there is to know of it here.

    make: a fresh objective. batch: what a loader gives at a step, raw values with `sample_id`, `epoch`, `draw`, `step`.
    hides: the keys of the batch whose values are hidden where the mask says so. total: the loss, from its named parts.
    rate: a learning rate at which the loss falls in a few steps. exports: the libraries that can take its encoder.
    exceptions: the properties that do not hold, by the name of their test, and why; they are tested all the same, and
    must fail.
    """

    name: str
    make: Callable[[], Objective]
    batch: Callable[[int], Batch]
    hides: tuple[str, ...] = ()
    total: Callable[[Mapping[str, Tensor]], Tensor] = lambda parts: sum(parts.values(), torch.zeros(()))
    rate: float = 1e-2
    exports: tuple[str, ...] = ()
    exceptions: Mapping[str, str] = field(default_factory=dict)


def vit(modality=image(3, (8, 8)), size=(16, 16), position="sincos", prefix=1, **transformer) -> EncoderConfig:
    """One block of an encoder on four patches a frame."""
    tokenizer = TokenizerConfig(modality, size, position)
    return EncoderConfig((tokenizer,), TransformerConfig(32, 1, 2, **transformer), prefix)


def mae() -> MAE:
    return MAE(MAEConfig(vit(image(3, (4, 4))), mae_decoder_config(16, 1, 2)))


def audiomae() -> AudioMAE:
    return AudioMAE(AudioMAEConfig(vit(SOUND), local_decoder_config(16, 2, 2)))


def siammae() -> SiamMAE:
    return SiamMAE(SiamMAEConfig(vit(image(3, (4, 4))), siammae_decoder_config(16, 1, 2), 0.75))


def videomae() -> VideoMAE:
    tubes = dataclasses.replace(VIDEO, patch=(2, 4, 4))
    encoder = vit(tubes, (4, 16, 16), POSITION, 0, qkv_bias="query_value")
    return VideoMAE(VideoMAEConfig(encoder, videomae_decoder_config(16, 1, 2), 0.75))


LABELS = 5


def multimae() -> MultiMAE:
    """Pictures, depth, and label maps of half their size, in four by four patches each."""
    *rasters, labels = MODALITIES
    modalities = [dataclasses.replace(each, patch=(4, 4)) for each in rasters]
    modalities.append(dataclasses.replace(labels, channels=LABELS, patch=(2, 2), embedding=8))
    encoder = multimae_encoder_config("tiny", modalities, (4, 4))
    blocks = dataclasses.replace(encoder.transformer, dim=32, depth=1, heads=2)
    encoder = dataclasses.replace(encoder, transformer=blocks)
    return MultiMAE(MultiMAEConfig(encoder, raster_tasks(modalities), multimae_decoder_config(16, 1, 2), visible=10))


def mlm() -> MLM:
    """No hidden word is shown as it is."""
    words = TokenizerConfig(dataclasses.replace(TEXT, channels=20), (12,), "learned", segments=2)
    bert = TransformerConfig(32, 1, 4, norm_order="post", input_norm=True, final_norm=False)
    encoder = EncoderConfig((words,), bert, prefix=0)
    return MLM(
        MLMConfig(encoder, shares=(0.8, 0.2), mask=test_masked_language.MASK, special=(test_masked_language.CLS,))
    )


CAPTION, VOCABULARY = 8, 20


def captions(**transformer) -> EncoderConfig:
    return text_config((24, 1, 4), vocab=VOCABULARY, length=CAPTION, **transformer)


def clip_towers() -> tuple[EncoderConfig, EncoderConfig]:
    blocks = {"norm_eps": 1e-5, "activation": "quick_gelu"}
    pictures = vit(image(3, (4, 4)), position="learned", input_norm=True, **blocks)
    tokenizer = dataclasses.replace(pictures.tokenizers[0], unbiased=True)
    return dataclasses.replace(pictures, tokenizers=(tokenizer,)), captions(causal=True, **blocks)


def clip() -> CLIP:
    return CLIP(CLIPConfig(*clip_towers(), dim=16))


def lit() -> LiT:
    return LiT(CLIPConfig(*clip_towers(), dim=None))


def flip() -> FLIP:
    return FLIP(FLIPConfig(vit(image(3, (4, 4))), captions(), 16))


def m3ae() -> M3AE:
    encoder = m3ae_encoder_config("tiny", 16, 4, vocab=VOCABULARY, length=CAPTION)
    blocks = dataclasses.replace(encoder.transformer, dim=32, depth=1, heads=2)
    return M3AE(M3AEConfig(dataclasses.replace(encoder, transformer=blocks), mae_decoder_config(16, 1, 2)))


def siglip() -> SigLIP:
    pictures = vit(image(3, (4, 4)), position="learned", prefix=0, activation="gelu_tanh")
    return SigLIP(SigLIPConfig(pictures, captions(activation="gelu_tanh")))


def classifier() -> Classifier:
    head = {"classes": 3, "labels": ("ant", "bee", "cat"), "pool_norm": True}
    encoder = dataclasses.replace(vit(final_norm=False), **head)
    return Classifier(ClassifierConfig(encoder, layer_decay=0.8, mixing=Mixing(0.8, 1.0), head_std=0.02))


def toy(method: Callable[[], Objective]) -> Objective:
    """A contract method, with the settings that it lacks: a run writes them down."""
    objective = method()
    objective.config = ToyConfig()
    return objective


def one_picture(step: int) -> Batch:
    return {"image": pictures(6, 3, seed=step), **keys(6, step)}


def labelled(step: int) -> Batch:
    """Pictures of one of three classes, each with a partner that it is mixed with."""
    label = torch.arange(6) % 3
    partner = {"image.partner": pictures(6, 3, seed=step + 9), "label.partner": (label + step + 1) % 3}
    return {"image": pictures(6, 3, seed=step), "label": label, **partner, **keys(6, step)}


def spectrogram(step: int) -> Batch:
    values = pictures(6, 1, seed=step).float() / 255
    return {"audio": SOUND.mean[0] + SOUND.std[0] * (2 * values - 1), **keys(6, step)}


def rasters(step: int) -> Batch:
    """A third of the samples have no depth; some depth and some labels are not there."""
    shades = pictures(6, 1, size=16, seed=step).float() / 255
    depth = 10 + 30 * shades
    depth[:, :, :3, :3] = torch.nan
    labels = (shades[:, 0, ::2, ::2] * LABELS).long().clamp(max=LABELS - 1)
    labels[:, -1] = 255
    present = torch.tensor([True, True, False] * 2)
    return {
        "image": pictures(6, 3, seed=step),
        "depth": depth.masked_fill(~present[:, None, None, None], torch.nan),
        "depth.present": present,
        "semseg": labels,
        **keys(6, step),
    }


def two_frames(step: int) -> Batch:
    return {"image": pictures(6, 3, seed=step), "image.1": pictures(6, 3, seed=step + 9), **keys(6, step)}


def captioned(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(1, VOCABULARY, (8, CAPTION), generator=generator)
    lengths = torch.randint(2, CAPTION + 1, (8,), generator=generator)
    return {"image": pictures(8, 3, seed=step), "text": text, "text.length": lengths, **keys(8, step)}


def unpaired(step: int) -> Batch:
    """Half of the samples are pairs; the others are a picture alone, or a text."""
    pictured, told = (torch.tensor(each * 2) for each in ([True, True, True, False], [True, True, False, True]))
    batch = captioned(step)
    batch["image"] = batch["image"] * pictured[:, None, None, None]
    return {**batch, "image.present": pictured, "text.present": told}


def frames(step: int) -> Batch:
    frames = [pictures(6, 3, seed=4 * step + frame) for frame in range(4)]
    return {"video": torch.stack(frames, dim=2), **keys(6, step)}


@cache
def two_views(step: int) -> Batch:
    """Made once: the loader that colours and blurs them takes longer than a step."""
    return test_two_views.batches(step + 1)[step]


def sentences(step: int) -> Batch:
    """Half of them are called the next ones: those whose words of the second half are other words."""
    batch = test_masked_language.make_batch(step)
    following = torch.arange(len(batch["text"])) % 2
    other = (batch["text"] + 5 * batch["text.segment"] * following[:, None] - 3) % 17 + 3
    text = torch.where(batch["text"] < 3, batch["text"], other)
    return {**batch, "text": text, "text.next": following}


def without(reason: str, *properties: str) -> dict[str, str]:
    """Exceptions of one reason."""
    return dict.fromkeys(properties, reason)


TOY = without("its class takes no config", "a_folder_holds_the_method_exactly", "a_run_is_reported")
WHOLE = without("it hides nothing", "a_mask_depends_on_its_sample_alone", "hidden_values_are_unread")
RAGGED = without("rows are ragged: how many tokens there are is known only when it runs", "it_compiles_to_one_graph")
WORDS = without("words are whole numbers", "values_that_are_not_finite_stop_the_run_and_name_its_samples")

PAIRS = without("its parts are measures, no terms", "parts_are_scalars_and_make_up_the_loss") | without(
    "each sample is told from the rest of the batch", "the_loss_is_the_mean_over_samples"
)

TABLE = (
    Entry("MAE", mae, one_picture, ("image",), exports=("timm", "transformers")),
    Entry("AudioMAE", audiomae, spectrogram, ("audio",), exports=("timm",)),
    Entry("SiamMAE", siammae, two_frames, ("image.1",), exports=("timm", "transformers")),
    Entry("VideoMAE", videomae, frames, ("video",), exports=("transformers",)),
    Entry(
        "MultiMAE",
        multimae,
        rasters,
        hides=("image",),  # depth is standardised by all of a sample
        exports=("timm",),
        exceptions=RAGGED | WORDS,
    ),
    Entry(
        "M3AE",
        m3ae,
        unpaired,
        hides=("image", "text"),
        total=lambda parts: parts["image"] + 0.5 * parts["text"],
        exceptions=RAGGED,
    ),
    Entry(
        "MLM",
        mlm,
        sentences,
        hides=("text",),
        exports=("transformers",),
        exceptions=RAGGED | WORDS,
    ),
    Entry(
        "CLIP",
        clip,
        captioned,
        rate=3e-3,
        exports=("timm", "transformers"),
        exceptions=WHOLE | PAIRS | RAGGED,
    ),
    Entry(
        "LiT",
        lit,
        captioned,
        exports=("timm", "transformers"),
        exceptions=WHOLE | PAIRS | RAGGED,
    ),
    Entry(
        "FLIP",
        flip,
        captioned,
        hides=("image",),
        exports=("timm", "transformers"),
        exceptions=PAIRS | RAGGED | without("it hides nothing in eval mode", "hidden_values_are_unread"),
    ),
    Entry(
        "SigLIP",
        siglip,
        captioned,
        exceptions=WHOLE | PAIRS,
    ),
    Entry(
        "Classifier",
        classifier,
        labelled,
        exports=("timm", "transformers"),
        exceptions=WHOLE | without("its part is a measure, no term", "parts_are_scalars_and_make_up_the_loss"),
    ),
    Entry(
        "BlockTargets",
        partial(toy, test_block_targets.BlockTargets),
        test_block_targets.make_batch,
        hides=("image",),
        exceptions=TOY | RAGGED | without("it draws blocks before it reads the batch", "an_empty_batch_is_named"),
    ),
    Entry(
        "MaskedLanguage",
        partial(toy, test_masked_language.MaskedLanguage),
        test_masked_language.make_batch,
        hides=("text",),
        exports=("transformers",),
        exceptions=TOY
        | RAGGED
        | WORDS
        | without("it counts the words before it reads the batch", "another_modality_is_named"),
    ),
    Entry(
        "TwoModalities",
        partial(toy, test_two_modalities.TwoModalities),
        test_two_modalities.make_batch,
        hides=("image", "depth"),
        exports=("timm", "transformers"),
        exceptions=TOY | RAGGED,
    ),
    Entry(
        "TwoViews",
        partial(toy, test_two_views.TwoViews),
        two_views,
        total=lambda parts: 2 - 2 * parts["similarity"],
        exports=("timm", "transformers"),
        exceptions=TOY
        | WHOLE
        | without("its batch norms normalise chunk by chunk", "chunks_train_as_the_whole_batch_does"),
    ),
)
ENTRIES = {entry.name: entry for entry in TABLE}


def rows(batch: Batch, chosen: Tensor | slice) -> Batch:
    """Some samples of a batch, as the loop cuts it: what is no row a sample stays."""
    count = len(batch["sample_id"])
    return {name: value[chosen] if value.shape[:1] == (count,) else value for name, value in batch.items()}
