"""Sounds: inputs are those of the stock feature extractor, from every source; what cannot be read is told."""

import sys

import datasets
import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from backbones import Backbone
from backbones.errors import HeadsetError
from heads import AudioClassification
from headset import Headset
from headset.audio_encoder import AudioEncoder
from headset.batches import make_batch
from headset.data import TextData

LABELS = ("high", "low")


@pytest.fixture
def extractor(tiny_models):
    return AutoFeatureExtractor.from_pretrained(tiny_models["audio"])


@pytest.fixture
def folder(tmp_path, sound):
    """Three sounds each, of different lengths."""
    for index in range(6):
        pitch = 200 if index % 2 else 2000
        sound(tmp_path / "tones" / LABELS[index % 2] / f"{index}.wav", index, pitch, seconds=0.05 * (index + 1))
    return tmp_path / "tones"


def connected(extractor, **settings):
    data = TextData(**settings)
    data.connect(extractor, {"pitch": AudioClassification()}, {})
    return data


def first_batch(extractor, **settings):
    data = connected(extractor, **settings)
    data.setup("fit")
    return next(iter(data.val_dataloader()))


def waves(paths):
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


def same(batch, expected):
    assert batch.keys() - {"meta", "labels"} == expected.keys()
    assert all(torch.equal(batch[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("extractor", "settings"),
    [
        (Wav2Vec2FeatureExtractor(return_attention_mask=True), {"padding": True}),
        (Wav2Vec2FeatureExtractor(return_attention_mask=False), {"padding": True}),
        (ASTFeatureExtractor(num_mel_bins=16, max_length=20), {}),
        (WhisperFeatureExtractor(feature_size=8, chunk_length=1), {"padding": "max_length"}),
    ],
    ids=["mask", "no mask", "spectrogram of one size", "whisper"],
)
def test_inputs_are_those_of_the_feature_extractor(extractor, settings, folder):
    paths = sorted(folder.rglob("*.wav"))
    expected = extractor(waves(paths), sampling_rate=16000, return_tensors="pt", **settings)
    same(make_batch(AudioEncoder(extractor), paths), dict(expected))


def test_folders_and_tables(extractor, folder, tmp_path, monkeypatch):
    paths = sorted(folder.rglob("*.wav"))
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in paths]
    (tmp_path / "table.csv").write_text("\n".join(["audio,label", *rows]))
    features = datasets.Features({"audio": datasets.Audio(decode=False), "label": datasets.Value("string")})
    inside = {"audio": [{"bytes": path.read_bytes(), "path": None} for path in paths]}
    inside["label"] = [path.parent.name for path in paths]
    table = datasets.Dataset.from_dict(inside | {"audio": [str(path) for path in paths]}).cast(features)
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "table.parquet")
    expected = extractor(waves(paths), sampling_rate=16000, return_tensors="pt", padding=True)
    monkeypatch.chdir("/")
    for name in ("tones", "table.csv", "saved", "table.parquet"):
        batch = first_batch(extractor, train=str(tmp_path / name), validation=str(tmp_path / name))
        same(batch, dict(expected))
        assert batch["labels"]["pitch"].tolist() == [0, 0, 0, 1, 1, 1]


def test_folders_of_splits_and_without_labels(extractor, folder, sound):
    for split in ("train", "test"):
        for label in LABELS:
            sound(folder / "all" / split / label / "a.wav")
    data = connected(
        extractor, train=str(folder / "all"), test=str(folder / "all"), predict=str(folder / "high"), batch_size=2
    )
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    assert {split: len(data.datasets[split][""]) for split in data.datasets} == {"train": 2, "test": 2, "predict": 3}


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_formats_rates_and_channels(extractor, tmp_path, sound, suffix):
    path = sound(tmp_path / f"a.{suffix}", rate=44100, channels=2)
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 44100 and samples.ndim == 2
    wave = soxr.resample(samples.mean(axis=1), rate, 16000)
    same(make_batch(AudioEncoder(extractor), [path]), dict(extractor(wave, sampling_rate=16000, return_tensors="pt")))


def test_paths_arrays_and_arrays_with_a_rate(extractor, tmp_path, sound):
    path = sound(tmp_path / "a.wav", rate=8000)
    samples, rate = soundfile.read(path, dtype="int16")
    encoder = AudioEncoder(extractor)
    batches = [make_batch(encoder, [one]) for one in (path, (samples, rate), (samples / 2**15, rate))]
    batches.append(make_batch(encoder, [soxr.resample(samples.astype(np.float32) / 2**15, rate, 16000)]))
    for batch in batches[1:]:
        torch.testing.assert_close(batch["input_values"], batches[0]["input_values"])


