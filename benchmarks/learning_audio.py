"""What Audio-MAE learns from spoken syllables, against random initialisation and logistic regression on log-mel.

    python -m benchmarks.learning_audio                                # everything; an hour or two on two CPU cores
    python -m benchmarks.learning_audio --steps 20 --batch-size 16     # does it run at all

The sounds are those of `mmssl data syllables`: no syllable of its test part was heard in training, in any tone or
voice. Both decoders train the same encoder for the same number of steps on the training part, without labels; the
recipe's objective, view, schedule and loop are used.

Measured on the test part: top-1 accuracy of a linear probe on the mean of all patches, for the tone (four classes, the
neutral one left out) and the initial consonant (22 classes, one of them "none"). "Across speakers": the probe sees one
speaker's training sounds and is asked about the other's test sounds, the mean of both ways. "Attentive": what an
attentive probe makes of all patches; it sees where each is, as logistic regression on log-mel does.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import soundfile
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torchaudio.functional import resample

from benchmarks.learning import aligned, minutes
from benchmarks.machine import device_name, markdown, write
from mmssl import AudioMAE, Encoder
from mmssl.audio import RATE, samples_of
from mmssl.data import SoundClips, SoundSource, SoundView, evaluation_batches
from mmssl.datasets import write_syllables
from mmssl.datasets.syllables import INITIALS, Syllable, write_manifest
from mmssl.evaluation import PooledAndPatches, attentive_probe, extract, linear_probe
from mmssl.evaluation.features import FeatureEncoder
from mmssl.objectives import audiomae_config
from mmssl.pretraining.pretrain import pretrain
from mmssl.report.run import write_report
from mmssl.training import TrainSettings

FRAMES, PATCH, DEPTH, SEED, CPU = 64, (8, 16), 4, 0, torch.device("cpu")
# Width and blocks: those of the local one come in pairs, of which the second is shifted.
DECODERS: dict[Literal["global", "local"], tuple[int, int]] = {"global": (64, 2), "local": (64, 4)}
SPEAKERS = ("3", "5")
CLASSES = {"tone": ["neutral", "first", "second", "third", "fourth"], "initial": ["none", *INITIALS]}


def at_the_models_rate(data: Path) -> Path:
    """The sounds at 16 kHz in WAV, as the loader would resample them from Vorbis anew in every epoch; made once."""
    made = data.with_name(f"{data.name}-{RATE}")
    for part in ("train", "test"):
        if (manifest := made / f"{part}.csv").is_file():
            continue
        rows = []
        for row in rows_of(data / f"{part}.csv"):
            values, rate = soundfile.read(data / row["path"], dtype="float32")
            path = (made / row["path"]).with_suffix(".wav")
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, resample(torch.from_numpy(values), rate, RATE).numpy(), RATE, "FLOAT")
            rows.append(Syllable(**{**row, "path": path.relative_to(made).as_posix()}))
        write_manifest(manifest, rows)  # last: where it is, all its sounds are
    return made


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with open(manifest, encoding="utf-8") as file:
        return list(csv.DictReader(file))


class LogMel(nn.Module):
    """The spectrogram itself, averaged to 40 times (of the first 400 ms) and 32 bands."""

    def features(self, batch: Any, pool: Any = None) -> Float[Tensor, "batch 1280"]:
        return adaptive_avg_pool2d(batch["audio"][:, 0, :40], (40, 32)).flatten(1)


def objective(decoder: Literal["global", "local"], mean: float, std: float) -> AudioMAE:
    """ViT-tiny of four blocks and a decoder of two or four."""
    torch.manual_seed(SEED)
    width, blocks = DECODERS[decoder]
    config = audiomae_config(
        "tiny", frames=FRAMES, patch=PATCH, decoder=decoder, mean=mean, std=std, seed=SEED,
        decoder_dim=width, decoder_depth=blocks,
    )  # fmt: skip
    shallow = replace(config.encoder, transformer=replace(config.encoder.transformer, depth=DEPTH))
    return AudioMAE(replace(config, encoder=shallow))


@dataclass(frozen=True)
class Part:
    """The sounds of a part, each from its beginning, what they are, and their features by any encoder."""

    source: SoundSource
    rows: list[dict[str, str]]

    @classmethod
    def of(cls, data: Path, part: str) -> Part:
        path = data / f"{part}.csv"
        return cls(SoundSource(path, SoundClips(samples_of(FRAMES) / RATE, spread=1)), rows_of(path))

    def batches(self) -> Iterator[dict[str, Tensor]]:
        return evaluation_batches(self.source, SoundView(FRAMES), batch_size=64)

    def features(self, encoder: FeatureEncoder) -> Float[Tensor, "sounds dim"]:
        return extract(encoder, self.batches()).features

    def chosen(self, label: str, speaker: str | None) -> tuple[Bool[Tensor, " sounds"], Int64[Tensor, " sounds"]]:
        """The sounds of a speaker, or all, that a label is asked of, and the classes of all sounds."""
        kept = [row["tone"] != "neutral" or label != "tone" for row in self.rows]
        spoken = [speaker in (None, row["speaker"]) for row in self.rows]
        return torch.tensor(kept) & torch.tensor(spoken), torch.tensor(
            [CLASSES[label].index(row[label]) for row in self.rows]
        )


def accuracies(encoder: FeatureEncoder, train: Part, test: Part) -> dict[str, float]:
    """In per cent."""
    reader = PooledAndPatches(encoder) if isinstance(encoder, Encoder) else encoder
    read = [part.features(reader) for part in (train, test)]
    shown, asked = (each[:, : encoder.dim] if isinstance(encoder, Encoder) else each for each in read)
    found = {label: accuracy(linear_probe, shown, asked, train, test, label) for label in CLASSES}
    for label in CLASSES:
        ways = [accuracy(linear_probe, shown, asked, train, test, label, a, b) for a, b in permutations(SPEAKERS)]
        found[f"{label}, across speakers"] = sum(ways) / len(ways)
    if isinstance(encoder, Encoder):
        attend = partial(attentive_probe, heads=encoder.config.transformer.heads, seed=SEED)
        shown, asked = (each[:, encoder.dim :].unflatten(1, (-1, encoder.dim)) for each in read)
        found |= {f"{label}, attentive": accuracy(attend, shown, asked, train, test, label) for label in CLASSES}
    return {name: round(value, 1) for name, value in found.items()}


def accuracy(
    probe: Callable[[Tensor, Tensor], Any],
    shown: Tensor,
    asked: Tensor,
    train: Part,
    test: Part,
    label: str,
    teacher: str | None = None,
    pupil: str | None = None,
) -> float:
    """Of a probe that is shown the sounds of `teacher` and asked about those of `pupil`, all where None."""
    known, classes = train.chosen(label, teacher)
    wanted, answers = test.chosen(label, pupil)
    predicted = probe(shown[known], classes[known]).predict(asked[wanted])
    return 100 * (predicted == answers[wanted]).double().mean().item()


def pretrained(method: AudioMAE, decoder: str, train: Part, test: Part, run: Path, options: argparse.Namespace) -> None:
    """Train one decoder's model into its run folder, or go on with what is there."""
    settings = TrainSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        warmup_steps=options.steps // 20,
        base_lr=1e-3 * 256 / options.batch_size,
        log_every=50,
        save_every=500,
        validate_every=max(1, options.steps // 4),
        seed=SEED,
    )
    pretrain(
        method,
        train.source,
        test.source,
        settings,
        run,
        view=SoundView(FRAMES, gain=True),
        held_out_view=SoundView(FRAMES),
        device=CPU,
        workers=options.workers,
        watch=64,
        context={"method": f"{decoder} decoder"},
    )


