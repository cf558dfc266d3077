"""Sounds: mono at 16 kHz whatever the file, only what a clip needs, broken ones skipped with their reason."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.transforms import Resample

from mmssl.audio import log_mel, spectrograms
from mmssl.data import (
    BrokenSample,
    Keys,
    Ledger,
    Loader,
    MixedSource,
    SoundClips,
    SoundSource,
    SoundView,
    evaluation_batches,
    hold_out,
    notes,
    open_sounds,
)
from mmssl.errors import UserError

KINDS = {
    "a.wav": ("WAV", "PCM_16"),
    "b.flac": ("FLAC", "PCM_24"),
    "c.ogg": ("OGG", "VORBIS"),
    "d.opus": ("OGG", "OPUS"),
    "e.mp3": ("MP3", "MPEG_LAYER_III"),
    "f.wav": ("WAV", "PCM_U8"),
    "g.wav": ("WAV", "PCM_32"),
    "h.wav": ("WAV", "DOUBLE"),
    "i.aiff": ("AIFF", "PCM_24"),
}


def noise(seconds, rate=16000, channels=1, seed=0):
    """Noise without the highest octave, which codecs and resamplers drop."""
    slow = np.random.default_rng(seed).standard_normal((round(seconds * rate) // 4 + 2, channels)) * 0.1
    grid = np.arange(round(seconds * rate)) / 4
    return np.stack([np.interp(grid, np.arange(len(slow)), each) for each in slow.T], 1)


def write(path, seconds=0.5, rate=16000, channels=1, seed=0, **kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, rate, channels, seed), rate, **kind)
    return path


def keys(count=1, seed=0, sample=0, epoch=0):
    fixed = torch.full((count,), sample), torch.full((count,), epoch)
    return Keys(seed, *fixed, torch.arange(count))


def whole(path):
    """The file as soundfile and torchaudio give it when told to read all of it."""
    values, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return Resample(rate, 16000)(torch.from_numpy(values.mean(1)))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for label in ("bark", "meow"):
        for k in range(4):
            write(root / label / f"{k}.wav", 0.3 + 0.1 * k, seed=hash((label, k)) % 99)
    return root


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (48000, 2)])
def test_every_kind_gives_the_part_that_cutting_the_whole_would_give(tmp_path, name, rate, channels):
    path = write(tmp_path / name, 2.0, rate, channels, **dict(zip(("format", "subtype"), KINDS[name])))
    source, expected = SoundSource(tmp_path, SoundClips(0.25)), whole(path)
    slots = keys(count=6)
    starts = source.clips.starts(len(expected), slots)
    assert len(set(starts)) == 6
    for start, sample in zip(starts, source.draw(0, slots), strict=True):
        assert sample["waveform"].shape == (4000,)
        torch.testing.assert_close(sample["waveform"], expected[start : start + 4000], rtol=0, atol=2e-6)
    everything = SoundSource(tmp_path, SoundClips(60.0)).read(0)["waveform"]
    torch.testing.assert_close(everything, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 96000, 192000])
def test_every_rate_gives_parts_of_the_resampled_whole_up_to_its_ends(tmp_path, rate):
    expected = whole(write(tmp_path / "a.wav", 1.0, rate))
    for seed in range(8):
        source = SoundSource(tmp_path, SoundClips(0.96))
        (start,) = source.clips.starts(len(expected), keys(seed=seed))
        (sample,) = source.draw(0, keys(seed=seed))
        torch.testing.assert_close(sample["waveform"], expected[start : start + 15360], rtol=0, atol=2e-6)


def test_an_odd_rate_is_taken_for_the_next_that_needs_no_endless_table(tmp_path):
    """44101 Hz would take gigabytes."""
    tone = np.sin(2 * math.pi * 1000 * np.arange(44101) / 44101)
    soundfile.write(tmp_path / "a.wav", tone, 44101)
    made = SoundSource(tmp_path, SoundClips(2.0)).read(0)["waveform"]
    assert abs(len(made) - 16000) <= 1
    assert torch.fft.rfft(made[:16000]).abs().argmax() == 1000


def test_only_what_a_clip_needs_is_read(tmp_path, monkeypatch):
    write(tmp_path / "a.wav", 60.0, 8000)
    read, original = [], soundfile.SoundFile.read

    def counting(self, frames=-1, *args, **kwargs):
        read.append(frames)
        return original(self, frames, *args, **kwargs)

    source = SoundSource(tmp_path, SoundClips(0.5))
    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    next(source.draw(0, keys()))
    assert sum(read) < 4100


def test_starts_are_random_in_training_and_spread_in_evaluation():
    starts = SoundClips(1.0).starts(16008, keys(count=4000))
    counts = np.bincount(starts, minlength=9)
    assert len(counts) == 9 and np.abs(counts - 4000 / 9).max() < 5 * math.sqrt(4000 / 9)
    assert SoundClips(1.0, spread=1).starts(32000, keys()) == [8000]
    assert SoundClips(1.0, spread=4).starts(32000, keys(4)) == [2000, 6000, 10000, 14000]
    assert SoundClips(1.0).starts(50, keys(3)) == [0, 0, 0]
    with pytest.raises(UserError, match=r"at least 0\.025 seconds"):
        SoundClips(0.01)


def test_folders_are_classes_and_manifests_name_them(tree, tmp_path):
    source = open_sounds(tree, None, SoundClips(0.2))
    assert (source.classes, source.labels) == (["bark", "meow"], [0] * 4 + [1] * 4)
    write(tmp_path / "a.wav")
    write(tmp_path / "b.wav")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(json.dumps({"path": f"{n}.wav", "label": n, "tone": n * 2}) + "\n" for n in "ba"))
    listed = open_sounds(manifest, "train", SoundClips(0.2))
    assert (listed.paths, listed.labels, listed.classes) == (["b.wav", "a.wav"], [1, 0], ["a", "b"])
    assert open_sounds(manifest, None, SoundClips(0.2), label="tone").classes == ["aa", "bb"]
    with pytest.raises(UserError, match=r"No row of the manifest .* has a 'tune'"):
        open_sounds(manifest, None, SoundClips(0.2), label="tune")
    with pytest.raises(UserError, match=r"classes of .* are its folders"):
        open_sounds(tree, None, SoundClips(0.2), label="tone")
    (tmp_path / "bad.csv").write_text("file\na.wav\n")
    with pytest.raises(UserError, match="name each sound's file"):
        open_sounds(tmp_path / "bad.csv", None, SoundClips(0.2))


def broken_files(root):
    """Each broken file by its name, with what is said of it."""
    good = write(root / "good.wav").read_bytes()
    values = noise(0.5)
    (root / "empty.wav").write_bytes(b"")
    (root / "text.wav").write_text("this is no sound at all")
    (root / "cut.wav").write_bytes(good[: len(good) // 2])
    (root / "rate.wav").write_bytes(good[:24] + bytes(4) + good[28:])
    soundfile.write(root / "slow.wav", values, 5)
    soundfile.write(root / "one.wav", values[:1], 16000)
    soundfile.write(root / "none.wav", values[:0], 16000)
    soundfile.write(root / "silent.wav", np.zeros(16000), 16000)
    values[77] = np.nan
    soundfile.write(root / "nan.wav", values, 16000, subtype="FLOAT")
    for name, kind in {"cut.ogg": "VORBIS", "cut.opus": "OPUS"}.items():
        data = write(root / name, 4.0, 48000, format="OGG", subtype=kind).read_bytes()
        (root / name).write_bytes(data[: len(data) * 2 // 3])
    for name in ("cut.flac", "cut.mp3"):
        data = write(root / name, 4.0).read_bytes()
        (root / name).write_bytes(data[: len(data) * 2 // 3])
    (root / "film.mp3").write_bytes(b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2" + bytes(200))
    (root / "gone.wav").symlink_to(root / "nowhere")
    return {
        "empty.wav": "is empty",
        "text.wav": "is no sound: its content",
        "cut.wav": "is cut short",
        "rate.wav": "without a possible sample rate",
        "slow.wav": "has a sample rate of 5 Hz",
        "one.wav": "lasts 0.1 ms",
        "none.wav": "lasts 0.0 ms",
        "silent.wav": "is silent from beginning to end",
        "nan.wav": "not finite",
        "cut.ogg": "is cut short",
        "cut.opus": "is cut short",
        "cut.flac": "is damaged or cut short",
        "cut.mp3": "is cut short",
        "film.mp3": "is no sound: its content",
        "gone.wav": "cannot be opened",
    }


def test_broken_files_are_skipped_with_their_reason_and_counted(tmp_path):
    reasons = broken_files(tmp_path)
    source = SoundSource(tmp_path, SoundClips(60.0))
    for index, name in enumerate(source.paths):
        if name == "good.wav":
            continue
        with pytest.raises(BrokenSample) as error:
            source.read(index)
        assert reasons[name] in error.value.reason, (name, error.value.reason)
    ledger = Ledger()
    batches = list(evaluation_batches(source, SoundView(64), batch_size=4, ledger=ledger))
    assert ledger.seen == sum(len(batch["audio"]) for batch in batches) == 1
    assert {name for name, _ in ledger.skipped} == set(reasons)
    loader = Loader(source, SoundView(64), batch_size=16, ceiling=1.0)
    (batch,) = loader.batches(0, 1)
    assert batch["audio"].shape == (16, 1, 64, 128) and batch["audio"].isfinite().all()
    assert loader.ledger.seen + len(loader.ledger.skipped) == 16


def test_a_silent_part_of_a_sound_is_a_sample_and_a_streamed_header_promises_nothing(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.concatenate([np.zeros(32000), noise(0.1)[:, 0]]), 16000)
    source = SoundSource(tmp_path, SoundClips(0.5))
    assert any((sample["waveform"] == 0).all() for sample in source.draw(0, keys(10)))
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(data)
    assert SoundSource(tmp_path, SoundClips(60.0)).read(0)["waveform"].shape == (33600,)


def test_what_holds_no_sound_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "film.mp4").write_bytes(bytes(9))
    with pytest.raises(UserError, match=r"has files but no sound; sounds end in \.wav, .*1 \.mp4"):
        open_sounds(tmp_path, None, SoundClips())
    with pytest.raises(UserError, match="is a file, not a folder; give a folder of sounds"):
        open_sounds(tmp_path / "film.mp4", None, SoundClips())
    (tmp_path / "list.csv").write_text("path\nmissing.wav\n")
    with pytest.raises(UserError, match=r"holds no readable sound.*missing\.wav, cannot be opened"):
        open_sounds(tmp_path / "list.csv", None, SoundClips())


# Views


def test_a_batch_is_the_log_mel_of_its_sounds_padded(tree):
    source = SoundSource(tree, SoundClips(0.5, spread=1))
    (batch,) = evaluation_batches(source, SoundView(64), batch_size=8)
    for index in range(8):
        expected = log_mel(source.read(index)["waveform"][None], 64)[0]
        torch.testing.assert_close(batch["audio"][index], expected, rtol=0, atol=1e-5)
    assert batch["label"].tolist() == source.labels


@pytest.mark.parametrize("workers", [0, 2])
def test_the_device_makes_the_same_bits_as_the_workers(tree, workers):
    settings = {"gain": True, "roll": True, "spec_augment": (20, 30)}
    plain = SoundSource(tree, SoundClips(0.4))
    for frames, source in ((32, MixedSource(plain, 0.5)), (64, plain)):
        options = {"batch_size": 6, "partners": source is plain}
        here = Loader(source, SoundView(frames, **settings), workers=workers, **options)
        there = Loader(source, SoundView(frames, on_device=True, **settings), **options)
        for one, other in zip(here.batches(0, 2), there.batches(0, 2), strict=True):
            made = spectrograms(other)
            assert made.keys() == one.keys() and all(torch.equal(made[name], one[name]) for name in one)
            assert ("audio.partner" in made) == (source is plain)
            assert spectrograms(one).keys() == one.keys()


def test_no_number_of_threads_changes_a_bit(tmp_path):
    """torch takes the mean of more than 32768 values in one part a thread; workers have one thread."""
    for k in range(6):
        write(tmp_path / f"{k}.wav", 6.0, seed=k, subtype="FLOAT")
    loader = Loader(SoundSource(tmp_path, SoundClips(5.0)), SoundView(500, gain=True), batch_size=6)
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            made += [batch["audio"] for batch in loader.batches(0, 1)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def sample_of(waveform, **more):
    return {"waveform": waveform, **more}


def test_gain_and_roll_are_what_the_authors_meant():
    waveform = torch.randn(4000)
    plain = SoundView(24, on_device=True)([sample_of(waveform)], keys())["waveform"]
    gains = SoundView(24, gain=True, on_device=True)([sample_of(waveform)] * 1000, keys(1000))["waveform"]
    factors = (gains @ plain[0]) / (plain[0] @ plain[0])
    assert factors.min() > 0.5 and factors.max() < 1.5
    assert factors.mean().item() == pytest.approx(1.0, abs=0.01)
    assert factors.var().item() == pytest.approx(1 / 84, rel=0.2)  # Beta(10, 10)'s
    short = torch.randn(800)
    rolled = SoundView(8, roll=True, on_device=True)([sample_of(short)] * 50, keys(50))
    rows, centred = rolled["waveform"][:, :800], short - short.mean()
    shifts = (rows.argmax(1) - short.argmax()).tolist()
    assert all(torch.equal(row, centred.roll(shift)) for row, shift in zip(rows, shifts))
    assert len(set(shifts)) > 40


def test_spec_augment_hides_one_run_of_frames_and_one_of_bands():
    view = SoundView(32, spec_augment=(10, 20))
    samples = [sample_of(torch.randn(6000) + 0.1)] * 300
    hidden = view(samples, keys(300))["audio"][:, 0] == 0
    plain = SoundView(32)(samples, keys(300))["audio"][:, 0]
    assert not (plain == 0).any()
    frames, bands = hidden.all(2), hidden.all(1)
    assert (hidden == (frames[:, :, None] | bands[:, None, :])).all()
    assert frames.sum(1).max() == 9 and bands.sum(1).max() == 19
    for runs in (frames, bands):
        assert ((runs.int().diff(dim=1) == 1).sum(1) + runs[:, 0] <= 1).all()
        assert runs.any(0).sum() >= runs.shape[1] - 2
    with pytest.raises(UserError, match="hides at most all 32 frames and 128 bands"):
        SoundView(32, spec_augment=(33, 0))


def test_partners_are_other_sounds_of_the_same_set_and_mixed_in(tree):
    train, _ = hold_out(SoundSource(tree, SoundClips(0.3)), 0.25)
    source = MixedSource(train, 0.5)
    loader = Loader(source, SoundView(32, on_device=True), batch_size=6, repeats=20)
    mixed_rows = total = 0
    for batch in loader.batches(0, 20):
        alone = batch["share"] == 1
        assert (batch["partner"][alone] == batch["sample_id"][alone]).all()
        assert (batch["partner"] < len(train)).all()
        assert ((batch["share"] > 0) & (batch["share"] <= 1)).all()
        mixed_rows, total = mixed_rows + int((~alone).sum()), total + len(alone)
    assert 0.3 < mixed_rows / total < 0.7
    again = Loader(source, SoundView(32, on_device=True), batch_size=6, repeats=20).batches(19, 20)
    assert all(torch.equal(value, batch[name]) for name, value in next(again).items())
    assert notes(source) == notes(train.source) and "mixed=0.5" in source.sampling


def test_a_mix_is_the_weighted_sum_the_partner_padded_or_cut():
    one, short, long = torch.randn(1000) + 0.3, torch.randn(600) - 0.2, torch.randn(1500)
    for partner in (short, long):
        sample = sample_of(one, partner=torch.tensor(3), **{"waveform.partner": partner})
        batch = SoundView(4, on_device=True)([sample], keys())
        share, fitted = batch["share"], torch.zeros(1000)
        fitted[: len(partner)] = (partner - partner.mean())[:1000]
        expected = share * (one - one.mean()) + (1 - share) * fitted
        expected = (expected - expected.mean())[:880]
        assert 0.1 < share.item() < 0.9 and batch["partner"].tolist() == [3]
        torch.testing.assert_close(batch["waveform"][0], expected, rtol=0, atol=1e-6)


def test_a_broken_partner_is_passed_over(tmp_path):
    write(tmp_path / "good.wav")
    for k in range(3):
        (tmp_path / f"bad{k}.wav").write_bytes(b"RIFF")
    source = MixedSource(SoundSource(tmp_path, SoundClips(0.1)), 1.0)
    assert {sample["partner"].item() for sample in source.draw(3, keys(8, sample=3))} == {3}