def test_a_sound_is_answered_as_it_is_alone_where_there_is_a_mask(tiny_models, extractor, folder):
    backbone = Backbone.from_pretrained(str(tiny_models["audio"]))
    headset = Headset(backbone, {"pitch": AudioClassification()}, {"pitch": LABELS}, processor=extractor)
    paths = sorted(folder.rglob("*.wav"))
    together, alone = (
        headset.predict(paths, batch_size=size, allow_untrained=True)["pitch"] for size in (len(paths), 1)
    )
    assert [row["score"] for row in together] == pytest.approx([row["score"] for row in alone], abs=1e-5)


def test_long_sounds_are_cut_and_counted(extractor, folder, caplog):
    caplog.set_level("INFO")
    batch = first_batch(extractor, train=str(folder), validation=str(folder), max_seconds=0.1)
    assert batch["input_values"].shape == (6, 1600)
    assert "6 rows" in caplog.text and "; 4 of them cut to 0.1 seconds" in caplog.text
    with pytest.raises(HeadsetError, match="Invalid max_seconds: 0"):
        connected(extractor, train=str(folder), max_seconds=0.0).setup("fit")


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        ("wav", halved, "is not whole: its end is missing"),
        ("aiff", halved, "is not whole: its end is missing"),
        ("mp3", halved, "is not whole: its end is missing"),
        ("flac", halved, "cannot be read: "),
        ("ogg", halved, "is not whole: its end is missing"),
        ("wav", lambda path: path.write_text("This is no sound."), "cannot be read: "),
        ("wav", lambda path: soundfile.write(path, np.zeros(0), 16000), "is 0 seconds long; at least 0.025"),
        ("wav", lambda path: soundfile.write(path, np.ones(100), 16000), "is 0.00625 seconds long; at least 0.025"),
        ("wav", lambda path: soundfile.write(path, np.full(9000, np.nan), 16000, "FLOAT"), "not finite"),
        ("wav", lambda path: path.unlink(), "there is no file"),
    ],
)
def test_damaged_files_are_told_before_training(extractor, tmp_path, sound, suffix, damage, message):
    paths = [sound(tmp_path / f"{index}.{suffix}", index, seconds=1) for index in range(3)]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(f'{{"audio": "{path.name}", "label": "{path.stem}"}}\n' for path in paths))
    connected(extractor, train=str(table)).setup("fit")
    damage(paths[1])  # also after a check that is in the cache
    with pytest.raises(HeadsetError) as caught:
        connected(extractor, train=str(table)).setup("fit")
    assert f"train: {table}, line 2: column 'audio': " in str(caught.value) and message in str(caught.value)


def test_files_written_as_a_stream_are_whole(extractor, tmp_path, sound):
    content = bytearray(sound(tmp_path / "a.wav", seconds=1).read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff" * 4  # a program that pipes its output does not know the size
    (tmp_path / "piped.wav").write_bytes(content)
    whole, piped = (make_batch(AudioEncoder(extractor), [tmp_path / name]) for name in ("a.wav", "piped.wav"))
    assert torch.equal(whole["input_values"], piped["input_values"])


def test_what_is_no_sound_is_told(extractor):
    for wrong, message in {
        "no.wav": "there is no file no.wav",
        3: "expected the path of a file",
        (): "expected a tuple of an array and its sampling rate",
    }.items():
        with pytest.raises(HeadsetError, match=message):
            make_batch(AudioEncoder(extractor), [wrong])
    with pytest.raises(HeadsetError, match="takes a list of sounds, got one ndarray"):
        make_batch(AudioEncoder(extractor), np.zeros(9000))
    with pytest.raises(HeadsetError, match="ViTImageProcessorPil is no feature extractor for sounds"):
        AudioEncoder(ViTImageProcessorPil())
    with pytest.raises(HeadsetError, match="Mix several channels"):
        make_batch(AudioEncoder(extractor), [np.zeros((2, 9000))])


@pytest.mark.parametrize("module", ["soundfile", "soxr"])
def test_without_the_libraries_the_extra_is_named(extractor, tmp_path, sound, monkeypatch, module):
    path = sound(tmp_path / "a.wav", rate=8000)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HeadsetError, match=rf"{module} is needed .*pip install 'headset\[audio\]'"):
        make_batch(AudioEncoder(extractor), [path])