def statistics(train: Part) -> tuple[float, float]:
    """Mean and half the deviation of the training part's log-mel values, padding with them: the model, which divides by
    twice what it is given, reads values of unit variance."""
    values = torch.cat([batch["audio"].flatten() for batch in train.batches()])
    return round(values.mean().item(), 3), round(values.std().item() / 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learning-audio"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    data = at_the_models_rate(write_syllables(options.out.parent / "data" / "syllables"))
    train, test = Part.of(data, "train"), Part.of(data, "test")
    scale = statistics(train)
    encoders = {"random initialisation": objective("local", *scale).encoder}
    for decoder in DECODERS:
        method, run = objective(decoder, *scale), options.out / decoder
        pretrained(method, decoder, train, test, run, options)
        encoders[f"Audio-MAE, {decoder} decoder"] = method.encoder
        print(write_report(run), flush=True)
    rows: list[dict[str, Any]] = [{"encoder": "log-mel, 40 x 32", **accuracies(LogMel(), train, test)}]
    for name, encoder in encoders.items():
        rows.append({"encoder": name, **accuracies(encoder, train, test)})
        print(markdown(aligned(rows)), flush=True)
    for row, decoder in zip(rows[-len(DECODERS) :], DECODERS):
        row["training, minutes"] = minutes(options.out / decoder, options.batch_size)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    print(f"\n{device_name(CPU)}\n\n{write('learning-audio', CPU, {'settings': settings, 'rows': aligned(rows)})}")


if __name__ == "__main__":
    main()
